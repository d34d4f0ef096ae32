"""Streams: blocks of a recording of any sample rate in, estimates of the same rate out."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import psutil

from audiosep_jax.audio.resampling import Resampler, waiting_seconds
from audiosep_jax.errors import InputError
from audiosep_jax.model.network import Engine, ModelConfig
from audiosep_jax.model.stft import hann_window
from audiosep_jax.model.tiles import TileStream, latency_samples, tile_bytes
from audiosep_jax.separation import AboveNyquist, Stereo
from audiosep_jax.separation.during import Span

FEED_SECONDS = 1.0  # longer arrays are resampled in pieces of this length
MAX_TILE_SECONDS = 30.0
CPU_TILE_BYTES = 480_000_000  # keeps a process with the published network below 1.5 GB
MEMORY_SHARE = 0.25  # share of the free memory that one tile may take
MASK_SECONDS = 0.064  # window of the mask that removes unwanted sounds
FADE_SECONDS = 0.01  # on either side of a span outside of which an estimate is silent
_SILENT = 1e-12  # smallest divisor of the mask, so that silence is not divided by zero


class Tiling(NamedTuple):
    """Amount of a recording that the network computes at once."""

    tile_frames: int  # STFT frames of a tile
    whole_frames: int  # recordings of at most as many frames are computed in one pass at their end
    group: int  # queries in a batch


class SeparationStream:
    """Blocks `(C, S)` of a recording in, estimates `(N, C, S)` out.

    `feed` returns the estimates that are ready, which continue those returned before; `finish`
    returns the rest. Together they have as many samples as were fed. A stream serves one recording
    and one thread.

    Args:
        condition_NE: one row for each estimate.
        stereo: `mid` applies one mask, of the mean of the channels, to all channels; `channels`
            computes a mask for each.
        above_nyquist: `keep` adds what lies above the network's band, with the gain that the mask
            has in its topmost bins; `drop` leaves it out.
        engine: runs the network; None for JAX.

    Attributes:
        activity_NT: probabilities that the queries sound, in the STFT frames that the last call of
            `feed` or `finish` has computed, the largest over the masks; 1 if the network has none.
    """

    def __init__(
        self,
        config: ModelConfig,
        variables: Any,
        condition_NE: np.ndarray,
        tiling: Tiling,
        *,
        sample_rate_hz: int,
        num_channels: int,
        stereo: Stereo,
        above_nyquist: AboveNyquist,
        engine: Engine | None = None,
    ) -> None:
        queries, model_hz = len(condition_NE), config.sample_rate_hz
        masks = 1 if stereo == "mid" else num_channels
        self._rate_hz, self._config, self._tiling = sample_rate_hz, config, tiling
        self._shape = (queries, num_channels)
        self._down = Resampler(sample_rate_hz, model_hz, num_channels)
        self._up = Resampler(model_hz, sample_rate_hz, queries * num_channels)
        self._tiles = TileStream(
            config,
            variables,
            condition_NE,
            channels=num_channels,
            masks=masks,
            engine=engine,
            **tiling._asdict(),
        )
        self._above = None
        if above_nyquist == "keep" and sample_rate_hz > model_hz:
            self._above = _BandAbove(config, sample_rate_hz, num_channels, queries, masks)
        self._num_fed = self._num_returned = 0
        self.activity_NT = np.zeros((queries, 0), np.float32)

    @property
    def latency_seconds(self) -> float:
        """Longest time from a sample to its estimate, without the time of computing a tile."""
        rate_hz, model_hz = self._rate_hz, self._config.sample_rate_hz
        tile, whole = self._tiling.tile_frames, self._tiling.whole_frames
        network = latency_samples(self._config, max(tile, whole + tile)) / model_hz
        return network + waiting_seconds(rate_hz, model_hz) + waiting_seconds(model_hz, rate_hz)

    def feed(self, audio_CS: np.ndarray) -> np.ndarray:
        """Take the next block; return `(N, C, S)` estimates that are ready.

        Raises:
            InputError: the block is not `(channels, S)` of finite floating-point samples.
        """
        audio_CS, channels = np.asarray(audio_CS), self._shape[1]
        if audio_CS.ndim != 2 or len(audio_CS) != channels:
            hint = "; transpose it" if audio_CS.shape[1:] == (channels,) else ""
            raise InputError(
                f"a block of shape {audio_CS.shape} must be ({channels}, samples){hint}"
            )
        audio_CS = checked_samples(audio_CS)
        step = max(1, round(FEED_SECONDS * self._rate_hz))
        self.activity_NT = self.activity_NT[:, :0]
        ready = [np.zeros((*self._shape, 0), np.float32)]
        for start in range(0, audio_CS.shape[1], step):
            block_CS = np.ascontiguousarray(audio_CS[:, start : start + step])
            self._num_fed += block_CS.shape[1]
            at_model_CS = self._down.feed(block_CS)
            if self._above:
                self._above.feed(block_CS, at_model_CS)
            ready.append(self._at_rate(*self._tiles.feed(at_model_CS)))
        return np.concatenate(ready, axis=-1)

    def finish(self) -> np.ndarray:
        """Return the rest of the estimates."""
        at_model_CS = self._down.finish()
        self.activity_NT = self.activity_NT[:, :0]
        if self._above:
            self._above.feed(np.zeros((self._shape[1], 0), np.float32), at_model_CS)
            self._above.finish()
        first = self._at_rate(*self._tiles.feed(at_model_CS))
        second = self._at_rate(*self._tiles.finish())
        return np.concatenate([first, second, self._counted(self._up.finish())], axis=-1)

    def _at_rate(self, estimate_NCS: np.ndarray, about_NKT: np.ndarray) -> np.ndarray:
        """Convert estimates of the network to the recording's rate."""
        gain_NMT, activity_NMT = np.split(about_NKT, 2, axis=1)
        self.activity_NT = np.concatenate([self.activity_NT, activity_NMT.max(1)], axis=-1)
        if self._above:
            self._above.add_gains(gain_NMT)
        flat = estimate_NCS.reshape(math.prod(self._shape), estimate_NCS.shape[-1])
        return self._counted(self._up.feed(np.ascontiguousarray(flat, np.float32)))

    def _counted(self, flat: np.ndarray) -> np.ndarray:
        """Estimates `(N, C, S)`, cut to the recording's length and with the band above."""
        # Both resamplers round lengths up, so the result may be longer than the recording.
        flat = flat[:, : self._num_fed - self._num_returned]
        estimate_NCS = flat.reshape(*self._shape, flat.shape[1])
        self._num_returned += estimate_NCS.shape[-1]
        if self._above:
            estimate_NCS = estimate_NCS + self._above.take(estimate_NCS.shape[-1])
        return estimate_NCS


def checked_samples(audio: np.ndarray) -> np.ndarray:
    """Return audio as float32; InputError if it is not floating point or not finite."""
    if not jnp.issubdtype(audio.dtype, jnp.floating):
        raise InputError(
            f"audio of type {audio.dtype} must be floating point: scale it to -1..1 first"
        )
    audio = audio.astype(np.float32, copy=False)
    if not np.isfinite(audio).all():
        raise InputError("audio contains NaN or infinite samples")
    return audio


class _BandAbove:
    """The part of a recording above the network's band, times the gain of the topmost bins.

    The part is the recording minus its conversion to the network's rate and back. Gains come frame
    by frame and later than the samples, so both are kept until they meet.
    """

    def __init__(
        self, config: ModelConfig, sample_rate_hz: int, num_channels: int, queries: int, masks: int
    ) -> None:
        self._frames_per_sample = config.sample_rate_hz / config.hop_samples / sample_rate_hz
        self._up = Resampler(config.sample_rate_hz, sample_rate_hz, num_channels)
        self._mixture_CS = np.zeros((num_channels, 0), np.float32)  # from sample _first on
        self._below_CS = np.zeros((num_channels, 0), np.float32)  # the same without the band
        self._gain_NMT = np.zeros((queries, masks, 0), np.float32)  # from frame _frame on
        self._first = self._frame = 0

    def feed(self, mixture_CS: np.ndarray, at_model_CS: np.ndarray) -> None:
        self._mixture_CS = np.concatenate([self._mixture_CS, mixture_CS], axis=1)
        self._below_CS = np.concatenate([self._below_CS, self._up.feed(at_model_CS)], axis=1)

    def finish(self) -> None:
        self._below_CS = np.concatenate([self._below_CS, self._up.finish()], axis=1)

    def add_gains(self, gain_NMT: np.ndarray) -> None:
        self._gain_NMT = np.concatenate([self._gain_NMT, gain_NMT], axis=-1)

    def take(self, num_samples: int) -> np.ndarray:
        """Return the next samples, `(N, C, S)`."""
        above_CS = self._mixture_CS[:, :num_samples] - self._below_CS[:, :num_samples]
        self._mixture_CS = self._mixture_CS[:, num_samples:]
        self._below_CS = self._below_CS[:, num_samples:]
        frame_S = (self._first + np.arange(num_samples)) * self._frames_per_sample - self._frame
        gain_NMS = _interpolated(self._gain_NMT, frame_S)
        self._first += num_samples
        passed = int(self._first * self._frames_per_sample) - self._frame
        self._gain_NMT = self._gain_NMT[..., passed:]
        self._frame += passed
        return gain_NMS * above_CS


def _interpolated(gain_NMT: np.ndarray, frame_S: np.ndarray) -> np.ndarray:
    """Gains at fractions of frames, linearly; behind the last frame, the gain of the last."""
    last = gain_NMT.shape[-1] - 1
    left_S = np.clip(frame_S.astype(np.int64), 0, last)
    share_S = np.clip(frame_S - left_S, 0, 1).astype(np.float32)
    right_S = np.minimum(left_S + 1, last)
    return gain_NMT[..., left_S] * (1 - share_S) + gain_NMT[..., right_S] * share_S


# ---------------------------------------------------------------------- unwanted sounds


def keep_wanted(wanted_NCTF: np.ndarray, unwanted_MCTF: np.ndarray) -> np.ndarray:
    """Multiply every bin of the spectra with |wanted| / (|wanted| + sum of |unwanted|)."""
    unwanted_CTF = np.abs(unwanted_MCTF).sum(axis=0)
    wanted_magnitude = np.abs(wanted_NCTF)
    return wanted_NCTF * (wanted_magnitude / np.maximum(wanted_magnitude + unwanted_CTF, _SILENT))


class Without:
    """The first `num_wanted` estimates of a stream, with the others masked out of them.

    The short-time spectra of all estimates are compared bin by bin, in frames of 64 ms whose hop is
    a quarter of that. This adds one frame of latency. Where the other estimates are silent, the
    first ones are unchanged to rounding.
    """

    def __init__(self, stream: SeparationStream, num_wanted: int, sample_rate_hz: int) -> None:
        self._stream, self._wanted, self._rate_hz = stream, num_wanted, sample_rate_hz
        self._hop = max(4, 2 ** round(np.log2(MASK_SECONDS * sample_rate_hz)) // 4)
        self._window_W = hann_window(4 * self._hop).astype(np.float32)
        self._held: np.ndarray | None = None  # samples of frames still to come
        self._sum = np.zeros(0, np.float32)  # overlap-add of the frames so far
        self._num_fed = self._num_returned = 0

    @property
    def latency_seconds(self) -> float:
        return self._stream.latency_seconds + 4 * self._hop / self._rate_hz

    @property
    def activity_NT(self) -> np.ndarray:
        return self._stream.activity_NT[: self._wanted]

    def feed(self, audio_CS: np.ndarray) -> np.ndarray:
        return self._masked(self._stream.feed(audio_CS))

    def finish(self) -> np.ndarray:
        ready = self._masked(self._stream.finish())
        assert self._held is not None
        left = self._num_fed - self._num_returned
        silence = np.zeros((*self._held.shape[:2], left + 4 * self._hop), np.float32)
        rest = self._overlapped(silence)[..., max(0, -self._num_returned) : left]
        return np.concatenate([ready, rest], axis=-1)

    def _masked(self, estimate_NCS: np.ndarray) -> np.ndarray:
        self._num_fed += estimate_NCS.shape[-1]
        if self._held is None:  # silence in front puts every sample into four frames
            queries, channels, _ = estimate_NCS.shape
            self._held = np.zeros((queries, channels, 3 * self._hop), np.float32)
            self._sum = np.zeros((self._wanted, channels, 4 * self._hop), np.float32)
            self._num_returned = -3 * self._hop
        audio_NCS = self._overlapped(estimate_NCS)
        skip = max(0, min(-self._num_returned, audio_NCS.shape[-1]))
        self._num_returned += audio_NCS.shape[-1]
        return audio_NCS[..., skip:]

    def _overlapped(self, estimate_NCS: np.ndarray) -> np.ndarray:
        """Return the samples to which no later frame will add."""
        hop, window = self._hop, 4 * self._hop
        assert self._held is not None
        held = np.concatenate([self._held, estimate_NCS], axis=-1)
        num_frames = max(0, (held.shape[-1] - window) // hop + 1)
        self._held = held[..., num_frames * hop :]
        total = np.pad(self._sum, ((0, 0), (0, 0), (0, num_frames * hop)))
        for start in range(0, num_frames * hop, hop):
            spectrum = np.fft.rfft(held[..., start : start + window] * self._window_W)
            kept = keep_wanted(spectrum[: self._wanted], spectrum[self._wanted :])
            # Squared Hann windows a quarter apart add up to 3/2.
            frame_NCW = np.fft.irfft(kept, window) * self._window_W / 1.5
            total[..., start : start + window] += frame_NCW
        self._sum = total[..., num_frames * hop :]
        return total[..., : num_frames * hop].astype(np.float32)


# ---------------------------------------------------------------------- spans


def gain_of(spans: Sequence[Span], second_S: np.ndarray) -> np.ndarray:
    """Return 1 in the spans and 0 outside, with a linear fade on either side; 1 without spans."""
    gain_S = np.full(second_S.shape, 0.0 if spans else 1.0)
    for start, end in spans:
        distance_S = np.maximum(start - second_S, second_S - end)
        gain_S = np.maximum(gain_S, np.clip(1 - distance_S / FADE_SECONDS, 0, 1))
    return gain_S.astype(np.float32)


class During:
    """A stream whose estimates are silent outside the spans of their queries."""

    def __init__(
        self,
        stream: SeparationStream | Without,
        during_N: Sequence[Sequence[Span]],
        sample_rate_hz: int,
    ) -> None:
        self._stream, self._during_N, self._rate_hz = stream, during_N, sample_rate_hz
        self._num_returned = 0

    @property
    def latency_seconds(self) -> float:
        return self._stream.latency_seconds

    @property
    def activity_NT(self) -> np.ndarray:
        return self._stream.activity_NT

    def feed(self, audio_CS: np.ndarray) -> np.ndarray:
        return self._muted(self._stream.feed(audio_CS))

    def finish(self) -> np.ndarray:
        return self._muted(self._stream.finish())

    def _muted(self, estimate_NCS: np.ndarray) -> np.ndarray:
        second_S = (self._num_returned + np.arange(estimate_NCS.shape[-1])) / self._rate_hz
        self._num_returned += len(second_S)
        gain_NS = np.stack([gain_of(spans, second_S) for spans in self._during_N])
        return estimate_NCS * gain_NS[:, None]


Stream = SeparationStream | Without | During


# ---------------------------------------------------------------------- memory


def tiling_for(
    config: ModelConfig, masks: int, tile_seconds: float | None = None, *, live: bool
) -> Tiling:
    """Choose tiles of about `tile_seconds`, or the largest that the free memory allows.

    Args:
        masks: masks of one query that are computed at once, 1 or the number of channels.
        live: never wait for the end of a short recording to compute it in one pass.
    """
    budget = _tile_budget_bytes() // masks
    most, grid = _tile_frames(config, MAX_TILE_SECONDS), config.time_stride
    if tile_seconds is None:
        tile = _largest(grid, most, lambda x: tile_bytes(config, x) <= budget) or grid
        # A single pass carries no state from tile to tile, so it may take twice the memory.
        fits = _largest(grid, 2 * most, lambda x: tile_bytes(config, x, whole=True) <= 2 * budget)
        whole = max(tile, fits)
    else:
        tile = _tile_frames(config, tile_seconds)
        whole = 2 * tile
    return Tiling(tile, 0 if live else whole, max(1, int(budget // tile_bytes(config, tile))))


def _tile_frames(config: ModelConfig, seconds: float) -> int:
    """STFT frames of about so many seconds, a multiple of the network's time stride."""
    frames = seconds * config.sample_rate_hz / config.hop_samples
    return max(1, round(frames / config.time_stride)) * config.time_stride


def _largest(grid: int, most: int, fits: Callable[[int], bool]) -> int:
    """The largest multiple of `grid` up to `most` that fits; 0 if none does."""
    return next((frames for frames in range(most, 0, -grid) if fits(frames)), 0)


def _tile_budget_bytes() -> int:
    """Memory that one tile may take."""
    device = jax.local_devices()[0]
    if device.platform == "cpu":
        return min(CPU_TILE_BYTES, int(MEMORY_SHARE * psutil.virtual_memory().available))
    stats = device.memory_stats() or {}
    free = stats.get("bytes_limit", 8 << 30) - stats.get("bytes_in_use", 0)
    return int(MEMORY_SHARE * free)
