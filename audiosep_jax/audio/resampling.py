"""Conversion of sample rates, for whole recordings and for streams."""

import functools

import numpy as np
import soxr


class Resampler:
    """Band-limited conversion of a stream of S samples to exactly ceil(S * to_hz / from_hz).

    The result does not depend on the sizes of the blocks.
    """

    def __init__(self, from_hz: int, to_hz: int, num_channels: int) -> None:
        self._from_hz, self._to_hz = from_hz, to_hz
        self._num_channels = num_channels
        self._taken = self._returned = 0
        self._stream = None
        if from_hz != to_hz:
            self._stream = soxr.ResampleStream(from_hz, to_hz, num_channels, quality="HQ")

    def feed(self, audio_CS: np.ndarray) -> np.ndarray:
        """Take `(channels, S)` float32; return the samples that are ready, perhaps none."""
        self._taken += audio_CS.shape[1]
        if self._stream is None:
            return audio_CS
        return self._counted(self._stream.resample_chunk(np.ascontiguousarray(audio_CS.T)))

    def finish(self) -> np.ndarray:
        """Return the remaining samples."""
        if self._stream is None:
            return np.zeros((self._num_channels, 0), np.float32)
        # soxr rounds the length to the nearest; zeros at the end make it compute the last sample.
        padding = -(-2 * self._from_hz // self._to_hz) + 1
        zeros_SC = np.zeros((padding, self._num_channels), np.float32)
        return self._counted(self._stream.resample_chunk(zeros_SC, last=True))

    def _counted(self, out_SC: np.ndarray) -> np.ndarray:
        """Transpose to `(channels, S)` and cut at the exact length."""
        left = -(-self._taken * self._to_hz // self._from_hz) - self._returned
        out_SC = out_SC[: max(0, left)]
        self._returned += len(out_SC)
        return np.ascontiguousarray(out_SC.T)


def resample(audio_CS: np.ndarray, from_hz: int, to_hz: int) -> np.ndarray:
    """Convert `(channels, S)`, band-limited, to exactly ceil(S * to_hz / from_hz) samples."""
    if from_hz == to_hz:
        return audio_CS
    stream = Resampler(from_hz, to_hz, len(audio_CS))
    return np.concatenate([stream.feed(audio_CS), stream.finish()], axis=1)


@functools.cache
def waiting_seconds(from_hz: int, to_hz: int) -> float:
    """Longest delay of a stream between the arrival of a sample and its output."""
    if from_hz == to_hz:
        return 0.0
    stream = soxr.ResampleStream(from_hz, to_hz, 1, quality="HQ")
    block_SC = np.zeros((max(1, from_hz // 1000), 1), np.float32)
    delays = []
    for _ in range(2000):  # the delay rises and falls, over seconds for some pairs of rates
        stream.resample_chunk(block_SC)
        delays.append(stream.delay())
    return max(delays) / to_hz
