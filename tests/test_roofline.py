"""The benchmarks' roofline: work and traffic of blocks, counted by hand."""

import dataclasses

import jax
import pytest
from separator_examples import SMALLEST, TINY, tiny_batch

from audiosep_jax.model import make_model, variable_shapes
from audiosep_jax.model.resunet import ResUNetConfig, block_table
from benchmarks.roofline import (
    BlockCost,
    block_costs,
    block_shapes,
    network_flop,
    step_flop,
)

FIVE_SECONDS = 160_000
# SMALLEST on 100 samples: 14 frames of 16 bins, half of each inside; 3 channels, then 4.
PIXELS, INNER = 14 * 16, 7 * 8


def test_published_network_costs_what_its_authors_count():
    flop = sum(network_flop(ResUNetConfig(), FIVE_SECONDS).values())
    assert flop == pytest.approx(233e9, rel=2e-3)
    assert step_flop(ResUNetConfig(), 96, FIVE_SECONDS) == 3 * 96 * flop


def test_operations_by_hand():
    block = 9 * 3 * 4 + 9 * 4 * 4 + 3 * 4
    assert network_flop(SMALLEST, 100) == {
        "pre_conv": 2 * PIXELS * 3,
        "encoder_block1": 2 * PIXELS * block,
        "conv_block2a": 2 * INNER * (9 * 4 * 4 + 9 * 4 * 4),
        "decoder_block1": 2 * PIXELS * (4 * 4 + 9 * 8 * 4 + 9 * 4 * 4 + 8 * 4),
        "after_conv": 2 * PIXELS * 4 * 3,
    }


def test_operations_are_those_that_xla_counts():
    """XLA adds the element-wise work and the spectra, and leaves out what padding multiplies."""
    model = dataclasses.replace(TINY, stem_channels=24, encoder_channels=(24, 32))
    batch = tiny_batch(0, 1, 1000)
    apply = jax.jit(lambda v, x, c: make_model(model).apply(v, x, c, train=False))
    shapes = variable_shapes(model)
    counted = apply.lower(shapes, batch["mixture"], batch["condition"]).cost_analysis()["flops"]
    assert sum(network_flop(model, 1000).values()) == pytest.approx(counted, rel=0.1)


def test_shapes_of_blocks():
    rows = list(block_shapes(ResUNetConfig(), FIVE_SECONDS))
    assert [block for block, _, _ in rows] == block_table(ResUNetConfig())
    sizes = [(512, 1024), (256, 512), (128, 256), (64, 128), (32, 64), (16, 32)]
    inner = (16, 16)
    assert [(frames, bins) for _, frames, bins in rows] == [*sizes, inner, *sizes[::-1]]


def test_traffic_of_the_middle_block_by_hand():
    costs = {cost.name: cost for cost in block_costs(SMALLEST, 5, 100)}
    x = 4 * INNER  # elements of every array in it
    normalise = 2 * (2 + 2)  # twice: two passes for the statistics, one that reads and writes
    forward = normalise + 2 * 2 + 3  # two convolutions, one sum
    backward = 2 * 5 + 2 * 4 + 1
    weights = 2 * 9 * 4 * 4
    moved = 4 * (5 * (forward + backward) * x + (2 + 1) * weights)
    assert costs["conv_block2a"].bytes == moved
    assert costs["conv_block2a"].flop == 3 * 5 * 2 * INNER * weights
    # Its second convolution's result is no part of its own gradient.
    again = {c.name: c for c in block_costs(dataclasses.replace(SMALLEST, remat=True), 5, 100)}
    moved += 4 * (5 * (2 * 2 + 2) * x + weights // 2)
    assert again["conv_block2a"].bytes == moved
    assert again["conv_block2a"].flop == (3 + 0.5) * 5 * 2 * INNER * weights
    assert again["pre_conv"] == costs["pre_conv"]


def test_costs_of_a_step_add_up():
    costs = block_costs(ResUNetConfig(), 2, FIVE_SECONDS)
    assert sum(cost.flop for cost in costs) == step_flop(ResUNetConfig(), 2, FIVE_SECONDS)
    assert [cost.name for cost in costs] == [*network_flop(ResUNetConfig(), 1), "optimizer"]
    # Nine passes over 26.4 million float32 weights; BatchNorm's few are left out.
    assert costs[-1].bytes == pytest.approx(9 * 4 * 26_447_941, rel=2e-3)


def test_bfloat16_moves_half_of_the_activations():
    whole = block_costs(ResUNetConfig(), 96, FIVE_SECONDS)
    half = block_costs(ResUNetConfig(dtype="bfloat16"), 96, FIVE_SECONDS)
    for a, b in zip(whole[:-1], half[:-1], strict=True):
        assert b.bytes == pytest.approx(a.bytes / 2, rel=0.01)
        assert b.flop == a.flop
    assert half[-1] == whole[-1]


def test_time_is_that_of_the_slower_of_computing_and_moving():
    cost = BlockCost("x", flop=6e12, bytes=2e12)
    assert (cost.seconds(3e12, 4e12), cost.bound(3e12, 4e12)) == (2.0, "arithmetic")
    assert (cost.seconds(3e12, 0.5e12), cost.bound(3e12, 0.5e12)) == (4.0, "memory")
