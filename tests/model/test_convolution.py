"""The 3x3 convolution beside nn.Conv, on spectrograms whose weight gradient has several slices."""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from audiosep_jax.model.convolution import conv3x3, num_slices

FEATURES = 3
X_BTFC = np.random.default_rng(0).standard_normal((1, 193, 67, 2)).astype(np.float32)
KERNEL = np.random.default_rng(1).standard_normal((3, 3, 2, FEATURES)).astype(np.float32)
DY_BTFC = np.random.default_rng(2).standard_normal((1, 193, 67, FEATURES)).astype(np.float32)


def gradients(module):
    """Function from (kernel, input, gradient of the result) to gradients of kernel and input."""

    def pull(kernel, x_BTFC, dy_BTFC):
        def apply(kernel, x_BTFC):
            return module.apply({"params": {"kernel": kernel}}, x_BTFC)

        return jax.vjp(apply, kernel, x_BTFC)[1](dy_BTFC)

    return pull


def ours():
    return conv3x3(FEATURES, None, name="conv")


def plain():
    return nn.Conv(FEATURES, (3, 3), use_bias=False)


def assert_near(actual, expected, tolerance):
    """Compare in the Euclidean norm, relative to the expected value."""
    for value, wanted in zip(actual, expected, strict=True):
        error = np.asarray(value, np.float64) - np.asarray(wanted, np.float64)
        assert np.linalg.norm(error) < tolerance * np.linalg.norm(wanted)


def test_gradients_are_those_of_a_plain_convolution():
    assert num_slices(X_BTFC) == 3  # of 64 or 65 frames
    arguments = (KERNEL, X_BTFC, DY_BTFC)
    assert_near(gradients(ours())(*arguments), gradients(plain())(*arguments), 1e-5)


def test_slices_of_bfloat16_are_summed_in_float32():
    arguments = [jnp.asarray(x, jnp.bfloat16) for x in (KERNEL, X_BTFC, DY_BTFC)]
    found = jax.jit(gradients(ours()))(*arguments)
    expected = gradients(plain())(*(x.astype(jnp.float32) for x in arguments))
    assert found[0].dtype == jnp.bfloat16
    # One rounding has an error of 2^-9 at most, and 0.6 of that in this norm.
    assert_near(found, expected, 2**-9)


def convolutions(module, platform):
    """The convolutions in the program of the gradients, sorted."""
    traced = jax.jit(gradients(module)).trace(KERNEL, X_BTFC, DY_BTFC)
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    return sorted(re.findall(r"stablehlo.convolution.*\) (dim_numbers.*)", text))


@pytest.mark.parametrize("platform", ["cuda", "rocm", "tpu"])
def test_programs_for_accelerators_have_no_slices(platform):
    found = convolutions(ours(), platform)
    assert found == convolutions(plain(), platform)
    assert len(found) == 2  # the result itself is not used


def test_programs_for_cpus_have_slices():
    assert len(convolutions(ours(), "cpu")) == 1 + num_slices(X_BTFC)


def test_a_kernel_that_is_equal_on_all_devices_gets_the_sum_over_all_rows():
    rows, whole = PartitionSpec("data"), PartitionSpec()
    x_BTFC, dy_BTFC = (np.concatenate([x, x[:, ::-1]]) for x in (X_BTFC, DY_BTFC))
    mapped = jax.shard_map(
        gradients(ours()),
        mesh=Mesh(np.asarray(jax.devices()[:2]), ("data",)),
        in_specs=(whole, rows, rows),
        out_specs=(whole, rows),
    )
    found = jax.jit(mapped)(KERNEL, x_BTFC, dy_BTFC)
    assert_near(found, gradients(plain())(KERNEL, x_BTFC, dy_BTFC), 1e-5)
