"""CLAP's text tower: RoBERTa, its pooler and the projection into the space shared with audio.

Modules carry the Hugging Face names of `ClapModel`, dots included. The parameter tree therefore
differs from the state dict only in the names of the leaves and in the layout of matrices.
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from audiosep_jax.encoders.layers import (
    ACTIVATIONS,
    Activation,
    Projection,
    attend,
    config_from_dict,
    hidden_where,
    layer_norm,
    unit_norm,
)
from audiosep_jax.settings import section


@section
class ClapTextConfig:
    """Sizes, with the names and the defaults of Hugging Face's `ClapTextConfig`."""

    vocab_size: int = 50265
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: Activation = "gelu"
    max_position_embeddings: int = 514
    type_vocab_size: int = 1
    layer_norm_eps: float = 1e-12
    pad_token_id: int = 1
    projection_dim: int = 512
    projection_hidden_act: Activation = "relu"

    @property
    def max_tokens(self) -> int:
        """Longest sentence: positions count from `pad_token_id + 1`."""
        return self.max_position_embeddings - self.pad_token_id - 1

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> "ClapTextConfig":
        """Make it from the `config.json` of a whole `ClapModel` or of its text tower alone."""
        return config_from_dict(cls, tower_section(config, "text_config"), "text_config")


def tower_section(config: Mapping[str, Any], section: str) -> Mapping[str, Any]:
    """Return the section of one tower in a CLAP config, with the outer config's projection."""
    if section not in config:
        return config
    # As in ClapConfig, the outer values replace the section's own, even where they are defaults.
    shared = {"projection_dim": 512, "projection_hidden_act": "relu"}
    return {**(config[section] or {}), **{key: config.get(key, shared[key]) for key in shared}}


# LAION's own file holds roberta-base. Its epsilon differs from the one in the config of Hugging
# Face's conversion; all other values are the same.
LAION_TEXT_CONFIG = ClapTextConfig(layer_norm_eps=1e-5)


def position_ids(input_ids_NL: jax.Array, pad_token_id: int) -> jax.Array:
    """RoBERTa's positions: `pad_token_id + 1, + 2, ...` for tokens, `pad_token_id` for padding."""
    is_token_NL = (input_ids_NL != pad_token_id).astype(jnp.int32)
    return jnp.cumsum(is_token_NL, axis=1) * is_token_NL + pad_token_id


def embed_tokens(
    config: ClapTextConfig, input_ids_NL: jax.Array, positions_NL: jax.Array, name: str
) -> jax.Array:
    """Sum of the vectors of words, positions and type 0, normalised: (N, L, C).

    It is called by a module, whose parameters `name` begins.
    """

    def table(rows: int, kind: str) -> nn.Embed:
        return nn.Embed(rows, config.hidden_size, name=f"{name}.{kind}_embeddings")

    x = table(config.vocab_size, "word")(input_ids_NL)
    x = x + table(config.type_vocab_size, "token_type")(jnp.zeros_like(input_ids_NL))
    x = x + table(config.max_position_embeddings, "position")(positions_NL)
    return layer_norm(config.layer_norm_eps, f"{name}.LayerNorm")(x)


class RobertaLayer(nn.Module):
    """Attention and MLP, with a layer norm after each residual sum."""

    config: ClapTextConfig

    @nn.compact
    def __call__(self, x_NLC: jax.Array, bias_N11L: jax.Array) -> jax.Array:
        config = self.config
        wide = functools.partial(nn.Dense, config.hidden_size)
        query, key, value = (
            wide(name=f"attention.self.{part}")(x_NLC) for part in ("query", "key", "value")
        )
        context = attend(query, key, value, bias_N11L, num_heads=config.num_attention_heads)
        x = x_NLC + wide(name="attention.output.dense")(context)
        x = layer_norm(config.layer_norm_eps, "attention.output.LayerNorm")(x)
        hidden = nn.Dense(config.intermediate_size, name="intermediate.dense")(x)
        hidden = ACTIVATIONS[config.hidden_act](hidden)
        x = x + wide(name="output.dense")(hidden)
        return layer_norm(config.layer_norm_eps, "output.LayerNorm")(x)


class ClapText(nn.Module):
    """Token ids and their mask (N, L) to CLAP's unit vectors (N, E)."""

    config: ClapTextConfig

    @nn.compact
    def __call__(self, input_ids_NL: jax.Array, attention_mask_NL: jax.Array) -> jax.Array:
        positions_NL = position_ids(input_ids_NL, self.config.pad_token_id)
        x = embed_tokens(self.config, input_ids_NL, positions_NL, "text_model.embeddings")
        bias_N11L = hidden_where(attention_mask_NL[:, None, None, :] > 0)
        for i in range(self.config.num_hidden_layers):
            layer = RobertaLayer(self.config, name=f"text_model.encoder.layer.{i}")
            x = layer(x, bias_N11L)
        pooled = nn.Dense(self.config.hidden_size, name="text_model.pooler.dense")(x[:, 0])
        head = Projection(
            self.config.projection_dim, self.config.projection_hidden_act, name="text_projection"
        )
        return unit_norm(head(jnp.tanh(pooled)))
