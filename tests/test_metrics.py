"""Signal-to-distortion ratios in closed form."""

import jax
import numpy as np
import pytest

from audiosep_jax.evaluation.metrics import sdr, sdr_improvement, si_sdr

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
