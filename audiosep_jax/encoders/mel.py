"""Log-mel features as Hugging Face's `ClapFeatureExtractor` makes them without fusion."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from audiosep_jax.encoders.layers import at_least_float32, config_from_dict
from audiosep_jax.errors import InputError

POWER_FLOOR = 1e-10  # -100 dB
# Slaney's scale: linear up to 1 kHz at 15 mel, then 27 mel for every factor of 6.4.
LINEAR_HZ_PER_MEL, BREAK_HZ, BREAK_MEL, LOG_STEP = 200 / 3, 1000.0, 15.0, np.log(6.4) / 27


@dataclasses.dataclass(frozen=True)
class MelConfig:
    """Names of `preprocessor_config.json`; the defaults are the published CLAP's."""

    feature_size: int = 64
    sampling_rate: int = 48_000
    hop_length: int = 480
    max_length_s: float = 10.0
    fft_window_size: int = 1024
    frequency_min: float = 50.0
    frequency_max: float = 14_000.0
    truncation: str = "rand_trunc"
    padding: str = "repeatpad"

    def __post_init__(self) -> None:
        # Fusion stacks four spectrograms and uses another mel scale; AudioSep does without.
        if self.truncation != "rand_trunc":
            raise InputError(f"truncation {self.truncation!r} is not supported; use 'rand_trunc'")
        if self.padding != "repeatpad":
            raise InputError(f"padding {self.padding!r} is not supported; use 'repeatpad'")

    @property
    def clip_samples(self) -> int:
        """Samples of the clip that the tower hears."""
        return int(self.max_length_s * self.sampling_rate)

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> "MelConfig":
        """From the feature extractor's `preprocessor_config.json`."""
        return config_from_dict(cls, config, "preprocessor_config")


def hz_to_mel(hz: np.ndarray) -> np.ndarray:
    """Slaney's mel scale (Auditory Toolbox, 1998)."""
    logarithmic = BREAK_MEL + np.log(np.maximum(hz, BREAK_HZ) / BREAK_HZ) / LOG_STEP
    return np.where(hz < BREAK_HZ, hz / LINEAR_HZ_PER_MEL, logarithmic)


def mel_to_hz(mel: np.ndarray) -> np.ndarray:
    """Inverse of `hz_to_mel`."""
    exponential = BREAK_HZ * np.exp(LOG_STEP * (np.maximum(mel, BREAK_MEL) - BREAK_MEL))
    return np.where(mel < BREAK_MEL, mel * LINEAR_HZ_PER_MEL, exponential)


@functools.lru_cache(maxsize=4)
def mel_filters(config: MelConfig) -> np.ndarray:
    """Triangles of unit area, float64 (FFT bins, mel bands)."""
    low, high = hz_to_mel(np.array([config.frequency_min, config.frequency_max]))
    corners_hz = mel_to_hz(np.linspace(low, high, config.feature_size + 2))
    left, centre, right = corners_hz[:-2], corners_hz[1:-1], corners_hz[2:]
    bin_hz = np.fft.rfftfreq(config.fft_window_size, 1 / config.sampling_rate)[:, None]
    rising, falling = (bin_hz - left) / (centre - left), (right - bin_hz) / (right - centre)
    return np.maximum(0.0, np.minimum(rising, falling)) * 2 / (right - left)


def fit_clip(config: MelConfig, wave_BS: jax.Array) -> jax.Array:
    """Clips of `config.clip_samples`: whole repeats, then zeros; or the middle of a long one.

    The extractor cuts a long clip at a random place; the middle is as good and repeats.
    """
    num_samples, wanted = wave_BS.shape[-1], config.clip_samples
    if num_samples == 0:
        raise InputError("an audio clip is empty; CLAP needs at least one sample")
    if num_samples >= wanted:
        start = (num_samples - wanted) // 2
        return wave_BS[:, start : start + wanted]
    repeated_BS = jnp.tile(wave_BS, (1, wanted // num_samples))
    return jnp.pad(repeated_BS, ((0, 0), (0, wanted - repeated_BS.shape[-1])))


@functools.partial(jax.jit, static_argnums=0)
def log_mel(config: MelConfig, wave_BS: jax.Array) -> jax.Array:
    """Mel power in dB (B, T, F) of clips at `config.sampling_rate`; one frame per hop, centred.

    In the precision of `wave_BS`: see `features` for what float32 costs.
    """
    window_samples, hop = config.fft_window_size, config.hop_length
    padded_BS = jnp.pad(wave_BS, ((0, 0), (window_samples // 2,) * 2), mode="reflect")
    num_frames = 1 + (padded_BS.shape[-1] - window_samples) // hop
    index = np.arange(num_frames)[:, None] * hop + np.arange(window_samples)
    hann = np.sin(np.pi * np.arange(window_samples) / window_samples) ** 2
    spectrum_BTF = jnp.fft.rfft(padded_BS[:, index] * hann.astype(wave_BS.dtype))
    power_BTF = jnp.square(spectrum_BTF.real) + jnp.square(spectrum_BTF.imag)
    filters = mel_filters(config).astype(power_BTF.dtype)
    mel_BTF = jnp.matmul(power_BTF, filters, precision=jax.lax.Precision.HIGHEST)
    return 10 * jnp.log10(jnp.maximum(mel_BTF, POWER_FLOOR))


def features(config: MelConfig, wave_BS: jax.Array) -> jax.Array:
    """What the audio tower reads (B, T, F) of clips of any length at `config.sampling_rate`.

    Not differentiable, and `jit` goes outside `vmap`: for a loss use `log_mel` of `fit_clip`.
    """
    clip_BS = at_least_float32(fit_clip(config, wave_BS))
    # Bands 85 dB below a frame's loudest drown in the rounding of a float32 FFT (1.1e-3 dB on the
    # golden clips), and the extractor computes in float64. TPUs have no float64 FFT.
    if jax.default_backend() == "tpu":
        return log_mel(config, clip_BS)
    with jax.enable_x64(True):
        return log_mel(config, clip_BS.astype(jnp.float64)).astype(clip_BS.dtype)
