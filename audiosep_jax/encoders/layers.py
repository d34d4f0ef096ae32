"""Parts that the frozen transformers share: configuration, attention, activations, projection."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import linen as nn

from audiosep_jax.errors import InputError

Config = TypeVar("Config")


def quick_gelu(x: jax.Array) -> jax.Array:
    """Return x sigmoid(1.702 x), the activation that CLIP was trained with."""
    return x * jax.nn.sigmoid(1.702 * x)


def exact_gelu(x: jax.Array) -> jax.Array:
    """Return x times the normal distribution function of x, without the tanh approximation."""
    return jax.nn.gelu(x, approximate=False)


ACTIVATIONS = {"gelu": exact_gelu, "quick_gelu": quick_gelu, "relu": jax.nn.relu}


def activation(name: str) -> Callable[[jax.Array], jax.Array]:
    """Return the activation that a Hugging Face config calls `name`."""
    if name not in ACTIVATIONS:
        raise InputError(f"activation {name!r} is unknown; use one of {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


def config_from_dict(cls: type[Config], values: Mapping[str, Any], where: str) -> Config:
    """Make a `cls` from the entries of a `config.json` that it has fields for.

    Args:
        cls: a dataclass whose fields all have defaults, which missing and null entries keep.
        values: the entries; others are ignored.
        where: name of the section, for messages.

    Raises:
        InputError: an entry is of another type than its field.
    """
    known = {}
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]
        value = values.get(field.name)
        if value is None:
            continue
        value = tuple(value) if isinstance(value, list) else value
        kind = type(field.default)
        accepted = (int, float) if kind is float else kind
        if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
            raise InputError(f"{where}: {field.name} must be {kind.__name__}, not {value!r}")
        known[field.name] = value
    return cls(**known)


def check_heads(where: str, hidden_size: int, num_heads: int) -> None:
    """Raise InputError if the number of heads does not divide the width."""
    if num_heads < 1 or hidden_size % num_heads:
        raise InputError(f"{where}: {num_heads} heads do not divide hidden size {hidden_size}")


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
        x = activation(self.act)(nn.Dense(self.projection_dim, name="linear1")(x_NC))
        return nn.Dense(self.projection_dim, name="linear2")(x)


@functools.partial(jax.jit, static_argnums=0)
def embed(tower: nn.Module, params: Mapping[str, Any], *inputs: jax.Array) -> jax.Array:
    """Run a tower on its inputs: unit vectors (N, E)."""
    # By default, accelerators round float32 products to bfloat16 or TF32. An embedding is computed
    # once and used often, so it is worth the full precision.
    with jax.default_matmul_precision("float32"):
        embedding_NE: Any = tower.apply({"params": params}, *inputs)
    return embedding_NE
