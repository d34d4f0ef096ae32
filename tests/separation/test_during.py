"""Spans: silence outside of them, nothing changed inside, also in blocks; every mistake named."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_stream import RATE_HZ, Scaled, noise, through

from audiosep_jax.errors import InputError
from audiosep_jax.separation.during import check_spans, parse_spans
from audiosep_jax.separation.stream import During


def test_an_estimate_fades_within_ten_milliseconds_of_its_spans():
    spans = [(0.25, 0.30), (0.1, 0.2), (0.305, math.inf)]
    stream = During(Scaled([2, 1]), [spans, []], RATE_HZ)
    out_NCS = through(stream, np.ones((2, 400), np.float32), [])
    second_S = np.arange(400) / RATE_HZ
    # The second and the third span are closer than their fades, of which the louder counts.
    points = [0.09, 0.1, 0.2, 0.21, 0.24, 0.25, 0.3, 0.3025, 0.305]
    gain_S = np.interp(second_S, points, [0, 1, 1, 0, 0, 1, 1, 0.75, 1])
    np.testing.assert_allclose(out_NCS[0], [2 * gain_S] * 2, atol=1e-6)
    assert (out_NCS[0, 0, 100:201] == 2).all()
    assert (out_NCS[0, 0, 211:240] == 0).all()
    np.testing.assert_array_equal(out_NCS[1], 1)


@settings(max_examples=40, deadline=None)
@given(lengths=st.lists(st.integers(0, 100), max_size=5), late=st.integers(0, 70))
def test_blocks_give_what_the_whole_gives_to_the_bit(lengths, late):
    audio_CS, during_N = noise(300), [[(0.05, 0.11), (0.2, 0.21)], [(0.123, math.inf)]]
    whole_NCS = through(During(Scaled([1, 0.5]), during_N, RATE_HZ), audio_CS, [])
    parts_NCS = through(During(Scaled([1, 0.5], late), during_N, RATE_HZ), audio_CS, lengths)
    np.testing.assert_array_equal(parts_NCS, whole_NCS)


def test_spans_of_a_text():
    assert parse_spans("3.0-5.5") == ((3, 5.5),)
    assert parse_spans(" 0-0.25;7-8 ; 9.5- ") == ((0, 0.25), (7, 8), (9.5, math.inf))


@pytest.mark.parametrize("text", ["", "3", "3.0 - 5.5", "a-b", "-5", "1e3-2e3", "nan-inf", "³-4"])
def test_a_text_that_has_no_spans(text):
    with pytest.raises(InputError, match=r"must be START-END in seconds, such as 3\.0-5\.5"):
        parse_spans(text)


@pytest.mark.parametrize("span", [(5.5, 3.0), (3, 3), (-1, 2), (math.nan, 2), (1, math.nan)])
def test_a_span_that_cannot_be(span):
    with pytest.raises(InputError, match="must start at 0 or later, and end after its start"):
        check_spans([(0, 1), span])


@pytest.mark.parametrize("spans", [(3.0, 5.5), [("a", "b")], [(1, 2, 3)]])
def test_a_span_that_is_no_pair_of_numbers(spans):
    with pytest.raises(InputError, match=r"must be \(start, end\) in seconds"):
        check_spans(spans)


def test_a_span_begins_in_the_recording():
    check_spans([(1.9, 2.5), (1, math.inf)], seconds=2)
    with pytest.raises(InputError, match=r"span 2- s lies outside the recording, which has 2 s"):
        check_spans([(2, math.inf)], seconds=2)
