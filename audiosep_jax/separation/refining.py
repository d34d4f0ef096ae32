"""What is done to estimates while they stream: unwanted sounds taken out, and a further pass."""

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from audiosep_jax.model.stft import hann_window

WINDOW_SECONDS = 0.064  # of the mask that takes unwanted sounds out
_SILENT = 1e-12  # magnitudes below count as nothing


class Stream(Protocol):
    """Blocks `(C, S)` of a recording in, estimates `(N, C, S)` out, in all as many samples."""

    def feed(self, audio_CS: np.ndarray) -> np.ndarray: ...

    def finish(self) -> np.ndarray: ...


def keep_wanted(wanted_NCTF: np.ndarray, unwanted_MCTF: np.ndarray) -> np.ndarray:
    """Spectra of what is wanted, in every bin times |wanted| / (|wanted| + sum of |unwanted|)."""
    unwanted_CTF = np.abs(unwanted_MCTF).sum(axis=0)
    wanted = np.abs(wanted_NCTF)
    return wanted_NCTF * (wanted / np.maximum(wanted + unwanted_CTF, _SILENT))


class Without:
    """A stream whose first `wanted` estimates are given, without what the others heard.

    The short-time spectra of all are compared bin by bin, in frames of 64 ms a quarter apart;
    latency is one frame. Where the others are silent, an estimate is unchanged to rounding.
    """

    def __init__(self, stream: Stream, wanted: int, sample_rate_hz: int) -> None:
        self._stream, self._wanted = stream, wanted
        self._hop = max(4, 2 ** round(np.log2(WINDOW_SECONDS * sample_rate_hz)) // 4)
        self._window_W = hann_window(4 * self._hop).astype(np.float32)
        self._held: np.ndarray | None = None
        self._sum = np.zeros(0, np.float32)
        self._taken = self._given = 0

    def feed(self, audio_CS: np.ndarray) -> np.ndarray:
        return self._masked(self._stream.feed(audio_CS))

    def finish(self) -> np.ndarray:
        ready = self._masked(self._stream.finish())
        assert self._held is not None
        end = self._taken - self._given
        silence = np.zeros((*self._held.shape[:2], end + 4 * self._hop), np.float32)
        rest = self._overlapped(silence)[..., max(0, -self._given) : end]
        return np.concatenate([ready, rest], axis=-1)

    def _masked(self, estimate_NCS: np.ndarray) -> np.ndarray:
        self._taken += estimate_NCS.shape[-1]
        if self._held is None:  # silence in front: every sample lies in four frames
            shape = estimate_NCS.shape[:2]
            self._held = np.zeros((*shape, 3 * self._hop), np.float32)
            self._sum = np.zeros((self._wanted, shape[1], 4 * self._hop), np.float32)
            self._given = -3 * self._hop
        audio_NCS = self._overlapped(estimate_NCS)
        skip = max(0, min(-self._given, audio_NCS.shape[-1]))
        self._given += audio_NCS.shape[-1]
        return audio_NCS[..., skip:]

    def _overlapped(self, estimate_NCS: np.ndarray) -> np.ndarray:
        """The samples that no later frame adds to."""
        hop, window = self._hop, 4 * self._hop
        assert self._held is not None
        held = np.concatenate([self._held, estimate_NCS], axis=-1)
        num = max(0, (held.shape[-1] - window) // hop + 1)
        self._held = held[..., num * hop :]
        total = np.pad(self._sum, ((0, 0), (0, 0), (0, num * hop)))
        for frame in range(num):
            start = frame * hop
            spectrum = np.fft.rfft(held[..., start : start + window] * self._window_W)
            kept = keep_wanted(spectrum[: self._wanted], spectrum[self._wanted :])
            # Squared Hann windows a quarter apart add up to 3/2.
            frame_NCW = np.fft.irfft(kept, window) * self._window_W / 1.5
            total[..., start : start + window] += frame_NCW
        self._sum = total[..., num * hop :]
        return total[..., : num * hop].astype(np.float32)


class Again:
    """A stream whose estimates go through the separator once more, each with its own query."""

    def __init__(self, stream: Stream, following: Sequence[Stream]) -> None:
        self._stream, self._following = stream, following

    def feed(self, audio_CS: np.ndarray) -> np.ndarray:
        return self._fed(self._stream.feed(audio_CS))

    def finish(self) -> np.ndarray:
        first = self._fed(self._stream.finish())
        rest = np.concatenate([following.finish() for following in self._following])
        return np.concatenate([first, rest], axis=-1)

    def _fed(self, estimate_NCS: np.ndarray) -> np.ndarray:
        pairs = zip(self._following, estimate_NCS, strict=True)
        return np.concatenate([following.feed(audio_CS) for following, audio_CS in pairs])


def refined(
    start: Callable[[np.ndarray], Stream],
    condition_NE: np.ndarray,
    unwanted_ME: np.ndarray,
    *,
    iterations: int,
    sample_rate_hz: int,
) -> Stream:
    """The stream of `condition_NE` without what `unwanted_ME` describes, in `iterations` passes."""
    stream = start(np.concatenate([condition_NE, unwanted_ME]))
    if len(unwanted_ME):
        stream = Without(stream, len(condition_NE), sample_rate_hz)
    for _ in range(iterations - 1):
        stream = Again(
            stream, [start(condition_NE[row : row + 1]) for row in range(len(condition_NE))]
        )
    return stream
