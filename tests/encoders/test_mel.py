"""CLAP's log-mel front end against the golden features and in closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_towers import GOLDEN, recipe
from hypothesis import given, settings
from hypothesis import strategies as st

from audiosep_jax.encoders import mel
from audiosep_jax.errors import InputError

CONFIG = mel.MelConfig()
TINY = mel.MelConfig(sampling_rate=100, max_length_s=1.0)


@pytest.fixture(scope="module")
def golden():
    arrays = np.load(GOLDEN / "clap_audio.npz")
    wave_BS = recipe.waveform(int(arrays["waveform_48k_seed"]), 2, 240_000)
    return wave_BS, arrays["input_features"][:, 0]


def test_golden_features(golden):
    wave_BS, expected_BTF = golden
    features_BTF = mel.features(CONFIG, wave_BS)
    assert features_BTF.dtype == np.float32
    assert expected_BTF.min() > -90
    # Asked for is 1e-3 dB; float32 features of float64 powers are within two roundings of 64 dB.
    np.testing.assert_allclose(features_BTF, expected_BTF, rtol=0, atol=2e-5)


def test_float32_arithmetic_alone_stays_close(golden):
    wave_BS, expected_BTF = golden
    features_BTF = mel.log_mel(CONFIG, mel.fit_clip(CONFIG, wave_BS))
    np.testing.assert_allclose(features_BTF, expected_BTF, rtol=0, atol=3e-3)


def test_features_are_the_same_inside_vmap_and_pmap():
    wave_KBS = recipe.waveform(3, 2, 1, 5000)
    config = mel.MelConfig(max_length_s=0.1)
    expected = np.stack([mel.features(config, wave_BS) for wave_BS in wave_KBS])
    for mapping in (jax.vmap, jax.pmap):
        mapped = mapping(lambda wave_BS: mel.features(config, wave_BS))(wave_KBS)
        np.testing.assert_allclose(mapped, expected, rtol=0, atol=1e-5)


def test_power_of_a_cosine_on_a_bin():
    k, amplitude, n = 40, 0.3, CONFIG.fft_window_size
    wave = amplitude * np.cos(2 * np.pi * k * np.arange(20 * n) / n)
    power = (amplitude * n / 4) ** 2  # of the Hann-windowed bin; its neighbours have a quarter
    filters = mel.mel_filters(CONFIG)
    expected = power * (filters[k] + (filters[k - 1] + filters[k + 1]) / 4)
    middle = mel.log_mel(CONFIG, jnp.asarray(wave[None], jnp.float32))[0, 10]
    loud = expected > 1e-3
    assert loud.sum() >= 2
    np.testing.assert_allclose(middle[loud], 10 * np.log10(expected[loud]), rtol=0, atol=1e-3)


def test_silence_is_at_the_floor_and_gain_moves_decibels():
    np.testing.assert_allclose(mel.log_mel(CONFIG, jnp.zeros((1, 4800))), -100.0, atol=1e-4)
    wave_BS = recipe.waveform(5, 1, 4800)
    louder = mel.log_mel(CONFIG, 10 * wave_BS) - mel.log_mel(CONFIG, wave_BS)
    np.testing.assert_allclose(louder, 20.0, rtol=0, atol=1e-3)


def test_one_frame_per_hop_is_centred_on_it():
    click_S = np.zeros((1, 4800), np.float32)
    click_S[0, 5 * CONFIG.hop_length] = 1.0
    # The window is 1 at its centre, so every bin of frame 5 has power 1.
    expected = 10 * np.log10(mel.mel_filters(CONFIG).sum(0))
    np.testing.assert_allclose(mel.log_mel(CONFIG, click_S)[0, 5], expected, rtol=0, atol=1e-3)


def test_mel_scale_at_the_points_that_define_it():
    hz = np.array([0.0, 200.0, 1000.0, 6400.0])
    np.testing.assert_allclose(mel.hz_to_mel(hz), [0, 3, 15, 42], rtol=1e-12)
    np.testing.assert_allclose(mel.mel_to_hz(np.array([0.0, 3, 15, 42])), hz, rtol=1e-12)


@given(st.floats(0, 24_000))
def test_mel_scale_inverts(hz):
    np.testing.assert_allclose(mel.mel_to_hz(mel.hz_to_mel(np.array(hz))), hz, rtol=1e-9, atol=1e-9)


def test_filters_are_triangles_of_unit_area():
    fine = mel.MelConfig(fft_window_size=1 << 18)
    filters, bin_hz = mel.mel_filters(fine), 48_000 / (1 << 18)
    np.testing.assert_allclose(filters.sum(0) * bin_hz, 1.0, rtol=1e-4)
    assert not filters[: int(50 / bin_hz)].any()
    assert not filters[int(14_000 / bin_hz) + 1 :].any()


@settings(deadline=None, max_examples=15)
@given(st.integers(1, 130))
def test_clips_are_repeated_whole_then_padded_or_cut_in_the_middle(num_samples):
    wave_BS = np.arange(1, 2 * num_samples + 1, dtype=np.float32).reshape(2, num_samples)
    fitted = np.asarray(mel.fit_clip(TINY, wave_BS))
    assert fitted.shape == (2, 100)
    if num_samples > 100:
        start = (num_samples - 100) // 2
        np.testing.assert_array_equal(fitted, wave_BS[:, start : start + 100])
        return
    whole = 100 // num_samples * num_samples
    np.testing.assert_array_equal(fitted[:, :whole], np.tile(wave_BS, 100 // num_samples))
    assert not fitted[:, whole:].any()


def test_input_errors_name_their_cause():
    with pytest.raises(InputError, match="empty"):
        mel.fit_clip(TINY, jnp.zeros((1, 0)))
    with pytest.raises(InputError, match="truncation 'fusion'"):
        mel.MelConfig.from_dict({"truncation": "fusion"})
    with pytest.raises(InputError, match="padding 'pad'"):
        mel.MelConfig.from_dict({"padding": "pad"})


def test_config_reads_the_published_file():
    published = {
        "chunk_length_s": 10,
        "feature_extractor_type": "ClapFeatureExtractor",
        "feature_size": 64,
        "fft_window_size": 1024,
        "frequency_max": 14000,
        "frequency_min": 50,
        "hop_length": 480,
        "max_length_s": 10,
        "padding": "repeatpad",
        "sampling_rate": 48000,
        "top_db": None,
        "truncation": "rand_trunc",
    }
    config = mel.MelConfig.from_dict(published)
    assert config == CONFIG
    assert config.clip_samples == 480_000
