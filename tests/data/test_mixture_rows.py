"""mixture_rows: in place, on threads, with Grain's random numbers."""

import pickle

import grain
import numpy as np
import pytest
from tones import MIXING, tones

from audiosep_jax.data.augment import AugmentConfig
from audiosep_jax.data.mixture_rows import BatchMaker, RowMaker, row_rng


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
    make_row = RowMaker(tones(12, bad=frozenset({4})), MIXING, AugmentConfig(), 64)
    rows_B2 = np.stack([np.arange(40, 80), np.arange(40) % 12], axis=1)
    serial = BatchMaker(make_row, 9, 0)(rows_B2)
    maker = pickle.loads(pickle.dumps(BatchMaker(make_row, 9, num_threads)))
    for batch in (maker(rows_B2), maker(rows_B2)):
        assert batch.keys() == serial.keys()
        for name in serial:
            np.testing.assert_array_equal(batch[name], serial[name])
    maker.close()
    assert (serial["bad_clips"][rows_B2[:, 1] == 4, 0] == 4).all()
