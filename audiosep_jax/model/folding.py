"""Neighbouring frequency bins among the channels: arrays that fill the lanes of a TPU.

A TPU stores the channels of an array in 128 lanes and multiplies matrices of 128 x 128. It pads 32
channels to four times their size. A folded array `(B, T, F/r, r*C)` is the row-major reshape of
`(B, T, F, C)`: it has the channels of `r` neighbouring bins, bin after bin. The functions below
turn weights into weights for folded arrays, with which the result is the same.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np


def fold_matrix(kernel_CD: jax.Array, fold: int) -> jax.Array:
    """Block-diagonal `(r*C, r*D)`: the same matrix for every bin."""
    if fold == 1:
        return kernel_CD
    return jnp.kron(jnp.eye(fold, dtype=kernel_CD.dtype), kernel_CD)


class FoldedConv3x3(nn.Module):
    """`conv3x3` of a folded array, which is the concatenation of parts of `widths` channels."""

    features: int
    dtype: jnp.dtype | None
    fold: int
    widths: tuple[int, ...]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (3, 3, sum(self.widths), self.features)
        kernel = self.param("kernel", nn.initializers.xavier_uniform(), shape)
        x, kernel = nn.dtypes.promote_dtype(x, kernel, dtype=self.dtype)
        parts = jnp.split(kernel, np.cumsum(self.widths)[:-1], axis=2)
        folded = jnp.concatenate([_fold_conv3x3(part, self.fold) for part in parts], axis=2)
        layout = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(x, folded, (1, 1), "SAME", dimension_numbers=layout)


def _fold_conv3x3(kernel: jax.Array, fold: int) -> jax.Array:
    """`(3, 3, C, D)` to `(3, 3, r*C, r*D)`."""
    # Bin p of the group g reaches bin q of the group in the middle by the tap of their distance.
    group, p, q, tap = np.ogrid[-1:2, :fold, :fold, -1:2]
    reach = (group * fold + p - q == tap).astype(kernel.dtype)
    folded = jnp.einsum("gpqw,hwcd->hgpcqd", reach, kernel, precision="highest")
    return folded.reshape(3, 3, fold * kernel.shape[2], fold * kernel.shape[3])


def fold_average_pool(x: jax.Array, stride: tuple[int, int], fold: int) -> jax.Array:
    """Average folded arrays over windows; the bins of a window lie in one group."""
    (time, frequency), channels = stride, x.shape[-1] // fold
    matrix = jnp.kron(jnp.ones((frequency, 1)), jnp.eye(channels)) / (time * frequency)
    matrix = fold_matrix(matrix.astype(x.dtype), fold // frequency)
    frames = x.reshape(x.shape[0], -1, time, *x.shape[2:]).sum(2)
    return frames @ matrix


def fold_upsample(x: jax.Array, kernel: jax.Array, fold: int) -> jax.Array:
    """Transposed convolution whose kernel `(time, frequency, C, D)` is its stride."""
    _, frequency, width, features = kernel.shape
    columns = [fold_matrix(jnp.moveaxis(k, 1, 0).reshape(width, -1), fold) for k in kernel]
    frames = jnp.stack([x @ column for column in columns], axis=2)
    return frames.reshape(x.shape[0], -1, x.shape[2], fold * frequency * features)
