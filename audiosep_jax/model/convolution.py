"""3x3 convolution whose weight gradient is fast on CPUs, too.

XLA computes a weight gradient as a convolution whose window is the whole spectrogram. On CPUs this
has a third of the speed of the convolution itself. The sum of the weight gradients of a few slices
of frames, each with the frame before it and the frame after it, equals it and is up to twice as
fast. `benchmarks/weight_gradient.py` measures both. On GPUs and TPUs nothing is sliced.
"""

import functools
import itertools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

MAX_SLICES = 8  # more are hardly faster, and each has to be compiled
SLICE_SIZE = 4096  # least number of frames times bins


def conv3x3(features: int, dtype: jnp.dtype | None, name: str) -> nn.Conv:
    """3x3 convolution without bias, zero-padded to the size of its input."""
    return nn.Conv(
        features,
        (3, 3),
        use_bias=False,
        dtype=dtype,
        kernel_init=nn.initializers.xavier_uniform(),
        # nn.Conv also passes the strides and the padding, which `_convolve` has.
        conv_general_dilated=lambda x_BTFC, kernel, *_, **__: _convolve(x_BTFC, kernel),
        name=name,
    )


def num_slices(x_BTFC: Any) -> int:
    """Slices of frames in which a CPU computes the weight gradient of a convolution of `x_BTFC`."""
    batch, frames, bins, _ = x_BTFC.shape
    # XLA's kernel vectorises over the batch, so it is fast where that is large.
    return max(1, min(MAX_SLICES, frames * bins // (batch * SLICE_SIZE), frames))


def _plain(
    x_BTFC: jax.Array, kernel: jax.Array, time_padding: tuple[int, int] = (1, 1)
) -> jax.Array:
    numbers = ("NHWC", "HWIO", "NHWC")
    padding = (time_padding, (1, 1))
    return jax.lax.conv_general_dilated(x_BTFC, kernel, (1, 1), padding, dimension_numbers=numbers)


@jax.custom_vjp
def _convolve(x_BTFC: jax.Array, kernel: jax.Array) -> jax.Array:
    return _plain(x_BTFC, kernel)


def _forward(x_BTFC: jax.Array, kernel: jax.Array) -> tuple[jax.Array, Any]:
    return _plain(x_BTFC, kernel), (x_BTFC, kernel)


def _backward(kept: tuple[jax.Array, jax.Array], dy_BTFC: jax.Array) -> tuple[jax.Array, jax.Array]:
    x_BTFC, kernel = kept
    (dx_BTFC,) = jax.linear_transpose(lambda x: _plain(x, kernel), x_BTFC)(dy_BTFC)
    whole = functools.partial(_kernel_gradient, kernel)
    if num_slices(x_BTFC) == 1:
        return dx_BTFC, whole(x_BTFC, dy_BTFC)
    sliced = functools.partial(_sum_over_slices, kernel)
    return dx_BTFC, jax.lax.platform_dependent(x_BTFC, dy_BTFC, cpu=sliced, default=whole)


_convolve.defvjp(_forward, _backward)


def _kernel_gradient(
    kernel: Any, x_BTFC: jax.Array, dy_BTFC: jax.Array, time_padding: tuple[int, int] = (1, 1)
) -> jax.Array:
    convolve = functools.partial(_plain, x_BTFC, time_padding=time_padding)
    return jax.linear_transpose(convolve, kernel)(dy_BTFC)[0]


def _sum_over_slices(kernel: Any, x_BTFC: jax.Array, dy_BTFC: jax.Array) -> jax.Array:
    """Kernel gradient as a sum in float32, the type in which XLA convolves on CPUs anyway."""
    dtype = jnp.promote_types(kernel.dtype, jnp.float32)
    number, frames = num_slices(x_BTFC), x_BTFC.shape[1]
    edges = [frames * i // number for i in range(number + 1)]
    total = jnp.zeros((), dtype)
    for start, stop in itertools.pairwise(edges):
        before, behind = int(start == 0), int(stop == frames)  # frames of the zero padding
        near = x_BTFC[:, start - 1 + before : stop + 1 - behind].astype(dtype)
        own = dy_BTFC[:, start:stop].astype(dtype)
        total += _kernel_gradient(kernel.astype(dtype), near, own, (before, behind))
    return total.astype(kernel.dtype)
