"""Mixture and condition to waveform. Masks are defined here and nowhere else.

The last bin of a mask can hold the target's activity: the logit, by frame, of the probability that
the target sounds. Its rotation is zero there, so that this bin of the estimate is silent.
"""

from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp

from audiosep_jax.model.network import Network
from audiosep_jax.model.stft import istft, stft

SLOTS = "slots"  # name of the parameter
NUM_MASK_CHANNELS = 3  # magnitude, and the real and imaginary part of the rotation
POWER_FLOOR = 1e-10  # of the mixture's spectrum
ROTATION_FLOOR = 1e-20  # squared length below which a rotation is no longer made a unit vector


class AudioSep(nn.Module):
    """Language-queried separator of one-channel recordings: STFT, network, mask, inverse STFT.

    Its variables are those of the network, without a prefix, and the parameter `SLOTS` where
    `config.slots` is not 0. The module does not use it: `with_slots` makes conditions of it.
    """

    network: Network

    def setup(self) -> None:
        nn.share_scope(self, self.network)
        config = self.network.config
        if config.slots:
            shape = config.slots, config.condition_features
            self.param(SLOTS, nn.initializers.normal(), shape)

    def __call__(self, mixture_BS: jax.Array, condition_BE: jax.Array, *, train: bool) -> jax.Array:
        """Estimate the source `(B, S)` that `condition_BE`, unit vectors, describes.

        With conditions `(B, K, E)` each of the K sources of a mixture is estimated: `(B, K, S)`.
        """
        shape = *condition_BE.shape[:-1], mixture_BS.shape[1]
        window, hop = self.network.config.window_samples, self.network.config.hop_samples
        spectrum_BTF = stft(mixture_BS, window, hop)
        if condition_BE.ndim == 3:  # the network hears the condition from its first layer on
            spectrum_BTF = jnp.repeat(spectrum_BTF, condition_BE.shape[1], axis=0)
            condition_BE = condition_BE.reshape(len(spectrum_BTF), -1)
        mask_BTFC = self.network(magnitude(spectrum_BTF), condition_BE, train=train)
        self.sow("intermediates", "mask", mask_BTFC)  # for losses on masks
        gated = not train and self.network.config.activity == "gate"
        masked_BTF = apply_mask(spectrum_BTF, mask_BTFC, gated=gated)
        return istft(masked_BTF, mixture_BS.shape[1], window, hop).reshape(shape)


def unit_slots(params: Mapping[str, jax.Array]) -> jax.Array:
    """Learnt conditions `(R, E)` of length 1."""
    slots_RE = params[SLOTS]
    return slots_RE / jnp.linalg.norm(slots_RE, axis=-1, keepdims=True)


def with_slots(
    params: Mapping[str, jax.Array], condition: jax.Array | None, num_rows: int
) -> jax.Array | None:
    """Append the learnt conditions, if there are any, to those of each row.

    Args:
        condition: `(B, E)`, `(B, K, E)`, or None where no query describes anything.

    Returns:
        `(B, K + R, E)`, or `condition` for parameters without slots.
    """
    if SLOTS not in params:
        return condition
    slots_BRE = jnp.repeat(unit_slots(params)[None], num_rows, axis=0)
    if condition is None:
        return slots_BRE
    given_BKE = condition if condition.ndim == 3 else condition[:, None]
    return jnp.concatenate([given_BKE, slots_BRE], axis=1)


def magnitude(spectrum_BTF: jax.Array) -> jax.Array:
    """Magnitude, floored so that silence has a gradient."""
    power_BTF = spectrum_BTF.real**2 + spectrum_BTF.imag**2
    return jnp.sqrt(jnp.maximum(power_BTF, POWER_FLOOR))


def with_activity(mask_BTFC: jax.Array, logit_BT: jax.Array) -> jax.Array:
    """Add the bin that holds the target's activity to a mask."""
    rotation = mask_BTFC.shape[-1] - 1
    last_BTFC = jnp.pad(logit_BT[..., None, None], [(0, 0)] * 3 + [(0, rotation)])
    return jnp.concatenate([mask_BTFC, last_BTFC.astype(mask_BTFC.dtype)], axis=-2)


def activity_of(mask_BTFC: jax.Array) -> jax.Array:
    """Logits `(B, T)` of the target's activity."""
    return mask_BTFC[..., -1, 0]


def apply_mask(spectrum_BTF: jax.Array, mask_BTFC: jax.Array, *, gated: bool = False) -> jax.Array:
    """Scale the mixture's spectrum by the mask's first channel and rotate it by the other two.

    The original scales the floored magnitude and multiplies it by the phase, which is divided by
    the same floor. The floor cancels, so the spectrum itself can be scaled.

    `gated` frames fade to silence with the probability that the target sounds, if that is below
    one half. Above, the mask alone decides.
    """
    gain_BTF = jax.nn.sigmoid(mask_BTFC[..., 0])
    if gated:
        probability_BT = jax.nn.sigmoid(activity_of(mask_BTFC))
        gain_BTF = gain_BTF * jnp.minimum(2 * probability_BT, 1)[..., None]
    real_BTF, imag_BTF = jnp.tanh(mask_BTFC[..., 1]), jnp.tanh(mask_BTFC[..., 2])
    squared_BTF = real_BTF**2 + imag_BTF**2
    gain_BTF = gain_BTF * jax.lax.rsqrt(jnp.maximum(squared_BTF, ROTATION_FLOOR))
    return spectrum_BTF * jax.lax.complex(gain_BTF * real_BTF, gain_BTF * imag_BTF)
