"""Conversion of sample rates, of a whole recording or of one that comes in blocks."""

import numpy as np
import soxr


class Resampler:
    """Band-limited conversion of a stream; in all ceil(S * to_hz / from_hz) samples come out.

    How the stream is cut into blocks changes nothing.
    """

    def __init__(self, from_hz: int, to_hz: int, num_channels: int) -> None:
        self._from_hz, self._to_hz = from_hz, to_hz
        self._num_channels = num_channels
        self._taken = self._given = 0
        self._stream = None
        if from_hz != to_hz:
            self._stream = soxr.ResampleStream(from_hz, to_hz, num_channels, quality="HQ")

    def feed(self, audio_CS: np.ndarray) -> np.ndarray:
        """What is ready of `(channels, S)` float32; it may be nothing."""
        self._taken += audio_CS.shape[1]
        if self._stream is None:
            return audio_CS
        return self._counted(self._stream.resample_chunk(np.ascontiguousarray(audio_CS.T)))

    def finish(self) -> np.ndarray:
        """The rest."""
        if self._stream is None:
            return np.zeros((self._num_channels, 0), np.float32)
        # soxr rounds the length to nearest; zeros behind the end make it compute the last too.
        padding = -(-2 * self._from_hz // self._to_hz) + 1
        zeros_SC = np.zeros((padding, self._num_channels), np.float32)
        return self._counted(self._stream.resample_chunk(zeros_SC, last=True))

    def _counted(self, out_SC: np.ndarray) -> np.ndarray:
        """As `(channels, S)`, without what goes beyond the exact length."""
        left = -(-self._taken * self._to_hz // self._from_hz) - self._given
        out_SC = out_SC[: max(0, left)]
        self._given += len(out_SC)
        return np.ascontiguousarray(out_SC.T)


def resample(audio_CS: np.ndarray, from_hz: int, to_hz: int) -> np.ndarray:
    """Band-limited conversion of (channels, S) to exactly ceil(S * to_hz / from_hz) samples."""
    if from_hz == to_hz:
        return audio_CS
    stream = Resampler(from_hz, to_hz, len(audio_CS))
    return np.concatenate([stream.feed(audio_CS), stream.finish()], axis=1)


def waiting_seconds(from_hz: int, to_hz: int) -> float:
    """The most that a stream lags behind: between a sample's coming and its being given on."""
    if from_hz == to_hz:
        return 0.0
    stream, block = Resampler(from_hz, to_hz, 1), max(1, from_hz // 1000)
    lag = 0.0
    for k in range(2000):
        stream.feed(np.zeros((1, block), np.float32))
        lag = max(lag, (k + 1) * block / from_hz - stream._given / to_hz)
    return lag
