"""The ResUNet as an ONNX graph, from its table of blocks and its variables.

What is constant in evaluation is folded. BatchNorm is a gain and an offset: the gain of a norm
behind a convolution goes into the kernel, and the offset into the bias of the linear layer that
maps the condition to the shift. `resunet.py` explains the blocks and how they stream.
"""

from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from audiosep_jax.model.layers import BATCH_NORM_EPSILON
from audiosep_jax.model.onnx_graph import Graph
from audiosep_jax.model.resunet import LEAK, Block, ResUNetConfig, block_table, stream_table

if TYPE_CHECKING:
    import onnx

PADS = [1, 1, 1, 1]  # of a 3x3 convolution


def write_resunet(
    config: ResUNetConfig, variables: Any, *, stream: bool = False
) -> "onnx.ModelProto":
    """Write the network for whole spectrograms, or for the tiles of a stream."""
    return _ResUNetGraph(config, jax.device_get(variables), stream).written()


class _ResUNetGraph(Graph):
    def __init__(self, config: ResUNetConfig, variables: Any, stream: bool) -> None:
        super().__init__()
        self._config, self._stream = config, stream
        self._params, self._stats = variables["params"], variables["batch_stats"]["base"]
        self._first = self._total = ""

    def written(self) -> "onnx.ModelProto":
        config, base = self._config, self._params["base"]
        mag_BTF = self.input("magnitude", ("batch", "frames", config.num_bins))
        self._condition_BE = self.input("condition", ("batch", config.condition_features))
        if self._stream:
            self._first, self._total = (self.input(x, (1,), np.int64) for x in ("first", "total"))
        x = self._cut_and_padded(self._normed_bins(mag_BTF), mag_BTF)
        x = self._pointwise(self.op("Unsqueeze", x, self.axes(1)), base["pre_conv"])
        skips: list[str] = []
        bins = config.window_samples // 2
        activity_BTFC = ""
        blocks, delay = stream_table(config) if self._stream else (block_table(config), 0)
        for block in blocks:
            if block.kind == "decoder":
                x = self._decoder(block, x, skips.pop(), bins)
                bins *= block.stride[1]
                continue
            x, skip = self._encoder(block, x, bins)
            if block.kind == "encoder":
                skips.append(skip)
                bins //= block.stride[1]
            elif config.activity != "none":
                activity_BTFC = self._activity(block, x, delay)
        mask_BCTF = self._pointwise(x, base["after_conv"])
        mask_BTFC = self.op("Transpose", mask_BCTF, perm=[0, 2, 3, 1])
        channels = base["after_conv"]["bias"].shape[0]
        if activity_BTFC:
            pads = self.constant([0, 0, 0, 0, 0, 0, 0, channels - 1], np.int64)
            last_BTFC = self.op("Pad", activity_BTFC, pads)
            mask_BTFC = self.op("Concat", mask_BTFC, last_BTFC, axis=2)
        else:
            pads = self.constant([0, 0, 0, 0, 0, 0, 1, 0], np.int64)
            mask_BTFC = self.op("Pad", mask_BTFC, pads)
        if not self._stream:
            mask_BTFC = self.cut(mask_BTFC, 1, 0, self.size(mag_BTF, 1))
        self.output("mask", mask_BTFC, ("batch", "frames", config.num_bins, channels))
        return self.model("resunet")

    # ------------------------------------------------------------------ ends of the network

    def _normed_bins(self, mag_BTF: str) -> str:
        gain_F, offset_F = self._folded(self._params["base"]["bn0"], self._stats["bn0"])
        x_BTF = self.op("Mul", mag_BTF, self.constant(gain_F))
        x_BTF = self.op("Add", x_BTF, self.constant(offset_F))
        if not self._stream:
            return x_BTF
        inside_T = self.inside(x_BTF, 1, self._first, self._total)
        # The zeros that one pass pads with count as frames of the recording from here on.
        stride = self.integer(self._config.time_stride)
        more = self.op("Add", self._total, self.integer(self._config.time_stride - 1))
        self._total = self.op("Mul", self.op("Div", more, stride), stride)
        inside_T1 = self.op("Unsqueeze", inside_T, self.axes(1))
        return self.op("Where", inside_T1, x_BTF, self.constant(0.0))

    def _cut_and_padded(self, x_BTF: str, mag_BTF: str) -> str:
        """Drop the last bin, and add zero frames up to a multiple of the time stride."""
        x_BTF = self.cut(x_BTF, 2, 0, -1)
        if self._stream:
            return x_BTF
        stride = self.constant([self._config.time_stride], np.int64)
        missing = self.op("Mod", self.op("Neg", self.size(mag_BTF, 1)), stride)
        none = self.constant([0], np.int64)
        pads = self.op("Concat", none, none, none, none, missing, none, axis=0)
        return self.op("Pad", x_BTF, pads)

    def _activity(self, block: Block, x: str, delay: int) -> str:
        """Logits `(B, T, 1, 1)` of `ActivityHead`, as late as the mask."""
        head, shift = self._params["base"]["activity"], self._params["film"]["activity"]
        x = self.op("Add", self._pointwise(x, head["hidden"]), self._dense(shift))
        logit = head["logit"] | {"kernel": head["logit"]["kernel"][None, None]}
        x = self._pointwise(self._leaky(x), logit)
        x = self.op("ReduceMean", x, self.axes(3))
        x = self.op("Expand", x, self.constant([1, 1, 1, block.level], np.int64))
        x = self.op("Reshape", x, self.constant([0, 1, -1, 1], np.int64))
        waiting = delay - block.level * (block.delay + block.lag)
        if waiting:
            x = self._frames(self._after_past("past activity", waiting, x, 1, 1), 0, -waiting)
        return self.op("Transpose", x, perm=[0, 2, 3, 1])

    # ------------------------------------------------------------------ blocks

    def _encoder(self, block: Block, x: str, bins: int) -> tuple[str, str]:
        x = self._after_past(f"{block.name}/past", block.before, x, block.in_channels, bins)
        if block.behind:
            pads = self.constant([0, 0, 0, 0, 0, 0, block.behind, 0], np.int64)
            x = self.op("Pad", x, pads)
        skip = pooled = self._residual(block, "conv_block1", x)
        if block.stride != (1, 1):
            sizes = {"kernel_shape": block.stride, "strides": block.stride}
            pooled = self.op("AveragePool", skip, **sizes)
        start, end, pool = block.before - block.lag, -block.lag - block.behind, block.stride[0]
        return self._frames(pooled, start // pool, end // pool), self._frames(skip, start, end)

    def _decoder(self, block: Block, x: str, skip: str, bins: int) -> str:
        before, stride, fine_bins = block.before, block.stride, bins * block.stride[1]
        x = self._after_past(f"{block.name}/past", before // stride[0], x, block.in_channels, bins)
        name, channels = f"{block.name}/past skip", block.skip_channels
        skip = self._after_past(name, block.skip, skip, channels, fine_bins)
        skip = self._frames(skip, 0, before - block.skip)
        y = self._activated(block, "bn1", "beta1", x)
        kernel = self._params["base"][block.name]["conv1"]["kernel"]
        kernel = self.constant(np.transpose(kernel, (2, 3, 0, 1)))
        y = self.op("ConvTranspose", y, kernel, kernel_shape=stride, strides=stride)
        y = self._residual(block, "conv_block2", self.op("Concat", y, skip, axis=1))
        return self._frames(y, before - block.lag, -block.lag)

    def _residual(self, block: Block, name: str, x: str) -> str:
        params = self._params["base"][block.name][name]
        inside_BCTF = self._inside_of(block, x)
        y = self._activated(block, f"{name}/bn1", f"{name}->beta1", x)
        gain_C, offset_C = self._norm(block, f"{name}/bn2")
        y = self._conv3x3(y, params["conv1"]["kernel"] * gain_C, inside_BCTF)
        y = self.op("Add", y, self._shift(block, f"{name}->beta2", offset_C))
        y = self._conv3x3(self._leaky(y), params["conv2"]["kernel"], inside_BCTF)
        return self.op(
            "Add", self._pointwise(x, params["shortcut"]) if "shortcut" in params else x, y
        )

    def _after_past(self, name: str, kept: int, x: str, channels: int, bins: int) -> str:
        return self.after_past(name, ("batch", channels, kept, bins), x) if kept else x

    def _frames(self, x: str, start: int, end: int) -> str:
        """Frames from `start` up to `end`, which counts from the end."""
        return self.cut(x, 2, start, end or None) if start or end else x

    # ------------------------------------------------------------------ frames of the recording

    def _inside_of(self, block: Block, x: str) -> str:
        if not self._stream:
            return ""
        level = self.integer(block.level)
        shift = self.integer(-block.delay - block.before)
        first = self.op("Add", self.op("Div", self._first, level), shift)
        inside_T = self.inside(x, 2, first, self.op("Div", self._total, level))
        # Of the rank of `x`: otherwise OpenVINO would change the order of its axes, twice.
        return self.op("Unsqueeze", inside_T, self.axes(0, 1, 3))

    # ------------------------------------------------------------------ layers

    def _activated(self, block: Block, norm: str, beta: str, x: str) -> str:
        """Norm, shift by the condition, and activation."""
        gain_C, offset_C = self._norm(block, norm)
        y = self.op("Mul", x, self.constant(gain_C[:, None, None]))
        return self._leaky(self.op("Add", y, self._shift(block, beta, offset_C)))

    def _shift(self, block: Block, beta: str, offset_C: np.ndarray) -> str:
        """The shift `(B, C, 1, 1)` that a linear layer makes of the condition."""
        dense = self._params["film"][f"{block.name}->{beta}"]
        return self._dense(dense | {"bias": dense["bias"] + offset_C})

    def _dense(self, params: Any) -> str:
        """A linear layer of the condition, `(B, C, 1, 1)`."""
        weights = self.constant(params["kernel"]), self.constant(params["bias"])
        return self.op("Unsqueeze", self.op("Gemm", self._condition_BE, *weights), self.axes(2, 3))

    def _conv3x3(self, x: str, kernel: np.ndarray, inside_BCTF: str) -> str:
        if inside_BCTF:
            x = self.op("Where", inside_BCTF, x, self.constant(np.zeros((1, 1, 1, 1))))
        kernel = np.transpose(kernel, (3, 2, 0, 1))
        return self.op("Conv", x, self.constant(kernel), kernel_shape=[3, 3], pads=PADS)

    def _pointwise(self, x: str, params: Any) -> str:
        kernel = self.constant(np.transpose(params["kernel"], (3, 2, 0, 1)))
        return self.op("Conv", x, kernel, self.constant(params["bias"]), kernel_shape=[1, 1])

    def _leaky(self, x: str) -> str:
        return self.op("LeakyRelu", x, alpha=LEAK)

    def _norm(self, block: Block, path: str) -> tuple[np.ndarray, np.ndarray]:
        params, stats = self._params["base"][block.name], self._stats[block.name]
        for part in path.split("/"):
            params, stats = params[part], stats[part]
        return self._folded(params, stats)

    def _folded(self, params: Any, stats: Any) -> tuple[np.ndarray, np.ndarray]:
        """Gain and offset of a BatchNorm in evaluation, float64."""
        mean_C, variance_C = (np.asarray(stats[name], np.float64) for name in ("mean", "var"))
        gain_C = params["scale"] / np.sqrt(variance_C + BATCH_NORM_EPSILON)
        return gain_C, params["bias"] - mean_C * gain_C
