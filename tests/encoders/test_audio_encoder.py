"""CLAP's audio encoder: the tower's own numbers for every clip, whatever its company and rate."""

import json

import numpy as np
import pytest
from golden_towers import GOLDEN, assert_same_embedding, golden_state, recipe
from tiny_models import write_clap

from audiosep_jax.audio import files as audio_files
from audiosep_jax.encoders import audio_encoder, clap_audio, make_encoder, mel
from audiosep_jax.encoders import names as tower_names
from audiosep_jax.encoders.audio_encoder import AudioEncoder
from audiosep_jax.encoders.encoder import TextConfig
from audiosep_jax.errors import InputError
from audiosep_jax.weights.torch_files import read_state_dict, write_safetensors, write_torch

RATE_HZ = 16_000


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("AUDIOSEP_JAX_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_clap(tmp_path_factory.mktemp("clap"))


def clips(*lengths):
    return [recipe.waveform(i, length) for i, length in enumerate(lengths)]


def tower_embedding(folder, audio_S):
    """The tower's `(E,)` of one clip at its own rate."""
    config = json.loads((folder / "config.json").read_text())
    tower = clap_audio.HtsatConfig.from_dict(config)
    features = mel.MelConfig.from_dict(
        json.loads((folder / "preprocessor_config.json").read_text())
    )
    state = read_state_dict(folder / "model.safetensors", prefixes=("audio_",))
    params = tower_names.clap_audio_params(tower, state)
    return np.asarray(clap_audio.embed(tower, params, mel.features(features, audio_S[None])))[0]


def test_each_clip_gets_its_own_towers_embedding_in_order(folder):
    # Shorter than the tower's 9,920 samples (repeated), longer (the middle), as long.
    sounds = clips(3000, 20_000, 9920)
    expected_NE = np.stack([tower_embedding(folder, x) for x in sounds])
    embedding_NE = AudioEncoder(str(folder), batch_size=2).embed_audio(sounds, RATE_HZ)
    assert embedding_NE.dtype == np.float32
    np.testing.assert_allclose(embedding_NE, expected_NE, rtol=0, atol=2e-6)
    assert np.abs(embedding_NE[0] - embedding_NE[1]).max() > 1e-3
    # The middle is what a long clip is judged by.
    middle_S = sounds[1][(20_000 - 9920) // 2 :][:9920]
    np.testing.assert_allclose(tower_embedding(folder, middle_S), expected_NE[1], atol=1e-6)


def test_one_clip_an_array_and_a_list_are_the_same(folder):
    encoder, sounds = AudioEncoder(str(folder)), np.stack(clips(4000, 4000))
    listed_NE = encoder.embed_audio(list(sounds), RATE_HZ)
    np.testing.assert_array_equal(encoder.embed_audio(sounds, RATE_HZ), listed_NE)
    one_NE = encoder.embed_audio(sounds[1].astype(np.float64), RATE_HZ)
    np.testing.assert_allclose(one_NE, listed_NE[1:], rtol=0, atol=1e-6)
    assert encoder.embed_audio([], RATE_HZ).shape == (0, 8)


def test_a_clip_of_another_rate_is_converted_first(folder):
    encoder, (sound_S,) = AudioEncoder(str(folder)), clips(8000)
    same_S = audio_files.resample(sound_S[None], 12_000, RATE_HZ)[0]
    expected_E = tower_embedding(folder, same_S)
    np.testing.assert_allclose(encoder.embed_audio(sound_S, 12_000)[0], expected_E, atol=1e-6)
    assert np.abs(encoder.embed_audio(sound_S, RATE_HZ)[0] - expected_E).max() > 1e-4


def test_golden_embedding_out_of_an_audiosep_checkpoint(tmp_path):
    # HTSAT-base, its sizes known without a config, under the names inside AudioSep's checkpoint.
    golden = np.load(GOLDEN / "clap_audio.npz")
    state = golden_state("clap_audio_hf", "clap.")
    checkpoint = tmp_path / "audiosep.ckpt"
    inside = {f"query_encoder.model.{name}": tensor for name, tensor in state.items()}
    write_torch(checkpoint, inside | {"ss_model.x": np.zeros(3, "f")}, lightning=True)
    wave_BS = recipe.waveform(int(golden["waveform_48k_seed"]), 2, 240_000)
    embedding_NE = AudioEncoder(str(checkpoint)).embed_audio(wave_BS, 48_000)
    assert_same_embedding(embedding_NE, golden["embedding"], element=2e-6, cosine=1e-10)


def test_the_fingerprint_follows_the_files(folder, tmp_path):
    encoder = AudioEncoder(str(folder))
    same = write_clap(tmp_path / "same")
    assert AudioEncoder(str(same)).fingerprint == encoder.fingerprint
    seen = {encoder.fingerprint, make_encoder(TextConfig("clap", str(folder))).fingerprint}
    write_clap(same, seed=9)
    seen.add(AudioEncoder(str(same)).fingerprint)
    values = json.loads((same / "preprocessor_config.json").read_text()) | {"frequency_min": 60.0}
    (same / "preprocessor_config.json").write_text(json.dumps(values))
    seen.add(AudioEncoder(str(same)).fingerprint)
    assert len(seen) == 4


@pytest.mark.parametrize(
    "audio",
    [
        np.zeros(0, np.float32),
        np.zeros((2, 0), np.float32),
        np.zeros((2, 3, 4), np.float32),
        np.array([0.1, np.nan]),
        [np.ones(9), np.array([np.inf])],
        [np.ones((2, 9))],
    ],
)
def test_audio_that_cannot_be_embedded_is_refused(folder, audio):
    with pytest.raises(InputError, match=r"a clip of shape .* must be \(samples,\)"):
        AudioEncoder(str(folder)).embed_audio(audio, RATE_HZ)


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json", "model.safetensors"])
def test_a_missing_file_is_named(tmp_path, name):
    folder = write_clap(tmp_path / "clap")
    (folder / name).unlink()
    with pytest.raises(InputError, match=name.replace(".", r"\.")):
        AudioEncoder(str(folder), option="--audio_model DIR")


def test_weights_without_an_audio_tower_are_refused(tmp_path):
    folder = write_clap(tmp_path / "clap")
    state = read_state_dict(folder / "model.safetensors", prefixes=audio_encoder.AUDIO_NAMES)
    state.pop("audio_projection.linear1.weight")
    write_safetensors(folder / "model.safetensors", state)
    with pytest.raises(InputError, match=r"audio_projection\.linear1\.weight"):
        AudioEncoder(str(folder)).embed_audio(np.ones(100), RATE_HZ)
