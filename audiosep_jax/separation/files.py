"""A file in, a file for every query out, in bounded memory."""

import contextlib
import dataclasses
import functools
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Literal, get_args

import numpy as np

from audiosep_jax.audio import files as audio_files
from audiosep_jax.audio.files import AudioReader, AudioWriter
from audiosep_jax.errors import InputError
from audiosep_jax.separation.stream import SeparationStream

Clip = Literal["none", "rescale", "clamp"]
ACTIVITY_HOP_SECONDS = 0.1
BLOCK_SECONDS = 1.0
# Sums and differences of samples on this grid, of 24 bits, are exact in float32 below 1.
_FINE_GRID = 2.0**23


@dataclasses.dataclass(frozen=True, eq=False)
class SeparatedFile:
    """What was written, and how much of the mixture it is."""

    paths: tuple[Path, ...]  # one for each query, and last the residual's
    format: str
    subtype: str
    sample_rate_hz: int
    num_samples: int
    num_channels: int
    share_N: np.ndarray  # energy of each estimate over the mixture's; 0 where that is silent
    activity_hop_seconds: float
    activity_NT: np.ndarray  # mean square of each estimate in each hop, over the channels
    mixture_activity_T: np.ndarray
    factor: float  # of all outputs; below 1 where `rescale` had to


def separate_recording(
    start_stream: Callable[[AudioReader], SeparationStream],
    input: Path,
    outputs: Sequence[Path],
    *,
    residual: Path | None,
    output_format: str | None,
    subtype: str | None,
    clip: Clip | None,
    progress: Callable[[float], None] | None,
) -> SeparatedFile:
    """Reads, separates and writes block by block; the files appear at the end, all or none."""
    paths = (*outputs, *([residual] if residual else []))
    _check_paths(input, paths)
    if clip not in (None, *get_args(Clip)):
        raise InputError(f"clip={clip!r} must be {', '.join(get_args(Clip))} or None")
    with AudioReader(input) as recording, contextlib.ExitStack() as stack:
        format, subtype = audio_files.writable_format(recording, output_format, subtype)
        if clip is None:
            clip = "none" if subtype in audio_files.UNBOUNDED else "rescale"
        stream = start_stream(recording)
        make = functools.partial(
            AudioWriter,
            sample_rate_hz=recording.sample_rate_hz,
            num_channels=recording.num_channels,
            format=format,
            subtype=subtype,
            clip="clamp" if clip == "clamp" else "none",
            num_samples=recording.num_samples,
        )
        writers = [stack.enter_context(make(path)) for path in paths]
        scratches = [
            stack.enter_context(_Scratch(path, recording.num_channels))
            for path in paths
            if clip == "rescale"
        ]
        sinks: Sequence[AudioWriter | _Scratch] = scratches or writers
        meter = _Meter(len(outputs), recording)
        bits = audio_files.INTEGER_BITS.get(subtype, 0)
        for mixture_CS, estimate_NCS in _together(recording, stream):
            meter.add(mixture_CS, estimate_NCS)
            target_NCS = _stored(mixture_CS, estimate_NCS, bits, clamp=clip == "clamp")
            rest = [mixture_CS - target_NCS.sum(0)] if residual else []
            for sink, audio_CS in zip(sinks, (*target_NCS, *rest), strict=True):
                sink.write(audio_CS)
            if progress:
                progress(mixture_CS.shape[1] / recording.sample_rate_hz)
        factor = _copy(scratches, writers)
        for writer in writers:
            writer.close()
    return meter.result(tuple(paths), format, subtype, factor)


def _together(
    recording: AudioReader, stream: SeparationStream
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Estimates as they become ready, each beside its mixture."""
    waiting_CS = np.zeros((recording.num_channels, 0), np.float32)
    block_samples = max(1, round(BLOCK_SECONDS * recording.sample_rate_hz))
    for block_CS in recording.blocks(block_samples):
        estimate_NCS = stream.feed(block_CS)
        waiting_CS = np.concatenate([waiting_CS, block_CS], axis=1)
        ready = estimate_NCS.shape[-1]
        if ready:
            yield waiting_CS[:, :ready], estimate_NCS
        waiting_CS = waiting_CS[:, ready:]
    yield waiting_CS, stream.finish()


def _stored(
    mixture_CS: np.ndarray, estimate_NCS: np.ndarray, bits: int, *, clamp: bool
) -> np.ndarray:
    """Estimates rounded such that they and the residual add up to the mixture to the last bit.

    On the grid of the file's integers, or on the mixture's own where 24 bits hold it. A mixture of
    finer floating-point numbers is met wherever float32 can.
    """
    grid = 2.0 ** (bits - 1) if bits else _FINE_GRID
    if clamp:
        estimate_NCS = np.clip(estimate_NCS, -1, 1 - 1 / grid if bits else 1)
    if 0 < bits <= 24 or np.array_equal(np.rint(mixture_CS * grid), mixture_CS * grid):
        return np.rint(estimate_NCS * np.float32(grid)) / np.float32(grid)
    if len(estimate_NCS) == 1:
        return mixture_CS - (mixture_CS - estimate_NCS)
    return estimate_NCS


def _check_paths(input: Path, paths: Sequence[Path]) -> None:
    if len({os.path.realpath(path) for path in paths}) < len(paths):
        raise InputError(f"{paths[0]}: two outputs have the same name")
    for path in paths:
        if path.exists() and input.exists() and path.samefile(input):
            raise InputError(f"{path}: is the input; choose another output")


class _Scratch:
    """Samples kept beside an output until the factor is known; the file has no name."""

    def __init__(self, path: Path, num_channels: int) -> None:
        self.peak = 0.0
        self._channels = num_channels
        self._file: IO[bytes] = tempfile.TemporaryFile(dir=path.absolute().parent)  # noqa: SIM115

    def write(self, audio_CS: np.ndarray) -> None:
        self.peak = max(self.peak, float(np.abs(audio_CS).max(initial=0)))
        try:
            self._file.write(np.ascontiguousarray(audio_CS.T, np.float32).tobytes())
        except OSError as error:
            raise InputError(f"a temporary file cannot be written ({error.strerror})") from error

    def blocks(self, num_samples: int) -> Iterator[np.ndarray]:
        self._file.seek(0)
        while content := self._file.read(num_samples * self._channels * 4):
            yield np.frombuffer(content, np.float32).reshape(-1, self._channels).T

    def __enter__(self) -> "_Scratch":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def _copy(scratches: Sequence[_Scratch], writers: Sequence[AudioWriter]) -> float:
    """Writes all with one factor, which brings the highest peak down to 1 where it is above."""
    factor = 1 / max([1.0, *(scratch.peak for scratch in scratches)])
    for scratch, writer in zip(scratches, writers, strict=False):
        for audio_CS in scratch.blocks(1 << 16):
            # The product may round to a little above.
            writer.write(np.clip(audio_CS * np.float32(factor), -1, 1))
    return factor


class _Meter:
    """Energies of the mixture and of each estimate, hop by hop."""

    def __init__(self, queries: int, recording: AudioReader) -> None:
        self._rate_hz, self._channels = recording.sample_rate_hz, recording.num_channels
        self._hop = max(1, round(ACTIVITY_HOP_SECONDS * self._rate_hz))
        self._energy_RT = np.zeros((1 + queries, -(-recording.num_samples // self._hop)))
        self._count = 0

    def add(self, mixture_CS: np.ndarray, estimate_NCS: np.ndarray) -> None:
        num_samples = mixture_CS.shape[1]
        hop_S = (self._count + np.arange(num_samples)) // self._hop
        self._count += num_samples
        missing = -(-self._count // self._hop) - self._energy_RT.shape[1]
        if missing > 0:  # the header promised fewer
            self._energy_RT = np.pad(self._energy_RT, ((0, 0), (0, missing)))
        hops = self._energy_RT.shape[1]
        for row, audio_CS in enumerate((mixture_CS, *estimate_NCS)):
            square_S = (audio_CS.astype(np.float64) ** 2).sum(0)
            self._energy_RT[row] += np.bincount(hop_S, square_S, hops)

    def result(
        self, paths: tuple[Path, ...], format: str, subtype: str, factor: float
    ) -> SeparatedFile:
        samples_T = np.full(self._energy_RT.shape[1], self._hop)
        samples_T[-1] = self._count - self._hop * (len(samples_T) - 1)
        mean_RT = self._energy_RT / (samples_T * self._channels)
        total_R = self._energy_RT.sum(1)
        return SeparatedFile(
            paths=paths,
            format=format,
            subtype=subtype,
            sample_rate_hz=self._rate_hz,
            num_samples=self._count,
            num_channels=self._channels,
            share_N=total_R[1:] / total_R[0] if total_R[0] else total_R[1:] * 0,
            activity_hop_seconds=self._hop / self._rate_hz,
            activity_NT=mean_RT[1:],
            mixture_activity_T=mean_RT[0],
            factor=factor,
        )
