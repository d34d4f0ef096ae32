"""validation_set: fixed mixtures at an exact SNR."""

import numpy as np
import pytest
from tones import MIXING, SERIAL, conditions_of, tone_numbers, tones

from audiosep_jax.data import mixing as mixing_lib
from audiosep_jax.data.validation import validation_set
from audiosep_jax.errors import InputError


def validate(source, **options):
    options = {"seed": 0, "num_mixtures": 30} | options
    return validation_set(source, conditions_of(source), MIXING, SERIAL, **options)


@pytest.mark.parametrize("gain_db", [-15, 0, 6])
def test_validation_mixtures_have_the_snr_asked_for(gain_db):
    fixed = validate(tones(10), gain_db=gain_db)
    rest_NS = fixed["mixture"].astype(np.float64) - fixed["target"]
    for target_S, rest_S in zip(fixed["target"], rest_NS, strict=True):
        ratio = mixing_lib.energy(target_S) / mixing_lib.energy(rest_S)
        assert 10 * np.log10(ratio) == pytest.approx(gain_db, abs=1e-3)


def test_validation_rows_fit_together():
    fixed = validate(tones(10))
    target_N = tone_numbers(fixed["target"])
    interferer_N = tone_numbers(fixed["mixture"] - fixed["target"])
    wrong_N = np.argmax(fixed["wrong_condition"], axis=1)
    np.testing.assert_array_equal(np.argmax(fixed["condition"], axis=1), target_N)
    assert fixed["caption"] == [f"tone {k:02d}" for k in target_N]
    assert fixed["source_id"] == [f"tone/{k}" for k in target_N]
    assert (np.bincount(target_N, minlength=10) == 3).all()  # 30 mixtures of 10 clips
    assert len(set(wrong_N)) > 5
    for three in zip(target_N, interferer_N, wrong_N, strict=True):
        assert len(set(three)) == 3


def test_validation_depends_on_its_seed_alone():
    first, again, other = (validate(tones(10), seed=seed) for seed in (3, 3, 4))
    for key in first:
        np.testing.assert_array_equal(first[key], again[key], err_msg=key)
    assert not np.array_equal(first["mixture"], other["mixture"])
    # A longer set begins with the shorter one while it stays within one round of the clips.
    np.testing.assert_array_equal(
        validate(tones(10), num_mixtures=4)["target"],
        validate(tones(10), num_mixtures=8)["target"][:4],
    )


def test_validation_of_two_captions_takes_the_interferers_as_the_wrong_one():
    fixed = validate(tones(2))
    np.testing.assert_array_equal(fixed["wrong_condition"], 1 - fixed["condition"])


def test_validation_leaves_out_bad_and_silent_clips():
    fixed = validate(tones(10, bad=frozenset({1, 4}), silent=frozenset({6})))
    rest_NS = fixed["mixture"] - fixed["target"]
    used = np.concatenate([tone_numbers(fixed["target"]), tone_numbers(rest_NS)])
    assert set(used) == set(range(10)) - {1, 4, 6}
    assert fixed["bad_clips"] == [1, 4]
    with pytest.raises(InputError, match="silent"):
        validate(tones(3, silent=frozenset(range(3))))
