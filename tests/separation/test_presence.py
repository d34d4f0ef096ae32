"""Presence and spans: by closed form on energies that are written down."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from audiosep_jax.separation.presence import presence, spans

HOP = 0.1


def of(share, mixture=0.01):
    """(estimate_T, mixture_T) in which the estimate takes these shares."""
    share_T = np.array(share, float)
    return share_T * mixture, np.full(len(share_T), mixture)


def active(share, hop_seconds=HOP, seconds=None):
    estimate_T, mixture_T = of(share)
    return spans(estimate_T, mixture_T, hop_seconds, seconds or len(share) * hop_seconds)


@pytest.mark.parametrize(
    ("share", "score"),
    [
        ([1] + [0] * 36000, 1),  # a bark in an hour
        ([0.25] * 9, 0.25),
        ([0.5, 0.25, 0.25], (0.25 + 2 * 0.0625) / 1),
        ([0] * 5, 0),
        ([4, 4], 1),  # louder than the mixture, out of phase with the rest
    ],
)
def test_presence_is_the_share_where_the_sound_is(share, score):
    assert presence(*of(share)) == pytest.approx(score)


def test_silence_holds_nothing():
    assert presence(np.zeros(3), np.zeros(3)) == 0
    assert presence(np.full(3, 1e-12), np.full(3, 1e-12)) == 0  # inaudible
    assert spans(np.full(3, 1e-12), np.full(3, 1e-12), HOP, 0.3) == []
    assert presence(np.zeros(0), np.zeros(0)) == 0


def test_a_span_starts_high_and_ends_low():
    assert active([0, 0.1, 0.21, 0.1, 0.04, 0.1, 0, 0]) == [(0.1, 0.4)]
    assert active([0.19] * 8) == []
    assert active([0.06] * 3 + [0.9]) == [(0.0, 0.4)]


def test_close_spans_are_one_and_far_ones_two():
    assert active([0.9, 0, 0, 0.9]) == [(0.0, 0.4)]
    assert active([0.9, 0, 0, 0, 0.9]) == [(0.0, 0.1), (0.4, 0.5)]


def test_what_is_far_below_the_loudest_is_not_active():
    estimate_T = np.array([1e-1, 0, 0, 0, 0.9e-4, 0, 0, 0, 1.1e-4])
    assert spans(estimate_T, estimate_T, HOP, 0.9) == [(0.0, 0.1), (0.8, 0.9)]


def test_the_last_span_ends_with_the_recording():
    assert active([0, 0, 1], seconds=0.23) == [(0.2, 0.23)]


@given(st.lists(st.floats(0, 2), max_size=60))
def test_spans_are_apart_in_order_and_inside(share):
    found = [x for span in active(share) for x in span]
    assert found == sorted(found)
    assert all(0 <= x <= len(share) * HOP + 1e-9 for x in found)
    assert all(b - a > 0.2 for a, b in zip(found[1::2], found[2::2], strict=False))
    assert 0 <= presence(*of(share)) <= 1
