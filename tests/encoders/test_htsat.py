"""CLAP's audio tower against the golden embeddings, and its index arithmetic by brute force."""

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

from audiosep_jax.encoders import clap_audio, mel
from audiosep_jax.encoders.names import clap_audio_params
from audiosep_jax.errors import InputError

TINY = clap_audio.HtsatConfig.from_dict(TINY_AUDIO)


def test_golden_embeddings_from_features_and_from_the_waveform():
    golden, config = np.load(GOLDEN / "clap_audio.npz"), clap_audio.HTSAT_BASE
    params = clap_audio_params(config, golden_state("clap_audio_hf", "clap."))
    embedding = clap_audio.embed(config, params, golden["input_features"][:, 0])
    assert embedding.dtype == np.float32
    # Asked for is 1e-5; reached is 1e-7.
    assert_same_embedding(embedding, golden["embedding"], element=2e-6, cosine=1e-10)
    wave_BS = recipe.waveform(int(golden["waveform_48k_seed"]), 2, 240_000)
    embedding = clap_audio.embed(config, params, mel.features(mel.MelConfig(), wave_BS))
    assert_same_embedding(embedding, golden["embedding"], element=2e-6, cosine=1e-10)


def test_precision_follows_the_parameters():
    mel_BTF = np.random.default_rng(0).standard_normal((2, 60, 16))
    config = clap_audio.HtsatConfig.from_dict(
        {**TINY_AUDIO, "depths": [2], "num_attention_heads": [2]}
    )
    params = recipe_params(clap_audio.Htsat(config), jnp.zeros((1, 60, 16)))
    single = clap_audio.embed(config, params, mel_BTF.astype(np.float32))
    with jax.enable_x64(True):
        params = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
        double = clap_audio.embed(config, params, mel_BTF)
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


def test_features_that_do_not_fit_are_refused():
    with pytest.raises(InputError, match="mel features of 65 x 16"):
        clap_audio.fold(TINY, jnp.zeros((1, 65, 16)))
    with pytest.raises(InputError, match="64 frames of 16 bands"):
        clap_audio.fold(TINY, jnp.zeros((1, 64, 15)))


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
        ({"depths": [2, 2, 2]}, "differ in length"),
        ({"num_attention_heads": [5, 5, 5, 5]}, "5 heads do not divide hidden size 96"),
        ({"window_size": 7}, "window_size 7 does not divide the 64 patches of stage 0"),
        ({"mlp_ratio": "4"}, "mlp_ratio must be float"),
    ],
)
def test_a_wrong_config_is_named(wrong, message):
    with pytest.raises(InputError, match=message):
        clap_audio.HtsatConfig.from_dict(wrong)


def test_config_reads_a_whole_model():
    base = {"patch_embeds_hidden_size": 128, "depths": [2, 2, 12, 2], "patch_stride": 4}
    assert clap_audio.HtsatConfig.from_dict({"audio_config": base}) == clap_audio.HTSAT_BASE
    assert clap_audio.HtsatConfig.from_dict({}) == clap_audio.HtsatConfig()
