"""Dual-path transformer blocks: attention over nearby frames, then over all bands of a frame.

The window in time is bounded, so that tiles equal one pass: a block keeps keys and values of the
last frames in the collection "stream", and delays its result by the frames that it looks ahead.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from audiosep_jax.errors import InputError
from audiosep_jax.model.network import Span, after_past

EXCLUDED = -1e9  # added to the logits of keys that a query does not see; finite, also in bfloat16


def check_heads(features: int, heads: int, name: str) -> None:
    """Raise InputError unless the features, called `name`, can be split into the heads."""
    if features % heads:
        raise InputError(f"heads={heads} must divide {name}={features}")


class DualPath(nn.Module):
    """A stack of dual-path blocks with FiLM.

    Attributes:
        past, future: frames on either side that a frame of one block depends on.
    """

    num_blocks: int
    heads: int
    past: int
    future: int
    dtype: jnp.dtype | None

    @nn.compact
    def __call__(
        self, x_BTFC: jax.Array, condition_BE: jax.Array, span: Span, *, streaming: bool
    ) -> jax.Array:
        """Compute as many frames as the input has.

        In a stream the result is delayed by `num_blocks * future` frames.
        """
        for i in range(self.num_blocks):
            time = TimeAttention(self.heads, self.past, self.future, self.dtype, name=f"time{i}")
            x_BTFC = time(x_BTFC, condition_BE, span, streaming=streaming)
            span = Span(span.first - self.future * streaming, span.total)
            bands = BandAttention(self.heads, self.dtype, name=f"bands{i}")
            x_BTFC = x_BTFC + bands(x_BTFC, condition_BE)
            hidden_BTFC = FiLMNorm(self.dtype, name=f"norm{i}")(x_BTFC, condition_BE)
            wide = nn.Dense(2 * x_BTFC.shape[-1], dtype=self.dtype, name=f"wide{i}")
            narrow = nn.Dense(x_BTFC.shape[-1], dtype=self.dtype, name=f"narrow{i}")
            x_BTFC = x_BTFC + narrow(nn.gelu(wide(hidden_BTFC)))
        return x_BTFC


class FiLMNorm(nn.Module):
    """Layer normalisation of the channels, with a gain and a shift by the condition."""

    dtype: jnp.dtype | None

    @nn.compact
    def __call__(self, x_BTFC: jax.Array, condition_BE: jax.Array) -> jax.Array:
        film_BC = nn.Dense(2 * x_BTFC.shape[-1], dtype=self.dtype, name="film")(condition_BE)
        gain_BC, shift_BC = jnp.split(film_BC[:, None, None], 2, axis=-1)
        norm = nn.LayerNorm(use_bias=False, use_scale=False, dtype=self.dtype)
        return norm(x_BTFC) * (1 + gain_BC) + shift_BC


class TimeAttention(nn.Module):
    """Residual attention of each frame to the frames around it, in each band separately."""

    heads: int
    past: int
    future: int
    dtype: jnp.dtype | None

    @nn.compact
    def __call__(
        self, x_BTFC: jax.Array, condition_BE: jax.Array, span: Span, *, streaming: bool
    ) -> jax.Array:
        (_, count, _, channels), window = x_BTFC.shape, self.past + self.future
        dense = functools.partial(nn.DenseGeneral, dtype=self.dtype)
        heads = (self.heads, channels // self.heads)
        norm = FiLMNorm(self.dtype, name="norm")
        keys_BTFHC = dense((2, *heads), name="keys_and_values")(norm(x_BTFC, condition_BE))
        if streaming:
            keys_BTFHC = after_past(self, "past", window, keys_BTFHC)
            x_BTFC = after_past(self, "waiting", self.future, x_BTFC)[:, :count]
        else:
            ends = [(0, 0), (self.past, self.future), *[(0, 0)] * 4]
            keys_BTFHC = jnp.pad(keys_BTFHC, ends)
        first = span.first - (window if streaming else self.past)
        inside_T = Span(first, span.total).inside(count + window)
        query_BTFHC = dense(heads, name="query")(norm(x_BTFC, condition_BE))
        bias_HW = self.param("bias", nn.initializers.zeros, (self.heads, window + 1))
        y_BTFHC = attend_window(query_BTFHC, keys_BTFHC, bias_HW, inside_T)
        return x_BTFC + dense(channels, axis=(-2, -1), name="out")(y_BTFHC)


def attend_window(
    query_BTFHC: jax.Array, keys_BTFHC: jax.Array, bias_HW: jax.Array, inside_T: jax.Array
) -> jax.Array:
    """Compute attention of query `t` to those of the keys `t` to `t + W - 1` that are inside.

    Chunks of W - 1 queries see the keys of two chunks, so that two matmuls do the work.

    Args:
        keys_BTFHC: keys and values `(B, T + W - 1, F, 2, H, C)`.
        bias_HW: added to the logits, by the key's place in the window.
    """
    batch, count, *shape = query_BTFHC.shape
    window = bias_HW.shape[1]
    chunk = min(count, max(window - 1, 1))
    num, rest = -(-count // chunk), -count % chunk
    query = _padded(query_BTFHC, rest).reshape(batch, num, chunk, *shape)
    keys = _overlapping(_padded(keys_BTFHC, rest), num, chunk)
    inside_MK = _overlapping(_padded(inside_T[None], rest), num, chunk)[0]
    place_QK = np.arange(keys.shape[2]) - np.arange(chunk)[:, None]
    in_window_QK = (place_QK >= 0) & (place_QK < window)
    bias_HQK = jnp.where(in_window_QK, bias_HW[:, np.clip(place_QK, 0, window - 1)], EXCLUDED)
    key, value = keys[..., 0, :, :], keys[..., 1, :, :]
    logits = jnp.einsum("bmqfhc,bmkfhc->bmfhqk", query, key) / shape[-1] ** 0.5
    logits = logits.astype(jnp.float32) + bias_HQK
    logits = jnp.where(inside_MK[:, None, None, None], logits, EXCLUDED)
    weights = jax.nn.softmax(logits).astype(value.dtype)
    y = jnp.einsum("bmfhqk,bmkfhc->bmqfhc", weights, value)
    return y.reshape(batch, num * chunk, *shape)[:, :count]


def _padded(x_BT: jax.Array, rest: int) -> jax.Array:
    return jnp.pad(x_BT, [(0, 0), (0, rest)] + [(0, 0)] * (x_BT.ndim - 2))


def _overlapping(x_BT: jax.Array, num: int, chunk: int) -> jax.Array:
    """Cut pieces `(B, num, K, ...)`, each of one chunk and the chunk after it."""
    if num == 1:
        return x_BT[:, None]
    parts = x_BT.reshape(len(x_BT), -1, chunk, *x_BT.shape[2:])
    shifts = range(parts.shape[1] - num + 1)  # 0 and 1, or 0 if the window has one frame
    return jnp.concatenate([parts[:, shift : shift + num] for shift in shifts], axis=2)


class BandAttention(nn.Module):
    """Attention of each band to all bands of its frame."""

    heads: int
    dtype: jnp.dtype | None

    @nn.compact
    def __call__(self, x_BTFC: jax.Array, condition_BE: jax.Array) -> jax.Array:
        batch, count, bands, channels = x_BTFC.shape
        dense = functools.partial(nn.DenseGeneral, dtype=self.dtype)
        normal_BTFC = FiLMNorm(self.dtype, name="norm")(x_BTFC, condition_BE)
        shape = (3, self.heads, channels // self.heads)
        parts = dense(shape, name="query_keys_and_values")(normal_BTFC)
        parts = jnp.moveaxis(parts.reshape(batch * count, bands, *shape), 2, 0)
        y = jax.nn.dot_product_attention(*parts)
        return dense(channels, axis=(-2, -1), name="out")(y.reshape(batch, count, *y.shape[1:]))
