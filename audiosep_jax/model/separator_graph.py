"""The separator as one ONNX graph: STFT, the network's own graph, mask and inverse STFT.

It uses common operators alone: the STFT is a convolution, and its inverse a transposed one. The
graph of whole recordings computes what `AudioSep.__call__` does in evaluation:

    mixture (B, S), condition (B, E) -> estimate (B, S)

That of a stream does what `tiles.separate_tile` does with T frames, a multiple of
`config.time_stride`. Its mixture has `(T - 1) * hop + window` samples, of a recording with mirrored
ends, and its estimate `T * hop`, of `delay_frames` frames earlier. `onnx_graph` describes its other
inputs and outputs. A network that tells when the target sounds has the output `activity`, `(B, T)`:
the probability of that in each frame.
"""

from typing import TYPE_CHECKING, Any

import numpy as np

from audiosep_jax.errors import InputError
from audiosep_jax.model import kind_of, make_network
from audiosep_jax.model.audiosep import POWER_FLOOR, ROTATION_FLOOR
from audiosep_jax.model.network import ModelConfig
from audiosep_jax.model.onnx_graph import Graph
from audiosep_jax.model.stft import SQUARED_WINDOW_FLOOR, hann_window
from audiosep_jax.model.tiles import UNKNOWN_FRAMES, tail_frames

if TYPE_CHECKING:
    import onnx


def write_separator(
    config: ModelConfig, variables: Any, *, stream: bool = False
) -> "onnx.ModelProto":
    """Write the separator for whole recordings, or for the tiles of a stream.

    Raises:
        InputError: the network has no ONNX graph, or cannot stream.
    """
    write_network, delay = kind_of(config.network).write_graph, make_network(config).delay_frames
    if write_network is None or (stream and delay is None):
        lacks = "cannot stream" if write_network else "has no ONNX graph"
        raise InputError(f"the network {config.network} {lacks}")
    network = write_network(config, variables, stream=stream)
    return _SeparatorGraph(config, delay if stream else None).written(network)


class _SeparatorGraph(Graph):
    """Spectra are `(B, J, T)`, where J are the real parts of all bins, then the imaginary ones."""

    def __init__(self, config: ModelConfig, delay_frames: int | None) -> None:
        super().__init__("separator/")
        self._config, self._stream = config, delay_frames is not None
        self._delay, self._tail = delay_frames or 0, tail_frames(config) if self._stream else 0
        self._strides = {"strides": [config.hop_samples]}

    def written(self, network: "onnx.ModelProto") -> "onnx.ModelProto":
        mixture_BS = self.input("mixture", ("batch", "samples"))
        padded_BS = mixture_BS if self._stream else self._mirrored(mixture_BS)
        waves_J1W, padded_B1S = self._waves(), self.op("Unsqueeze", padded_BS, self.axes(1))
        spectrum_BJT = self.op("Conv", padded_B1S, waves_J1W, **self._strides)
        self.named("magnitude", self._magnitude(spectrum_BJT))
        mask_BTFC = self.insert(network, "mask")
        mixed_BJT = self._after_past("past mixture", self._delay, spectrum_BJT)
        mixed_BJT = self.cut(mixed_BJT, 2, 0, self.size(spectrum_BJT, 2))
        audio_BS = self._inverse(self._masked(mixed_BJT, mask_BTFC), waves_J1W)
        hop, half = self._config.hop_samples, self._config.window_samples // 2
        if self._stream:
            audio_BS = self.cut(audio_BS, 1, self._tail * hop, hop - 2 * half)
            self.output("estimate", audio_BS, ("batch", "ready samples"))
            return self.model("separator")
        end = self.op("Add", self.size(mixture_BS, 1), self.constant([half], np.int64))
        self.output("estimate", self.cut(audio_BS, 1, half, end), ("batch", "samples"))
        return self.model("separator")

    def _after_past(self, name: str, kept: int, x_BJT: str) -> str:
        shape = ("batch", 2 * self._config.num_bins, kept)
        return self.after_past(name, shape, x_BJT) if kept else x_BJT

    # ------------------------------------------------------------------ STFT and inverse

    def _mirrored(self, mixture_BS: str) -> str:
        """Mirror a recording at both ends, as often as needed, like `np.pad(mode="reflect")`."""
        half, one = self.integer(self._config.window_samples // 2), self.integer(1)
        count = self.op("Squeeze", self.size(mixture_BS, 1), self.axes(0))
        last = self.op("Sub", count, one)
        period = self.op("Max", self.op("Add", last, last), one)
        place_U = self.op("Range", self.op("Neg", half), self.op("Add", count, half), one)
        place_U = self.op("Mod", place_U, period)
        place_U = self.op("Min", place_U, self.op("Sub", period, place_U))
        return self.op("Gather", mixture_BS, place_U, axis=1)

    def _waves(self) -> str:
        """Cosines and negative sines of all bins times the window, `(J, 1, W)`.

        They are looked up in one period, so that a file need not hold them; engines do this once.
        """
        window, bins = self._config.window_samples, self._config.num_bins
        angle_W = 2 * np.pi * np.arange(window) / window
        table = self.constant(np.concatenate([np.cos(angle_W), -np.sin(angle_W)]))
        bin_J1 = self.constant(np.tile(np.arange(bins), 2)[:, None], np.int64)
        start_J1 = self.constant(np.repeat([0, window], bins)[:, None], np.int64)
        place_JW = self.op("Mul", bin_J1, self.constant(np.arange(window), np.int64))
        place_JW = self.op("Add", self.op("Mod", place_JW, self.integer(window)), start_J1)
        wave_JW = self.op("Gather", table, place_JW)
        wave_JW = self.op("Mul", wave_JW, self.constant(hann_window(window)))
        return self.op("Unsqueeze", wave_JW, self.axes(1))

    def _inverse(self, masked_BJT: str, waves_J1W: str) -> str:
        """Padded waveform, like `padded_istft`, of the frames of the recording."""
        window, zero = self._config.window_samples, self.constant(0.0)
        masked_BJT = self._after_past("past estimate", self._tail, masked_BJT)
        if self._stream:
            first, total = self.op("Sub", "first", self.integer(self._delay + self._tail)), "total"
        else:
            first, total = self.integer(0), self.integer(UNKNOWN_FRAMES)
        inside_T = self.inside(masked_BJT, 2, first, total)
        # Every bin but the first and the last stands for two of the whole spectrum.
        share_F = np.r_[1, np.full(window // 2 - 1, 2), 1] / window
        masked_BJT = self.op("Mul", masked_BJT, self.constant(np.tile(share_F, 2)[:, None]))
        masked_BJT = self.op("Where", inside_T, masked_BJT, zero)
        audio_B1S = self.op("ConvTranspose", masked_BJT, waves_J1W, **self._strides)
        inside_11T = self.op("Unsqueeze", self.op("Cast", inside_T, to=1), self.axes(0, 1))
        squared_11W = self.constant(hann_window(window)[None, None] ** 2)
        weight_11S = self.op("ConvTranspose", inside_11T, squared_11W, **self._strides)
        weight_11S = self.op("Max", weight_11S, self.constant(SQUARED_WINDOW_FLOOR))
        return self.op("Squeeze", self.op("Div", audio_B1S, weight_11S), self.axes(1))

    # ------------------------------------------------------------------ mask

    def _parts(self, spectrum_BJT: str) -> tuple[str, str]:
        bins = self._config.num_bins
        return self.cut(spectrum_BJT, 1, 0, bins), self.cut(spectrum_BJT, 1, bins, None)

    def _power(self, parts: tuple[str, str]) -> str:
        return self.op("Add", *(self.op("Mul", x, x) for x in parts))

    def _magnitude(self, spectrum_BJT: str) -> str:
        """`audiosep.magnitude` of a spectrum, `(B, T, F)`."""
        power_BFT = self._power(self._parts(spectrum_BJT))
        magnitude_BFT = self.op("Sqrt", self.op("Max", power_BFT, self.constant(POWER_FLOOR)))
        return self.op("Transpose", magnitude_BFT, perm=[0, 2, 1])

    def _masked(self, spectrum_BJT: str, mask_BTFC: str) -> str:
        """`audiosep.apply_mask`."""
        mask_CBFT = self.op("Transpose", mask_BTFC, perm=[3, 0, 2, 1])
        scale, *rotation = (self.op("Gather", mask_CBFT, self.integer(i)) for i in range(3))
        turn = self.op("Tanh", rotation[0]), self.op("Tanh", rotation[1])
        floored = self.op("Max", self._power(turn), self.constant(ROTATION_FLOOR))
        scale = self.op("Sigmoid", scale)
        if self._config.activity != "none":
            chance_B1T = self.cut(scale, 1, -1, None)
            chance_BT = self.op("Squeeze", chance_B1T, self.axes(1))
            self.output("activity", chance_BT, ("batch", "frames"))
        if self._config.activity == "gate":
            gate_B1T = self.op("Min", self.op("Add", chance_B1T, chance_B1T), self.constant(1.0))
            scale = self.op("Mul", scale, gate_B1T)
        gain = self.op("Div", scale, self.op("Sqrt", floored))
        (real, imag), (cos, sin) = self._parts(spectrum_BJT), turn
        turned_real = self.op("Sub", self.op("Mul", real, cos), self.op("Mul", imag, sin))
        turned_imag = self.op("Add", self.op("Mul", real, sin), self.op("Mul", imag, cos))
        turned = self.op("Mul", turned_real, gain), self.op("Mul", turned_imag, gain)
        return self.op("Concat", *turned, axis=1)
