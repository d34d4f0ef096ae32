"""CLIP's text transformer: causal, pre-normalised, pooled at the end-of-text token.

Modules carry the Hugging Face names of `CLIPTextModelWithProjection`, dots included.
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
    attend,
    config_from_dict,
    hidden_where,
    layer_norm,
    unit_norm,
)
from audiosep_jax.settings import section

# Configs written before transformers 4.31 hold 2, whatever the vocabulary. Their models pool at the
# highest id, which is the end of text in the original vocabulary.
LEGACY_EOS_TOKEN_ID = 2


@section
class ClipTextConfig:
    """Sizes, with the names and the defaults of Hugging Face's `CLIPTextConfig`."""

    vocab_size: int = 49408
    hidden_size: int = 512
    intermediate_size: int = 2048
    projection_dim: int = 512
    num_hidden_layers: int = 12
    num_attention_heads: int = 8
    max_position_embeddings: int = 77
    hidden_act: Activation = "quick_gelu"
    layer_norm_eps: float = 1e-5
    eos_token_id: int = 49407

    @property
    def max_tokens(self) -> int:
        """Longest sentence."""
        return self.max_position_embeddings

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> "ClipTextConfig":
        """Make it from the `config.json` of a whole `CLIPModel` or of its text tower alone."""
        return config_from_dict(cls, tower_section(config, "text_config"), "text_config")


def tower_section(config: Mapping[str, Any], section: str) -> Mapping[str, Any]:
    """Return the section of one tower in a CLIP config, with the outer config's projection."""
    if config.get(f"{section}_dict") is not None:
        # An older spelling, which replaces the section as a whole if it is present.
        values = config[f"{section}_dict"]
    elif section in config:
        values = config[section] or {}
    else:
        return config
    return {**values, "projection_dim": config.get("projection_dim", 512)}


def end_of_text(input_ids_NL: jax.Array, eos_token_id: int) -> jax.Array:
    """Find the first end-of-text token (N,), by either convention of `eos_token_id`."""
    if eos_token_id == LEGACY_EOS_TOKEN_ID:
        return jnp.argmax(input_ids_NL, axis=1)
    return jnp.argmax(input_ids_NL == eos_token_id, axis=1)


class ClipLayer(nn.Module):
    """Attention and MLP, with a layer norm before each and a residual sum after it."""

    config: Any  # ClipTextConfig or ClipImageConfig

    @nn.compact
    def __call__(self, x_NLC: jax.Array, bias_N1LL: jax.Array | None = None) -> jax.Array:
        config = self.config
        wide = functools.partial(nn.Dense, config.hidden_size)
        y = layer_norm(config.layer_norm_eps, "layer_norm1")(x_NLC)
        query, key, value = (wide(name=f"self_attn.{part}_proj")(y) for part in "qkv")
        context = attend(query, key, value, bias_N1LL, num_heads=config.num_attention_heads)
        x = x_NLC + wide(name="self_attn.out_proj")(context)
        y = layer_norm(config.layer_norm_eps, "layer_norm2")(x)
        hidden = ACTIVATIONS[config.hidden_act](
            nn.Dense(config.intermediate_size, name="mlp.fc1")(y)
        )
        return x + wide(name="mlp.fc2")(hidden)


class ClipText(nn.Module):
    """Token ids and their mask (N, L) to CLIP's unit vectors (N, E)."""

    config: ClipTextConfig

    @nn.compact
    def __call__(self, input_ids_NL: jax.Array, attention_mask_NL: jax.Array) -> jax.Array:
        config = self.config
        num_tokens = input_ids_NL.shape[1]
        x = self._embed_tokens(input_ids_NL)
        causal_LL = jnp.tril(jnp.ones((num_tokens, num_tokens), bool))
        bias_N1LL = hidden_where(causal_LL & (attention_mask_NL[:, None, None, :] > 0))
        for i in range(config.num_hidden_layers):
            x = ClipLayer(config, name=f"text_model.encoder.layers.{i}")(x, bias_N1LL)
        ends_N = end_of_text(input_ids_NL, config.eos_token_id)
        pooled = jnp.take_along_axis(x, ends_N[:, None, None], axis=1)[:, 0]
        pooled = layer_norm(config.layer_norm_eps, "text_model.final_layer_norm")(pooled)
        head = nn.Dense(config.projection_dim, use_bias=False, name="text_projection")
        return unit_norm(head(pooled))

    def _embed_tokens(self, input_ids_NL: jax.Array) -> jax.Array:
        config = self.config
        num_tokens, longest = input_ids_NL.shape[1], config.max_position_embeddings
        token_table = nn.Embed(
            config.vocab_size, config.hidden_size, name="text_model.embeddings.token_embedding"
        )
        position_table = nn.Embed(
            longest, config.hidden_size, name="text_model.embeddings.position_embedding"
        )
        return token_table(input_ids_NL) + position_table(jnp.arange(num_tokens))
