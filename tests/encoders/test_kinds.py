"""Kinds of query: each is read from its option's value and embedded in its encoder's space."""

import json
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
import soundfile
from golden_towers import recipe
from PIL import Image
from tiny_models import write_clap, write_clip

from audiosep_jax.encoders import KINDS, clip_image, layers, make_query_encoder
from audiosep_jax.encoders.encoder import TextConfig
from audiosep_jax.errors import InputError

HASHED = TextConfig()


def embed(kind, value, config=HASHED):
    return make_query_encoder(kind, config)(KINDS[kind].read(str(value)))


def test_a_sentence_is_the_text_encoders():
    condition_NE = embed("text", "a dog barking")
    np.testing.assert_array_equal(condition_NE, embed("text", "a dog barking"))
    assert condition_NE.shape == (1, 512)


@pytest.mark.parametrize(
    ("sentence", "message"),
    [("", "query is empty"), (" \n", "query is empty"), ("\ud800", "is not valid text")],
)
def test_a_sentence_that_says_nothing_is_refused(sentence, message):
    with pytest.raises(InputError, match=message):
        KINDS["text"].read(sentence)


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
def test_a_file_of_vectors_is_a_query_for_each_row(tmp_path, dtype):
    vector_NE = np.eye(2, 6, dtype=dtype)
    for array in (vector_NE, vector_NE[0]):
        np.save(tmp_path / "a.npy", array)
        condition_NE = embed("embedding", tmp_path / "a.npy")
        assert condition_NE.dtype == np.float32
        np.testing.assert_array_equal(condition_NE, np.atleast_2d(array))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (np.zeros(3, int), "floating-point"),
        (np.zeros(3, ml_dtypes.bfloat16), r"bfloat16 is saved so\); save float32"),
        (np.zeros((1, 2, 3)), r"shape \(1, 2, 3\)"),
        (np.zeros((0, 3)), r"shape \(0, 3\)"),
        (np.array([1, np.nan]), "NaN"),
        (b"", "is empty"),
        (b"<html>", "is a web page"),
        (b"version https://git-lfs.github.com/spec/v1", "is a Git LFS pointer"),
        (b"nothing", r"is not a whole \.npy"),
    ],
)
def test_a_file_of_no_vectors_is_named(tmp_path, content, message):
    path = tmp_path / "a.npy"
    np.save(path, content) if isinstance(content, np.ndarray) else path.write_bytes(content)
    with pytest.raises(InputError, match=rf"a\.npy: .*{message}"):
        KINDS["embedding"].read(str(path))


def test_a_recording_is_embedded_by_the_audio_tower(tmp_path, monkeypatch):
    monkeypatch.setenv("AUDIOSEP_JAX_CACHE", str(tmp_path / "cache"))
    config = TextConfig(encoder="clap", model=str(write_clap(tmp_path / "clap")))
    sound_S = recipe.waveform(0, 4000)
    stereo = np.stack([sound_S, np.zeros_like(sound_S)], axis=1)
    soundfile.write(tmp_path / "a.wav", stereo, 16_000, subtype="FLOAT")
    encoder = make_query_encoder("audio_query", config)
    np.testing.assert_allclose(
        embed("audio_query", tmp_path / "a.wav", config),
        encoder([(sound_S / 2, 16_000)]),
        atol=1e-6,
    )
    assert encoder([]).shape == (0, 8)


def test_a_picture_is_embedded_by_the_image_tower(tmp_path, monkeypatch):
    monkeypatch.setenv("AUDIOSEP_JAX_CACHE", str(tmp_path / "cache"))
    config = TextConfig(encoder="clip", model=str(write_clip(tmp_path / "clip")))
    square_HWC = np.random.default_rng(0).integers(0, 256, (224, 224, 3), np.uint8)
    Image.fromarray(square_HWC).save(tmp_path / "dog.png")
    encoder = make_query_encoder("image", config)
    (condition_E,) = embed("image", tmp_path / "dog.png", config)
    pixels_HWC = (square_HWC / 255 - [0.5, 0.4, 0.3]) / clip_image.ClipImageConfig().image_std
    (expected_E,) = layers.embed(encoder.tower, encoder.params, np.float32(pixels_HWC)[None])
    np.testing.assert_allclose(condition_E, expected_E, atol=1e-6)
    # A film is the mean of its frames' unit vectors, in whatever batches they are embedded.
    film_FHWC = np.stack([square_HWC, 255 - square_HWC, square_HWC // 2])
    encoder.batch_size = 2
    frames_FE = encoder([frame[None] for frame in film_FHWC])
    mean_E = frames_FE.mean(axis=0) / np.linalg.norm(frames_FE.mean(axis=0))
    both_NE = encoder([film_FHWC, square_HWC[None]])
    np.testing.assert_allclose(both_NE, [mean_E, condition_E], atol=1e-6)
    assert np.abs(both_NE[0] - both_NE[1]).max() > 1e-3
    assert encoder([]).shape == (0, 8)


def test_an_image_tower_of_another_size_or_without_files_is_refused(tmp_path):
    folder = write_clip(tmp_path / "clip")
    values = json.loads((folder / "config.json").read_text())
    values["vision_config"]["image_size"] = 336
    (folder / "config.json").write_text(json.dumps(values))
    for model, words in ((folder, "336 pixels"), (folder / "model.safetensors", "is a file; clip")):
        with pytest.raises(InputError, match=words):
            make_query_encoder("image", TextConfig(encoder="clip", model=str(model)))


def test_a_kind_outside_the_encoders_space_is_refused():
    with pytest.raises(InputError, match=r"audio_query needs .* with clap, not with hashed"):
        make_query_encoder("audio_query", HASHED)


def test_a_number_of_parts_is_a_query_for_each():
    assert KINDS["blind"].read("3") == [0, 1, 2]
    for text in ("0", "two", "-1", "100"):
        with pytest.raises(InputError, match="must be a number of sounds"):
            KINDS["blind"].read(text)


def test_the_table_imports_nothing_heavy():
    code = (
        "import sys; from audiosep_jax.encoders import KINDS\n"
        "assert not {'jax', 'numpy', 'PIL', 'transformers', 'soundfile'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
