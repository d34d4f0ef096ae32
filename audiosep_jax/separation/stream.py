"""A recording of any rate in, estimates of its rate out, block by block."""

import math
from collections.abc import Callable
from typing import Any, Literal

import jax
import numpy as np

from audiosep_jax.audio.resampling import Resampler, waiting_seconds
from audiosep_jax.errors import InputError
from audiosep_jax.model.resunet import ModelConfig
from audiosep_jax.model.streaming import TileStream, latency_samples, tile_bytes

Stereo = Literal["mid", "channels"]
AboveNyquist = Literal["keep", "drop"]
FEED_SECONDS = 1.0  # a long array goes through the resamplers in pieces of this
MAX_TILE_SECONDS = 30.0
CPU_TILE_BYTES = 480_000_000  # leaves a command with the published network below 1.5 GB
MEMORY_SHARE = 0.25  # of what is free, for a tile


class SeparationStream:
    """Feed blocks, get blocks; `Separator.stream` makes one. For one recording and one thread.

    latency_seconds: the most that comes in before the estimate of a moment goes out, to which the
        time for computing a tile comes.
    """

    def __init__(
        self,
        config: ModelConfig,
        variables: Any,
        condition_NE: np.ndarray,
        *,
        sample_rate_hz: int,
        num_channels: int,
        stereo: Stereo,
        above_nyquist: AboveNyquist,
        tile_frames: int,
        whole_frames: int,
        group: int,
    ) -> None:
        queries, model_hz = len(condition_NE), config.sample_rate_hz
        self._rate_hz, self._config = sample_rate_hz, config
        self._tile_frames, self._whole_frames = tile_frames, whole_frames
        self._shape = (queries, num_channels)
        self._down = Resampler(sample_rate_hz, model_hz, num_channels)
        self._up = Resampler(model_hz, sample_rate_hz, queries * num_channels)
        self._tiles = TileStream(
            config,
            variables,
            condition_NE,
            channels=num_channels,
            masks=1 if stereo == "mid" else num_channels,
            tile_frames=tile_frames,
            whole_frames=whole_frames,
            group=group,
        )
        self._above = None
        if above_nyquist == "keep" and sample_rate_hz > model_hz:
            self._above = _BandAbove(config, sample_rate_hz, num_channels)
        self._taken = self._given = 0

    @property
    def latency_seconds(self) -> float:
        """The longest that a sample waits for its estimate, in seconds of the recording."""
        rate_hz, model_hz = self._rate_hz, self._config.sample_rate_hz
        frames = max(self._tile_frames, self._whole_frames + self._tile_frames)
        network = latency_samples(self._config, frames) / model_hz
        return network + waiting_seconds(rate_hz, model_hz) + waiting_seconds(model_hz, rate_hz)

    def feed(self, audio_CS: np.ndarray) -> np.ndarray:
        """`(N, C, S)` estimates that are ready, which follow on those given before.

        InputError where the block is not `(channels, S)` of finite floating-point samples.
        """
        audio_CS = _checked_block(audio_CS, self._shape[1])
        step = max(1, round(FEED_SECONDS * self._rate_hz))
        ready = [self._nothing()]
        for start in range(0, audio_CS.shape[1], step):
            block_CS = np.ascontiguousarray(audio_CS[:, start : start + step], np.float32)
            self._taken += block_CS.shape[1]
            at_model_CS = self._down.feed(block_CS)
            if self._above:
                self._above.feed(block_CS, at_model_CS)
            ready.append(self._back(*self._tiles.feed(at_model_CS)))
        return np.concatenate(ready, axis=-1)

    def finish(self) -> np.ndarray:
        """The rest; in all as many samples as were fed."""
        at_model_CS = self._down.finish()
        if self._above:
            self._above.feed(np.zeros((self._shape[1], 0), np.float32), at_model_CS)
            self._above.finish()
        first = self._back(*self._tiles.feed(at_model_CS))
        second = self._back(*self._tiles.finish())
        return np.concatenate([first, second, self._from_up(self._up.finish())], axis=-1)

    def _back(self, estimate_NCS: np.ndarray, gain_NMT: np.ndarray) -> np.ndarray:
        """At the recording's rate."""
        if self._above:
            self._above.gains(gain_NMT)
        flat = estimate_NCS.reshape(math.prod(self._shape), estimate_NCS.shape[-1])
        return self._from_up(self._up.feed(np.ascontiguousarray(flat, np.float32)))

    def _from_up(self, flat: np.ndarray) -> np.ndarray:
        # Rounded up on either way: never shorter than the input, but perhaps longer.
        flat = flat[:, : self._taken - self._given]
        estimate_NCS = flat.reshape(*self._shape, flat.shape[1])
        self._given += estimate_NCS.shape[-1]
        if self._above:
            estimate_NCS = estimate_NCS + self._above.take(estimate_NCS.shape[-1])
        return estimate_NCS

    def _nothing(self) -> np.ndarray:
        return np.zeros((*self._shape, 0), np.float32)


def _checked_block(audio_CS: np.ndarray, num_channels: int) -> np.ndarray:
    audio_CS = np.asarray(audio_CS)
    if audio_CS.ndim != 2 or len(audio_CS) != num_channels:
        raise InputError(f"a block of shape {audio_CS.shape} must be ({num_channels}, samples)")
    if not np.issubdtype(audio_CS.dtype, np.floating):
        dtype = audio_CS.dtype
        raise InputError(f"a block of type {dtype} must be floating point: scale it to -1..1 first")
    if not np.isfinite(audio_CS).all():
        raise InputError("a block contains NaN or infinite samples")
    return audio_CS


class _BandAbove:
    """What of the mixture lies above the model's band, with the gain of the mask's topmost bins."""

    def __init__(self, config: ModelConfig, sample_rate_hz: int, num_channels: int) -> None:
        self._hops_per_sample = config.sample_rate_hz / config.hop_samples / sample_rate_hz
        self._up = Resampler(config.sample_rate_hz, sample_rate_hz, num_channels)
        self._mixture_CS = np.zeros((num_channels, 0), np.float32)  # from sample _at on
        self._heard_CS = np.zeros((num_channels, 0), np.float32)  # the same without the band
        self._gain_NMT: np.ndarray | None = None  # from frame _frame on
        self._at = self._frame = 0

    def feed(self, mixture_CS: np.ndarray, at_model_CS: np.ndarray) -> None:
        self._mixture_CS = np.concatenate([self._mixture_CS, mixture_CS], axis=1)
        self._heard_CS = np.concatenate([self._heard_CS, self._up.feed(at_model_CS)], axis=1)

    def finish(self) -> None:
        self._heard_CS = np.concatenate([self._heard_CS, self._up.finish()], axis=1)

    def gains(self, gain_NMT: np.ndarray) -> None:
        kept = [gain_NMT] if self._gain_NMT is None else [self._gain_NMT, gain_NMT]
        self._gain_NMT = np.concatenate(kept, axis=-1)

    def take(self, num_samples: int) -> np.ndarray:
        """`(N, C, S)` of the next samples."""
        above_CS = self._mixture_CS[:, :num_samples] - self._heard_CS[:, :num_samples]
        self._mixture_CS = self._mixture_CS[:, num_samples:]
        self._heard_CS = self._heard_CS[:, num_samples:]
        assert self._gain_NMT is not None
        frame_S = (self._at + np.arange(num_samples)) * self._hops_per_sample - self._frame
        gain_NMS = _interpolated(self._gain_NMT, frame_S)
        self._at += num_samples
        passed = int(self._at * self._hops_per_sample) - self._frame
        self._gain_NMT = self._gain_NMT[..., passed:]
        self._frame += passed
        return gain_NMS * above_CS


def _interpolated(gain_NMT: np.ndarray, frame_S: np.ndarray) -> np.ndarray:
    """Gains between frames, by a straight line; behind the last frame its own."""
    if len(frame_S) == 0:
        return gain_NMT[..., :0]
    last = gain_NMT.shape[-1] - 1
    left_S = np.clip(frame_S.astype(np.int64), 0, last)
    share_S = np.clip(frame_S - left_S, 0, 1).astype(np.float32)
    right_S = np.minimum(left_S + 1, last)
    return gain_NMT[..., left_S] * (1 - share_S) + gain_NMT[..., right_S] * share_S


def tile_frames_of(config: ModelConfig, seconds: float) -> int:
    """Frames of a tile of about so many seconds, on the network's grid."""
    frames = seconds * config.sample_rate_hz / config.hop_samples
    return max(1, round(frames / config.time_stride)) * config.time_stride


def frames_that_fit(config: ModelConfig, masks: int) -> tuple[int, int]:
    """Frames of a tile for one query, and of one pass, by the memory that is free."""
    most = tile_frames_of(config, MAX_TILE_SECONDS)
    grid, budget = config.time_stride, tile_budget_bytes() // masks
    tile = max(grid, _most(grid, most, lambda x: tile_bytes(config, x) <= budget))
    # One pass is not slowed down by what is carried: for it twice the memory is spent.
    fits = _most(grid, 2 * most, lambda x: tile_bytes(config, x, whole=True) <= 2 * budget)
    return tile, max(tile, fits)


def _most(grid: int, most: int, fits: Callable[[int], bool]) -> int:
    """The largest multiple of `grid`, up to `most`, that fits; 0 where none does."""
    return next((frames for frames in range(most, 0, -grid) if fits(frames)), 0)


def queries_at_once(config: ModelConfig, masks: int, tile_frames: int) -> int:
    """Of how many queries the tiles fit into memory together."""
    return max(1, int(tile_budget_bytes() // (masks * tile_bytes(config, tile_frames))))


def tile_budget_bytes() -> int:
    """Memory for what is computed at once: a share of what is free, on a CPU not above a limit."""
    device = jax.local_devices()[0]
    if device.platform == "cpu":
        return min(CPU_TILE_BYTES, int(MEMORY_SHARE * _free_bytes()))
    about = device.memory_stats() or {}
    free = about.get("bytes_limit", 8 << 30) - about.get("bytes_in_use", 0)
    return int(MEMORY_SHARE * free)


def _free_bytes() -> int:
    """Memory of the machine that can be had without swapping; 8 GB where it cannot be told."""
    try:
        with open("/proc/meminfo") as file:
            lines = dict(line.split(":", 1) for line in file)
        return int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return 8 << 30
