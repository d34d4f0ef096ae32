"""A network with random weights, and the SNR of its results, for several benchmarks."""

import jax
import numpy as np

from audiosep_jax.encoders.encoder import TextConfig
from audiosep_jax.model import variable_shapes
from audiosep_jax.model.network import ModelConfig
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


def snr_db(reference_S: np.ndarray, estimate_S: np.ndarray) -> float:
    """Signal-to-noise ratio of an estimate, the noise being its difference from the reference."""
    error = np.sum((reference_S - estimate_S).astype(np.float64) ** 2)
    return float(10 * np.log10(np.sum(reference_S.astype(np.float64) ** 2) / error))
