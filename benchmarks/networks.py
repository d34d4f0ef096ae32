"""A network with random weights, its blocks, and the SNR of its results."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from roofline import block_shapes

from audiosep_jax.encoders.encoder import TextConfig
from audiosep_jax.model import variable_shapes
from audiosep_jax.model.network import ModelConfig
from audiosep_jax.model.resunet import DecoderBlock, EncoderBlock, ResUNetConfig
from audiosep_jax.separation.separator import Separator


def random_separator(model: ModelConfig) -> Separator:
    """Random weights, such that every layer counts and no mask is all or nothing."""
    rng = np.random.default_rng(0)

    def draw(x: jax.ShapeDtypeStruct) -> np.ndarray:
        spread = 1.7 * np.sqrt(np.prod(x.shape[:-1])) ** -1 if len(x.shape) > 1 else 0.2
        centre = 1.0 if len(x.shape) == 1 else 0.0
        return (centre + spread * rng.uniform(-1, 1, x.shape)).astype(np.float32)

    variables = jax.device_put(jax.tree.map(draw, variable_shapes(model)), jax.devices()[0])
    text = TextConfig(encoder="hashed")
    return Separator(model, variables, text, None, 0)


def block_modules(
    config: ResUNetConfig, batch_size: int, num_samples: int
) -> Iterator[tuple[str, Any, list[jax.Array]]]:
    """Yield name, module and inputs of each block: noise, and a skip connection for decoders."""
    dtype = jnp.bfloat16 if config.dtype == "bfloat16" else None
    for block, frames, bins in block_shapes(config, num_samples):
        block = dataclasses.replace(block, fold=1)  # the shapes below are those without folding
        shapes = [(batch_size, frames, bins, block.in_channels)]
        kind: Any = EncoderBlock
        if block.kind == "decoder":
            time_stride, frequency_stride = block.stride
            small = (frames // time_stride, bins // frequency_stride, block.in_channels)
            shapes = [(batch_size, *small), (batch_size, frames, bins, block.skip_channels)]
            kind = DecoderBlock
        inputs = [jax.random.normal(jax.random.key(0), shape, config.dtype) for shape in shapes]
        yield block.name, kind(block, dtype, None), inputs


def snr_db(reference_S: np.ndarray, estimate_S: np.ndarray) -> float:
    """Signal-to-noise ratio of an estimate, the noise being its difference from the reference."""
    error = np.sum((reference_S - estimate_S).astype(np.float64) ** 2)
    return float(10 * np.log10(np.sum(reference_S.astype(np.float64) ** 2) / error))
