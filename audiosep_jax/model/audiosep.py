"""Mixture and condition to waveform. Masks are defined here and nowhere else."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from audiosep_jax.model.network import Network
from audiosep_jax.model.stft import istft, stft

NUM_MASK_CHANNELS = 3  # magnitude, and the real and imaginary part of the rotation
POWER_FLOOR = 1e-10  # of the mixture's spectrum
ROTATION_FLOOR = 1e-20  # squared length below which a rotation is no longer made a unit vector


class AudioSep(nn.Module):
    """Language-queried separator of one-channel recordings: STFT, network, mask, inverse STFT.

    Its variables are those of the network, without a prefix.
    """

    network: Network

    def setup(self) -> None:
        nn.share_scope(self, self.network)

    def __call__(self, mixture_BS: jax.Array, condition_BE: jax.Array, *, train: bool) -> jax.Array:
        """Estimate the source `(B, S)` that `condition_BE`, unit vectors, describes."""
        window, hop = self.network.config.window_samples, self.network.config.hop_samples
        spectrum_BTF = stft(mixture_BS, window, hop)
        mask_BTFC = self.network(magnitude(spectrum_BTF), condition_BE, train=train)
        self.sow("intermediates", "mask", mask_BTFC)  # for losses on masks
        return istft(apply_mask(spectrum_BTF, mask_BTFC), mixture_BS.shape[1], window, hop)


def magnitude(spectrum_BTF: jax.Array) -> jax.Array:
    """Magnitude, floored so that silence has a gradient."""
    power_BTF = spectrum_BTF.real**2 + spectrum_BTF.imag**2
    return jnp.sqrt(jnp.maximum(power_BTF, POWER_FLOOR))


def apply_mask(spectrum_BTF: jax.Array, mask_BTFC: jax.Array) -> jax.Array:
    """Scale the mixture's spectrum by the mask's first channel and rotate it by the other two.

    The original scales the floored magnitude and multiplies it by the phase, which is divided by
    the same floor. The floor cancels, so the spectrum itself can be scaled.
    """
    gain_BTF = jax.nn.sigmoid(mask_BTFC[..., 0])
    real_BTF, imag_BTF = jnp.tanh(mask_BTFC[..., 1]), jnp.tanh(mask_BTFC[..., 2])
    squared_BTF = real_BTF**2 + imag_BTF**2
    gain_BTF = gain_BTF * jax.lax.rsqrt(jnp.maximum(squared_BTF, ROTATION_FLOOR))
    return spectrum_BTF * jax.lax.complex(gain_BTF * real_BTF, gain_BTF * imag_BTF)
