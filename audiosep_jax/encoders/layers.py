"""Parts that the frozen transformers share: configuration, attention, activations, projection."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, Literal, TypeVar

import jax
import jax.numpy as jnp
from flax import linen as nn

from audiosep_jax.settings import parse

Config = TypeVar("Config")


def quick_gelu(x: jax.Array) -> jax.Array:
    """Return x sigmoid(1.702 x), the activation that CLIP was trained with."""
    return x * jax.nn.sigmoid(1.702 * x)


def exact_gelu(x: jax.Array) -> jax.Array:
    """Return x times the normal distribution function of x, without the tanh approximation."""
    return jax.nn.gelu(x, approximate=False)


Activation = Literal["gelu", "quick_gelu", "relu"]
ACTIVATIONS = {"gelu": exact_gelu, "quick_gelu": quick_gelu, "relu": jax.nn.relu}


def config_from_dict(cls: type[Config], values: Mapping[str, Any], where: str) -> Config:
    """Make a section from the entries of a `config.json` that it has fields for.

    Missing and null entries keep their defaults; `where` names the entries in messages.
    """
    names = [field.name for field in dataclasses.fields(cls)]  # type: ignore[arg-type]
    return parse(cls, {x: values[x] for x in names if values.get(x) is not None}, where)


def layer_norm(epsilon: float, name: str) -> nn.LayerNorm:
    """Layer norm with the two-pass variance, which stays exact when the mean is far from zero."""
    return nn.LayerNorm(epsilon=epsilon, use_fast_variance=False, name=name)


def at_least_float32(x: jax.Array) -> jax.Array:
    """Convert half precision to float32; keep float32 and float64."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def attend(
    query_NLC: jax.Array,
    key_NLC: jax.Array,
    value_NLC: jax.Array,
    bias: jax.Array | None,
    *,
    num_heads: int,
) -> jax.Array:
    """Multi-head attention; `bias` is added to the scores (N, heads, L, L). Returns (N, L, C)."""
    heads = (*query_NLC.shape[:-1], num_heads, query_NLC.shape[-1] // num_heads)
    query, key, value = (x.reshape(heads) for x in (query_NLC, key_NLC, value_NLC))
    scores = at_least_float32(jnp.einsum("nqhd,nkhd->nhqk", query, key)) * heads[-1] ** -0.5
    if bias is not None:
        scores = scores + bias.astype(scores.dtype)
    weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
    return jnp.einsum("nhqk,nkhd->nqhd", weights, value).reshape(query_NLC.shape)


def hidden_where(keep: jax.Array) -> jax.Array:
    """Attention bias: 0 where `keep`, elsewhere so low that the softmax gives exactly 0."""
    # With -inf, the softmax of a row that keeps nothing would be NaN.
    return jnp.where(keep, 0.0, jnp.finfo(jnp.float32).min / 2)


def unit_norm(x_NE: jax.Array) -> jax.Array:
    """Divide each row by its length, in float32 at least. A zero row stays zero."""
    x_NE = at_least_float32(x_NE)
    return x_NE / jnp.maximum(jnp.linalg.norm(x_NE, axis=-1, keepdims=True), 1e-12)


class Projection(nn.Module):
    """CLAP's head, from a tower's width to the shared space: linear, activation, linear."""

    projection_dim: int
    act: str

    @nn.compact
    def __call__(self, x_NC: jax.Array) -> jax.Array:
        x = ACTIVATIONS[self.act](nn.Dense(self.projection_dim, name="linear1")(x_NC))
        return nn.Dense(self.projection_dim, name="linear2")(x)


@functools.partial(jax.jit, static_argnums=0)
def embed(tower: nn.Module, params: Mapping[str, Any], *inputs: jax.Array) -> jax.Array:
    """Run a tower on its inputs: unit vectors (N, E)."""
    # By default, accelerators round float32 products to bfloat16 or TF32. An embedding is computed
    # once and used often, so it is worth the full precision.
    with jax.default_matmul_precision("float32"):
        embedding_NE: Any = tower.apply({"params": params}, *inputs)
    return embedding_NE
