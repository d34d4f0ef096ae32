"""Blends of a sentence and a picture: `mixing.mixup_probability`."""

import numpy as np
import pytest
from tones import Tones, batches, targets

from audiosep_jax.data.augment import AugmentConfig
from audiosep_jax.data.mixing import MixingConfig
from audiosep_jax.errors import InputError

# The conditions are one-hot: first the pictures, two of each tone, then the sentences.
ASKED_BY_BOTH = [(f"tone {k}", f"image:{k}.png#1-2", f"image:{k}b.png#1-2") for k in range(5)]
SOURCE = Tones((*ASKED_BY_BOTH, ("tone 5",)))
PICTURES = 10


def asked(probability, num_steps=60, **options):
    mixing = MixingConfig(mixup_probability=probability)
    return batches(SOURCE, num_steps, mixing=mixing, **options)


def conditions(rows):
    return np.concatenate([batch["condition"] for batch in rows])


def test_a_blend_has_a_sentence_and_a_picture_of_the_target():
    rows = asked(1.0)
    weights = []
    for target, condition_E in zip(targets(rows), conditions(rows), strict=True):
        assert np.linalg.norm(condition_E) == pytest.approx(1, abs=1e-6)
        pictures_E, sentence = condition_E[:PICTURES], condition_E[PICTURES + target]
        assert np.count_nonzero(condition_E) == (2 if target < 5 else 1)
        assert sentence > 0
        if target < 5:
            assert np.count_nonzero(pictures_E[2 * target :][:2]) == 1
            weights.append(sentence / (sentence + pictures_E.sum()))
    # a / (a + b) of two uniform numbers is 1/2 on average, and below 1/3 a quarter of the time.
    assert np.mean(weights) == pytest.approx(0.5, abs=0.05)
    assert np.mean(np.array(weights) < 1 / 3) == pytest.approx(0.25, abs=0.08)


def test_nothing_else_of_a_batch_changes():
    plain, blended, never = asked(0.0, 4), asked(1.0, 4), asked(1e-12, 4)
    for one, other, third in zip(plain, blended, never, strict=True):
        assert one.keys() == other.keys() == {"mixture", "target", "condition", "bad_clips"}
        for key in one:
            np.testing.assert_array_equal(one[key], third[key])
            assert key == "condition" or np.array_equal(one[key], other[key])


def test_the_share_of_blends_is_that_asked_for():
    rows = asked(0.3)
    is_blend = np.count_nonzero(conditions(rows), axis=1) == 2
    assert np.mean(is_blend[targets(rows) < 5]) == pytest.approx(0.3, abs=0.07)


def test_blends_do_not_depend_on_hosts_and_an_absent_sound_has_none():
    whole = conditions(asked(0.5, 4))
    halves = [asked(0.5, 4, process_index=k, process_count=2) for k in (0, 1)]
    for k, half in enumerate(halves):
        np.testing.assert_array_equal(conditions(half), whole[k::2])
    absent = asked(1.0, 4, augment=AugmentConfig(absent_probability=1.0))
    assert (np.count_nonzero(conditions(absent), axis=1) == 1).all()


def test_blends_need_a_single_query():
    with pytest.raises(InputError, match=r"mixup_probability=0\.5 needs num_queries=1"):
        MixingConfig(mixup_probability=0.5, num_queries=2)
