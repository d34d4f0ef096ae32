"""Clips of any length in batches of few shapes: each as if it were separated by itself.

A benchmark such as Voicebank-DEMAND has about as many lengths as clips, and a compilation for
each would take far longer than the separation. Clips of rare lengths are filled up to one of few
numbers of frames, and `streaming` holds all that lies behind a clip's end at zero, in every layer.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from audiosep_jax.model.network import ModelConfig
from audiosep_jax.model.stft import num_frames
from audiosep_jax.model.streaming import bucket, separate_tile, spectrum_of


def filled_frames(model: ModelConfig, num_samples: int) -> int:
    """Frames of the shape that clips of this length share with others."""
    return bucket(model, num_frames(num_samples, model.hop_samples))


def filled(model: ModelConfig, mixture_S: np.ndarray, frames: int) -> dict[str, np.ndarray]:
    """The mixture with half a window of mirror image at either end, then zeros; and its frames."""
    half = model.window_samples // 2
    padded_S = np.pad(mixture_S, half, mode="reflect")
    num_samples = (frames - 1) * model.hop_samples + model.window_samples
    total = np.asarray(num_frames(len(mixture_S), model.hop_samples), np.int32)
    padded_S = np.pad(padded_S, (0, max(0, num_samples - len(padded_S))))[:num_samples]
    return {"mixture": padded_S, "total": total}


def separate_filled(
    model: ModelConfig, variables: Any, batch: Mapping[str, jax.Array]
) -> jax.Array:
    """Estimates `(B, S)` with their half windows in front and what was filled up behind."""
    frames = (batch["mixture"].shape[1] - model.window_samples) // model.hop_samples + 1

    def one(padded_S: jax.Array, condition_E: jax.Array, total: jax.Array) -> jax.Array:
        spectrum_CTF = spectrum_of(model, padded_S[None], frames)
        audio_NCS, _, _ = separate_tile(
            model, 1, variables, {}, spectrum_CTF, condition_E[None], jnp.int32(0), total
        )
        return audio_NCS[0, 0]

    return jax.vmap(one)(batch["mixture"], batch["condition"], batch["total"])
