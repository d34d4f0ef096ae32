"""Arithmetic and memory traffic of the ResUNet, block by block, for its roofline.

Operations are those of the convolutions and matmuls, two for a multiply-add. Spectra, normalisation
and the optimiser are left out; together they are below one percent.

Memory traffic is counted under four assumptions, which XLA nearly fulfils on GPUs and TPUs:

- each convolution and matmul reads its inputs and weights once and writes its result once;
- the element-wise work between two of them is one pass that reads and writes once;
- batch statistics are two passes of reading more, of their gradient one;
- nothing stays in a cache from one pass to the next.
"""

import dataclasses
from collections.abc import Iterator
from typing import Literal

from audiosep_jax.model.audiosep import NUM_MASK_CHANNELS
from audiosep_jax.model.resunet import Block, ResUNetConfig, block_table
from audiosep_jax.model.stft import num_frames

FLOAT32_BYTES = 4
TRAINING_FACTOR = 3  # forward, gradient of the inputs, gradient of the weights
# AMSGrad reads weight, gradient and three moments, and writes all but the gradient.
OPTIMIZER_PASSES = 9


@dataclasses.dataclass(frozen=True)
class BlockCost:
    """Work of one row of the network, or of the optimiser, in a step of one device."""

    name: str
    flop: float
    bytes: float

    def seconds(self, peak_flops: float, bandwidth: float) -> float:
        """The least time it takes: the longer one of computing and moving."""
        return max(self.flop / peak_flops, self.bytes / bandwidth)

    def bound(self, peak_flops: float, bandwidth: float) -> Literal["arithmetic", "memory"]:
        """The resource that bounds that time."""
        computes = self.flop / peak_flops >= self.bytes / bandwidth
        return "arithmetic" if computes else "memory"


def step_flop(model: ResUNetConfig, batch_size: int, num_samples: int) -> float:
    """Operations of a training step, forward and backward, on `batch_size` clips.

    What rematerialisation computes a second time does not count: it brings training no further.
    """
    return float(TRAINING_FACTOR * batch_size * sum(network_flop(model, num_samples).values()))


def network_flop(config: ResUNetConfig, num_samples: int) -> dict[str, int]:
    """Operations of a forward pass over one clip, by row of the network's table."""
    return {row.name: row.flop() for row in _rows(config, num_samples)}


def block_costs(model: ResUNetConfig, batch_size: int, num_samples: int) -> list[BlockCost]:
    """A training step by row, and the optimiser's update of float32 weights (AMSGrad, no EMA).

    With `model.remat` what every block computes again is counted again.
    """
    costs = [_training_cost(model, batch_size, row) for row in _rows(model, num_samples)]
    weights = sum(row.weights() for row in _rows(model, num_samples))
    shifts = sum(sum(block.shifts().values()) for block in block_table(model))
    weights += shifts * (model.condition_features + 1)
    moved = OPTIMIZER_PASSES * FLOAT32_BYTES * weights
    return [*costs, BlockCost("optimizer", 0.0, float(moved))]


def _training_cost(model: ResUNetConfig, batch_size: int, row: "_Row") -> BlockCost:
    flop, elements = TRAINING_FACTOR * row.flop(), row.training_elements()
    weights = 2 * row.weights()  # read by each pass
    if model.remat:
        flop += 2 * sum(product.macs for product in row.again)
        elements += row.elements_again()
        weights += sum(product.weights for product in row.again)
    moved = _element_bytes(model) * (batch_size * elements + weights)
    moved += FLOAT32_BYTES * row.weights()  # their gradient
    return BlockCost(row.name, float(batch_size * flop), float(moved))


def block_shapes(config: ResUNetConfig, num_samples: int) -> Iterator[tuple[Block, int, int]]:
    """Each block with the frames and bins at which its 3x3 convolutions run."""
    frames = num_frames(num_samples, config.hop_samples)
    frames += -frames % config.time_stride
    bins = config.window_samples // 2
    for block in block_table(config):
        time_stride, frequency_stride = block.stride
        if block.kind == "decoder":
            frames, bins = frames * time_stride, bins * frequency_stride
        yield block, frames, bins
        if block.kind == "encoder":
            frames, bins = frames // time_stride, bins // frequency_stride


@dataclasses.dataclass(frozen=True)
class _Product:
    """A convolution or matmul on one clip: elements read and written, weights, multiply-adds."""

    reads: int
    writes: int
    weights: int
    macs: int


@dataclasses.dataclass(frozen=True)
class _Row:
    """One clip's way through a row of the table; numbers of elements of activations.

    `passes` and `gradient_passes` are what is neither a product nor a normalisation: joining,
    adding, pooling. `again` are the products that rematerialisation repeats, those whose result
    the block's own gradient needs, and `joined` its passes that are repeated with them.
    """

    name: str
    products: tuple[_Product, ...]
    normalised: int = 0
    passes: int = 0
    gradient_passes: int = 0
    again: tuple[_Product, ...] = ()
    joined: int = 0

    def flop(self) -> int:
        return 2 * sum(product.macs for product in self.products)

    def weights(self) -> int:
        return sum(product.weights for product in self.products)

    def forward_elements(self) -> int:
        """Numbers read and written by a pass without batch statistics."""
        return _moved(self.products) + 2 * self.normalised + self.passes

    def elements_again(self) -> int:
        return _moved(self.again) + 2 * self.normalised * bool(self.again) + self.joined

    def training_elements(self) -> int:
        # A product's input gradient reads its result's and writes its own; its weights' reads both.
        # A normalisation's reads gradient and input for two sums, then both again, and writes.
        backward = 2 * _moved(self.products) + 5 * self.normalised + self.gradient_passes
        return self.forward_elements() + 2 * self.normalised + backward


def _moved(products: tuple[_Product, ...]) -> int:
    return sum(product.reads + product.writes for product in products)


def _rows(config: ResUNetConfig, num_samples: int) -> Iterator[_Row]:
    shapes = list(block_shapes(config, num_samples))
    pixels = shapes[0][1] * shapes[0][2]
    yield _Row("pre_conv", (_convolution(pixels, 1, config.stem_channels),), normalised=pixels)
    for block, frames, bins in shapes:
        yield _block_row(block, frames * bins)
    mask = _convolution(pixels, shapes[-1][0].out_channels, NUM_MASK_CHANNELS)
    yield _Row("after_conv", (mask,))


def _block_row(block: Block, pixels: int) -> _Row:
    ins, outs, stride = block.in_channels, block.out_channels, block.stride[0] * block.stride[1]
    again: list[_Product] = []
    normalised = joined = 0
    # Adding the shortcut reads two and writes one; its gradient is one more term of a sum.
    passes, gradient_passes = 3 * outs * pixels, ins * pixels
    if block.kind == "encoder":
        pooled = outs * pixels // stride
        passes += outs * pixels + pooled
        gradient_passes += 2 * outs * pixels + pooled  # the skip connection's is added
    if block.kind == "decoder":
        normalised = ins * pixels // stride
        upsampling = stride * ins * outs
        again.append(_Product(normalised, outs * pixels, upsampling, ins * outs * pixels))
        ins = outs + block.skip_channels
        joined, gradient_passes = 2 * ins * pixels, ins * pixels  # with the skip connection
    again.append(_convolution(pixels, ins, outs, 9))
    products = [*again, _convolution(pixels, outs, outs, 9)]
    if ins != outs:
        products.append(_convolution(pixels, ins, outs))
    return _Row(
        block.name,
        tuple(products),
        normalised=normalised + (ins + outs) * pixels,
        passes=passes + joined,
        gradient_passes=gradient_passes,
        again=tuple(again),
        joined=joined,
    )


def _convolution(pixels: int, ins: int, outs: int, taps: int = 1) -> _Product:
    weights = taps * ins * outs
    return _Product(pixels * ins, pixels * outs, weights, pixels * weights)


def _element_bytes(model: ResUNetConfig) -> int:
    return 2 if model.dtype == "bfloat16" else FLOAT32_BYTES
