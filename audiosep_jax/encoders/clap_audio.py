"""CLAP's audio tower: log-mel features, and HTSAT, a Swin transformer over them.

The features are those of Hugging Face's `ClapFeatureExtractor` without fusion. HTSAT folds them
into a square image. Its modules carry the Hugging Face names of `ClapModel`, dots included; it has
no training mode.
Shapes: H and W are rows and columns of patches, N windows, L the patches of one window.
"""

import functools
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from audiosep_jax.encoders.clap_text import tower_section
from audiosep_jax.encoders.layers import (
    ACTIVATIONS,
    Activation,
    Projection,
    at_least_float32,
    attend,
    config_from_dict,
    layer_norm,
    unit_norm,
)
from audiosep_jax.settings import section

POWER_FLOOR = 1e-10  # -100 dB
# Epsilon of the batch norm and of the layer norms that the config says nothing about.
TORCH_EPSILON = 1e-5
# Added by the original to the attention scores of patches that are neighbours only by the shift.
SHIFT_PENALTY = -100.0
CUBIC_SHARPNESS = -0.75  # of PyTorch's bicubic interpolation; others use -0.5


@section
class MelConfig:
    """Fields of `preprocessor_config.json`; the defaults are the published CLAP's."""

    feature_size: int = 64
    sampling_rate: int = 48_000
    hop_length: int = 480
    max_length_s: float = 10.0
    fft_window_size: int = 1024
    frequency_min: float = 50.0
    frequency_max: float = 14_000.0
    # Fusion stacks four spectrograms and uses another mel scale; AudioSep does without.
    truncation: Literal["rand_trunc"] = "rand_trunc"
    padding: Literal["repeatpad"] = "repeatpad"

    @property
    def clip_samples(self) -> int:
        """Length of the clips that the tower embeds."""
        return int(self.max_length_s * self.sampling_rate)

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> "MelConfig":
        """Make it from the feature extractor's `preprocessor_config.json`."""
        return config_from_dict(cls, config, "preprocessor_config")


@functools.lru_cache(maxsize=4)
def mel_filters(config: MelConfig) -> np.ndarray:
    """Slaney's mel filters: triangles of unit area, float64 (FFT bins, mel bands)."""
    from transformers.audio_utils import mel_filter_bank  # takes seconds to import

    return mel_filter_bank(
        1 + config.fft_window_size // 2,
        config.feature_size,
        config.frequency_min,
        config.frequency_max,
        config.sampling_rate,
        norm="slaney",
        mel_scale="slaney",
    )


def fit_clip(config: MelConfig, wave_BS: Any) -> Any:
    """Fit clips to `config.clip_samples`: repeat short ones, keep the middle of long ones.

    A short clip is repeated a whole number of times and padded with zeros. The original extractor
    cuts a long clip at a random place; the middle gives the same embedding at every call.
    """
    num_samples, wanted = wave_BS.shape[-1], config.clip_samples
    if num_samples >= wanted:
        start = (num_samples - wanted) // 2
        return wave_BS[:, start : start + wanted]
    index = np.arange(wanted)
    return wave_BS[:, index % num_samples] * (index < wanted // num_samples * num_samples)


@functools.partial(jax.jit, static_argnums=0)
def mel_power(config: MelConfig, wave_BS: jax.Array) -> jax.Array:
    """Power of mel bands (B, T, F) at `config.sampling_rate`, one centred frame per hop."""
    window_samples, hop = config.fft_window_size, config.hop_length
    padded_BS = jnp.pad(wave_BS, ((0, 0), (window_samples // 2,) * 2), mode="reflect")
    num_frames = 1 + (padded_BS.shape[-1] - window_samples) // hop
    index = np.arange(num_frames)[:, None] * hop + np.arange(window_samples)
    hann = np.sin(np.pi * np.arange(window_samples) / window_samples) ** 2
    spectrum_BTF = jnp.fft.rfft(padded_BS[:, index] * hann.astype(wave_BS.dtype))
    power_BTF = jnp.square(spectrum_BTF.real) + jnp.square(spectrum_BTF.imag)
    filters = mel_filters(config).astype(power_BTF.dtype)
    return jnp.matmul(power_BTF, filters, precision=jax.lax.Precision.HIGHEST)


@functools.partial(jax.jit, static_argnums=0)
def log_mel(config: MelConfig, wave_BS: jax.Array) -> jax.Array:
    """Mel power in dB (B, T, F) of clips at `config.sampling_rate`, one centred frame per hop.

    It is computed in the precision of `wave_BS`; `features` says what float32 costs.
    """
    return 10 * jnp.log10(jnp.maximum(mel_power(config, wave_BS), POWER_FLOOR))


def features(config: MelConfig, wave_BS: jax.Array) -> jax.Array:
    """Input of the audio tower (B, T, F) for clips of any length at `config.sampling_rate`.

    It is not differentiable, and `jit` must be outside `vmap`: a loss uses `log_mel` of `fit_clip`.
    """
    clip_BS = at_least_float32(fit_clip(config, wave_BS))
    # The extractor computes in float64. In float32, the rounding of the FFT hides bands that are
    # 85 dB below the loudest one of their frame (1.1e-3 dB on the golden clips). TPUs have no
    # float64 FFT.
    if jax.default_backend() == "tpu":
        return log_mel(config, clip_BS)
    with jax.enable_x64(True):
        return log_mel(config, clip_BS.astype(jnp.float64)).astype(clip_BS.dtype)


@section
class HtsatConfig:
    """Sizes, with the names and the defaults of Hugging Face's `ClapAudioConfig`."""

    window_size: int = 8
    num_mel_bins: int = 64
    spec_size: int = 256
    hidden_act: Activation = "gelu"
    patch_size: int = 4
    patch_stride: tuple[int, ...] = (4, 4)
    depths: tuple[int, ...] = (2, 2, 6, 2)
    num_attention_heads: tuple[int, ...] = (4, 8, 16, 32)
    patch_embeds_hidden_size: int = 96
    enable_patch_layer_norm: bool = True
    enable_fusion: Literal[False] = False  # see MelConfig
    qkv_bias: bool = True
    mlp_ratio: float = 4.0
    layer_norm_eps: float = 1e-5
    projection_dim: int = 512
    projection_hidden_act: Activation = "relu"

    def width(self, stage: int) -> int:
        """Number of channels of a stage."""
        return self.patch_embeds_hidden_size * 2**stage

    def grid(self, stage: int) -> int:
        """Number of patches along each side of a stage's square."""
        return self.spec_size // self.patch_stride[0] // 2**stage

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> "HtsatConfig":
        """Make it from the `config.json` of a whole `ClapModel` or of its audio tower alone."""
        values = dict(tower_section(config, "audio_config"))
        stride = values.get("patch_stride")
        values["patch_stride"] = (stride, stride) if isinstance(stride, int) else stride
        return config_from_dict(cls, values, "audio_config")


# HTSAT-base, the tower of AudioSep's CLAP and of laion/larger_clap_general.
HTSAT_BASE = HtsatConfig(patch_embeds_hidden_size=128, depths=(2, 2, 12, 2))


def bicubic_matrix(num_in: int, num_out: int) -> np.ndarray:
    """Matrix (out, in) float64 that resamples `num_in` points to `num_out` and keeps both ends.

    It applies Keys' cubic convolution kernel and repeats the points at the edges, as PyTorch's
    `interpolate` does with `mode="bicubic", align_corners=True`.
    """
    position = np.arange(num_out) * ((num_in - 1) / max(num_out - 1, 1))
    first = np.floor(position).astype(int) - 1
    matrix = np.zeros((num_out, num_in))
    for tap in range(4):
        column = np.clip(first + tap, 0, num_in - 1)
        weight = _cubic_kernel(np.abs(position - (first + tap)))
        np.add.at(matrix, (np.arange(num_out), column), weight)
    return matrix


def _cubic_kernel(distance: np.ndarray) -> np.ndarray:
    a, d = CUBIC_SHARPNESS, distance
    near = (a + 2) * d**3 - (a + 3) * d**2 + 1
    far = a * (d**3 - 5 * d**2 + 8 * d - 4)
    return np.where(d <= 1, near, np.where(d < 2, far, 0.0))


def fold(config: HtsatConfig, mel_BTF: jax.Array) -> jax.Array:
    """Fold spectrograms into squares (B, spec_size, spec_size): equal spans of time, stacked."""
    num_spans = config.spec_size // config.num_mel_bins
    num_frames, num_bands = config.spec_size * num_spans, config.spec_size // num_spans
    _, frames, bands = mel_BTF.shape
    resize = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)
    if frames < num_frames:
        matrix = bicubic_matrix(frames, num_frames).astype(mel_BTF.dtype)
        mel_BTF = resize("ut,btf->buf", matrix, mel_BTF)
    if bands < num_bands:
        matrix = bicubic_matrix(bands, num_bands).astype(mel_BTF.dtype)
        mel_BTF = resize("gf,btf->btg", matrix, mel_BTF)
    spans = mel_BTF.reshape(-1, num_spans, config.spec_size, num_bands)
    return spans.swapaxes(2, 3).reshape(-1, config.spec_size, config.spec_size)


def relative_positions(window_size: int) -> np.ndarray:
    """Rows (L, L) of the bias table for the pairs of patches in a window: dy major, dx minor."""
    y, x = (axis.ravel() for axis in np.indices((window_size, window_size)))
    span = 2 * window_size - 1
    dy, dx = (axis[:, None] - axis[None, :] + window_size - 1 for axis in (y, x))
    return dy * span + dx


def shift_bias(grid: int, window_size: int, shift: int) -> np.ndarray:
    """Attention bias (windows, 1, L, L) against patches that only the wrap-around put together."""
    index = np.arange(grid)
    region = (index >= grid - window_size).astype(int) + (index >= grid - shift)
    region_HW = region[:, None] * 3 + region[None, :]
    region_NL = np.asarray(to_windows(region_HW[None, :, :, None], window_size))[..., 0]
    same = region_NL[:, :, None] == region_NL[:, None, :]
    return np.where(same, 0.0, SHIFT_PENALTY)[:, None]


def to_windows(x_BHWC: Any, window_size: int) -> Any:
    """Split images into windows (B * windows, L, C), batch major."""
    batch, height, width, channels = x_BHWC.shape
    tiles = x_BHWC.reshape(
        batch, height // window_size, window_size, width // window_size, window_size, channels
    )
    return tiles.swapaxes(2, 3).reshape(-1, window_size * window_size, channels)


def from_windows(x_NLC: jax.Array, window_size: int, grid: int) -> jax.Array:
    """Inverse of `to_windows` for a square image."""
    per_side, channels = grid // window_size, x_NLC.shape[-1]
    tiles = x_NLC.reshape(-1, per_side, per_side, window_size, window_size, channels)
    return tiles.swapaxes(2, 3).reshape(-1, grid, grid, channels)


class WindowAttention(nn.Module):
    """Attention among the patches of each window, with a learnt bias for each displacement."""

    config: HtsatConfig
    num_heads: int

    @nn.compact
    def __call__(self, x_NLC: jax.Array, mask: np.ndarray | None) -> jax.Array:
        config, channels = self.config, x_NLC.shape[-1]
        query, key, value = (
            nn.Dense(channels, use_bias=config.qkv_bias, name=f"self.{part}")(x_NLC)
            for part in ("query", "key", "value")
        )
        rows = (2 * config.window_size - 1) ** 2
        table = self.param(
            "self.relative_position_bias_table", nn.initializers.zeros, (rows, self.num_heads)
        )
        bias = table[relative_positions(config.window_size)].transpose(2, 0, 1)[None]
        if mask is not None:
            bias = bias + jnp.tile(mask.astype(bias.dtype), (len(x_NLC) // len(mask), 1, 1, 1))
        context = attend(query, key, value, bias, num_heads=self.num_heads)
        return nn.Dense(channels, name="output.dense")(context)


class SwinBlock(nn.Module):
    """Window attention and an MLP; every second block shifts its windows by half their width."""

    config: HtsatConfig
    num_heads: int
    shifted: bool

    @nn.compact
    def __call__(self, x_BHWC: jax.Array) -> jax.Array:
        config, (_, grid, _, channels) = self.config, x_BHWC.shape
        # A single window has no neighbour to share patches with.
        shift = config.window_size // 2 if self.shifted and grid > config.window_size else 0
        mask = shift_bias(grid, config.window_size, shift) if shift else None
        y = layer_norm(config.layer_norm_eps, "layernorm_before")(x_BHWC)
        windows = to_windows(jnp.roll(y, (-shift, -shift), axis=(1, 2)), config.window_size)
        windows = WindowAttention(config, self.num_heads, name="attention")(windows, mask)
        y = from_windows(windows, config.window_size, grid)
        x = x_BHWC + jnp.roll(y, (shift, shift), axis=(1, 2))
        y = layer_norm(config.layer_norm_eps, "layernorm_after")(x)
        hidden = nn.Dense(int(config.mlp_ratio * channels), name="intermediate.dense")(y)
        return x + nn.Dense(channels, name="output.dense")(ACTIVATIONS[config.hidden_act](hidden))


class PatchMerging(nn.Module):
    """Merge two by two patches into one with twice the channels."""

    @nn.compact
    def __call__(self, x_BHWC: jax.Array) -> jax.Array:
        quarters = [x_BHWC[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]
        x = layer_norm(TORCH_EPSILON, "norm")(jnp.concatenate(quarters, axis=-1))
        return nn.Dense(2 * x_BHWC.shape[-1], use_bias=False, name="reduction")(x)


class FrozenBatchNorm(nn.Module):
    """Batch norm of the last axis, with the stored statistics as parameters."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        ones, zeros, shape = nn.initializers.ones, nn.initializers.zeros, (x.shape[-1],)
        scale, bias = self.param("scale", ones, shape), self.param("bias", zeros, shape)
        mean = self.param("running_mean", zeros, shape)
        variance = self.param("running_var", ones, shape)
        return (x - mean) * (scale * jax.lax.rsqrt(variance + TORCH_EPSILON)) + bias


class Htsat(nn.Module):
    """Log-mel features in dB (B, T, F) to CLAP's unit vectors (B, E)."""

    config: HtsatConfig

    @nn.compact
    def __call__(self, mel_BTF: jax.Array) -> jax.Array:
        config, encoder = self.config, "audio_model.audio_encoder"
        x = self._embed_patches(mel_BTF)
        for stage, depth in enumerate(config.depths):
            for i in range(depth):
                name = f"{encoder}.layers.{stage}.blocks.{i}"
                x = SwinBlock(config, config.num_attention_heads[stage], i % 2 == 1, name=name)(x)
            if stage + 1 < len(config.depths):
                x = PatchMerging(name=f"{encoder}.layers.{stage}.downsample")(x)
        # The original regroups frequency and time first, which does not change their average.
        pooled = layer_norm(TORCH_EPSILON, f"{encoder}.norm")(x).mean(axis=(1, 2))
        head = Projection(
            config.projection_dim, config.projection_hidden_act, name="audio_projection"
        )
        return unit_norm(head(pooled))

    def _embed_patches(self, mel_BTF: jax.Array) -> jax.Array:
        config, encoder = self.config, "audio_model.audio_encoder"
        x = FrozenBatchNorm(name=f"{encoder}.batch_norm")(mel_BTF)
        margin = (config.patch_size - config.patch_stride[0]) // 2
        x = nn.Conv(
            config.patch_embeds_hidden_size,
            (config.patch_size, config.patch_size),
            strides=config.patch_stride,
            padding=margin,
            name=f"{encoder}.patch_embed.proj",
        )(fold(config, x)[..., None])
        if config.enable_patch_layer_norm:
            x = layer_norm(TORCH_EPSILON, f"{encoder}.patch_embed.norm")(x)
        return x
