"""CLAP's features and audio tower against golden values, and index arithmetic by brute force."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_towers import (
    GOLDEN,
    TINY_AUDIO,
    assert_same_embedding,
    golden_state,
    recipe,
    recipe_params,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from audiosep_jax.encoders import clap_audio
from audiosep_jax.encoders.layers import embed
from audiosep_jax.encoders.names import tower_params
from audiosep_jax.errors import InputError

pytestmark = pytest.mark.slow

TINY = clap_audio.HtsatConfig.from_dict(TINY_AUDIO)


def test_golden_embeddings_from_features_and_from_the_waveform():
    golden, config = np.load(GOLDEN / "clap_audio.npz"), clap_audio.HTSAT_BASE
    params = tower_params(clap_audio.Htsat(config), golden_state("clap_audio_hf", "clap."))
    embedding = embed(clap_audio.Htsat(config), params, golden["input_features"][:, 0])
    assert embedding.dtype == np.float32
    # Asked for is 1e-5; reached is 1e-7.
    assert_same_embedding(embedding, golden["embedding"], element=2e-6, cosine=1e-10)
    wave_BS = recipe.waveform(int(golden["waveform_48k_seed"]), 2, 240_000)
    embedding = embed(
        clap_audio.Htsat(config), params, clap_audio.features(clap_audio.MelConfig(), wave_BS)
    )
    assert_same_embedding(embedding, golden["embedding"], element=2e-6, cosine=1e-10)


def test_precision_follows_the_parameters():
    mel_BTF = np.random.default_rng(0).standard_normal((2, 60, 16))
    config = clap_audio.HtsatConfig.from_dict(
        {**TINY_AUDIO, "depths": [2], "num_attention_heads": [2]}
    )
    params = recipe_params(clap_audio.Htsat(config), jnp.zeros((1, 60, 16)))
    single = embed(clap_audio.Htsat(config), params, mel_BTF.astype(np.float32))
    with jax.enable_x64(True):
        params = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
        double = embed(clap_audio.Htsat(config), params, mel_BTF)
        assert double.dtype == np.float64
    np.testing.assert_allclose(single, double, rtol=0, atol=2e-6)


def test_bicubic_matches_torch():
    # torch.nn.functional.interpolate([1, 2, -1, 3, 0.5], 8, mode="bicubic", align_corners=True)
    expected = [
        1.0,
        1.895043731778426,
        1.6632653061224505,
        -0.6020408163265303,
        -0.1632653061224495,
        2.6734693877551026,
        2.370262390670554,
        0.5,
    ]
    resampled = clap_audio.bicubic_matrix(5, 8) @ [1, 2, -1, 3, 0.5]
    np.testing.assert_allclose(resampled, expected, rtol=0, atol=1e-12)
    np.testing.assert_allclose(clap_audio.bicubic_matrix(1001, 1024).sum(1), 1.0, rtol=1e-12)
    np.testing.assert_array_equal(clap_audio.bicubic_matrix(6, 6), np.eye(6))


def test_fold_stacks_equal_spans_of_time():
    mel_TF = np.random.default_rng(0).standard_normal((64, 16)).astype(np.float32)
    image = clap_audio.fold(TINY, mel_TF[None])[0]
    expected = np.concatenate([mel_TF[:32].T, mel_TF[32:].T])
    np.testing.assert_array_equal(image, expected)
    shorter = clap_audio.fold(TINY, mel_TF[None, :50])[0]
    stretched = clap_audio.bicubic_matrix(50, 64) @ mel_TF[:50]
    np.testing.assert_allclose(shorter[16:], stretched[32:].T, rtol=0, atol=1e-5)


def test_fold_stretches_missing_bands():
    config = clap_audio.HtsatConfig.from_dict({**TINY_AUDIO, "num_mel_bins": 12, "spec_size": 32})
    mel_TF = np.random.default_rng(0).standard_normal((64, 12)).astype(np.float32)
    stretched = mel_TF @ clap_audio.bicubic_matrix(12, 16).T
    expected = np.concatenate([stretched[:32].T, stretched[32:].T])
    np.testing.assert_allclose(
        clap_audio.fold(config, mel_TF[None])[0], expected, rtol=0, atol=1e-5
    )


def test_windows_hold_neighbouring_patches():
    x = np.arange(2 * 4 * 4).reshape(2, 4, 4, 1)
    windows = clap_audio.to_windows(x, 2)
    np.testing.assert_array_equal(windows[1, :, 0], [2, 3, 6, 7])
    np.testing.assert_array_equal(windows[4, :, 0], [16, 17, 20, 21])
    np.testing.assert_array_equal(clap_audio.from_windows(windows, 2, 4), x)


def test_relative_positions_number_displacements():
    size = 3
    index = clap_audio.relative_positions(size)
    for i in range(size**2):
        for j in range(size**2):
            dy, dx = i // size - j // size, i % size - j % size
            assert index[i, j] == (dy + size - 1) * (2 * size - 1) + dx + size - 1


def test_shift_bias_parts_patches_that_only_wrapping_made_neighbours():
    grid, window, shift = 8, 4, 2
    bias = clap_audio.shift_bias(grid, window, shift)
    y, x = np.indices((grid, grid))
    coordinates = np.stack([y, x], -1)[None]
    rolled = clap_audio.to_windows(np.roll(coordinates, (-shift, -shift), axis=(1, 2)), window)
    inside = clap_audio.to_windows(coordinates, window)
    for n in range(4):
        # Still neighbours: as far apart in the image as in the window.
        before = rolled[n][:, None] - rolled[n][None]
        after = inside[n][:, None] - inside[n][None]
        together = (before == after).all(-1)
        np.testing.assert_array_equal(bias[n, 0], np.where(together, 0.0, -100.0))


def test_merging_orders_the_four_patches_as_the_original():
    x = jnp.array([[1.0, 2.0], [3.0, 5.0]])[None, :, :, None]
    params = recipe_params(clap_audio.PatchMerging(), x)
    merged = clap_audio.PatchMerging().apply({"params": params}, x)[0, 0, 0]
    column_first = np.array([1.0, 3.0, 2.0, 5.0])
    normal = (column_first - column_first.mean()) / np.sqrt(column_first.var() + 1e-5)
    normal = normal * params["norm"]["scale"] + params["norm"]["bias"]
    expected = normal @ params["reduction"]["kernel"]
    np.testing.assert_allclose(merged, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"enable_fusion": True}, "enable_fusion"),
        ({"mlp_ratio": "4"}, "audio_config: mlp_ratio='4' must be"),
    ],
)
def test_a_wrong_config_is_named(wrong, message):
    with pytest.raises(InputError, match=message):
        clap_audio.HtsatConfig.from_dict(wrong)


def test_config_reads_a_whole_model():
    base = {"patch_embeds_hidden_size": 128, "depths": [2, 2, 12, 2], "patch_stride": 4}
    assert clap_audio.HtsatConfig.from_dict({"audio_config": base}) == clap_audio.HTSAT_BASE
    assert clap_audio.HtsatConfig.from_dict({}) == clap_audio.HtsatConfig()


# ---------------------------------------------------------------------------- features

MEL = clap_audio.MelConfig()
TINY_MEL = clap_audio.MelConfig(sampling_rate=100, max_length_s=1.0)


@pytest.fixture(scope="module")
def golden():
    arrays = np.load(GOLDEN / "clap_audio.npz")
    wave_BS = recipe.waveform(int(arrays["waveform_48k_seed"]), 2, 240_000)
    return wave_BS, arrays["input_features"][:, 0]


def test_golden_features(golden):
    wave_BS, expected_BTF = golden
    features_BTF = clap_audio.features(MEL, wave_BS)
    assert features_BTF.dtype == np.float32
    assert expected_BTF.min() > -90
    # Asked for is 1e-3 dB; float32 features of float64 powers are within two roundings of 64 dB.
    np.testing.assert_allclose(features_BTF, expected_BTF, rtol=0, atol=2e-5)


def test_float32_arithmetic_alone_stays_close(golden):
    wave_BS, expected_BTF = golden
    features_BTF = clap_audio.log_mel(MEL, clap_audio.fit_clip(MEL, wave_BS))
    np.testing.assert_allclose(features_BTF, expected_BTF, rtol=0, atol=3e-3)


def test_features_are_the_same_inside_vmap_and_pmap():
    wave_KBS = recipe.waveform(3, 2, 1, 5000)
    config = clap_audio.MelConfig(max_length_s=0.1)
    expected = np.stack([clap_audio.features(config, wave_BS) for wave_BS in wave_KBS])
    for mapping in (jax.vmap, jax.pmap):
        mapped = mapping(lambda wave_BS: clap_audio.features(config, wave_BS))(wave_KBS)
        np.testing.assert_allclose(mapped, expected, rtol=0, atol=1e-5)


def test_power_of_a_cosine_on_a_bin():
    k, amplitude, n = 40, 0.3, MEL.fft_window_size
    wave = amplitude * np.cos(2 * np.pi * k * np.arange(20 * n) / n)
    power = (amplitude * n / 4) ** 2  # of the Hann-windowed bin; its neighbours have a quarter
    filters = clap_audio.mel_filters(MEL)
    expected = power * (filters[k] + (filters[k - 1] + filters[k + 1]) / 4)
    middle = clap_audio.log_mel(MEL, jnp.asarray(wave[None], jnp.float32))[0, 10]
    loud = expected > 1e-3
    assert loud.sum() >= 2
    np.testing.assert_allclose(middle[loud], 10 * np.log10(expected[loud]), rtol=0, atol=1e-3)


def test_silence_is_at_the_floor_and_gain_moves_decibels():
    np.testing.assert_allclose(clap_audio.log_mel(MEL, jnp.zeros((1, 4800))), -100.0, atol=1e-4)
    wave_BS = recipe.waveform(5, 1, 4800)
    louder = clap_audio.log_mel(MEL, 10 * wave_BS) - clap_audio.log_mel(MEL, wave_BS)
    np.testing.assert_allclose(louder, 20.0, rtol=0, atol=1e-3)


def test_one_frame_per_hop_is_centred_on_it():
    click_S = np.zeros((1, 4800), np.float32)
    click_S[0, 5 * MEL.hop_length] = 1.0
    # The window is 1 at its centre, so every bin of frame 5 has power 1.
    expected = 10 * np.log10(clap_audio.mel_filters(MEL).sum(0))
    np.testing.assert_allclose(clap_audio.log_mel(MEL, click_S)[0, 5], expected, rtol=0, atol=1e-3)


def test_filters_have_their_peaks_at_equal_steps_of_slaneys_scale():
    # Linear up to 1 kHz at 15 mel, then 27 mel for a factor of 6.4. One filter a mel, one bin a Hz.
    config = clap_audio.MelConfig(
        frequency_min=0.0, frequency_max=6400.0, feature_size=41, fft_window_size=48_000
    )
    peaks_hz = clap_audio.mel_filters(config).argmax(0)
    np.testing.assert_array_equal(peaks_hz[[2, 14]], [200, 1000])
    assert peaks_hz[40] == round(6400 / 6.4 ** (1 / 27))


def test_filters_are_triangles_of_unit_area():
    fine = clap_audio.MelConfig(fft_window_size=1 << 18)
    filters, bin_hz = clap_audio.mel_filters(fine), 48_000 / (1 << 18)
    np.testing.assert_allclose(filters.sum(0) * bin_hz, 1.0, rtol=1e-4)
    assert not filters[: int(50 / bin_hz)].any()
    assert not filters[int(14_000 / bin_hz) + 1 :].any()


@settings(deadline=None, max_examples=15)
@given(st.integers(1, 130))
def test_clips_are_repeated_whole_then_padded_or_cut_in_the_middle(num_samples):
    wave_BS = np.arange(1, 2 * num_samples + 1, dtype=np.float32).reshape(2, num_samples)
    fitted = np.asarray(clap_audio.fit_clip(TINY_MEL, wave_BS))
    assert fitted.shape == (2, 100)
    if num_samples > 100:
        start = (num_samples - 100) // 2
        np.testing.assert_array_equal(fitted, wave_BS[:, start : start + 100])
        return
    whole = 100 // num_samples * num_samples
    np.testing.assert_array_equal(fitted[:, :whole], np.tile(wave_BS, 100 // num_samples))
    assert not fitted[:, whole:].any()


def test_what_the_features_cannot_be_made_of():
    with pytest.raises(InputError, match="truncation='fusion' must be"):
        clap_audio.MelConfig.from_dict({"truncation": "fusion"})
    with pytest.raises(InputError, match="padding='pad' must be"):
        clap_audio.MelConfig.from_dict({"padding": "pad"})


def test_the_features_config_reads_the_published_file():
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
    config = clap_audio.MelConfig.from_dict(published)
    assert config == MEL
    assert config.clip_samples == 480_000
