"""Signal-to-distortion ratios of clips in dB, as AudioSep's evaluation defines them.

Training and evaluation share the formulas. JAX arrays are scored in their own type, float32 in a
training step; NumPy arrays are scored in float64, which evaluations report.
"""

from types import ModuleType
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from audiosep_jax.errors import InputError

Array = TypeVar("Array", jax.Array, np.ndarray)

POWER_FLOOR = 1e-10  # of the mean squares in SDR
SI_SDR_EPSILON = float(np.finfo(np.float32).eps)
_BLOCK = 512  # samples in a partial sum


def sdr(reference_BS: Array, estimate_BS: Array) -> Array:
    """`10 log10(mean(ref^2) / mean((est - ref)^2))`, both floored at 1e-10; `(B,)` dB.

    A perfect estimate of a silent reference has 0 dB; no value is infinite.
    """
    xp, reference_BS, estimate_BS = _prepared(reference_BS, estimate_BS)
    num_samples = reference_BS.shape[-1]
    signal_B = xp.maximum(_sum(reference_BS**2) / num_samples, POWER_FLOOR)
    error_B = xp.maximum(_sum((estimate_BS - reference_BS) ** 2) / num_samples, POWER_FLOOR)
    return 10 * xp.log10(signal_B / error_B)


def sdr_improvement(reference_BS: Array, estimate_BS: Array, mixture_BS: Array) -> Array:
    """SDR of the estimate minus SDR of the mixture (SDRi), `(B,)` dB."""
    return sdr(reference_BS, estimate_BS) - sdr(reference_BS, mixture_BS)


def si_sdr(reference_BS: Array, estimate_BS: Array) -> Array:
    """Scale-invariant SDR without mean removal, `(B,)` dB (Le Roux et al., 2019, eq. 3).

    A silent estimate has 0 dB. A silent reference gives -10 log10(1 + energy / epsilon).
    """
    xp, reference_BS, estimate_BS = _prepared(reference_BS, estimate_BS)
    epsilon = SI_SDR_EPSILON
    product_B = _sum(reference_BS * estimate_BS)
    energy_B = _sum(reference_BS**2)
    scale_B = (product_B + epsilon) / (energy_B + epsilon)
    scaled_BS = scale_B[..., None] * reference_BS
    signal_B = _sum(scaled_BS**2)
    error_B = _sum((estimate_BS - scaled_BS) ** 2)
    return 10 * xp.log10((signal_B + epsilon) / (error_B + epsilon))


def si_sdr_improvement(reference_BS: Array, estimate_BS: Array, mixture_BS: Array) -> Array:
    """SI-SDR of the estimate minus SI-SDR of the mixture, `(B,)` dB."""
    return si_sdr(reference_BS, estimate_BS) - si_sdr(reference_BS, mixture_BS)


def separation_scores(
    reference_S: np.ndarray, estimate_S: np.ndarray, mixture_S: np.ndarray
) -> dict[str, float]:
    """All scores of one clip, in float64.

    Estimate and mixture are cut, or padded with zeros, to the length of the reference.
    """
    reference_S = np.asarray(reference_S)
    estimate_S, mixture_S = (fitted(x, len(reference_S)) for x in (estimate_S, mixture_S))
    scores: dict[str, float] = {}
    for name, score in (("sdr", sdr), ("si_sdr", si_sdr)):
        of_estimate = float(score(reference_S, estimate_S))
        of_mixture = float(score(reference_S, mixture_S))
        scores |= {name: of_estimate, f"{name}i": of_estimate - of_mixture}
        scores[f"mixture_{name}"] = of_mixture
    return scores


def fitted(audio_S: np.ndarray, num_samples: int) -> np.ndarray:
    """Cut the audio, or pad it with zeros, to `num_samples`."""
    audio_S = np.asarray(audio_S)[:num_samples]
    return np.pad(audio_S, (0, num_samples - len(audio_S)))


def _prepared(reference_BS: Array, estimate_BS: Array) -> tuple[ModuleType, Array, Array]:
    """(numpy or jax.numpy, both arrays); NumPy arrays as float64."""
    if reference_BS.shape[-1] != estimate_BS.shape[-1] or reference_BS.shape[-1] == 0:
        lengths = f"{reference_BS.shape[-1]} and {estimate_BS.shape[-1]}"
        raise InputError(f"a score needs two clips of one length above 0, not of {lengths} samples")
    if isinstance(reference_BS, np.ndarray) and isinstance(estimate_BS, np.ndarray):
        return np, reference_BS.astype(np.float64), estimate_BS.astype(np.float64)
    return jnp, reference_BS, estimate_BS


def _sum(x_BS: Array) -> Array:
    """Sum over samples, in blocks: a running sum of a million float32 terms loses digits."""
    if isinstance(x_BS, np.ndarray):
        return np.sum(x_BS, axis=-1)
    num_samples = x_BS.shape[-1]
    whole = num_samples - num_samples % _BLOCK
    blocks_BNS = x_BS[..., :whole].reshape(*x_BS.shape[:-1], -1, _BLOCK)
    return jnp.sum(jnp.sum(blocks_BNS, axis=-1), axis=-1) + jnp.sum(x_BS[..., whole:], axis=-1)
