"""Mixture and condition to waveform: the only place that knows about masks."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from audiosep_jax.model.resunet import FiLM, ModelConfig, ResUNet
from audiosep_jax.model.stft import istft, stft

POWER_FLOOR = 1e-10  # of the mixture's spectrum
ROTATION_FLOOR = 1e-20  # squared length below which a rotation is no longer made a unit vector


class AudioSep(nn.Module):
    """Language-queried separator of one-channel recordings."""

    config: ModelConfig
    axis_name: str | None = None

    @nn.compact
    def __call__(self, mixture_BS: jax.Array, condition_BE: jax.Array, *, train: bool) -> jax.Array:
        """Estimate `(B, S)` of what `condition_BE`, unit vectors, describes in the mixture."""
        window, hop = self.config.window_samples, self.config.hop_samples
        spectrum_BTF = stft(mixture_BS, window, hop)
        mag_BTF = magnitude(spectrum_BTF)
        shifts = FiLM(self.config, name="film")(condition_BE)
        base = ResUNet(self.config, self.axis_name, name="base")
        mask_BTFC = base(mag_BTF, shifts, train=train)
        return istft(apply_mask(spectrum_BTF, mask_BTFC), mixture_BS.shape[1], window, hop)


def magnitude(spectrum_BTF: jax.Array) -> jax.Array:
    """Magnitude, floored so that silence has a gradient."""
    power_BTF = spectrum_BTF.real**2 + spectrum_BTF.imag**2
    return jnp.sqrt(jnp.maximum(power_BTF, POWER_FLOOR))


def apply_mask(spectrum_BTF: jax.Array, mask_BTFC: jax.Array) -> jax.Array:
    """Estimate's spectrum: the mixture's, scaled by the mask's first channel, turned by the others.

    The original scales the floored magnitude and multiplies by the phase over that same floor;
    the floor cancels, so the spectrum is scaled as it is.
    """
    gain_BTF = jax.nn.sigmoid(mask_BTFC[..., 0])
    real_BTF, imag_BTF = jnp.tanh(mask_BTFC[..., 1]), jnp.tanh(mask_BTFC[..., 2])
    squared_BTF = real_BTF**2 + imag_BTF**2
    gain_BTF = gain_BTF * jax.lax.rsqrt(jnp.maximum(squared_BTF, ROTATION_FLOOR))
    return spectrum_BTF * jax.lax.complex(gain_BTF * real_BTF, gain_BTF * imag_BTF)
