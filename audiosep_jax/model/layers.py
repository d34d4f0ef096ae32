"""Layers with PyTorch's numerics and names, in forms that are fast on CPUs, GPUs and TPUs."""

import functools
import itertools
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from audiosep_jax.model.folding import fold_average_pool, fold_matrix, fold_upsample

BATCH_NORM_EPSILON = 1e-5
BATCH_NORM_MOMENTUM = 0.99  # 0.01 in PyTorch's convention
STATISTICS = "batch_statistics"  # checkpoint name: small, and expensive to recompute


class BatchNorm(nn.Module):
    """Batch normalisation over all axes but the last, with PyTorch's running statistics.

    It differs from Flax's in two points. The variance is computed about a rough mean, because the
    one-pass formula E[x^2] - E[x]^2 cancels where the mean is large against the deviation. The
    running variance is the unbiased one, as in PyTorch. With `axis_name` the batch is that of all
    devices. A leaky ReLU follows, of slope `leak` below zero; 1 means none. The inputs hold `fold`
    bins in their channels (see `folding`).
    """

    axis_name: str | None = None
    leak: float = 1.0
    fold: int = 1

    @nn.compact
    def __call__(
        self, *parts: jax.Array, shift_BC: jax.Array | None = None, train: bool
    ) -> jax.Array:
        """Normalise the concatenation of the inputs `(B, T, ..., C)` on the channels.

        `shift_BC` is added before the leaky ReLU. It is an argument so that evaluation needs only
        one multiply-add.
        """
        widths = [part.shape[-1] // self.fold for part in parts]
        channels = sum(widths)
        scale_C = self.param("scale", nn.initializers.ones, (channels,))
        bias_C = self.param("bias", nn.initializers.zeros, (channels,))
        mean = self.variable("batch_stats", "mean", jnp.zeros, (channels,))
        variance = self.variable("batch_stats", "var", jnp.ones, (channels,))
        offset_BC = bias_C[None] if shift_BC is None else bias_C + shift_BC
        if train:
            mean_C, variance_C, count = self._statistics(jax.lax.stop_gradient(parts))
            if not self.is_initializing():
                unbiased_C = variance_C * (count / max(count - 1, 1))
                mean.value = _moving(mean.value, mean_C)
                variance.value = _moving(variance.value, unbiased_C)
            rate_C = jax.lax.rsqrt(variance_C + BATCH_NORM_EPSILON)
            # shard_map wants what is multiplied by x to vary over the devices if x does.
            zeros_C = jnp.zeros_like(parts[0], scale_C.dtype, (channels,))
            vectors = [mean_C, rate_C, scale_C + zeros_C, offset_BC + zeros_C]
            apply = functools.partial(_normalise, self.axis_name, self.leak, self.fold)
        else:
            gain_C = scale_C * jax.lax.rsqrt(variance.value + BATCH_NORM_EPSILON)
            vectors = [gain_C, offset_BC - mean.value * gain_C]
            apply = functools.partial(_multiply_add, self.leak)
        ends = list(itertools.accumulate(widths))[:-1]
        shares = [jnp.split(vector, ends, axis=-1) for vector in vectors]
        results = [
            apply(part, *(jnp.tile(vector, self.fold) for vector in own))
            for part, *own in zip(parts, *shares, strict=True)
        ]
        return jnp.concatenate(results, axis=-1)

    def _statistics(self, parts: Sequence[jax.Array]) -> tuple[jax.Array, jax.Array, int]:
        """Mean and biased variance by channel over all devices, and the number of values."""
        moments_2C = jnp.concatenate([_moments(part, self.fold) for part in parts], axis=-1)
        mean_DC, variance_DC = jnp.moveaxis(self._over_devices(moments_2C), 1, 0)
        # The variance of all values is that within the devices and that between their means.
        statistics = mean_DC.mean(0), variance_DC.mean(0) + mean_DC.var(0)
        mean_C, variance_C = checkpoint_name(statistics, STATISTICS)
        return mean_C, variance_C, parts[0].size // parts[0].shape[-1] * self.fold * len(mean_DC)

    def _over_devices(self, x: jax.Array) -> jax.Array:
        """Stack the `x` of all devices."""
        if self.axis_name is None or self.is_initializing():
            return x[None]
        return jax.lax.all_gather(x, self.axis_name, to="invarying")


def _moments(x: jax.Array, fold: int) -> jax.Array:
    """Mean and biased variance `(2, C)` by channel, in float32 or better.

    The rough mean is that of every 16th frame. It is at most 4 deviations from the mean, so that
    hardly anything cancels, and it spares one of two passes over the input.
    """
    axes = tuple(range(x.ndim - 1))
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    # A converted x of two uses would be stored, by XLA for TPUs.
    rough_C = x[:, ::16].astype(dtype).mean(axes)
    rest = x.astype(dtype) - rough_C
    shift_C, square_C = rest.mean(axes), (rest**2).mean(axes)
    mean_RC = (rough_C + shift_C).reshape(fold, -1)
    variance_RC = jnp.maximum(square_C - shift_C**2, 0).reshape(fold, -1)
    return jnp.stack([mean_RC.mean(0), variance_RC.mean(0) + mean_RC.var(0)])


def _moving(old: jax.Array, new: jax.Array) -> jax.Array:
    return BATCH_NORM_MOMENTUM * old + (1 - BATCH_NORM_MOMENTUM) * new.astype(old.dtype)


def _per_item(shift_BC: jax.Array, x: jax.Array) -> jax.Array:
    """`(B, C)` to `(B, 1, ..., C)`, with as many axes as x."""
    return jnp.expand_dims(shift_BC, tuple(range(1, x.ndim - 1)))


def _leaky_relu(x: jax.Array, leak: float) -> jax.Array:
    return x if leak == 1 else nn.leaky_relu(x, leak)


def _multiply_add(leak: float, x: jax.Array, gain_C: jax.Array, offset_BC: jax.Array) -> jax.Array:
    return _leaky_relu((x * gain_C + _per_item(offset_BC, x)).astype(x.dtype), leak)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _normalise(
    axis_name: str | None, leak: float, fold: int, x: jax.Array, *vectors: jax.Array
) -> jax.Array:
    """Compute `leaky_relu((x - mean) * rate * scale + offset)`.

    `vectors` are mean_C, rate_C, scale_C and offset_BC. mean_C and rate_C must be the mean and the
    inverse deviation of x over all devices: the gradient of x includes their dependence on it. The
    backward pass keeps the arguments alone. Plain operations would keep x three times in float32.
    """
    return _leaky_relu(_normal_and_affine(x, *vectors)[1], leak).astype(x.dtype)


def _backward(
    axis_name: str | None, leak: float, fold: int, saved: Sequence[jax.Array], gradient: jax.Array
) -> tuple[jax.Array | None, ...]:
    # Without the barrier XLA would keep arrays of the forward pass that both compute.
    x, *vectors = jax.lax.optimization_barrier(saved)
    _, rate_C, scale_C, offset_BC = vectors
    normal, y = _normal_and_affine(x, *vectors)
    gradient = jnp.where(y >= 0, 1, leak) * gradient.astype(y.dtype)
    # Sums over the same axes, so that XLA computes both in one pass.
    inner = tuple(range(1, x.ndim - 1))
    sums_2BC = jnp.stack([gradient.sum(inner), (gradient * normal).sum(inner)])
    means_2C = sums_2BC.sum(1) * (x.shape[-1] / x.size)
    means_2C = means_2C if axis_name is None else jax.lax.pmean(means_2C, axis_name)
    mean_C, slope_C = jnp.tile(means_2C.reshape(2, fold, -1).mean(1), fold)
    x_gradient = rate_C * scale_C * (gradient - mean_C - normal * slope_C)
    offset_gradient_BC, scale_gradient_BC = sums_2BC
    if len(offset_BC) == 1:
        offset_gradient_BC = offset_gradient_BC.sum(0, keepdims=True)
    return x_gradient.astype(x.dtype), None, None, scale_gradient_BC.sum(0), offset_gradient_BC


_normalise.defvjp(lambda *all_: (_normalise(*all_), all_[3:]), _backward)


def _normal_and_affine(
    x: jax.Array, mean_C: jax.Array, rate_C: jax.Array, scale_C: jax.Array, offset_BC: jax.Array
) -> tuple[jax.Array, jax.Array]:
    # The mean is subtracted first: exact where it is large against the deviation.
    normal = (x - mean_C) * rate_C
    return normal, normal * scale_C + _per_item(offset_BC, x)


class Pointwise(nn.Module):
    """1x1 convolution with a bias, computed as a matmul: twice as fast on a CPU.

    Sums and result have `result_dtype`, by default the type of the inputs.
    """

    features: int
    dtype: jnp.dtype | None
    result_dtype: jnp.dtype | None = None
    fold: int = 1

    @nn.compact
    def __call__(self, *parts_BTFC: jax.Array) -> jax.Array:
        """Convolve the concatenation of the inputs on the channels, without copying them."""
        widths = [part_BTFC.shape[-1] // self.fold for part_BTFC in parts_BTFC]
        shape = (1, 1, sum(widths), self.features)
        kernel = self.param("kernel", nn.initializers.xavier_uniform(), shape)
        bias_C = self.param("bias", nn.initializers.zeros, (self.features,))
        *parts, kernel = nn.dtypes.promote_dtype(*parts_BTFC, kernel, dtype=self.dtype)
        result_dtype = self.result_dtype or kernel.dtype
        starts = itertools.accumulate(widths, initial=0)
        y = jnp.tile(bias_C, self.fold).astype(result_dtype)
        for part_BTFC, width, start in zip(parts, widths, starts, strict=False):
            own = fold_matrix(kernel[0, 0, start : start + width], self.fold)
            y = y + jnp.matmul(part_BTFC, own, preferred_element_type=result_dtype)
        return y


class Upsample(nn.Module):
    """Transposed convolution without bias whose kernel is its stride: a matmul and a reshape."""

    features: int
    stride: tuple[int, int]
    dtype: jnp.dtype | None
    fold: int = 1  # of the result

    @nn.compact
    def __call__(self, x_BTFC: jax.Array) -> jax.Array:
        init = nn.initializers.xavier_uniform()
        inner_fold = max(self.fold // self.stride[1], 1)
        shape = (*self.stride, x_BTFC.shape[-1] // inner_fold, self.features)
        kernel = self.param("kernel", init, shape)
        x_BTFC, kernel = nn.dtypes.promote_dtype(x_BTFC, kernel, dtype=self.dtype)
        if self.fold > 1:
            return fold_upsample(x_BTFC, kernel, inner_fold)
        batch, frames, bins, _ = x_BTFC.shape
        time, frequency = self.stride
        # As an einsum, XLA would transpose the input and, twice, the result.
        kernel_CD = jnp.moveaxis(kernel, 2, 0).reshape(x_BTFC.shape[-1], -1)
        y = x_BTFC.reshape(-1, x_BTFC.shape[-1]) @ kernel_CD
        y = y.reshape(batch, frames, bins, time, frequency, self.features).swapaxes(2, 3)
        return y.reshape(batch, frames * time, bins * frequency, self.features)


def average_pool(x_BTFC: jax.Array, stride: tuple[int, int], fold: int = 1) -> jax.Array:
    """Mean of each window, as a sum of strided views: 20 times faster on a CPU than a mean."""
    if fold > 1:
        return fold_average_pool(x_BTFC, stride, fold)
    time, frequency = stride
    views = [x_BTFC[:, t::time, f::frequency] for t in range(time) for f in range(frequency)]
    return sum(views[1:], start=views[0]) / len(views)
