"""Counts of compiled programs, on two emulated devices."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compile_for import array_bytes, count, count_collectives, count_traffic, lowered_steps
from jax.sharding import Mesh, PartitionSpec
from roofline import network_flop
from separator_examples import TINY
from tiny import get_config

from audiosep_jax.training.config import from_mapping


def test_a_program_of_one_product_and_two_sums():
    def body(x, y):
        return jax.lax.psum((x @ y, x.sum().astype(jnp.bfloat16)), "data")

    rows, whole = PartitionSpec("data"), PartitionSpec()
    mesh = Mesh(np.asarray(jax.devices()[:2]), ("data",))
    mapped = jax.shard_map(body, mesh=mesh, in_specs=(rows, whole), out_specs=whole)
    counts = count(jax.jit(mapped).lower(jnp.ones((20, 64)), jnp.ones((64, 30))).compile(), 0)
    assert counts.flop == pytest.approx(2 * 10 * 64 * 30, rel=0.1)
    assert counts.argument_bytes == 4 * (10 * 64 + 64 * 30)
    assert counts.traffic_bytes >= counts.argument_bytes + 4 * 10 * 30
    assert counts.peak_bytes >= counts.argument_bytes
    assert sum(size for _, size in counts.collectives.values()) >= 4 * 10 * 30 + 2


def test_collectives_as_a_tpu_names_them():
    program = """
  %a.1 = f32[33]{0:T(128)S(1)} all-reduce(%fusion.38), channel_id=1
  %b = (f32[4]{0:T(128)}, bf16[2,3]{1,0:T(8,128)(2,1)}) all-reduce-start(%x, %y), channel_id=2
  %b.2 = (f32[4]{0}, bf16[2,3]{1,0}) all-reduce-done(%b)
  %c = f32[4]{0} get-tuple-element(%all-reduce.122), index=1
  %d = pred[8]{0} all-gather(%z), dimensions={0}, frontend_attributes={chain_id="0"}
  %e = pred[8]{0} all-gather(%y), dimensions={0}, frontend_attributes={chain_id="0"}
"""
    assert count_collectives(program) == {"all-reduce": (2, 4 * 33 + 16 + 12), "all-gather": (1, 8)}


def test_traffic_is_what_instructions_read_and_write():
    program = """
%fused (p: f32[9]) -> f32[9] {
  ROOT %inside = f32[9]{0} negate(%p)
}

ENTRY %main {
  %x = bf16[10,4]{1,0} parameter(0)
  %y = (f32[5]{0}, s32[]) fusion(%x), kind=kLoop, calls=%fused
  %z = f32[5]{0} get-tuple-element(%y), index=0
  ROOT %w.1 = f32[5]{0} fusion(%z, %x), kind=kLoop
}
"""
    assert count_traffic(program) == (80 + 24) + (20 + 80 + 20)


def test_bytes_of_arrays():
    assert array_bytes("(f32[], s8[3]{0}, c64[2,2]{1,0}, f8e4m3fn[5]{0})") == 4 + 3 + 32 + 5
    assert array_bytes("pred[0,4]{1,0}") == 0


def test_inference_costs_what_the_rows_of_one_device_cost():
    """XLA adds the element-wise work and the spectra."""
    model = dataclasses.replace(TINY, stem_channels=24, encoder_channels=(24, 32))
    config = from_mapping(get_config().to_dict())  # clips of 0.25 s
    config = dataclasses.replace(config, batch_size=3, model=model)
    name, lowered, flop = next(lowered_steps(config, jax.devices()[:2]))
    assert name == "inference"
    assert flop == 3 * sum(network_flop(model, 200).values())
    assert count(lowered.compile(), 0).flop == pytest.approx(flop, rel=0.15)
