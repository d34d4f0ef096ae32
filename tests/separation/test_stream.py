"""Streams without unwanted sounds: nothing changes where they are absent, in blocks as in one."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from audiosep_jax.separation.stream import Without, keep_wanted

RATE_HZ = 1000  # windows of 64 samples, 16 apart


class Scaled:
    """Estimates that are the recording times a gain each, `late` samples behind."""

    def __init__(self, gains, late=0):
        self._gains, self._late = np.array(gains, np.float32)[:, None, None], late
        self._held = None

    def feed(self, audio_CS):
        held = audio_CS if self._held is None else np.concatenate([self._held, audio_CS], axis=1)
        ready = max(0, held.shape[1] - self._late)
        self._held = held[:, ready:]
        return self._gains * held[:, :ready]

    def finish(self):
        return self._gains * self._held


def noise(num_samples, channels=2, seed=0):
    return np.random.default_rng(seed).standard_normal((channels, num_samples)).astype(np.float32)


def through(stream, audio_CS, lengths):
    """All that comes out of a stream that is fed blocks of these lengths, and then the rest."""
    ready, start = [], 0
    for length in [*lengths, audio_CS.shape[1]]:
        ready.append(stream.feed(audio_CS[:, start : start + length]))
        start += length
    return np.concatenate([*ready, stream.finish()], axis=-1)


def test_the_share_of_each_bin():
    wanted, unwanted = np.full((1, 1, 1, 1), 3 - 4j), np.array([6j, -9.0]).reshape(2, 1, 1, 1)
    np.testing.assert_allclose(keep_wanted(wanted, unwanted), (3 - 4j) * 5 / 20)
    assert keep_wanted(0 * wanted, 0 * unwanted) == 0


@pytest.mark.parametrize("num_samples", [1, 15, 16, 17, 63, 64, 65, 500])
def test_what_nothing_unwanted_was_heard_in_stays(num_samples):
    audio_CS = noise(num_samples)
    out_NCS = through(Without(Scaled([1, -0.5, 0]), 2, RATE_HZ), audio_CS, [])
    assert out_NCS.shape == (2, 2, num_samples)
    np.testing.assert_allclose(out_NCS, [audio_CS, -0.5 * audio_CS], atol=1e-6)


def test_what_is_heard_as_much_as_wanted_is_halved():
    audio_CS = noise(300)
    out_NCS = through(Without(Scaled([1, 0.25, 0.75]), 1, RATE_HZ), audio_CS, [])
    np.testing.assert_allclose(out_NCS[0], audio_CS / 2, atol=1e-6)


def test_a_tone_that_was_unwanted_is_gone_and_the_other_stays():
    time_S = np.arange(1000) / RATE_HZ
    low_S, high_S = np.sin(2 * np.pi * 62.5 * time_S), np.sin(2 * np.pi * 312.5 * time_S)

    class Heard:
        """The query hears both tones, the other one only the high one, well."""

        def feed(self, audio_CS):
            return np.stack([low_S + high_S, 30 * high_S])[:, None].astype(np.float32)

        def finish(self):
            return np.zeros((2, 1, 0), np.float32)

    out_S = through(Without(Heard(), 1, RATE_HZ), np.zeros((1, 0)), [])[0, 0, :1000]
    middle = slice(100, 900)  # tones that start and end are not pure there
    assert np.abs(out_S - low_S)[middle].max() < 0.06


@settings(max_examples=40, deadline=None)
@given(
    num_samples=st.integers(1, 300),
    lengths=st.lists(st.integers(0, 100), max_size=5),
    late=st.integers(0, 70),
)
def test_blocks_give_what_the_whole_gives(num_samples, lengths, late):
    audio_CS = noise(num_samples)
    whole_NCS = through(Without(Scaled([1, 0.5, 0.3]), 2, RATE_HZ), audio_CS, [])
    parts_NCS = through(Without(Scaled([1, 0.5, 0.3], late), 2, RATE_HZ), audio_CS, lengths)
    assert parts_NCS.shape == whole_NCS.shape == (2, 2, num_samples)
    np.testing.assert_allclose(parts_NCS, whole_NCS, atol=1e-6)
