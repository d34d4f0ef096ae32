"""Losses as named terms; the total is their weighted sum.

A new term is a field of `LossConfig`, its weight, and an entry of `TERMS` under the same name: a
function of the model's outputs, the batch and the settings of the network. Terms compare one
estimate with one target; `grouping` adds up the estimates of a mixture that has several.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from audiosep_jax.errors import InputError
from audiosep_jax.metrics import si_sdr
from audiosep_jax.model.audiosep import activity_of
from audiosep_jax.model.network import ModelConfig
from audiosep_jax.model.stft import stft
from audiosep_jax.settings import PositiveOrZero, section

_FAINT_MAGNITUDE = 1e-3  # floor of the log magnitudes
_SILENT_SHARE = 1e-6  # of the mixture's power: a weaker target counts as silent
_SILENT_POWER = 1e-10  # of a mixture, for one that is silent
AUDIBLE_DB = -40.0  # of the mixture's loudest frame; a target is active above


Assign = Literal["any", "one_each"]


@section
class LossConfig:
    """Weight of each term; a term of weight 0 is not computed. AudioSep's loss is `waveform_l1`."""

    waveform_l1: PositiveOrZero = 1.0
    spectrum_l1: PositiveOrZero = 0.0
    negative_si_sdr: PositiveOrZero = 0.0
    multi_resolution_stft: PositiveOrZero = 0.0
    thresholded_snr: PositiveOrZero = 0.0
    activity: PositiveOrZero = 0.0  # needs a network with `model.activity`
    # References that the estimates of slots may belong to: see `grouping.sums`.
    assign: Assign = "any"
    # Weight of the loss of mixtures of two estimates, with several queries (`grouping.remixed`).
    remix: PositiveOrZero = 0.0

    def __post_init__(self) -> None:
        if not any(_weights(self).values()):
            raise InputError(f"{next(iter(TERMS))}=0, as all weights are; one must be above 0")


class Outputs(NamedTuple):
    """Results of the model for a batch of mixtures.

    With K queries of each mixture, the estimates are `(B, K, S)` and the masks have B * K rows.
    """

    estimate_BS: jax.Array
    mask_BTFC: jax.Array  # before the activations of `apply_mask`


Batch = Mapping[str, Any]  # keys of `data.source`
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


def multi_resolution_stft(
    estimate_BS: jax.Array, target_BS: jax.Array, windows: Sequence[int]
) -> jax.Array:
    """Mean over the windows of the L1 errors of magnitudes and of log magnitudes (DDSP, 2020).

    Frames are a quarter of a window apart. Magnitudes are per root of the window's length, and
    count as -60 dB where they are lower, so that a silent target has a finite loss.
    """

    def term(window_samples: int) -> jax.Array:
        estimate_BTF, target_BTF = (
            jnp.abs(stft(audio_BS, window_samples, window_samples // 4)) / window_samples**0.5
            for audio_BS in (estimate_BS, target_BS)
        )
        ratio_BTF = (estimate_BTF + _FAINT_MAGNITUDE) / (target_BTF + _FAINT_MAGNITUDE)
        return jnp.mean(jnp.abs(estimate_BTF - target_BTF) + jnp.abs(jnp.log(ratio_BTF)))

    return jnp.mean(jnp.stack([term(window_samples) for window_samples in windows]))


def thresholded_snr(
    estimate_BS: jax.Array, target_BS: jax.Array, mixture_BS: jax.Array
) -> jax.Array:
    """Mean of the negative SNR in dB, which stops at -30 dB (MixIT, 2020).

    For a silent target it is the power of the estimate relative to that of the mixture, which
    stops at -20 dB (FUSS, 2021).
    """
    error_B, target_B, mixture_B = (
        jnp.mean(jnp.square(audio_BS), axis=-1)
        for audio_BS in (estimate_BS - target_BS, target_BS, mixture_BS)
    )
    silent_B = target_B <= _SILENT_SHARE * mixture_B
    reference_B = jnp.where(silent_B, mixture_B, target_B) + _SILENT_POWER
    floor_B = jnp.where(silent_B, 1e-2, 1e-3) * reference_B
    return jnp.mean(10 * jnp.log10((error_B + floor_B) / reference_B))


def active_frames(target_BS: jax.Array, mixture_BS: jax.Array, model: ModelConfig) -> jax.Array:
    """Mark the frames `(B, T)` of the network's innermost level in which the target is active.

    It is active there if one of the STFT frames that the frame covers has more than 1e-4 of the
    power of the mixture's loudest frame: a bark of one frame keeps the gate open. The level is that
    of the mixture, not of the target itself, since the loss asks for what can be heard, and a
    target of zeros, which is absent, has no level.
    """
    stride, window, hop = model.time_stride, model.window_samples, model.hop_samples
    target_BT, mixture_BT = (
        (jnp.abs(stft(x_BS, window, hop)) ** 2).sum(-1) for x_BS in (target_BS, mixture_BS)
    )
    audible_BT = target_BT > 10 ** (AUDIBLE_DB / 10) * mixture_BT.max(-1, keepdims=True)
    audible_BT = jnp.pad(audible_BT, ((0, 0), (0, -audible_BT.shape[1] % stride)))
    return audible_BT.reshape(len(audible_BT), -1, stride).any(-1)


def activity(
    logit_BT: jax.Array, target_BS: jax.Array, mixture_BS: jax.Array, model: ModelConfig
) -> jax.Array:
    """Binary cross-entropy of the probabilities that the target sounds, of STFT frames."""
    active_BT = active_frames(target_BS, mixture_BS, model)
    logit_BT = logit_BT[:, :: model.time_stride]
    return optax.sigmoid_binary_cross_entropy(logit_BT, active_BT).mean()


def _activity(outputs: Outputs, batch: Batch, model: ModelConfig) -> jax.Array:
    if model.activity == "none":
        raise InputError("loss.activity needs model.activity=report or gate")
    logit_BT = activity_of(outputs.mask_BTFC)
    return activity(logit_BT, batch["target"], batch["mixture"], model)


TERMS: dict[str, Term] = {
    "waveform_l1": lambda out, batch, _: waveform_l1(out.estimate_BS, batch["target"]),
    "spectrum_l1": lambda out, batch, model: spectrum_l1(
        out.estimate_BS, batch["target"], model.window_samples, model.hop_samples
    ),
    "negative_si_sdr": lambda out, batch, _: -si_sdr(batch["target"], out.estimate_BS).mean(),
    "multi_resolution_stft": lambda out, batch, model: multi_resolution_stft(
        *(out.estimate_BS, batch["target"]),
        (model.window_samples // 2, model.window_samples, 2 * model.window_samples),
    ),
    "thresholded_snr": lambda out, batch, _: thresholded_snr(
        out.estimate_BS, batch["target"], batch["mixture"]
    ),
    "activity": _activity,
}


def loss_terms(
    config: LossConfig, model: ModelConfig, outputs: Outputs, batch: Batch
) -> dict[str, jax.Array]:
    """Unweighted scalar terms by name, without those of weight 0."""
    weights = _weights(config)
    return {name: TERMS[name](outputs, batch, model) for name in weights if weights[name]}


def total_loss(config: LossConfig, terms: dict[str, jax.Array]) -> jax.Array:
    """Weighted sum of the terms."""
    weights = _weights(config)
    return jnp.asarray(sum(weights[name] * term for name, term in terms.items()))


def _weights(config: LossConfig) -> dict[str, float]:
    return {name: getattr(config, name, 0.0) for name in TERMS}
