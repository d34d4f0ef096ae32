"""PESQ, STOI and segmental SNR by known values and closed forms."""

import pickle

import numpy as np
import pytest
import soundfile
from tiny_models import write_clap

from audiosep_jax.audio import files as audio_files
from audiosep_jax.evaluation import scores

RATE_HZ = 16000
pytestmark = pytest.mark.usefixtures("speech_packages")


def speech_like(seconds=3.0, seed=0):
    """A buzz of changing pitch, on and off as syllables are: enough of speech for PESQ and STOI."""
    time_S = np.arange(int(seconds * RATE_HZ)) / RATE_HZ
    phase_S = 2 * np.pi * np.cumsum(120 + 40 * np.sin(2 * np.pi * 0.7 * time_S)) / RATE_HZ
    buzz_S = sum(np.sin(k * phase_S) / k for k in range(1, 30))
    loudness_S = np.clip(np.sin(2 * np.pi * 3 * time_S), 0, 1) ** 0.5
    noise_S = np.random.default_rng(seed).standard_normal(len(time_S))
    return (0.1 * loudness_S * (buzz_S + 0.02 * noise_S)).astype(np.float32)


def noisy(reference_S, snr_db, seed=1):
    noise_S = np.random.default_rng(seed).standard_normal(len(reference_S))
    noise_S *= np.sqrt(np.mean(reference_S**2) / np.mean(noise_S**2)) * 10 ** (-snr_db / 20)
    return (reference_S + noise_S).astype(np.float32)


def clip(reference_S, estimate_S):
    return scores.Scored(reference_S, estimate_S, reference_S, RATE_HZ, "speech")


def test_a_perfect_estimate_has_the_highest_scores():
    reference_S = speech_like()
    values = scores.speech_scores(clip(reference_S, reference_S))
    assert values["pesq"] == pytest.approx(4.64, abs=0.01)
    assert values["stoi"] == pytest.approx(1.0, abs=1e-6)
    # Frames of silence have no more than the floor, the others the ceiling.
    assert -10 < values["segmental_snr"] <= 35


@pytest.mark.parametrize("num_samples", [1, 10, 400, 3000, 6400, 6500])
def test_the_shortest_clips_have_the_lowest_scores(num_samples):
    audio_S = speech_like()[2000 : 2000 + num_samples]
    values = scores.speech_scores(clip(audio_S, audio_S))
    assert 1 <= values["pesq"] <= 4.65
    assert values["stoi"] == (0 if num_samples < 6400 else pytest.approx(values["stoi"]))


def test_more_noise_scores_lower():
    reference_S = speech_like()
    rows = [scores.speech_scores(clip(reference_S, noisy(reference_S, snr))) for snr in (20, 5, -5)]
    for name in ("pesq", "stoi", "segmental_snr"):
        values = [row[name] for row in rows]
        assert values == sorted(values, reverse=True), name
        assert values[0] > values[2]


def test_other_rates_are_converted():
    reference_S, estimate_S = speech_like(), noisy(speech_like(), 5)
    pair_CS = np.stack([reference_S, estimate_S])
    up_CS = audio_files.resample(pair_CS, RATE_HZ, 32000)
    expected = scores.pesq_wide_band(reference_S, estimate_S, RATE_HZ)
    assert scores.pesq_wide_band(up_CS[0], up_CS[1], 32000) == pytest.approx(expected, abs=0.05)


def test_silence_has_the_lowest_scores():
    reference_S, silence_S = speech_like(), np.zeros(3 * RATE_HZ, np.float32)
    for reference, estimate in ((reference_S, silence_S), (silence_S, reference_S)):
        assert scores.pesq_wide_band(reference, estimate, RATE_HZ) == 1.0
        assert scores.stoi(reference, estimate, RATE_HZ) == 0.0


def test_segmental_snr_of_an_estimate_scaled_down_is_that_scale():
    # The error is 0.1 of the reference in every frame: 20 dB, wherever there is signal.
    reference_S = np.random.default_rng(0).standard_normal(RATE_HZ)
    assert scores.segmental_snr(reference_S, 0.9 * reference_S, RATE_HZ) == pytest.approx(
        20, abs=1e-6
    )
    # Held to its bounds.
    assert scores.segmental_snr(reference_S, reference_S, RATE_HZ) == 35
    assert scores.segmental_snr(reference_S, 11 * reference_S, RATE_HZ) == -10


def test_segmental_snr_is_a_mean_over_frames_not_of_energies():
    # The first half without error (35 dB), the second with an error as strong as it is (0 dB).
    reference_S = np.random.default_rng(0).standard_normal(20 * RATE_HZ)
    estimate_S = reference_S.copy()
    estimate_S[10 * RATE_HZ :] = 0
    found = scores.segmental_snr(reference_S, estimate_S, RATE_HZ)
    assert found == pytest.approx(17.5, abs=0.1)


def test_recorded_speech(shared):
    """PESQ and STOI rise with the SNR of a real voice."""
    path = shared / "data" / "recordings" / "speech_female_austen.ogg"
    audio_SC, rate_hz = soundfile.read(path, dtype="float32", always_2d=True)
    voice_S = audio_files.resample(audio_SC[: 8 * rate_hz].mean(axis=1)[None], rate_hz, RATE_HZ)[0]
    low, high = (scores.speech_scores(clip(voice_S, noisy(voice_S, snr))) for snr in (0, 20))
    assert high["pesq"] > low["pesq"] + 0.5
    assert high["stoi"] > low["stoi"] + 0.05


def test_clap_score_is_the_same_in_another_process(tmp_path):
    """A worker of a cluster gets it pickled, which names the model and does not hold it."""
    write_clap(tmp_path)
    score = scores.ClapScore(["rain", "speech"], str(tmp_path))
    pickled = pickle.dumps(score)
    assert len(pickled) < 1000
    scored = clip(speech_like(0.5), speech_like(0.5))
    assert pickle.loads(pickled)(scored) == score(scored)
    assert score(scored) != score(scored._replace(query="rain"))
