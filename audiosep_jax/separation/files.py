"""Files: a recording in, a file for every query out, in bounded memory, with what was found."""

import contextlib
import dataclasses
import functools
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, get_args

import numpy as np

from audiosep_jax import remote
from audiosep_jax.audio import files as audio_files
from audiosep_jax.audio.files import AudioReader, AudioWriter
from audiosep_jax.errors import InputError
from audiosep_jax.files import cannot_write
from audiosep_jax.separation import Clip
from audiosep_jax.separation.during import Span
from audiosep_jax.separation.stream import Stream

Observer = Callable[[np.ndarray, np.ndarray], None]  # mixture_CS and target_NCS of each block
ACTIVITY_HOP_SECONDS = 0.1
BLOCK_SECONDS = 1.0
# Sums and differences of samples on this grid, of 24 bits, are exact in float32 below 1.
_FINE_GRID = 2.0**23
# Heads are trained with few queries for absent sounds, and give these probabilities of up to 0.99.
# The certainty is therefore 1 - (1 - p)^(1/8). docs/evaluation.md describes how the exponent and
# the levels were chosen.
DOUBT_EXPONENT = 1 / 8
# A span starts where the level is at least the first, and ends where it is less than the second.
LEVEL_ON, LEVEL_OFF = 0.35, 0.12
RANGE_DB = 30.0  # hops that are further below the loudest hop of an estimate are not active
SILENT_POWER = 1e-10  # -100 dB of full scale
LARGEST_GAP_SECONDS = 0.25  # spans closer than this are one


@dataclasses.dataclass(frozen=True, eq=False)
class SeparatedFile:
    """Files that were written, and how much of the mixture is in each.

    share_N: energy of each estimate over the mixture's; 0 if the mixture is silent.
    presence_N: 0 to 1, the certainty that each query sounds, from the estimate's share of the
        mixture's power where it sounds and the network's probabilities, if it has any.
    spans: for each estimate, (start, end) in seconds of when it is active.
    activity_NT, mixture_activity_T: mean squares in hops of `activity_hop_seconds`, over the
        channels.
    factor: gain of all files; below 1 if `clip="rescale"` had to make them quieter.
    """

    paths: tuple[Path, ...]  # one for each query, then the residual's
    format: str
    subtype: str
    sample_rate_hz: int
    num_samples: int
    num_channels: int
    factor: float
    share_N: np.ndarray
    presence_N: np.ndarray
    spans: tuple[list[Span], ...]
    activity_hop_seconds: float
    activity_NT: np.ndarray
    mixture_activity_T: np.ndarray


def write_estimates(
    recording: AudioReader,
    stream: Stream,
    outputs: Sequence[Path],
    residual: Path | None,
    output_format: str | None,
    subtype: str | None,
    clip: Clip | None,
    progress: Callable[[float], None] | None,
    observe: Observer | None,
) -> SeparatedFile:
    """Separate a recording block by block; its files appear at the end, all or none.

    The arguments are those of `Separator.separate_file`.
    """
    if clip not in (None, *get_args(Clip)):
        raise InputError(f"clip={clip!r} must be {', '.join(get_args(Clip))} or None")
    paths = (*outputs, *([residual] if residual else []))
    if len({os.path.realpath(path) for path in paths}) < len(paths):
        raise InputError(f"{paths[0]}: two outputs have the same name")
    for path in paths:
        if path.exists() and recording.path.exists() and path.samefile(recording.path):
            raise InputError(f"{path}: is the input; choose another output")
    format, subtype = audio_files.writable_format(recording, output_format, subtype)
    if clip is None:
        clip = "none" if subtype in audio_files.UNBOUNDED else "rescale"
    rate_hz, channels = recording.sample_rate_hz, recording.num_channels
    bits = audio_files.INTEGER_BITS.get(subtype, 0)
    meter = Meter(len(outputs), channels, rate_hz)
    open_writer = functools.partial(
        AudioWriter,
        sample_rate_hz=rate_hz,
        num_channels=channels,
        format=format,
        subtype=subtype,
        clip="clamp" if clip == "clamp" else "none",
        num_samples=recording.num_samples,
    )
    with contextlib.ExitStack() as stack:
        writers = [stack.enter_context(open_writer(path)) for path in paths]
        rescaled = paths if clip == "rescale" else ()
        scratches = [_Scratch(path, channels, stack) for path in rescaled]
        sinks: Sequence[AudioWriter | _Scratch] = scratches or writers
        for mixture_CS, estimate_NCS in _together(recording, stream, meter):
            meter.add(mixture_CS, estimate_NCS)
            target_NCS = _stored(mixture_CS, estimate_NCS, bits, clamp=clip == "clamp")
            rest = [mixture_CS - target_NCS.sum(0)] if residual else []
            for sink, audio_CS in zip(sinks, [*target_NCS, *rest], strict=True):
                sink.write(audio_CS)
            if observe:
                observe(mixture_CS, target_NCS)
            if progress:
                progress(mixture_CS.shape[1] / rate_hz)
        factor = _copy(scratches, writers)
        for writer in writers:
            writer.close()  # all files are complete before the first one appears
    return meter.result(paths, format, subtype, factor)


def _together(
    recording: AudioReader, stream: Stream, meter: "Meter"
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Estimates as they become ready, each with its part of the mixture."""
    waiting_CS = np.zeros((recording.num_channels, 0), np.float32)
    block_samples = max(1, round(BLOCK_SECONDS * recording.sample_rate_hz))
    for block_CS in recording.blocks(block_samples):
        estimate_NCS = stream.feed(block_CS)
        meter.probabilities.append(stream.activity_NT)
        waiting_CS = np.concatenate([waiting_CS, block_CS], axis=1)
        ready = estimate_NCS.shape[-1]
        if ready:
            yield waiting_CS[:, :ready], estimate_NCS
        waiting_CS = waiting_CS[:, ready:]
    estimate_NCS = stream.finish()
    meter.probabilities.append(stream.activity_NT)
    yield waiting_CS, estimate_NCS


def _stored(
    mixture_CS: np.ndarray, estimate_NCS: np.ndarray, bits: int, *, clamp: bool
) -> np.ndarray:
    """Round estimates so that they and the residual add up to the mixture to the last bit.

    Sums and differences of floating-point numbers are exact only if all of them are multiples of
    one step that 24 bits can count. So estimates are rounded to the step of the file's integers, or
    to 2^-23 if the mixture is on that grid itself. For a mixture with finer numbers, one estimate
    is moved by at most the last bit of the residual; with several, the sum is right to the last bit
    of the largest.
    """
    grid = 2.0 ** (bits - 1) if bits else _FINE_GRID
    if clamp:
        estimate_NCS = np.clip(estimate_NCS, -1, 1 - 1 / grid if bits else 1)
    if 0 < bits <= 24 or np.array_equal(np.rint(mixture_CS * grid), mixture_CS * grid):
        return np.rint(estimate_NCS * np.float32(grid)) / np.float32(grid)
    if len(estimate_NCS) == 1:
        return mixture_CS - (mixture_CS - estimate_NCS)
    return estimate_NCS


class _Scratch:
    """Samples in a temporary file without a name, until the gain of `rescale` is known."""

    def __init__(self, path: Path, num_channels: int, stack: contextlib.ExitStack) -> None:
        self.peak = 0.0
        self._path, self._channels = path, num_channels
        folder = None if remote.url_of(path) else path.absolute().parent
        # Unbuffered: a full disk is reported by `write`, and closing has nothing left to write.
        self._file: IO[bytes] = stack.enter_context(
            tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115
        )

    def write(self, audio_CS: np.ndarray) -> None:
        self.peak = max(self.peak, float(np.abs(audio_CS).max(initial=0)))
        content = audio_CS.T.astype(np.float32).tobytes()
        try:
            while content:
                content = content[self._file.write(content) :]
        except OSError as error:
            raise cannot_write(self._path, error) from error

    def blocks(self, num_samples: int) -> Iterator[np.ndarray]:
        self._file.seek(0)
        while content := self._file.read(num_samples * self._channels * 4):
            yield np.frombuffer(content, np.float32).reshape(-1, self._channels).T


def _copy(scratches: Sequence[_Scratch], writers: Sequence[AudioWriter]) -> float:
    """Write all samples with one gain, which brings the highest peak above 1 down to 1."""
    factor = 1 / max([1.0, *(scratch.peak for scratch in scratches)])
    for scratch, writer in zip(scratches, writers, strict=False):
        for audio_CS in scratch.blocks(1 << 16):
            # The product may be rounded to slightly above 1.
            writer.write(np.clip(audio_CS * np.float32(factor), -1, 1))
    return factor


# ---------------------------------------------------------------------- energies


class Meter:
    """Energies of the mixture and of each estimate, hop by hop."""

    def __init__(self, num_queries: int, num_channels: int, sample_rate_hz: int) -> None:
        self._rate_hz, self._channels = sample_rate_hz, num_channels
        self._hop = max(1, round(ACTIVITY_HOP_SECONDS * sample_rate_hz))
        self._energy_RT = np.zeros((1 + num_queries, 0))
        # `activity_NT` of a stream, in order.
        self.probabilities: list[np.ndarray] = [np.zeros((num_queries, 0))]
        self._count = 0

    def add(self, mixture_CS: np.ndarray, estimate_NCS: np.ndarray) -> None:
        """Add the next block; the first row is the mixture's."""
        hop_S = (self._count + np.arange(mixture_CS.shape[1])) // self._hop
        self._count += mixture_CS.shape[1]
        hops = -(-self._count // self._hop)
        missing = hops - self._energy_RT.shape[1]
        self._energy_RT = np.pad(self._energy_RT, ((0, 0), (0, missing)))
        for row, audio_CS in enumerate((mixture_CS, *estimate_NCS)):
            square_S = (audio_CS.astype(np.float64) ** 2).sum(0)
            self._energy_RT[row] += np.bincount(hop_S, square_S, hops)

    def result(
        self, paths: tuple[Path, ...], format: str, subtype: str, factor: float
    ) -> SeparatedFile:
        samples_T = np.full(self._energy_RT.shape[1], self._hop)
        samples_T[-1:] = self._count - self._hop * (len(samples_T) - 1)
        mean_RT = self._energy_RT / (samples_T * self._channels)
        mixture_T, estimate_NT = mean_RT[0], mean_RT[1:]
        total_R = self._energy_RT.sum(1)
        hop_seconds, seconds = self._hop / self._rate_hz, self._count / self._rate_hz
        heard_NT = np.concatenate(self.probabilities, axis=1)
        # Frames and hops are spread evenly over the recording.
        middle_T = (np.arange(len(mixture_T)) + 0.5) * hop_seconds / max(seconds, hop_seconds)
        frame_T = np.minimum(middle_T * heard_NT.shape[1], heard_NT.shape[1] - 1)
        doubt_NT = np.maximum(1 - heard_NT[:, frame_T.astype(int)], 0)
        certainty_NT = 1 - doubt_NT**DOUBT_EXPONENT
        level_NT = np.sqrt(certainty_NT * _share(estimate_NT, mixture_T))
        levels = list(zip(estimate_NT, level_NT, strict=True))
        return SeparatedFile(
            paths=paths,
            format=format,
            subtype=subtype,
            sample_rate_hz=self._rate_hz,
            num_samples=self._count,
            num_channels=self._channels,
            factor=factor,
            share_N=total_R[1:] / total_R[0] if total_R[0] else total_R[1:] * 0,
            presence_N=np.array([presence(*both) for both in levels]),
            spans=tuple(spans(*both, hop_seconds, seconds) for both in levels),
            activity_hop_seconds=hop_seconds,
            activity_NT=estimate_NT,
            mixture_activity_T=mixture_T,
        )


def presence(estimate_T: np.ndarray, level_T: np.ndarray) -> float:
    """Mean of the level over time, 0 (absent) to 1.

    Its weights are the power of the estimate times the square of the level.
    A short bark whose level is 1 while it lasts scores 1 in an hour of anything else.

    Args:
        estimate_T: mean squares of each tenth of a second.
        level_T: square root of the product of the estimate's share of the mixture's power and the
            certainty that the target sounds (1 if the network has no probabilities). The product
            separates absent sounds from present ones better than either factor.
    """
    weight_T = estimate_T * level_T**2
    total = float(weight_T.sum())
    if estimate_T.sum() <= SILENT_POWER * len(estimate_T) or not total:
        return 0.0
    return float((weight_T * level_T).sum() / total)


def spans(
    estimate_T: np.ndarray, level_T: np.ndarray, hop_seconds: float, seconds: float
) -> list[Span]:
    """(start, end) in seconds of when the sound is active, in order; no two touch.

    A span needs a hop whose level is at least `LEVEL_ON`. It extends to either side as long as the
    level is at least `LEVEL_OFF`, within `RANGE_DB` of the loudest hop. There is none where the
    presence is below `LEVEL_ON`: the longer a recording, the more often a level is high by chance.
    """
    if presence(estimate_T, level_T) < LEVEL_ON:
        return []
    loudest = float(estimate_T.max(initial=0))
    loud_T = estimate_T > max(SILENT_POWER, loudest * 10 ** (-RANGE_DB / 10))
    stays_T, starts_T = loud_T & (level_T >= LEVEL_OFF), loud_T & (level_T >= LEVEL_ON)
    edges = np.flatnonzero(np.diff(stays_T.astype(int), prepend=0, append=0))
    found: list[Span] = []
    for first, last in zip(edges[::2], edges[1::2], strict=True):
        if not starts_T[first:last].any():
            continue
        start, end = first * hop_seconds, min(last * hop_seconds, seconds)
        if found and start - found[-1][1] < LARGEST_GAP_SECONDS:
            start = found.pop()[0]
        found.append((round(float(start), 3), round(float(end), 3)))
    return found


def when(spans: Sequence[Span], most: int = 6) -> str:
    """Return spans in words, such as `at 0.2-1.3, 2.0-2.4 s`, at most so many of them."""
    times = [f"{start:.1f}-{end:.1f}" for start, end in spans]
    more = f" and {len(times) - most} more" if len(times) > most else ""
    return f"at {', '.join(times[:most])} s{more}" if times else "nowhere"


def _share(estimate_T: np.ndarray, mixture_T: np.ndarray) -> np.ndarray:
    """0 to 1, also where rounding or phase makes an estimate louder than the mixture."""
    return np.minimum(estimate_T / np.maximum(mixture_T, SILENT_POWER), 1)
