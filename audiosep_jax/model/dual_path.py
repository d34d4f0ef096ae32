"""ResUNet whose innermost level goes through dual-path transformer blocks."""

import functools
from typing import Literal

import jax
import jax.numpy as jnp

from audiosep_jax.model.attention import DualPath, check_heads
from audiosep_jax.model.network import Size
from audiosep_jax.model.resunet import Bottleneck, ResUNet, ResUNetConfig
from audiosep_jax.settings import CountOrZero, section


@section
class DualPathConfig(ResUNetConfig):
    """Sizes of the ResUNet and of its dual-path blocks.

    `past_frames` and `future_frames`, of the innermost level, bound the window of each block.
    """

    network: Literal["dual_path"] = "dual_path"  # type: ignore[assignment] # one name per class
    num_blocks: Size = 2
    heads: Size = 4
    past_frames: CountOrZero = 4
    future_frames: CountOrZero = 2

    def __post_init__(self) -> None:
        check_heads(self.encoder_channels[-1], self.heads, "encoder_channels[-1]")
        super().__post_init__()

    @property
    def bottleneck_delay(self) -> int:
        return self.num_blocks * self.future_frames


class DualPathResUNet(ResUNet):
    """The ResUNet with dual-path blocks behind its innermost block."""

    config: DualPathConfig

    def bottleneck(self, condition_BE: jax.Array) -> Bottleneck:
        config = self.config
        dtype = jnp.bfloat16 if config.dtype == "bfloat16" else None
        sizes = config.num_blocks, config.heads, config.past_frames, config.future_frames
        blocks = DualPath(*sizes, dtype, name="bottleneck")
        return functools.partial(blocks, condition_BE=condition_BE)
