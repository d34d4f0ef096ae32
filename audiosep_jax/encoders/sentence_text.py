"""Sentence towers such as all-MiniLM-L6-v2: BERT and the mean of its tokens.

BERT's layers are RoBERTa's. Its positions count from 0, and padding has a position like any token.
Modules carry the Hugging Face names of `BertModel`.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from audiosep_jax.encoders.clap_text import ClapTextConfig, RobertaLayer, embed_tokens
from audiosep_jax.encoders.layers import at_least_float32, config_from_dict, hidden_where, unit_norm
from audiosep_jax.errors import InputError
from audiosep_jax.settings import section


@section
class SentenceConfig(ClapTextConfig):
    """Sizes, with the names and the defaults of Hugging Face's `BertConfig`."""

    vocab_size: int = 30522
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    pad_token_id: int = 0

    @property
    def max_tokens(self) -> int:
        """Longest sentence: positions count from 0."""
        return self.max_position_embeddings

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> "SentenceConfig":
        """Make it from the `config.json` of a `BertModel`; InputError for another model."""
        kind = config.get("model_type", "bert")
        if kind != "bert":
            raise InputError(f"model_type={kind!r}: the sentence encoder needs a BERT")
        width = config.get("hidden_size", cls.hidden_size)  # no projection follows the mean
        return config_from_dict(cls, {**config, "projection_dim": width}, "config.json")


class SentenceText(nn.Module):
    """Token ids and their mask (N, L) to the unit vectors (N, E) of sentences."""

    config: SentenceConfig

    @nn.compact
    def __call__(self, input_ids_NL: jax.Array, attention_mask_NL: jax.Array) -> jax.Array:
        positions_L = jnp.arange(input_ids_NL.shape[1])
        x = embed_tokens(self.config, input_ids_NL, positions_L, "embeddings")
        bias_N11L = hidden_where(attention_mask_NL[:, None, None, :] > 0)
        for i in range(self.config.num_hidden_layers):
            x = RobertaLayer(self.config, name=f"encoder.layer.{i}")(x, bias_N11L)
        # The sum over the tokens has the direction of their mean.
        kept_NL1 = attention_mask_NL[:, :, None] > 0
        return unit_norm(jnp.sum(at_least_float32(x), axis=1, where=kept_NL1))
