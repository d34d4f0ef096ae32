"""Signal-to-distortion ratios in closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from evaluation_examples import slow_sdr, slow_si_sdr
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from audiosep_jax.errors import InputError
from audiosep_jax.metrics import (
    sdr,
    sdr_improvement,
    separation_scores,
    si_sdr,
    si_sdr_improvement,
)

S = 1000
SCORES_WITH_GRADIENT = [
    jax.jit(jax.value_and_grad(lambda x, target, score=score: score(target, x)[0]))
    for score in (sdr, si_sdr)
]
FLOOR_DB = 10 * np.log10(np.finfo(np.float32).eps)


def orthogonal_pair():
    """Two unit-power signals without anything in common."""
    phase_S = 2 * np.pi * np.arange(S) / S
    pair = np.sqrt(2) * np.stack([np.sin(3 * phase_S), np.sin(7 * phase_S)])
    return pair.astype(np.float32)[:, None]


@pytest.mark.parametrize("snr_db", [-20, -3, 0, 10, 30])
def test_known_snr(snr_db):
    target_BS, noise_BS = orthogonal_pair()
    estimate_BS = target_BS + 10 ** (-snr_db / 20) * noise_BS
    assert sdr(target_BS, estimate_BS)[0] == pytest.approx(snr_db, abs=1e-3)
    assert si_sdr(target_BS, estimate_BS)[0] == pytest.approx(snr_db, abs=1e-3)


def test_wrong_gain_counts_for_sdr_alone():
    target_BS, noise_BS = orthogonal_pair()
    assert sdr(target_BS, 0.5 * target_BS)[0] == pytest.approx(20 * np.log10(2), abs=1e-3)
    noisy_BS = target_BS + 0.1 * noise_BS
    for gain in (0.01, 0.5, -3, 100):
        assert si_sdr(target_BS, gain * noisy_BS)[0] == pytest.approx(20, abs=1e-2)


def test_improvement_is_over_the_mixture():
    target_BS, noise_BS = orthogonal_pair()
    mixture_BS = target_BS + noise_BS
    improvement_B = sdr_improvement(target_BS, target_BS + 0.1 * noise_BS, mixture_BS)
    assert improvement_B[0] == pytest.approx(20, abs=1e-3)
    assert sdr_improvement(target_BS, mixture_BS, mixture_BS)[0] == 0


def test_every_row_has_its_own_score():
    target_BS, noise_BS = (np.repeat(x, 3, axis=0) for x in orthogonal_pair())
    gains_B = np.float32([1, 0.1, 0.01])
    estimate_BS = target_BS + gains_B[:, None] * noise_BS
    for score in (sdr, si_sdr):
        np.testing.assert_allclose(score(target_BS, estimate_BS), [0, 20, 40], atol=1e-2)


def test_silence_is_defined():
    target_BS, _ = orthogonal_pair()
    silence_BS = np.zeros_like(target_BS)
    # The floor of SDR is 1e-10 of the mean square: 100 dB.
    assert sdr(target_BS, target_BS)[0] == pytest.approx(100, abs=1e-3)
    assert sdr(target_BS, silence_BS)[0] == pytest.approx(0, abs=1e-6)
    assert sdr(silence_BS, target_BS)[0] == pytest.approx(-100, abs=1e-3)
    assert sdr(silence_BS, silence_BS)[0] == 0
    assert si_sdr(silence_BS, silence_BS)[0] == 0
    assert si_sdr(target_BS, silence_BS)[0] == pytest.approx(0, abs=1e-3)
    # Epsilon over the estimate's energy, which is S.
    expected = FLOOR_DB - 10 * np.log10(S)
    assert si_sdr(silence_BS, target_BS)[0] == pytest.approx(expected, abs=1e-3)
    assert si_sdr(target_BS, target_BS)[0] > 90


@pytest.mark.parametrize("scale", [0, 1e-30, 1e-6, 1, 1e6])
@pytest.mark.parametrize("share", [-1, 0, 0.5, 1])
def test_scores_and_gradients_are_finite(scale, share):
    target_BS, other_BS = scale * np.random.default_rng(0).standard_normal((2, 1, 16))
    estimate_BS = (share * target_BS + (1 - abs(share)) * other_BS).astype(np.float32)
    target_BS = target_BS.astype(np.float32)
    for value_and_gradient in SCORES_WITH_GRADIENT:
        value, gradient = value_and_gradient(estimate_BS, target_BS)
        assert np.isfinite(value)
        assert np.isfinite(gradient).all()


samples = st.one_of(
    st.just(0.0), st.floats(-1, 1, width=32), st.sampled_from([1e-12, -1e-6, 1e-3, 30.0])
)
clips = st.integers(1, 40).flatmap(
    lambda n: st.tuples(*[hnp.arrays(np.float32, n, elements=samples)] * 3)
)


@settings(deadline=None, max_examples=200)
@given(clips)
def test_scores_equal_a_slow_reference(three):
    reference_S, estimate_S, mixture_S = three
    found = separation_scores(reference_S, estimate_S, mixture_S)
    expected = {
        "sdr": slow_sdr(reference_S, estimate_S),
        "si_sdr": slow_si_sdr(reference_S, estimate_S),
        "mixture_sdr": slow_sdr(reference_S, mixture_S),
        "mixture_si_sdr": slow_si_sdr(reference_S, mixture_S),
    }
    expected["sdri"] = expected["sdr"] - expected["mixture_sdr"]
    expected["si_sdri"] = expected["si_sdr"] - expected["mixture_si_sdr"]
    assert found == pytest.approx(expected, abs=1e-7)
    # Batched, on numpy's side.
    batch = [np.stack([x, x[::-1]]) for x in three]
    assert sdr_improvement(*batch)[0] == pytest.approx(expected["sdri"], abs=1e-7)
    assert si_sdr_improvement(*batch)[1] == pytest.approx(expected["si_sdri"], abs=1e-6)


@pytest.mark.parametrize("loudness", [1e-3, 1, 30])
@pytest.mark.parametrize("error", [1e-4, 0.3, 10])
def test_float32_under_jit_keeps_up_with_float64(loudness, error):
    # A clip of half a minute at 32 kHz, with an offset, as a running sum in float32 likes least.
    rng = np.random.default_rng(1)
    reference_S, noise_S = 1 + rng.standard_normal((2, 1_000_003))
    reference_S = (loudness * reference_S).astype(np.float32)
    estimate_S = (reference_S + loudness * error * noise_S).astype(np.float32)
    exact = separation_scores(reference_S, estimate_S, estimate_S)
    for name, score in (("sdr", sdr), ("si_sdr", si_sdr)):
        quick = jax.jit(score)(jnp.asarray(reference_S), jnp.asarray(estimate_S))
        assert float(quick) == pytest.approx(exact[name], abs=1e-4)


def test_one_sample_late_is_an_error():
    noise_S = np.random.default_rng(2).standard_normal(S)
    late_S = np.roll(noise_S, 1)
    # Neighbours have nothing in common: the error is twice the signal.
    assert separation_scores(noise_S, late_S, late_S)["sdr"] == pytest.approx(-3, abs=0.5)
    assert separation_scores(noise_S, noise_S, late_S)["sdri"] == pytest.approx(103, abs=0.5)


def test_other_lengths_are_cut_or_continued_by_silence():
    reference_S, estimate_S = np.random.default_rng(3).standard_normal((2, 100))
    longer_S = np.append(estimate_S, [9.0] * 7)
    shorter_S = estimate_S[:60]
    padded_S = np.append(shorter_S, np.zeros(40))
    expected = separation_scores(reference_S, padded_S, estimate_S)
    assert separation_scores(reference_S, shorter_S, longer_S) == expected
    for score in (sdr, si_sdr):
        with pytest.raises(InputError, match="one length above 0, not of 100 and 60 samples"):
            score(reference_S, shorter_S)
        with pytest.raises(InputError, match="not of 0 and 0"):
            score(reference_S[:0], shorter_S[:0])


def test_halving_a_mixture_at_0_db_gains_3_db_of_sdri_and_nothing_of_si_sdri():
    """SDRi alone can praise a separator that has learnt nothing but to be quieter."""
    target_S, noise_S = (x[0].astype(np.float64) for x in orthogonal_pair())
    mixture_S = target_S + noise_S
    found = separation_scores(target_S, mixture_S / 2, mixture_S)
    assert found["mixture_sdr"] == pytest.approx(0, abs=1e-6)
    assert found["sdri"] == pytest.approx(20 * np.log10(2**0.5), abs=1e-5)
    assert found["si_sdri"] == pytest.approx(0, abs=1e-5)
