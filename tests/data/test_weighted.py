"""weighted: several data sets numbered through."""

import pickle

import numpy as np
import pytest
from tones import Tones, tones

from audiosep_jax.data.sources import source_fingerprint
from audiosep_jax.data.weighted import WeightedSources
from audiosep_jax.errors import InputError


def test_clips_are_those_of_the_sources_one_after_another():
    parts = tones(3), Tones((("x", "y"),)), tones(2)
    joined = pickle.loads(pickle.dumps(WeightedSources(parts)))
    there = [(part, place) for part in parts for place in range(len(part))]
    assert len(joined) == len(there) == 6
    for index, (part, place) in enumerate(there):
        assert joined.captions(index) == part.captions(place)
        assert joined.name(index) == part.name(place)
        np.testing.assert_array_equal(joined.load(index), part.load(place))
    for index in (-1, 6):
        with pytest.raises(IndexError, match="of 6"):
            joined.load(index)


def test_weights_are_shares_and_by_default_the_numbers_of_clips():
    assert WeightedSources([tones(4), tones(12)]).proportions == (100, 300)
    assert WeightedSources([tones(4), tones(12)], (0.7, 0.2)).proportions == (350, 100)
    with pytest.raises(InputError, match="1 weights for 2"):
        WeightedSources([tones(4), tones(12)], (1.0,))
    with pytest.raises(InputError, match="no clips"):
        WeightedSources([tones(4), tones(0)])


class Million(Tones):
    """Too many clips to read through."""

    fingerprint = "of a million"

    def __len__(self):
        return 10**6


def test_fingerprint_is_made_of_the_sources_own():
    named, other = Million(()), tones(3)
    assert source_fingerprint(named) == "of a million"
    first = source_fingerprint(WeightedSources([named, other]))
    assert first == source_fingerprint(WeightedSources([named, tones(3)]))
    assert first != source_fingerprint(WeightedSources([other, named]))
    assert first != source_fingerprint(WeightedSources([named, tones(4)]))
