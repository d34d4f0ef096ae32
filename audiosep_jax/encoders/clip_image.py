"""CLIP's image tower: a vision transformer over patches, pooled at the class token.

Modules carry the Hugging Face names of `CLIPVisionModelWithProjection`, dots included.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from audiosep_jax.encoders.clip_text import ClipLayer, tower_section
from audiosep_jax.encoders.layers import Activation, config_from_dict, layer_norm, unit_norm
from audiosep_jax.settings import section


@section
class ClipImageConfig:
    """Sizes and scales, with the names and defaults of CLIP's configs at Hugging Face."""

    hidden_size: int = 768
    intermediate_size: int = 3072
    projection_dim: int = 512
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    image_size: int = 224
    patch_size: int = 32
    hidden_act: Activation = "quick_gelu"
    layer_norm_eps: float = 1e-5
    image_mean: tuple[float, ...] = (0.48145466, 0.4578275, 0.40821073)
    image_std: tuple[float, ...] = (0.26862954, 0.26130258, 0.27577711)

    @classmethod
    def from_dict(
        cls, config: Mapping[str, Any], preprocessor: Mapping[str, Any]
    ) -> "ClipImageConfig":
        """Make it from the `config.json` of a `CLIPModel` or its tower, and the file beside it."""
        values = {**preprocessor, **tower_section(config, "vision_config")}
        return config_from_dict(cls, values, "vision_config")

    def normalize(self, square_NHWC: np.ndarray) -> np.ndarray:
        """Scale pixels (N, H, W, 3) from 0..255 to the tower's input, float32."""
        mean, std = np.array([self.image_mean, self.image_std], np.float32)
        return (square_NHWC / np.float32(255) - mean) / std


class ClipImage(nn.Module):
    """Normalised pixels (N, H, W, 3) to CLIP's unit vectors (N, E)."""

    config: ClipImageConfig

    @nn.compact
    def __call__(self, pixels_NHWC: jax.Array) -> jax.Array:
        config = self.config
        size = (config.patch_size, config.patch_size)
        name, width = "vision_model.embeddings", config.hidden_size
        patches = nn.Conv(
            width, size, size, "VALID", use_bias=False, name=f"{name}.patch_embedding"
        )(pixels_NHWC)
        whole_C = self.param(f"{name}.class_embedding", nn.initializers.normal(), (width,))
        whole_N1C = jnp.broadcast_to(whole_C, (len(patches), 1, width))
        x_NLC = jnp.concatenate([whole_N1C, patches.reshape(len(patches), -1, width)], axis=1)
        places = nn.Embed(x_NLC.shape[1], width, name=f"{name}.position_embedding")
        x = x_NLC + places(jnp.arange(x_NLC.shape[1]))
        x = layer_norm(config.layer_norm_eps, "vision_model.pre_layrnorm")(x)
        for i in range(config.num_hidden_layers):
            x = ClipLayer(config, name=f"vision_model.encoder.layers.{i}")(x)
        pooled = layer_norm(config.layer_norm_eps, "vision_model.post_layernorm")(x[:, 0])
        head = nn.Dense(config.projection_dim, use_bias=False, name="visual_projection")
        return unit_norm(head(pooled))
