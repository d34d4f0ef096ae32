"""Band-split transformer: dual-path blocks on a spectrogram that is cut into bands.

With `future_frames=0` the network is causal. Its algorithmic latency is then the STFT's window.
"""

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from audiosep_jax.errors import InputError
from audiosep_jax.model.attention import DualPath, FiLMNorm, check_heads
from audiosep_jax.model.network import ModelConfig, Network, Size, Span
from audiosep_jax.settings import CountOrZero, section

COMPRESSION = 0.3  # power of the magnitudes that the network sees


@section
class BandsConfig(ModelConfig):
    """Sizes of the band-split transformer.

    Every `band_bins` bins are a band of `features` channels. `past_frames` and `future_frames`
    bound the window of each block in time.
    """

    network: Literal["bands"] = "bands"
    band_bins: Size = 8
    features: Size = 128
    num_blocks: Size = 6
    heads: Size = 4
    past_frames: CountOrZero = 16
    future_frames: CountOrZero = 16

    def __post_init__(self) -> None:
        if self.window_samples % (2 * self.band_bins):
            raise InputError(
                f"window_samples={self.window_samples} must be a multiple of "
                f"{2 * self.band_bins}, twice band_bins"
            )
        check_heads(self.features, self.heads, "features")
        super().__post_init__()


class Bands(Network):
    """Compressed magnitudes in bands, dual-path blocks on them, and a mask of their result."""

    config: BandsConfig

    @property
    def delay_frames(self) -> int:
        return self.config.num_blocks * self.config.future_frames

    @nn.compact
    def __call__(
        self,
        mag_BTF: jax.Array,
        condition_BE: jax.Array,
        *,
        train: bool,
        span: Span | None = None,
    ) -> jax.Array:
        """Compute mask channels; the network never sees the last bin, where the mask is zero."""
        config, (batch, frames, _) = self.config, mag_BTF.shape
        streaming = span is not None and self.is_mutable_collection("stream")
        span = span or Span(0, frames)
        dtype = jnp.bfloat16 if config.dtype == "bfloat16" else None
        mag_BTF = jnp.where(span.inside(frames)[:, None], mag_BTF, 0)
        x_BTFC = mag_BTF[..., :-1].reshape(batch, frames, -1, config.band_bins) ** COMPRESSION
        bands = x_BTFC.shape[2]
        x_BTFC = PerBand(bands, config.features, dtype, name="split")(x_BTFC)
        sizes = config.num_blocks, config.heads, config.past_frames, config.future_frames
        blocks = DualPath(*sizes, dtype, name="blocks")
        x_BTFC = blocks(x_BTFC, condition_BE, span, streaming=streaming)
        x_BTFC = FiLMNorm(dtype, name="norm")(x_BTFC, condition_BE)
        channels = self.mask_channels
        mask = PerBand(bands, config.band_bins * channels, dtype, name="merge")(x_BTFC)
        mask_BTFC = mask.astype(mag_BTF.dtype).reshape(batch, frames, -1, channels)
        return jnp.pad(mask_BTFC, ((0, 0), (0, 0), (0, 1), (0, 0)))


class PerBand(nn.Module):
    """Linear layer with separate weights for each band."""

    bands: int
    features: int
    dtype: jnp.dtype | None

    @nn.compact
    def __call__(self, x_BTFC: jax.Array) -> jax.Array:
        init = nn.initializers.lecun_normal(batch_axis=0)
        kernel = self.param("kernel", init, (self.bands, x_BTFC.shape[-1], self.features))
        bias_FC = self.param("bias", nn.initializers.zeros, (self.bands, self.features))
        x_BTFC, kernel, bias_FC = nn.dtypes.promote_dtype(x_BTFC, kernel, bias_FC, dtype=self.dtype)
        return jnp.einsum("btfc,fcd->btfd", x_BTFC, kernel) + bias_FC
