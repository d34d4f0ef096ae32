"""The hashed encoder's exact values."""

import hashlib
import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from audiosep_jax.encoders.encoder import TextConfig
from audiosep_jax.encoders.hashed import HashedEncoder
from audiosep_jax.errors import InputError

SENTENCES = ("a dog barking", "Glocken läuten", "犬が吠える", "!?", "siren, then a door slams")
# Change it only together with the encoder's fingerprint: checkpoints rely on both.
SENTENCES_SHA256 = "c5498ba7b7b69429d241738f4bfeab0293e8aa6d5f198f272ef65bf41d75342c"
PROGRAM = """
import hashlib, sys
from audiosep_jax.encoders.hashed import HashedEncoder
print(hashlib.sha256(HashedEncoder()(sys.argv[1:]).astype("<f4").tobytes()).hexdigest())
"""


def cosine(one, other):
    one_E, other_E = HashedEncoder()([one, other])
    return float(one_E @ other_E)


def test_stored_value():
    vectors_NE = HashedEncoder()(SENTENCES)
    assert vectors_NE.dtype == np.float32
    assert vectors_NE.shape == (5, 512)
    digest = hashlib.sha256(vectors_NE.astype("<f4").tobytes()).hexdigest()
    assert (HashedEncoder.fingerprint, digest) == ("hashed-1", SENTENCES_SHA256)


@pytest.mark.parametrize("seed", ["0", "4321"])
def test_same_vector_in_another_process(seed):
    environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONUTF8": "1"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *SENTENCES],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == SENTENCES_SHA256


def test_closed_form_of_one_word():
    # "ab" has the features ab (weight 4), <ab and ab> (3-grams), <ab> (4-gram).
    def signs(feature):
        digest = hashlib.shake_256(feature.encode()).digest(64)
        return np.array([2 * (byte >> bit & 1) - 1 for byte in digest for bit in range(7, -1, -1)])

    total = 4 * signs("ab") + signs("3:<ab") + signs("3:ab>") + signs("4:<ab>")
    expected_E = total / np.linalg.norm(total)
    np.testing.assert_allclose(HashedEncoder()(["ab"])[0], expected_E, rtol=0, atol=1e-7)


def test_wordings_of_one_thing_are_near_and_others_far():
    assert cosine("a dog barking", "A DOG, barking!") == pytest.approx(1, abs=1e-6)
    assert cosine("a dog barking", "barking dog") > 0.8
    assert cosine("a dog barking", "a dog barks") > 0.6
    assert abs(cosine("a dog barking", "church bells")) < 0.2
    # Stems count, through the n-grams; without them both would be near 0.
    assert cosine("barking", "barks") > cosine("barking", "raining") + 0.1 > 0.1


def test_a_sentence_does_not_depend_on_its_neighbours():
    together_NE = HashedEncoder()(SENTENCES)
    alone_NE = np.concatenate([HashedEncoder()([sentence]) for sentence in SENTENCES])
    np.testing.assert_array_equal(together_NE, alone_NE)


@settings(deadline=None, max_examples=200)
@given(st.text(st.characters(), max_size=40))
@example("")
@example(" \t\n")
@example("\ud800")  # half of a surrogate pair, as a broken file name gives
@example("👩‍👩‍👧 🐕")
@example("\x00")
@example("a" * 10_000)
def test_any_sentence_gives_a_unit_vector(sentence):
    vector_E = HashedEncoder()([sentence])[0]
    assert vector_E.dtype == np.float32
    assert np.linalg.norm(vector_E.astype(np.float64)) == pytest.approx(1, abs=1e-6)
    np.testing.assert_array_equal(vector_E, HashedEncoder()([sentence])[0])


def test_no_sentences():
    assert HashedEncoder()([]).shape == (0, 512)


def test_unknown_encoder_is_refused():
    with pytest.raises(InputError, match="word2vec"):
        TextConfig(encoder="word2vec")
