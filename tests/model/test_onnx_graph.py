"""ONNX graphs of networks: the numbers of JAX, at any length and batch, and streamed."""

import dataclasses
import functools
import math

import jax
import numpy as np
import pytest
from separator_examples import TINY, tiny_variables, unit_rows

from audiosep_jax.model import make_network
from audiosep_jax.model.onnx_graph import NEXT
from audiosep_jax.model.resunet import stream_table
from audiosep_jax.model.resunet_graph import write_resunet
from audiosep_jax.separation.engines import openvino_core

# Pools that are not powers of two, a block without a shortcut, and one that does not pool.
DEEP = dataclasses.replace(
    TINY,
    encoder_channels=(2, 3, 4),
    time_pools=(3, 2, 1),
    frequency_pools=(2, 1, 2),
)
HEADED = dataclasses.replace(DEEP, activity="report")
LIGHT = dataclasses.replace(TINY, decoder_channels=(2, 3))
TILE = 12


@functools.cache
def compiled(config, stream):
    graph = write_resunet(config, tiny_variables(config), stream=stream)
    options = {"INFERENCE_PRECISION_HINT": "f32"}
    core = openvino_core()
    return core.compile_model(core.read_model(model=graph.SerializeToString()), "CPU", options)


@functools.cache
def network(config):
    return jax.jit(functools.partial(make_network(config).apply, train=False))


def in_jax(config, mag_BTF, condition_BE):
    return np.asarray(network(config)(tiny_variables(config), mag_BTF, condition_BE))


def magnitudes(*shape, seed=0):
    return np.abs(np.random.default_rng(seed).standard_normal(shape)).astype(np.float32)


def snr_db(actual, expected):
    assert actual.shape == expected.shape
    error = np.mean((actual.astype(np.float64) - expected) ** 2)
    return 10 * math.log10(np.mean(expected.astype(np.float64) ** 2) / max(error, 1e-30))


@pytest.mark.parametrize("config", [TINY, DEEP, HEADED, LIGHT])
@pytest.mark.parametrize(("batch", "frames"), [(1, 1), (3, 24), (2, 61)])
def test_one_pass_equals_jax_at_any_length_and_batch(config, batch, frames):
    mag_BTF = magnitudes(batch, frames, config.num_bins)
    condition_BE = unit_rows(1, batch)
    expected_BTFC = in_jax(config, mag_BTF, condition_BE)
    actual_BTFC = compiled(config, False)({"magnitude": mag_BTF, "condition": condition_BE})["mask"]
    assert snr_db(actual_BTFC, expected_BTFC) > 110
    assert not actual_BTFC[:, :, -1, 1:].any()
    assert actual_BTFC[:, :, -1, 0].any() == (config.activity != "none")
    if batch > 1:  # the condition matters
        assert snr_db(actual_BTFC[::-1], expected_BTFC) < 60


def streamed(config, mag_BTF, condition_BE):
    """Masks of the frames of the recording, which garbage follows, tile by tile."""
    model, (batch, total, bins) = compiled(config, True), mag_BTF.shape
    delay = stream_table(config)[1]
    names = {port.node.friendly_name: list(port.partial_shape)[1:] for port in model.inputs}
    state = {
        name: np.zeros([batch, *(size.get_length() for size in sizes)], np.float32)
        for name, sizes in names.items()
        if "past" in name
    }
    mag_BTF = np.concatenate([mag_BTF, np.full((batch, delay + TILE, bins), np.nan)], axis=1)
    masks = []
    for first in range(0, total + delay, TILE):
        tile = {"magnitude": mag_BTF[:, first : first + TILE], "condition": condition_BE}
        out = model({**tile, **state, "first": np.int64([first]), "total": np.int64([total])})
        state = {name: out[NEXT + name] for name in state}
        masks.append(out["mask"])
    return np.concatenate(masks, axis=1)[:, delay : delay + total]


@pytest.mark.parametrize("config", [TINY, DEEP, HEADED, LIGHT])
@pytest.mark.parametrize(("batch", "frames"), [(2, 1), (1, 24), (2, 61)])
def test_a_stream_equals_one_pass_of_jax(config, batch, frames):
    mag_BTF = magnitudes(batch, frames, config.num_bins)
    condition_BE = unit_rows(2, batch)
    expected_BTFC = in_jax(config, mag_BTF, condition_BE)
    assert snr_db(streamed(config, mag_BTF, condition_BE), expected_BTFC) > 110


@pytest.mark.parametrize("stream", [False, True])
def test_it_is_standard_onnx(stream):
    import onnx

    graph = write_resunet(DEEP, tiny_variables(DEEP), stream=stream)
    onnx.checker.check_model(graph, full_check=True)
    assert {node.domain for node in graph.graph.node} == {""}
