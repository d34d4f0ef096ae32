"""Streaming: the same numbers as one pass, however long, wherever cut; and no later than stated."""

import dataclasses
import functools
import math
from unittest import mock

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from separator_examples import TINY, tiny_variables, unit_rows

from audiosep_jax.model import make_model, tiles
from audiosep_jax.model.resunet import ResUNetConfig, stream_table
from audiosep_jax.model.tiles import (
    TileStream,
    bucket,
    initial_state,
    latency_samples,
    tile_bytes,
)

TILE = 16
# The published table in time, with few and narrow channels.
NARROW = dataclasses.replace(
    TINY,
    window_samples=128,
    hop_samples=20,
    stem_channels=2,
    encoder_channels=(2, 2, 3, 3, 3, 3),
    time_pools=(2, 2, 2, 2, 2, 1),
    frequency_pools=(2, 2, 2, 2, 2, 2),
)


def noise(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@functools.cache
def _network(config):
    return jax.jit(functools.partial(make_model(config).apply, train=False))


def one_pass(config, audio_CS, condition_NE):
    """`(N, C, S)` of the network as it is trained."""
    rows = [np.repeat(row[None], len(audio_CS), axis=0) for row in condition_NE]
    variables = tiny_variables(config)
    return np.stack([_network(config)(variables, audio_CS, row) for row in rows])


def streamed(config, audio_CS, condition_NE, *, cuts=(), tile=TILE, whole=0, group=1, masks=None):
    """The same in blocks that end at `cuts`; the samples given so far after each block, too."""
    channels = len(audio_CS)
    stream = TileStream(
        config,
        tiny_variables(config),
        condition_NE,
        channels=channels,
        masks=masks or channels,
        tile_frames=tile,
        whole_frames=whole,
        group=group,
    )
    blocks = np.split(audio_CS, sorted(cuts), axis=1)
    parts = [stream.feed(block_CS)[0] for block_CS in blocks] + [stream.finish()[0]]
    return np.concatenate(parts, axis=-1), np.cumsum([part.shape[-1] for part in parts])


def snr_db(actual, expected):
    assert actual.shape == expected.shape
    error = np.mean((actual.astype(np.float64) - expected) ** 2)
    return 10 * math.log10(np.mean(expected.astype(np.float64) ** 2) / max(error, 1e-30))


def boundary_lengths():
    """Lengths around every edge there is: half windows, hops, tiles, the delay; and primes."""
    hop, half = TINY.hop_samples, TINY.window_samples // 2
    delay, tile = stream_table(TINY)[1] * hop, TILE * hop
    edges = [half, tile, 2 * tile]
    around = {edge + step for edge in edges for step in (-1, 0, 1)}
    return sorted({1, 2, delay, tile + delay - half, 997, 2003, *around})


@pytest.mark.parametrize("num_samples", [1, 127, 2003])
def test_equals_one_pass(num_samples):
    audio_CS, condition_NE = noise(2, num_samples), unit_rows(1, 1)
    expected_NCS = one_pass(TINY, audio_CS, condition_NE)
    assert snr_db(streamed(TINY, audio_CS, condition_NE)[0], expected_NCS) > 100
    in_one_go = streamed(TINY, audio_CS, condition_NE, whole=1000)[0]
    assert snr_db(in_one_go, expected_NCS) > 100
    assert np.abs(expected_NCS[..., : 5 * TINY.sample_rate_hz]).max() > 1e-3  # short is not silent


@given(st.sampled_from(boundary_lengths()) | st.integers(1, 4000), st.data())
@settings(max_examples=40, deadline=None)
def test_equals_one_pass_however_long_and_wherever_cut(num_samples, data):
    cuts = data.draw(st.lists(st.integers(0, num_samples), max_size=6))
    audio_CS, condition_NE = noise(2, num_samples, seed=num_samples), unit_rows(2, 1)
    with mock.patch.object(tiles, "bucket", return_value=512):  # one compilation
        expected_NCS = streamed(TINY, audio_CS, condition_NE, whole=10_000)[0]
    actual_NCS = streamed(TINY, audio_CS, condition_NE, cuts=cuts)[0]
    assert snr_db(actual_NCS, expected_NCS) > 100


@pytest.mark.parametrize(
    ("time_pools", "frequency_pools", "tile"),
    [((1,), (2,), 1), ((3, 2, 1), (2, 1, 2), 12)],
)
def test_any_table(time_pools, frequency_pools, tile):
    channels = tuple(range(2, 2 + len(time_pools)))
    config = dataclasses.replace(
        TINY, encoder_channels=channels, time_pools=time_pools, frequency_pools=frequency_pools
    )
    audio_CS, condition_NE = noise(1, 1501), unit_rows(3, 1)
    expected_NCS = one_pass(config, audio_CS, condition_NE)
    assert snr_db(streamed(config, audio_CS, condition_NE, tile=tile)[0], expected_NCS) > 100


@pytest.mark.slow
def test_a_minute_through_the_published_table():
    """6000 frames, as 60 s of 32 kHz have."""
    audio_CS, condition_NE = noise(1, 6000 * NARROW.hop_samples + 7), unit_rows(4, 1)
    expected_NCS = one_pass(NARROW, audio_CS, condition_NE)
    actual_NCS = streamed(NARROW, audio_CS, condition_NE, tile=320)[0]
    assert snr_db(actual_NCS, expected_NCS) > 100


def test_the_published_table_waits_for_its_receptive_field():
    """316 frames are known of the original; two more keep the pooling on its grid."""
    assert stream_table(ResUNetConfig())[1] == 318
    assert stream_table(NARROW)[1] == 318


def test_queries_and_masks_share_what_they_can_and_mix_nothing_up():
    audio_CS, condition_NE = noise(2, 997), unit_rows(5, 3)
    expected_NCS = one_pass(TINY, audio_CS, condition_NE)
    assert snr_db(streamed(TINY, audio_CS, condition_NE, group=2)[0], expected_NCS) > 100
    assert snr_db(expected_NCS[0], expected_NCS[1]) < 60


def test_one_mask_is_that_of_the_mean_and_keeps_the_image():
    left_S, condition_NE = noise(1000), unit_rows(6, 1)
    audio_CS = np.stack([left_S, -0.25 * left_S])
    actual_NCS = streamed(TINY, audio_CS, condition_NE, masks=1)[0]
    middle_NCS = streamed(TINY, audio_CS.mean(0, keepdims=True), condition_NE)[0]
    # Linear in the spectrum: each channel is what its share of the mean is.
    assert snr_db(actual_NCS[:, :1], middle_NCS / 0.375) > 100
    assert snr_db(actual_NCS[:, 1:], -middle_NCS / 0.375 * 0.25) > 100


def test_nothing_waits_longer_than_stated():
    audio_CS, condition_NE = noise(1, 3000), unit_rows(7, 1)
    _, given_after = streamed(TINY, audio_CS, condition_NE, cuts=range(1, 3000))
    fed = np.arange(1, 3001)
    waiting = (fed - given_after[:-1])[:-1].max()
    assert latency_samples(TINY, TILE) - 2 <= waiting <= latency_samples(TINY, TILE)


def test_feeding_nothing_gives_nothing():
    estimate_NCS, _ = streamed(TINY, np.zeros((2, 0), np.float32), unit_rows(8, 2))
    assert estimate_NCS.shape == (2, 2, 0)


@given(st.integers(1, 100_000))
def test_buckets_are_few_and_near(frames):
    config = ResUNetConfig()
    found = bucket(config, frames)
    least = -(-frames // config.time_stride) * config.time_stride
    assert found % config.time_stride == 0
    assert least <= found <= 1.25 * least
    assert bucket(config, found) == found
    assert len({bucket(config, x) for x in range(1, 3200, 31)}) <= 24


def test_memory_is_foreseen():
    """The estimate covers the carried state, and grows as the widest rows of a tile do."""
    config = dataclasses.replace(NARROW, stem_channels=8, encoder_channels=(8,) * 6)
    carried = sum(x.nbytes for x in jax.tree.leaves(initial_state(config, 1, 1, 1, 64)))
    assert 1.5 * carried < tile_bytes(config, 64) < 3 * carried + 200_000 * 64
    more = tile_bytes(config, 640) - tile_bytes(config, 64)
    assert 3 < more / (576 * 64 * 16 * 4) < 5  # of the widest row, four bytes a number
