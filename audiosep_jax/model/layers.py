"""Layers with PyTorch's numerics and names, in forms that are fast on CPUs, GPUs and TPUs."""

import itertools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

BATCH_NORM_EPSILON = 1e-5
BATCH_NORM_MOMENTUM = 0.99  # 0.01 in PyTorch's convention
STATISTICS = "batch_statistics"  # checkpoint name: small, and expensive to recompute


class BatchNorm(nn.Module):
    """Batch normalisation over all axes but the last, with PyTorch's running statistics.

    It differs from Flax's in two points. The variance is computed in two passes, because the
    one-pass formula E[x^2] - E[x]^2 cancels where the mean is large against the deviation. The
    running variance is the unbiased one, as in PyTorch. With `axis_name` the batch is that of all
    devices. An extra `shift` `(B, C)` is added to the result; it is an argument so that evaluation
    needs only one multiply-add.
    """

    axis_name: str | None = None

    @nn.compact
    def __call__(
        self, x: jax.Array, shift_BC: jax.Array | None = None, *, train: bool
    ) -> jax.Array:
        channels = x.shape[-1]
        scale_C = self.param("scale", nn.initializers.ones, (channels,))
        bias_C = self.param("bias", nn.initializers.zeros, (channels,))
        mean = self.variable("batch_stats", "mean", jnp.zeros, (channels,))
        variance = self.variable("batch_stats", "var", jnp.ones, (channels,))
        mean_C, variance_C = mean.value, variance.value
        if train:
            mean_C, variance_C, count = self._statistics(x)
            if not self.is_initializing():
                mean.value = _moving(mean.value, mean_C)
                variance.value = _moving(variance.value, variance_C * (count / max(count - 1, 1)))
        gain_C = scale_C * jax.lax.rsqrt(variance_C + BATCH_NORM_EPSILON)
        if train:  # subtract the mean first: exact where it is large against the deviation
            offset = bias_C if shift_BC is None else bias_C + _per_item(shift_BC, x.ndim)
            return ((x - mean_C) * gain_C + offset).astype(x.dtype)
        offset = bias_C - mean_C * gain_C
        offset = offset if shift_BC is None else offset + _per_item(shift_BC, x.ndim)
        return (x * gain_C + offset).astype(x.dtype)

    def _statistics(self, x: jax.Array) -> tuple[jax.Array, jax.Array, int]:
        """Mean and biased variance by channel over all devices, and the number of values."""
        axes = tuple(range(x.ndim - 1))
        x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        # The first pass computes a rough mean, which rounding may have moved. The second pass
        # computes both moments about it, and the remainder's mean corrects the rough one. The
        # sum rough + correction does not depend on the rough mean, so its gradient may be
        # stopped: all of the mean's gradient flows through the correction.
        centre_C = jax.lax.stop_gradient(self._over_devices(x.mean(axes)))
        centre_C = checkpoint_name(centre_C, STATISTICS)
        rest = x - centre_C
        moments = (rest.mean(axes), (rest**2).mean(axes))
        shift_C, square_C = self._over_devices(moments)
        mean_C, variance_C = centre_C + shift_C, jnp.maximum(square_C - shift_C**2, 0)
        mean_C, variance_C = checkpoint_name((mean_C, variance_C), STATISTICS)
        devices = 1 if self._local() else jax.lax.axis_size(self.axis_name)
        return mean_C, variance_C, x.size // x.shape[-1] * devices

    def _local(self) -> bool:
        return self.axis_name is None or self.is_initializing()

    def _over_devices(self, x: Any) -> Any:
        return x if self._local() else jax.lax.pmean(x, self.axis_name)


def _moving(old: jax.Array, new: jax.Array) -> jax.Array:
    return BATCH_NORM_MOMENTUM * old + (1 - BATCH_NORM_MOMENTUM) * new.astype(old.dtype)


def _per_item(shift_BC: jax.Array, num_axes: int) -> jax.Array:
    """`(B, C)` to `(B, 1, ..., C)`."""
    return jnp.expand_dims(shift_BC, tuple(range(1, num_axes - 1)))


class Pointwise(nn.Module):
    """1x1 convolution with a bias, computed as a matmul: twice as fast on a CPU.

    Sums and result have `result_dtype`, by default the type of the inputs.
    """

    features: int
    dtype: jnp.dtype | None
    result_dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, *parts_BTFC: jax.Array) -> jax.Array:
        """Convolve the concatenation of the inputs on the channels, without copying them."""
        widths = [part_BTFC.shape[-1] for part_BTFC in parts_BTFC]
        shape = (1, 1, sum(widths), self.features)
        kernel = self.param("kernel", nn.initializers.xavier_uniform(), shape)
        bias_C = self.param("bias", nn.initializers.zeros, (self.features,))
        *parts, kernel = nn.dtypes.promote_dtype(*parts_BTFC, kernel, dtype=self.dtype)
        result_dtype = self.result_dtype or kernel.dtype
        starts = itertools.accumulate(widths, initial=0)
        y = bias_C.astype(result_dtype)
        for part_BTFC, width, start in zip(parts, widths, starts, strict=False):
            own = kernel[0, 0, start : start + width]
            y = y + jnp.matmul(part_BTFC, own, preferred_element_type=result_dtype)
        return y


class Upsample(nn.Module):
    """Transposed convolution without bias whose kernel is its stride: a matmul and a reshape."""

    features: int
    stride: tuple[int, int]
    dtype: jnp.dtype | None

    @nn.compact
    def __call__(self, x_BTFC: jax.Array) -> jax.Array:
        init = nn.initializers.xavier_uniform()
        shape = (*self.stride, x_BTFC.shape[-1], self.features)
        kernel = self.param("kernel", init, shape)
        x_BTFC, kernel = nn.dtypes.promote_dtype(x_BTFC, kernel, dtype=self.dtype)
        batch, frames, bins, _ = x_BTFC.shape
        time, frequency = self.stride
        # As an einsum, XLA would transpose the input and, twice, the result.
        kernel_CD = jnp.moveaxis(kernel, 2, 0).reshape(x_BTFC.shape[-1], -1)
        y = x_BTFC.reshape(-1, x_BTFC.shape[-1]) @ kernel_CD
        y = y.reshape(batch, frames, bins, time, frequency, self.features).swapaxes(2, 3)
        return y.reshape(batch, frames * time, bins * frequency, self.features)


def conv3x3(features: int, dtype: jnp.dtype | None, name: str) -> nn.Conv:
    """3x3 convolution without bias, zero-padded to the size of its input."""
    init = nn.initializers.xavier_uniform()
    return nn.Conv(features, (3, 3), use_bias=False, dtype=dtype, kernel_init=init, name=name)


def average_pool(x_BTFC: jax.Array, stride: tuple[int, int]) -> jax.Array:
    """Mean of each window, as a sum of strided views: 20 times faster on a CPU than a mean."""
    time, frequency = stride
    views = [x_BTFC[:, t::time, f::frequency] for t in range(time) for f in range(frequency)]
    return sum(views[1:], start=views[0]) / len(views)
