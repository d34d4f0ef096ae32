"""ResUNet with FiLM, built from a table; one module serves every size, and recordings and streams.

Parameter names are those of the published checkpoint, so that import is a rename and a transpose.

In a stream the input comes in tiles, and the result equals one pass over the whole recording. That
is possible because a block is local in time: a frame of its result depends on `BLOCK_HALO` frames
on either side, through two 3x3 convolutions. So every block keeps the last few frames of its input
in the collection "stream" and puts them in front of the next tile. The frames at the end of a tile
wait there until the next tile brings what follows them, so every block delays its result. Skip
connections wait, too, for the deeper levels that they meet in the decoder. `stream_table` derives
all delays. Nothing is computed twice; tiles with a halo of the whole network's receptive
field would have to repeat 640 frames each for ResUNet30.

At the two ends of the recording every convolution of one pass sees the zeros that it is padded
with. In a stream the frames there hold something else (zeros that went through a BatchNorm, or the
next recording's), so `_only_inside` sets them to zero again in front of every convolution.
"""

import dataclasses
import itertools
import math
import operator
from collections.abc import Callable
from typing import Annotated, Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from pydantic import Field

from audiosep_jax.errors import InputError
from audiosep_jax.model.audiosep import with_activity
from audiosep_jax.model.convolution import conv3x3
from audiosep_jax.model.folding import FoldedConv3x3
from audiosep_jax.model.layers import (
    STATISTICS,
    BatchNorm,
    Pointwise,
    Upsample,
    average_pool,
)
from audiosep_jax.model.network import Activity, ModelConfig, Network, Size, Span, after_past
from audiosep_jax.settings import section, setting

LEAK = 0.01
BLOCK_HALO = 2  # frames on either side that the two 3x3 convolutions of a block depend on

# Maps the innermost level `(B, T, F, C)` and its span to as many frames. In a stream
# (`streaming=True`) the result is delayed by `config.bottleneck_delay` frames.
Bottleneck = Callable[..., jax.Array]
Sizes = Annotated[tuple[Size, ...], Field(min_length=1)]  # one for each level, outermost first


@section
class ResUNetConfig(ModelConfig):
    """Sizes of the ResUNet; the defaults are the published ResUNet30 at 32 kHz.

    `remat` recomputes every block for its gradient instead of keeping its activations: the same
    numbers in less memory, with a fifth more work. `fold` keeps so many neighbouring bins of the
    outermost level in its channels, and fewer of the next ones: 4 suits TPUs (see `folding`).
    `activity` adds a head that tells when the target sounds, and says what it is used for.
    `decoder_channels` are those of the encoder if they are empty; fewer make a light decoder.
    """

    network: Literal["resunet"] = "resunet"
    stem_channels: Size = 32
    encoder_channels: Sizes = (32, 64, 128, 256, 384, 384)
    time_pools: Sizes = (2, 2, 2, 2, 2, 1)
    frequency_pools: Sizes = (2, 2, 2, 2, 2, 2)
    decoder_channels: tuple[Size, ...] = ()
    remat: bool = setting(default=False, resumable=True)
    fold: Size = setting(default=1, resumable=True)
    activity: Activity = "none"

    def __post_init__(self) -> None:
        if not len(self.encoder_channels) == len(self.time_pools) == len(self.frequency_pools):
            raise InputError(
                f"encoder_channels={self.encoder_channels}, time_pools={self.time_pools} and "
                f"frequency_pools={self.frequency_pools} must have the same length"
            )
        if len(self.decoder_channels) not in (0, len(self.encoder_channels)):
            raise InputError(
                f"decoder_channels={self.decoder_channels} must be empty, or as many as "
                f"encoder_channels={self.encoder_channels}"
            )
        if self.window_samples % (2 * self.frequency_stride):
            raise InputError(
                f"window_samples={self.window_samples} must be a multiple of "
                f"{2 * self.frequency_stride}, twice the product of frequency_pools"
            )
        if self.fold not in self._frequency_strides():
            raise InputError(
                f"fold={self.fold} must be 1 or the product of the first ones of "
                f"frequency_pools={self.frequency_pools}"
            )
        super().__post_init__()

    def folds(self) -> list[int]:
        """Bins in the channels at each level, the innermost included."""
        return [max(self.fold // stride, 1) for stride in self._frequency_strides()]

    def _frequency_strides(self) -> list[int]:
        return list(itertools.accumulate(self.frequency_pools, operator.mul, initial=1))

    @property
    def time_stride(self) -> int:
        """Frames that one frame of the innermost level covers; inputs are padded to a multiple."""
        return math.prod(self.time_pools)

    @property
    def bottleneck_delay(self) -> int:
        """Frames of the innermost level that `ResUNet.bottleneck` looks ahead."""
        return 0

    @property
    def frequency_stride(self) -> int:
        """Bins that one bin of the innermost level covers."""
        return math.prod(self.frequency_pools)


@dataclasses.dataclass(frozen=True)
class Block:
    """Sizes of a block, and its place in time.

    stride: (time, frequency) factor of its pooling or upsampling.
    skip_channels: of a decoder's skip connection.
    fold: bins in the channels of its convolutions.
    level: STFT frames that one of its frames covers; a decoder's are those after upsampling.

    The rest is 0 outside of a stream, and counts the block's own frames:

    delay: by how much the input lags behind the recording.
    before: past frames that are kept and put in front of the input.
    lag: by how much the result lags behind the input.
    behind: zeros that complete the last window of the pooling; what they touch is not used.
    skip: past frames of the skip connection that are kept (decoders).
    """

    name: str
    kind: Literal["encoder", "middle", "decoder"]
    in_channels: int
    out_channels: int
    stride: tuple[int, int]
    skip_channels: int = 0
    level: int = 1
    fold: int = 1
    delay: int = 0
    before: int = 0
    lag: int = 0
    behind: int = 0
    skip: int = 0

    @property
    def inner_fold(self) -> int:
        """Bins in the channels on the other side of its pooling or upsampling."""
        return max(self.fold // self.stride[1], 1)

    def shifts(self) -> dict[str, int]:
        """Channels of each FiLM shift of the block, by its published name."""
        conv, widths, own = "conv_block1", (self.in_channels, self.out_channels), {}
        if self.kind == "decoder":
            joined = self.out_channels + self.skip_channels
            conv, widths = "conv_block2", (joined, self.out_channels)
            # The published decoder also owns a beta2 that nothing reads.
            own = {"beta1": self.in_channels, "beta2": self.in_channels}
        inner = {f"{conv}->beta{i}": channels for i, channels in enumerate(widths, start=1)}
        return {f"{self.name}->{name}": channels for name, channels in (own | inner).items()}

    def inside(self, span: Span | None, count: int) -> jax.Array | None:
        """Mark those of the `count` frames that the block sees which belong to the recording."""
        if span is None:
            return None
        first = span.first // self.level - self.delay - self.before
        return Span(first, span.total // self.level).inside(count)

    def result_span(self, span: Span | None, count: int) -> Span:
        """Return the position of the `count` frames that the block computes, before pooling."""
        if span is None:
            return Span(0, count)
        return Span(span.first // self.level - self.delay - self.lag, span.total // self.level)


def block_table(config: ResUNetConfig) -> list[Block]:
    """List the blocks in the order of the forward pass: 13 for the published sizes."""
    outs, depth = config.encoder_channels, len(config.encoder_channels)
    ins = (config.stem_channels, *outs[:-1])
    strides = list(zip(config.time_pools, config.frequency_pools, strict=True))
    levels = [math.prod(config.time_pools[:i]) for i in range(depth + 1)]
    folds = config.folds()
    places: list[dict[str, Any]] = [
        {"level": levels[i], "fold": folds[i]} for i in range(depth + 1)
    ]
    encoder = [
        Block(f"encoder_block{i + 1}", "encoder", ins[i], outs[i], strides[i], **places[i])
        for i in range(depth)
    ]
    name = f"conv_block{depth + 1}a"
    middle = Block(name, "middle", outs[-1], outs[-1], (1, 1), **places[-1])
    skips, outs = outs, config.decoder_channels or outs
    ins = (*outs[1:], skips[-1])
    decoder = [
        Block(
            *(f"decoder_block{depth - i}", "decoder", ins[i], outs[i], strides[i], skips[i]),
            **places[i],
        )
        for i in reversed(range(depth))
    ]
    return [*encoder, middle, *decoder]


def stream_table(config: ResUNetConfig) -> tuple[list[Block], int]:
    """The blocks in a stream, and by how many STFT frames the mask lags behind its input."""
    blocks: list[Block] = []
    skip_delays: list[int] = []
    delay = 0
    for block in block_table(config):
        pool = block.stride[0]
        if block.kind == "decoder":
            delay *= pool
            before, lag, behind = _up_to_grid(2 * BLOCK_HALO, pool), BLOCK_HALO, 0
            # The skip connection was made earlier, with a shorter delay: it waits here.
            skip = before + delay - skip_delays.pop()
        else:
            # Windows of the pooling must not be split between tiles: the first frame that the
            # block sees, and the first that it returns, are multiples of `pool` in the recording.
            lag = _up_to_grid(delay + BLOCK_HALO, pool) - delay
            before = _up_to_grid(delay + lag + BLOCK_HALO, pool) - delay
            behind, skip = -before % pool, 0
        blocks.append(
            dataclasses.replace(
                block, delay=delay, before=before, lag=lag, behind=behind, skip=skip
            )
        )
        delay += lag
        if block.kind == "middle":
            delay += config.bottleneck_delay
        if block.kind == "encoder":
            skip_delays.append(delay)
            delay //= pool
    return blocks, delay


def _up_to_grid(frames: int, grid: int) -> int:
    return -(-frames // grid) * grid


class FiLM(nn.Module):
    """Linear layers that map the condition to the network's shifts."""

    config: ResUNetConfig

    @nn.compact
    def __call__(self, condition_BE: jax.Array) -> dict[str, jax.Array]:
        """Shifts `(B, C)` by published name, such as `encoder_block1->conv_block1->beta1`."""
        init = nn.initializers.xavier_uniform()
        widths = {k: v for block in block_table(self.config) for k, v in block.shifts().items()}
        if self.config.activity != "none":
            widths["activity"] = self.config.encoder_channels[-1]
        return {
            name: nn.Dense(channels, kernel_init=init, name=name)(condition_BE)
            for name, channels in widths.items()
        }


class ResidualBlock(nn.Module):
    """Two pre-activated 3x3 convolutions beside a shortcut."""

    features: int
    dtype: jnp.dtype | None
    axis_name: str | None
    fold: int

    @nn.compact
    def __call__(
        self,
        *parts_BTFC: jax.Array,
        beta1_BC: jax.Array,
        beta2_BC: jax.Array,
        train: bool,
        inside_T: jax.Array | None = None,
    ) -> jax.Array:
        """`conv2(act(bn2(conv1(act(bn1(x) + beta1))) + beta2)) + shortcut(x)`.

        x is the concatenation of the inputs on the channels. Both convolutions see zeros in the
        frames that are not `inside_T`.
        """
        fold, widths = self.fold, tuple(part.shape[-1] // self.fold for part in parts_BTFC)
        bn1 = BatchNorm(self.axis_name, LEAK, fold, name="bn1")
        bn2 = BatchNorm(self.axis_name, LEAK, fold, name="bn2")
        conv1, conv2 = self._conv("conv1", widths), self._conv("conv2", (self.features,))
        y_BTFC = bn1(*parts_BTFC, shift_BC=beta1_BC, train=train)
        y_BTFC = conv1(_only_inside(y_BTFC, inside_T))
        y_BTFC = bn2(y_BTFC, shift_BC=beta2_BC, train=train)
        y_BTFC = conv2(_only_inside(y_BTFC, inside_T))
        if sum(widths) == self.features:
            return jnp.concatenate(parts_BTFC, axis=-1) + y_BTFC
        shortcut = Pointwise(self.features, self.dtype, fold=fold, name="shortcut")
        return shortcut(*parts_BTFC) + y_BTFC

    def _conv(self, name: str, widths: tuple[int, ...]) -> Any:
        if self.fold == 1:
            return conv3x3(self.features, self.dtype, name)
        return FoldedConv3x3(self.features, self.dtype, self.fold, widths, name=name)


def _only_inside(x_BTFC: jax.Array, inside_T: jax.Array | None) -> jax.Array:
    return x_BTFC if inside_T is None else jnp.where(inside_T[:, None, None], x_BTFC, 0)


class EncoderBlock(nn.Module):
    """Residual block; the skip connection is its output, pooled for the next level."""

    block: Block
    dtype: jnp.dtype | None
    axis_name: str | None

    @nn.compact
    def __call__(
        self,
        x_BTFC: jax.Array,
        shifts: dict[str, jax.Array],
        *,
        train: bool,
        span: Span | None = None,
    ) -> tuple[jax.Array, jax.Array]:
        """Compute (pooled, skip), of as many frames as the input covers."""
        block, count = self.block, x_BTFC.shape[1]
        x_BTFC = after_past(self, "past", block.before, x_BTFC)
        x_BTFC = jnp.pad(x_BTFC, ((0, 0), (0, block.behind), (0, 0), (0, 0)))
        beta = f"{block.name}->conv_block1->beta"
        skip_BTFC = ResidualBlock(
            block.out_channels, self.dtype, self.axis_name, block.fold, name="conv_block1"
        )(
            x_BTFC,
            beta1_BC=shifts[f"{beta}1"],
            beta2_BC=shifts[f"{beta}2"],
            train=train,
            inside_T=block.inside(span, x_BTFC.shape[1]),
        )
        pooled_BTFC = average_pool(skip_BTFC, block.stride, block.fold)
        start, pool = block.before - block.lag, block.stride[0]
        return (
            pooled_BTFC[:, start // pool : (start + count) // pool],
            skip_BTFC[:, start : start + count],
        )


class DecoderBlock(nn.Module):
    """Upsamples, concatenates the skip connection, and refines both with a residual block."""

    block: Block
    dtype: jnp.dtype | None
    axis_name: str | None

    @nn.compact
    def __call__(
        self,
        x_BTFC: jax.Array,
        skip_BTFC: jax.Array,
        shifts: dict[str, jax.Array],
        *,
        train: bool,
        span: Span | None = None,
    ) -> jax.Array:
        """Compute as many frames as the skip connection has."""
        block, count = self.block, skip_BTFC.shape[1]
        name, features = block.name, block.out_channels
        x_BTFC = after_past(self, "past", block.before // block.stride[0], x_BTFC)
        skip_BTFC = after_past(self, "past skip", block.skip, skip_BTFC)[:, : block.before + count]
        bn1 = BatchNorm(self.axis_name, LEAK, block.inner_fold, name="bn1")
        upsample = Upsample(features, block.stride, self.dtype, block.fold, name="conv1")
        conv = ResidualBlock(features, self.dtype, self.axis_name, block.fold, name="conv_block2")
        # The published decoder also owns a norm that it does not use; here it only makes variables.
        BatchNorm(fold=block.inner_fold, name="bn2")(x_BTFC, train=False)
        x_BTFC = upsample(bn1(x_BTFC, shift_BC=shifts[f"{name}->beta1"], train=train))
        beta = f"{name}->conv_block2->beta"
        y_BTFC = conv(
            x_BTFC,
            skip_BTFC.astype(x_BTFC.dtype),
            beta1_BC=shifts[f"{beta}1"],
            beta2_BC=shifts[f"{beta}2"],
            train=train,
            inside_T=block.inside(span, x_BTFC.shape[1]),
        )
        start = block.before - block.lag
        return y_BTFC[:, start : start + count]


class ActivityHead(nn.Module):
    """Logits of the target's activity, from the innermost level and a shift by the condition.

    Every bin votes through one hidden layer. The last layer begins with zeros, so that a new head
    changes no estimate: its probabilities are one half, where the gate is open.
    """

    @nn.compact
    def __call__(self, x_BTFC: jax.Array, shift_BC: jax.Array) -> jax.Array:
        """Compute `(B, T)` in float32."""
        hidden_BTFC = Pointwise(shift_BC.shape[-1], None, name="hidden")(x_BTFC)
        hidden_BTFC = nn.leaky_relu(hidden_BTFC + shift_BC[:, None, None], LEAK)
        logit = nn.Dense(1, kernel_init=nn.initializers.zeros, name="logit")
        return logit(hidden_BTFC.mean(2))[..., 0]


class UNet(nn.Module):
    """Magnitude spectrogram and FiLM shifts to mask channels."""

    config: ResUNetConfig
    mask_channels: int
    axis_name: str | None = None

    @nn.compact
    def __call__(
        self,
        mag_BTF: jax.Array,
        shifts: dict[str, jax.Array],
        *,
        train: bool,
        span: Span | None = None,
        bottleneck: Bottleneck | None = None,
    ) -> jax.Array:
        """Compute `(B, T, F, C)`.

        `bottleneck` follows the innermost block. The network never sees the last bin. There the
        mask is zero, or holds the activity.
        """
        config, frames = self.config, mag_BTF.shape[1]
        dtype = jnp.bfloat16 if config.dtype == "bfloat16" else None
        blocks, delay = block_table(config), 0
        streaming = span is not None and self.is_mutable_collection("stream")
        if streaming:
            blocks, delay = stream_table(config)
        x_BTF = BatchNorm(self.axis_name, name="bn0")(mag_BTF, train=train)
        if span is not None:
            x_BTF = jnp.where(span.inside(frames)[:, None], x_BTF, 0)
            # The zeros that one pass pads with count as frames of the recording from here on.
            total = -(-span.total // config.time_stride) * config.time_stride
            span = Span(span.first, total)
        x_BTF = jnp.pad(x_BTF, ((0, 0), (0, -frames % config.time_stride), (0, 0)))
        x_BTFC = x_BTF[:, :, :-1].reshape(*x_BTF.shape[:2], -1, config.fold)
        x_BTFC = Pointwise(config.stem_channels, dtype, fold=config.fold, name="pre_conv")(x_BTFC)

        def run(block: nn.Module, *inputs: Any) -> Any:
            return block(*inputs, train=train, span=span)

        if train and config.remat:
            run = nn.remat(run, policy=jax.checkpoint_policies.save_only_these_names(STATISTICS))
        skips: list[jax.Array] = []
        activity_BT = None
        for block in blocks:
            if block.kind == "decoder":
                decoder = DecoderBlock(block, dtype, self.axis_name, name=block.name)
                x_BTFC = run(decoder, x_BTFC, skips.pop(), shifts)
                continue
            encoder = EncoderBlock(block, dtype, self.axis_name, name=block.name)
            x_BTFC, skip_BTFC = run(encoder, x_BTFC, shifts)
            if block.kind == "encoder":
                skips.append(skip_BTFC)
            elif config.activity != "none":
                activity_BT = ActivityHead(name="activity")(x_BTFC, shifts["activity"])
                activity_BT = jnp.repeat(activity_BT, block.level, axis=1)
                # The mask comes later: the activity waits for it here.
                waiting = delay - block.level * (block.delay + block.lag)
                activity_BT = after_past(self, "past activity", waiting, activity_BT)
            if block.kind == "middle" and bottleneck:
                seen = block.result_span(span, x_BTFC.shape[1])
                x_BTFC = bottleneck(x_BTFC, span=seen, streaming=streaming)
        channels = self.mask_channels
        mask = Pointwise(channels, dtype, mag_BTF.dtype, config.fold, name="after_conv")
        mask_BTFC = mask(x_BTFC).reshape(*x_BTFC.shape[:2], -1, channels)
        if activity_BT is None:
            return jnp.pad(mask_BTFC[:, :frames], ((0, 0), (0, 0), (0, 1), (0, 0)))
        return with_activity(mask_BTFC[:, :frames], activity_BT[:, :frames])


class ResUNet(Network):
    """AudioSep's network: a U-Net, and the FiLM shifts of the condition that are added in it."""

    config: ResUNetConfig

    @property
    def delay_frames(self) -> int:
        return stream_table(self.config)[1]

    def bottleneck(self, condition_BE: jax.Array) -> Bottleneck | None:
        """Return what follows the innermost block: nothing, unless a derived network has it."""
        return None

    @nn.compact
    def __call__(
        self,
        mag_BTF: jax.Array,
        condition_BE: jax.Array,
        *,
        train: bool,
        span: Span | None = None,
    ) -> jax.Array:
        shifts = FiLM(self.config, name="film")(condition_BE)
        base = UNet(self.config, self.mask_channels, self.axis_name, name="base")
        bottleneck = self.bottleneck(condition_BE)
        return base(mag_BTF, shifts, train=train, span=span, bottleneck=bottleneck)
