"""The static encoder: means of word vectors, by hand on a table of four words."""

import shutil

import numpy as np
import pytest
from safetensors.numpy import save_file
from tiny_models import write_static

from audiosep_jax.encoders import make_encoder
from audiosep_jax.encoders.encoder import TextConfig
from audiosep_jax.encoders.static import StaticEncoder
from audiosep_jax.errors import InputError

# Of unknown words, "dog", "bark" and "rain".
TABLE = np.array([[9, 9, 9], [3, 0, 0], [0, 4, 0], [-3, 0, 0]], np.float32)


@pytest.fixture
def folder(tmp_path):
    return write_static(tmp_path / "table", TABLE)


def test_a_sentence_is_the_mean_of_its_words_at_length_one(folder):
    encoder = make_encoder(TextConfig(encoder="static", model=str(folder)))
    rows_NE = encoder(["dog", "dog bark", "dog dog bark", "a dog growls"])
    expected = [[1, 0, 0], [0.6, 0.8, 0], [6 / 52**0.5, 4 / 52**0.5, 0], [1, 0, 0]]
    assert rows_NE.dtype == np.float32
    np.testing.assert_allclose(rows_NE, expected, atol=1e-7)
    assert encoder([]).shape == (0, 3)


@pytest.mark.parametrize("kind", [np.int8, np.float16])
def test_a_smaller_type_holds_the_same_directions(folder, tmp_path, kind):
    small = write_static(tmp_path / "small", TABLE.astype(kind))
    sentences = ["dog bark", "rain bark"]
    np.testing.assert_allclose(
        StaticEncoder(str(small))(sentences), StaticEncoder(str(folder))(sentences), atol=1e-7
    )


def test_word_pieces_share_rows_and_have_weights(folder):
    """Tables of model2vec with a quantised vocabulary have this layout."""
    shared = {"embeddings": TABLE[:3], "mapping": np.array([0, 1, 2, 1])}
    save_file(shared | {"weights": np.array([9, 1, 2, -3])}, folder / "model.safetensors")
    rows_NE = StaticEncoder(str(folder))(["dog bark", "rain bark", "dog dog bark"])
    expected = [[3 / 73**0.5, 8 / 73**0.5, 0], [-9 / 145**0.5, 8 / 145**0.5, 0], [0.6, 0.8, 0]]
    np.testing.assert_allclose(rows_NE, expected, atol=1e-7)
    save_file({"embeddings": TABLE, "weights": np.ones(3)}, folder / "model.safetensors")
    with pytest.raises(InputError, match="fewer rows than the tokenizer has words"):
        StaticEncoder(str(folder))(["dog"])
    save_file(shared | {"embeddings": TABLE[:2]}, folder / "model.safetensors")
    with pytest.raises(InputError, match="'mapping' names rows that 'embeddings' does not have"):
        StaticEncoder(str(folder))(["dog"])


@pytest.mark.parametrize("sentence", ["", "growl", "dog rain", "\ud800"])
def test_a_sentence_without_a_direction_is_refused(folder, sentence):
    with pytest.raises(InputError, match="knows no word of"):
        StaticEncoder(str(folder))(["dog", sentence])


def test_the_fingerprint_is_that_of_the_content(folder, tmp_path):
    first = StaticEncoder(str(folder)).fingerprint
    shutil.move(folder, tmp_path / "moved")
    assert StaticEncoder(str(tmp_path / "moved")).fingerprint == first
    other = write_static(tmp_path / "other", TABLE + np.float32(1))
    assert StaticEncoder(str(other)).fingerprint != first


def test_damaged_files_are_named(folder, tmp_path):
    small = write_static(tmp_path / "small", TABLE[:3])
    with pytest.raises(InputError, match="fewer rows than the tokenizer has words"):
        StaticEncoder(str(small))(["dog"])
    flat = write_static(tmp_path / "flat", TABLE[0])
    with pytest.raises(InputError, match="no table 'embeddings'"):
        StaticEncoder(str(flat))(["dog"])
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(InputError, match=r"tokenizer\.json: "):
        StaticEncoder(str(folder))(["dog"])
