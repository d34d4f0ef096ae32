"""batches: partners that no sentence shares, rows on threads, and clips that are skipped."""

import pickle

import grain
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tones import MIXING, Tones, tones

from audiosep_jax.data.augment import AugmentConfig
from audiosep_jax.data.batches import BadClips, BatchMaker, ClipSampler, RowMaker, row_rng
from audiosep_jax.data.sources import WeightedSources
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
        ClipSampler(source)
    else:
        with pytest.raises(InputError, match=rf"to mix with tone/{lonely} "):
            ClipSampler(source)


def test_case_and_spaces_make_no_partner():
    source = Tones((("A dog",), (" a  DOG",)))
    with pytest.raises(InputError, match=r"tone/0 \('A dog'\)"):
        ClipSampler(source)


def test_clips_are_drawn_by_the_weight_of_their_data_set():
    source = WeightedSources([tones(30), tones(2)], weights=(1, 4))
    sampler, rng = ClipSampler(source), np.random.default_rng(0)
    drawn = np.array([sampler.draw(rng) for _ in range(2000)])
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


def test_rows_draw_what_grains_random_map_drew():
    # Runs begun before rows were numbered here must go on with the same stream.
    drawn = grain.MapDataset.range(1000).random_map(lambda _, rng: rng.random(3), seed=123)
    key = np.random.Philox(123).state["state"]["key"]
    for position in (0, 1, 999):
        np.testing.assert_array_equal(row_rng(key, position, 0).random(3), drawn[position])


def test_streams_and_positions_share_no_number():
    key = np.random.Philox(5).state["state"]["key"]
    drawn = [row_rng(key, p, s).random(500) for p in (0, 1, 2**40) for s in (0, 1)]
    assert len(np.unique(np.concatenate(drawn))) == 3000


@pytest.mark.parametrize("num_threads", [2, 7])
def test_threads_fill_the_same_batch(num_threads):
    sampler = ClipSampler(tones(12, bad=frozenset({4})))
    make_row = RowMaker(sampler, MIXING, AugmentConfig(), 64)
    rows_B2 = np.stack([np.arange(40, 80), np.arange(40) % 12], axis=1)
    serial = BatchMaker(make_row, 9, 0)(rows_B2)
    maker = pickle.loads(pickle.dumps(BatchMaker(make_row, 9, num_threads)))
    for batch in (maker(rows_B2), maker(rows_B2)):
        assert batch.keys() == serial.keys()
        for name in serial:
            np.testing.assert_array_equal(batch[name], serial[name])
    maker.close()
    assert (serial["bad_clips"][rows_B2[:, 1] == 4, 0] == 4).all()


# ------------------------------------------------------------------------------ recordings


class Pieces(Tones):
    """Clips 0 to 8 are pieces of one recording, the others recordings of their own."""

    @property
    def recordings(self):
        return np.array([0, *range(9, len(self) + 1)])


def test_a_recording_is_drawn_as_often_as_any_other_whatever_its_pieces():
    source = Pieces((("long",),) * 9 + tuple((f"short {k}",) for k in range(3)))
    sampler, rng = ClipSampler(source), np.random.default_rng(0)
    drawn = np.bincount([sampler.draw(rng) for _ in range(4000)], minlength=12)
    assert abs(drawn[:9].sum() - 1000) < 120
    assert (drawn[:9] > 60).all()
    avoid = sampler.captions.keys(0)
    assert {sampler.draw(rng, avoid) for _ in range(100)} == {9, 10, 11}


def test_recordings_count_in_a_mixture_of_data_sets():
    pieces = Pieces((("long",),) * 9 + (("short",),))
    source = WeightedSources([tones(2), pieces])
    assert source.weights == (2.0, 2.0)
    sampler, rng = ClipSampler(source), np.random.default_rng(0)
    assert (sampler.num_recordings, sampler.edges) == (4, (0, 2, 4))
    drawn = np.bincount([sampler.draw(rng) for _ in range(2000)], minlength=12)
    assert abs(drawn[2:11].sum() - 500) < 80


def test_many_unusable_clips_in_a_row_are_redrawn():
    source = tones(2000, bad=frozenset(range(1990)))
    sampler, rng = ClipSampler(source), np.random.default_rng(0)
    for _ in range(5):
        bad = []
        index, _ = sampler.load(rng, 64, bad)
        assert index >= 1990
        assert set(bad) <= set(range(1990))


def test_a_thousand_unusable_clips_in_a_row_end_the_run_with_the_last_reason():
    source = tones(2000, bad=frozenset(range(2000)))
    with pytest.raises(InputError, match=r"1000 clips drawn .* tone/\d+: is out of tune"):
        ClipSampler(source).load(np.random.default_rng(0), 64, [])
