"""ResUNet with FiLM, built from a table; one module serves every size.

Parameter names are those of the published checkpoint, so that import is a rename and a transpose.
"""

import dataclasses
import itertools
import math
from typing import Annotated, Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from pydantic import Field

from audiosep_jax.errors import InputError
from audiosep_jax.model.network import ModelConfig, Network, Size, Span
from audiosep_jax.settings import section, setting

LEAK = 0.01
BATCH_NORM_EPSILON = 1e-5
BATCH_NORM_MOMENTUM = 0.99  # 0.01 in PyTorch's sense
STATISTICS = "batch_statistics"  # small, and dear to compute: kept where a block is rematerialised


Sizes = Annotated[tuple[Size, ...], Field(min_length=1)]  # one for each level, outermost first


@section
class ResUNetConfig(ModelConfig):
    """Sizes of the ResUNet; the defaults are the published ResUNet30 at 32 kHz.

    `remat` recomputes every block for its gradient instead of keeping its activations: the same
    numbers in less memory, with a fifth more work.
    """

    network: Literal["resunet"] = "resunet"
    stem_channels: Size = 32
    encoder_channels: Sizes = (32, 64, 128, 256, 384, 384)
    time_pools: Sizes = (2, 2, 2, 2, 2, 1)
    frequency_pools: Sizes = (2, 2, 2, 2, 2, 2)
    remat: bool = setting(default=False, resumable=True)

    def __post_init__(self) -> None:
        if not len(self.encoder_channels) == len(self.time_pools) == len(self.frequency_pools):
            raise InputError(
                f"encoder_channels={self.encoder_channels}, time_pools={self.time_pools} and "
                f"frequency_pools={self.frequency_pools} must have the same length"
            )
        if self.window_samples % (2 * self.frequency_stride):
            raise InputError(
                f"window_samples={self.window_samples} must be a multiple of "
                f"{2 * self.frequency_stride}, twice the product of frequency_pools"
            )
        super().__post_init__()

    @property
    def time_stride(self) -> int:
        """Frames to a multiple of which the network pads."""
        return math.prod(self.time_pools)

    @property
    def frequency_stride(self) -> int:
        """Bins that one bin of the innermost level covers."""
        return math.prod(self.frequency_pools)


@dataclasses.dataclass(frozen=True)
class Block:
    """A row of the network's table; `stride` is the (time, frequency) pooling or upsampling."""

    name: str
    kind: Literal["encoder", "middle", "decoder"]
    in_channels: int
    out_channels: int
    stride: tuple[int, int]

    def shifts(self) -> dict[str, int]:
        """Channels of each FiLM shift of the block, by its published name."""
        widths = {"conv_block1": (self.in_channels, self.out_channels)}
        own = {}
        if self.kind == "decoder":
            widths = {"conv_block2": (2 * self.out_channels, self.out_channels)}
            # The published decoder also owns a beta2 that nothing reads.
            own = {"beta1": self.in_channels, "beta2": self.in_channels}
        inner = {
            f"{block}->beta{i}": channels
            for block, pair in widths.items()
            for i, channels in enumerate(pair, start=1)
        }
        return {f"{self.name}->{name}": channels for name, channels in (own | inner).items()}


def block_table(config: ResUNetConfig) -> list[Block]:
    """The network, top to bottom: 13 rows for the published sizes."""
    outs = config.encoder_channels
    ins = (config.stem_channels, *outs[:-1])
    strides = list(zip(config.time_pools, config.frequency_pools, strict=True))
    depth = len(outs)
    encoder = [
        Block(f"encoder_block{i + 1}", "encoder", ins[i], outs[i], strides[i]) for i in range(depth)
    ]
    middle = Block(f"conv_block{depth + 1}a", "middle", outs[-1], outs[-1], (1, 1))
    decoder_ins = (outs[-1], *outs[::-1][:-1])
    decoder = [
        Block(f"decoder_block{i + 1}", "decoder", decoder_ins[i], outs[::-1][i], strides[::-1][i])
        for i in range(depth)
    ]
    return [*encoder, middle, *decoder]


class BatchNorm(nn.Module):
    """Batch normalisation over all but the last axis, with PyTorch's running statistics.

    The variance is computed in two passes (the one-pass formula cancels) and, unlike flax's, the
    running variance is the unbiased one. With `axis_name` the statistics are those of all devices.
    An extra `shift` `(B, C)` is added at the end, here so that evaluation is one multiply-add.
    """

    axis_name: str | None = None

    @nn.compact
    def __call__(
        self, x: jax.Array, shift_BC: jax.Array | None = None, *, train: bool
    ) -> jax.Array:
        channels = x.shape[-1]
        scale_C = self.param("scale", nn.initializers.ones, (channels,))
        bias_C = self.param("bias", nn.initializers.zeros, (channels,))
        mean = self.variable("batch_stats", "mean", jnp.zeros, (channels,))
        variance = self.variable("batch_stats", "var", jnp.ones, (channels,))
        mean_C, variance_C = mean.value, variance.value
        if train:
            mean_C, variance_C, count = self._statistics(x)
            if not self.is_initializing():
                mean.value = _moving(mean.value, mean_C)
                variance.value = _moving(variance.value, variance_C * (count / max(count - 1, 1)))
        gain_C = scale_C * jax.lax.rsqrt(variance_C + BATCH_NORM_EPSILON)
        if train:  # centre first: exact where the mean is large against the deviation
            offset = bias_C if shift_BC is None else bias_C + _per_item(shift_BC, x.ndim)
            return ((x - mean_C) * gain_C + offset).astype(x.dtype)
        offset = bias_C - mean_C * gain_C
        offset = offset if shift_BC is None else offset + _per_item(shift_BC, x.ndim)
        return (x * gain_C + offset).astype(x.dtype)

    def _statistics(self, x: jax.Array) -> tuple[jax.Array, jax.Array, int]:
        """Mean and biased variance by channel over every device, and how many values they span."""
        axes = tuple(range(x.ndim - 1))
        x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        # About a first mean that rounding may have moved, then corrected; gradients flow through
        # the correction alone, which is the mean's whole gradient.
        centre_C = jax.lax.stop_gradient(self._over_devices(x.mean(axes)))
        centre_C = checkpoint_name(centre_C, STATISTICS)
        rest = x - centre_C
        moments = (rest.mean(axes), (rest**2).mean(axes))
        shift_C, square_C = self._over_devices(moments)
        mean_C, variance_C = centre_C + shift_C, jnp.maximum(square_C - shift_C**2, 0)
        mean_C, variance_C = checkpoint_name((mean_C, variance_C), STATISTICS)
        devices = 1 if self._local() else jax.lax.axis_size(self.axis_name)
        return mean_C, variance_C, x.size // x.shape[-1] * devices

    def _local(self) -> bool:
        return self.axis_name is None or self.is_initializing()

    def _over_devices(self, x: Any) -> Any:
        return x if self._local() else jax.lax.pmean(x, self.axis_name)


def _moving(old: jax.Array, new: jax.Array) -> jax.Array:
    return BATCH_NORM_MOMENTUM * old + (1 - BATCH_NORM_MOMENTUM) * new.astype(old.dtype)


def _per_item(shift_BC: jax.Array, num_axes: int) -> jax.Array:
    """`(B, C)` to `(B, 1, ..., C)`."""
    return jnp.expand_dims(shift_BC, tuple(range(1, num_axes - 1)))


class Pointwise(nn.Module):
    """1x1 convolution with a bias, as the matmul that it is: twice as fast on a CPU.

    Sums and result have `result_dtype`, by default the inputs' own.
    """

    features: int
    dtype: jnp.dtype | None
    result_dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, *parts_BTFC: jax.Array) -> jax.Array:
        """Of the parts side by side on the channels, which need not be joined for it."""
        widths = [part_BTFC.shape[-1] for part_BTFC in parts_BTFC]
        shape = (1, 1, sum(widths), self.features)
        kernel = self.param("kernel", nn.initializers.xavier_uniform(), shape)
        bias_C = self.param("bias", nn.initializers.zeros, (self.features,))
        *parts, kernel = nn.dtypes.promote_dtype(*parts_BTFC, kernel, dtype=self.dtype)
        result_dtype = self.result_dtype or kernel.dtype
        starts = itertools.accumulate(widths, initial=0)
        y = bias_C.astype(result_dtype)
        for part_BTFC, width, start in zip(parts, widths, starts, strict=False):
            own = kernel[0, 0, start : start + width]
            y = y + jnp.matmul(part_BTFC, own, preferred_element_type=result_dtype)
        return y


def _conv3x3(features: int, dtype: jnp.dtype | None, name: str) -> nn.Conv:
    init = nn.initializers.xavier_uniform()
    return nn.Conv(features, (3, 3), use_bias=False, dtype=dtype, kernel_init=init, name=name)


class FiLM(nn.Module):
    """Linear layers of the condition, one for each shift of the network."""

    config: ResUNetConfig

    @nn.compact
    def __call__(self, condition_BE: jax.Array) -> dict[str, jax.Array]:
        """Shifts `(B, C)` by published name, such as `encoder_block1->conv_block1->beta1`."""
        init = nn.initializers.xavier_uniform()
        return {
            name: nn.Dense(channels, kernel_init=init, name=name)(condition_BE)
            for block in block_table(self.config)
            for name, channels in block.shifts().items()
        }


class ResidualBlock(nn.Module):
    """Two pre-activated 3x3 convolutions beside a shortcut."""

    features: int
    dtype: jnp.dtype | None
    axis_name: str | None

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

        x is the parts side by side on the channels. Of its frames those outside `inside_T` are
        none of the recording's: the convolutions see the zeros there that they pad with.
        """
        x_BTFC = jnp.concatenate(parts_BTFC, axis=-1)
        bn1 = BatchNorm(self.axis_name, name="bn1")
        bn2 = BatchNorm(self.axis_name, name="bn2")
        conv1 = _conv3x3(self.features, self.dtype, "conv1")
        conv2 = _conv3x3(self.features, self.dtype, "conv2")
        y_BTFC = nn.leaky_relu(bn1(x_BTFC, beta1_BC, train=train), LEAK)
        y_BTFC = conv1(_only_inside(y_BTFC, inside_T))
        y_BTFC = nn.leaky_relu(bn2(y_BTFC, beta2_BC, train=train), LEAK)
        y_BTFC = conv2(_only_inside(y_BTFC, inside_T))
        if x_BTFC.shape[-1] == self.features:
            return x_BTFC + y_BTFC
        return Pointwise(self.features, self.dtype, name="shortcut")(*parts_BTFC) + y_BTFC


def _only_inside(x_BTFC: jax.Array, inside_T: jax.Array | None) -> jax.Array:
    """Zero where a frame is not inside."""
    return x_BTFC if inside_T is None else jnp.where(inside_T[:, None, None], x_BTFC, 0)


class Upsample(nn.Module):
    """Transposed convolution whose kernel is its stride, without bias: one matmul and a reshape."""

    features: int
    stride: tuple[int, int]
    dtype: jnp.dtype | None

    @nn.compact
    def __call__(self, x_BTFC: jax.Array) -> jax.Array:
        init = nn.initializers.xavier_uniform()
        shape = (*self.stride, x_BTFC.shape[-1], self.features)
        kernel = self.param("kernel", init, shape)
        x_BTFC, kernel = nn.dtypes.promote_dtype(x_BTFC, kernel, dtype=self.dtype)
        batch, frames, bins, _ = x_BTFC.shape
        time, frequency = self.stride
        y = jnp.einsum("btfc,uvcd->btufvd", x_BTFC, kernel)
        return y.reshape(batch, frames * time, bins * frequency, self.features)


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
        inside_T: jax.Array | None = None,
    ) -> tuple[jax.Array, jax.Array]:
        """(pooled, skip)."""
        name = f"{self.block.name}->conv_block1->beta"
        conv = ResidualBlock(
            self.block.out_channels, self.dtype, self.axis_name, name="conv_block1"
        )
        betas = {"beta1_BC": shifts[f"{name}1"], "beta2_BC": shifts[f"{name}2"]}
        skip = conv(x_BTFC, **betas, train=train, inside_T=inside_T)
        return _average_pool(skip, self.block.stride), skip


class DecoderBlock(nn.Module):
    """Upsamples, joins the skip connection, and refines both with a residual block."""

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
        inside_T: jax.Array | None = None,
    ) -> jax.Array:
        name, features = self.block.name, self.block.out_channels
        bn1 = BatchNorm(self.axis_name, name="bn1")
        upsample = Upsample(features, self.block.stride, self.dtype, name="conv1")
        conv = ResidualBlock(features, self.dtype, self.axis_name, name="conv_block2")
        UnusedBatchNorm(self.block.in_channels, name="bn2")()
        x_BTFC = upsample(nn.leaky_relu(bn1(x_BTFC, shifts[f"{name}->beta1"], train=train), LEAK))
        beta = f"{name}->conv_block2->beta"
        betas = {"beta1_BC": shifts[f"{beta}1"], "beta2_BC": shifts[f"{beta}2"]}
        skip_BTFC = skip_BTFC.astype(x_BTFC.dtype)
        return conv(x_BTFC, skip_BTFC, **betas, train=train, inside_T=inside_T)


class UnusedBatchNorm(nn.Module):
    """The decoder's `bn2`, which the published network owns and never calls: kept for export."""

    features: int

    @nn.compact
    def __call__(self) -> None:
        self.param("scale", nn.initializers.ones, (self.features,))
        self.param("bias", nn.initializers.zeros, (self.features,))
        self.variable("batch_stats", "mean", jnp.zeros, (self.features,))
        self.variable("batch_stats", "var", jnp.ones, (self.features,))


def _average_pool(x_BTFC: jax.Array, stride: tuple[int, int]) -> jax.Array:
    """Mean of each window; a sum of strided views, which a CPU does 20 times faster than a mean."""
    time, frequency = stride
    views = [x_BTFC[:, t::time, f::frequency] for t in range(time) for f in range(frequency)]
    return sum(views[1:], start=views[0]) / len(views)


class ResUNet(Network):
    """AudioSep's network: FiLM shifts of the condition, and the U-Net that they are added in."""

    config: ResUNetConfig

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
        return base(mag_BTF, shifts, train=train)


class UNet(nn.Module):
    """Magnitude spectrogram and FiLM shifts to mask channels."""

    config: ResUNetConfig
    mask_channels: int
    axis_name: str | None = None

    @nn.compact
    def __call__(
        self, mag_BTF: jax.Array, shifts: dict[str, jax.Array], *, train: bool
    ) -> jax.Array:
        """`(B, T, F, C)`, zero in the last bin, which the network never sees."""
        dtype = jnp.bfloat16 if self.config.dtype == "bfloat16" else None
        frames = mag_BTF.shape[1]
        x_BTF = BatchNorm(self.axis_name, name="bn0")(mag_BTF, train=train)
        x_BTF = jnp.pad(x_BTF, ((0, 0), (0, -frames % self.config.time_stride), (0, 0)))
        x_BTFC = x_BTF[:, :, :-1, None]
        x_BTFC = Pointwise(self.config.stem_channels, dtype, name="pre_conv")(x_BTFC)

        def run(block: nn.Module, *inputs: Any) -> Any:
            return block(*inputs, train=train)

        if train and self.config.remat:
            run = nn.remat(run, policy=jax.checkpoint_policies.save_only_these_names(STATISTICS))
        skips: list[jax.Array] = []
        for block in block_table(self.config):
            if block.kind == "decoder":
                decoder = DecoderBlock(block, dtype, self.axis_name, name=block.name)
                x_BTFC = run(decoder, x_BTFC, skips.pop(), shifts)
                continue
            encoder = EncoderBlock(block, dtype, self.axis_name, name=block.name)
            x_BTFC, skip_BTFC = run(encoder, x_BTFC, shifts)
            if block.kind == "encoder":
                skips.append(skip_BTFC)
        mask = Pointwise(self.mask_channels, dtype, mag_BTF.dtype, name="after_conv")
        mask_BTFC = mask(x_BTFC)
        return jnp.pad(mask_BTFC[:, :frames], ((0, 0), (0, 0), (0, 1), (0, 0)))
