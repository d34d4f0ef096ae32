"""drawing: partners that no sentence shares, and the clips that are skipped."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tones import Tones, conditions_of, tones

from audiosep_jax.data.drawing import BadClips, check_captions, draw_clip
from audiosep_jax.data.weighted import WeightedSources
from audiosep_jax.errors import InputError


def lonely_by_definition(all_captions):
    """First clip for which every clip, itself among them, shares a caption."""
    for index, captions in enumerate(all_captions):
        if all(set(captions) & set(others) for others in all_captions):
            return index
    return None


captions = st.lists(st.sampled_from("abcd"), min_size=1, max_size=3, unique=True)


@given(st.lists(captions, min_size=1, max_size=7))
@settings(max_examples=200, deadline=None)
def test_a_clip_without_partner_is_found_exactly(all_captions):
    source = Tones(tuple(map(tuple, all_captions)))
    lonely = lonely_by_definition(all_captions)
    if lonely is None:
        check_captions(source, conditions_of(source))
    else:
        with pytest.raises(InputError, match=rf"to mix with tone/{lonely} "):
            check_captions(source, conditions_of(source))


def test_case_and_spaces_make_no_partner():
    source = Tones((("A dog",), (" a  DOG",)))
    with pytest.raises(InputError, match=r"tone/0 \('A dog'\)"):
        check_captions(source, conditions_of(source))


def test_clips_are_drawn_by_the_weight_of_their_data_set():
    source = WeightedSources([tones(30), tones(2)], weights=(1, 4))
    rng = np.random.default_rng(0)
    drawn = np.array([draw_clip(source, rng, (), ()) for _ in range(2000)])
    assert abs(np.mean(drawn >= 30) - 0.8) < 0.04
    assert set(drawn) == set(range(32))


def test_bad_clips_are_named_once_until_there_are_too_many():
    source = tones(10, bad=frozenset({2, 5, 7}))
    skipped = BadClips(source, max_bad_share=0.2)
    assert skipped.update(np.full((4, 3), -1)) == []
    assert skipped.update(np.array([[-1, 5], [5, -1]])) == ["skipping tone/5: is out of tune"]
    assert skipped.update(np.array([[5, 2]])) == ["skipping tone/2: is out of tune"]
    assert skipped.update(np.array([[5, 2]])) == []
    with pytest.raises(InputError, match=r"3 of 10 clips \(30\.0%\).*max_bad_share=0\.2.*tone/7"):
        skipped.update(np.array([[7, -1]]))


def test_a_clip_that_is_good_again_is_still_counted():
    skipped = BadClips(tones(10), max_bad_share=0.05)
    with pytest.raises(InputError, match="1 of 10"):
        skipped.update(np.array([[3]]))
