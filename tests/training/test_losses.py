"""Loss terms in closed form, and their weighted sum."""

import dataclasses

import jax
import numpy as np
import pytest
from golden_towers import recipe
from separator_examples import TINY

from audiosep_jax.errors import InputError
from audiosep_jax.model.stft import stft
from audiosep_jax.training.losses import (
    TERMS,
    LossConfig,
    Outputs,
    activity,
    loss_terms,
    multi_resolution_stft,
    spectrum_l1,
    thresholded_snr,
    total_loss,
    waveform_l1,
)

ALL = LossConfig(waveform_l1=2.0, spectrum_l1=0.5, negative_si_sdr=0.01)
EVERY = LossConfig(**dict.fromkeys(TERMS, 1.0))


HEADED = dataclasses.replace(TINY, activity="report")


def pair():
    return recipe.waveform(1, 2, 200), recipe.waveform(2, 2, 200)


def terms_of(config, estimate_BS, target_BS, model=HEADED):
    batch = {"mixture": target_BS, "target": target_BS}
    frames = estimate_BS.shape[1] // TINY.hop_samples + 1
    mask_BTFC = np.zeros((len(estimate_BS), frames, TINY.num_bins, 3), np.float32)
    return loss_terms(config, model, Outputs(estimate_BS, mask_BTFC), batch)


def test_waveform_l1():
    estimate_BS = np.array([[1, 2, 3], [0, 0, -6]], np.float32)
    target_BS = np.array([[1, 0, 0], [0, 0, 1]], np.float32)
    assert waveform_l1(estimate_BS, target_BS) == pytest.approx((2 + 3 + 7) / 6)


def test_spectrum_l1_of_a_cosine():
    # cos(2 pi k n / W) has W/4 in bin k and, through the Hann window, -W/8 in both neighbours.
    window, hop, k = 64, 16, 8
    n = np.arange(64 * 50)
    error_BS = 3 * np.cos(2 * np.pi * k * n / window, dtype=np.float32)[None]
    loss = spectrum_l1(error_BS, np.zeros_like(error_BS), window, hop)
    inner_frames = 3 * (window / 4 + 2 * window / 8) / (window // 2 + 1) / np.sqrt(window)
    # Hop times k is a multiple of the period: every frame starts at phase 0.
    assert loss == pytest.approx(inner_frames, rel=0.02)  # the mirror at the ends shifts the phase


def test_spectrum_l1_is_of_the_difference():
    estimate_BS, target_BS = pair()
    loss = float(spectrum_l1(estimate_BS, target_BS, 32, 8))
    assert spectrum_l1(target_BS, target_BS, 32, 8) == 0
    assert spectrum_l1(estimate_BS - target_BS, 0 * target_BS, 32, 8) == pytest.approx(
        loss, rel=1e-5
    )
    assert spectrum_l1(3 * estimate_BS, 3 * target_BS, 32, 8) == pytest.approx(3 * loss, rel=1e-5)


def test_negative_si_sdr_falls_as_the_estimate_improves():
    _, target_BS = pair()
    noise_BS = np.random.default_rng(0).standard_normal(target_BS.shape).astype(np.float32)
    # Orthogonal to the target and as strong: gain g makes an SI-SDR of -20 log10(g).
    noise_BS -= (
        (noise_BS * target_BS).sum(1, keepdims=True)
        / (target_BS**2).sum(1, keepdims=True)
        * target_BS
    )
    noise_BS *= np.linalg.norm(target_BS, axis=1, keepdims=True) / np.linalg.norm(
        noise_BS, axis=1, keepdims=True
    )
    config = LossConfig(waveform_l1=0, negative_si_sdr=1)
    for gain in (1, 0.1):
        terms = terms_of(config, 5 * (target_BS + gain * noise_BS), target_BS)
        assert terms["negative_si_sdr"] == pytest.approx(20 * np.log10(gain), abs=1e-3)


def test_multi_resolution_stft_of_a_change_of_gain_and_of_silence():
    audio_BS = recipe.waveform(1, 2, 4096)
    windows = (64, 128)
    magnitudes = [np.abs(stft(audio_BS, w, w // 4)) / np.sqrt(w) for w in windows]
    for gain in (2.0, 0.0):
        expected = np.mean(
            [
                np.mean(abs(1 - gain) * x + np.abs(np.log((gain * x + 1e-3) / (x + 1e-3))))
                for x in magnitudes
            ]
        )
        loss = multi_resolution_stft(gain * audio_BS, audio_BS, windows)
        assert loss == pytest.approx(float(expected), rel=1e-4)
        # An error of the whole target costs as much as an estimate of what is silence.
        assert multi_resolution_stft(audio_BS, gain * audio_BS, windows) == pytest.approx(loss)
    assert multi_resolution_stft(audio_BS, -audio_BS, windows) == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize(
    ("target_gain", "error_gain", "loss"),
    [
        (1, 0.1, 10 * np.log10(0.01 + 1e-3)),
        (1, 0, -30),  # a perfect estimate
        (0, 0, -20),  # silence for an absent target
        (0, 1, 10 * np.log10(1 + 1e-2)),  # the whole mixture for an absent target
    ],
)
def test_thresholded_snr_has_floors(target_gain, error_gain, loss):
    mixture_BS = recipe.waveform(1, 2, 200)
    target_BS = target_gain * mixture_BS
    found = thresholded_snr(target_BS + error_gain * mixture_BS, target_BS, mixture_BS)
    assert found == pytest.approx(loss, abs=1e-3)


def test_activity_is_a_cross_entropy_in_frames_of_the_innermost_level():
    # A click in the middle of one of 16 frames, which the pool of TINY joins in pairs.
    model = dataclasses.replace(TINY, hop_samples=16)
    mixture_BS, target_BS = np.ones((3, 240), np.float32), np.zeros((3, 240), np.float32)
    target_BS[0, 16 * 5], target_BS[0, 16 * 12], target_BS[2] = 0.06, 0.03, 1
    active_BT = np.zeros((3, 8))
    active_BT[0, 2], active_BT[2] = 1, 1  # -37 dB counts, -43 dB does not; the second is absent
    logit_BT = np.log(np.arange(1, 25, dtype=np.float32)).reshape(3, 8)
    probability_BT = 1 / (1 + np.exp(-logit_BT))
    expected = -np.log(np.where(active_BT, probability_BT, 1 - probability_BT)).mean()
    loss = activity(np.repeat(logit_BT, 2, axis=1), target_BS, mixture_BS, model)
    assert loss == pytest.approx(expected, rel=1e-5)
    silence_BS = 0 * mixture_BS  # in which nothing is active
    expected = -np.log(1 - probability_BT).mean()
    loss = activity(np.repeat(logit_BT, 2, axis=1), silence_BS, silence_BS, model)
    assert loss == pytest.approx(expected, rel=1e-5)


def test_activity_needs_a_network_that_has_it():
    config = LossConfig(activity=0.1)
    with pytest.raises(InputError, match=r"loss\.activity needs model\.activity"):
        terms_of(config, *pair(), model=TINY)


def test_total_is_the_weighted_sum_of_the_wanted_terms():
    estimate_BS, target_BS = pair()
    terms = terms_of(ALL, estimate_BS, target_BS)
    expected = 2 * waveform_l1(estimate_BS, target_BS)
    expected += 0.5 * spectrum_l1(estimate_BS, target_BS, TINY.window_samples, TINY.hop_samples)
    expected += 0.01 * terms["negative_si_sdr"]
    assert total_loss(ALL, terms) == pytest.approx(float(expected), rel=1e-6)
    assert set(terms_of(LossConfig(), estimate_BS, target_BS)) == {"waveform_l1"}


def test_gradients_are_finite_on_silence():
    silence_BS = np.zeros((2, 50), np.float32)

    def total(estimate_BS):
        return total_loss(EVERY, terms_of(EVERY, estimate_BS, silence_BS))

    assert np.isfinite(jax.jit(jax.grad(total))(silence_BS)).all()


@pytest.mark.parametrize("changes", [{"waveform_l1": 0.0}, {"spectrum_l1": -1.0}])
def test_impossible_weights_are_refused(changes):
    with pytest.raises(InputError, match=f"{next(iter(changes))}=.* must be "):
        LossConfig(**changes)
