"""Losses as named terms; the total is their weighted sum.

A new term is a field of `LossConfig`, its weight, and an entry of `TERMS` under the same name: a
function of the model's outputs, the batch and the settings of the network.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from audiosep_jax.errors import InputError
from audiosep_jax.metrics import si_sdr
from audiosep_jax.model.network import ModelConfig
from audiosep_jax.model.stft import stft
from audiosep_jax.settings import PositiveOrZero, section


@section
class LossConfig:
    """Weight of each term; a term of weight 0 is not computed. AudioSep's loss is `waveform_l1`."""

    waveform_l1: PositiveOrZero = 1.0
    spectrum_l1: PositiveOrZero = 0.0
    negative_si_sdr: PositiveOrZero = 0.0

    def __post_init__(self) -> None:
        weights = dataclasses.asdict(self)
        if not any(weights.values()):
            raise InputError(f"{next(iter(weights))}=0, as all weights are; one must be above 0")


class Outputs(NamedTuple):
    """Results of the model for a batch of mixtures."""

    estimate_BS: jax.Array
    mask_BTFC: jax.Array  # before the activations of `apply_mask`


Batch = Mapping[str, Any]  # "mixture" and "target" (B, S), "condition" (B, E)
Term = Callable[[Outputs, Batch, Any], jax.Array]


def waveform_l1(estimate_BS: jax.Array, target_BS: jax.Array) -> jax.Array:
    """Mean absolute error of the waveforms."""
    return jnp.mean(jnp.abs(estimate_BS - target_BS))


def spectrum_l1(
    estimate_BS: jax.Array, target_BS: jax.Array, window_samples: int, hop_samples: int
) -> jax.Array:
    """Mean absolute error of the spectra's real and imaginary parts, per unit of window length."""
    error_BTF = stft(estimate_BS - target_BS, window_samples, hop_samples)
    parts = jnp.abs(error_BTF.real) + jnp.abs(error_BTF.imag)
    return jnp.mean(parts) / window_samples**0.5


TERMS: dict[str, Term] = {
    "waveform_l1": lambda out, batch, _: waveform_l1(out.estimate_BS, batch["target"]),
    "spectrum_l1": lambda out, batch, model: spectrum_l1(
        out.estimate_BS, batch["target"], model.window_samples, model.hop_samples
    ),
    "negative_si_sdr": lambda out, batch, _: -si_sdr(batch["target"], out.estimate_BS).mean(),
}


def loss_terms(
    config: LossConfig, model: ModelConfig, outputs: Outputs, batch: Batch
) -> dict[str, jax.Array]:
    """Unweighted scalar terms by name, without those of weight 0."""
    weights = dataclasses.asdict(config)
    return {name: TERMS[name](outputs, batch, model) for name in weights if weights[name]}


def total_loss(config: LossConfig, terms: dict[str, jax.Array]) -> jax.Array:
    """Weighted sum of the terms."""
    weights = dataclasses.asdict(config)
    return jnp.asarray(sum(weights[name] * term for name, term in terms.items()))
