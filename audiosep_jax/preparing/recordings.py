"""Recordings as annotations describe them, and their audio as the records of a data set."""

import dataclasses
import itertools
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from audiosep_jax.audio import files as audio_files
from audiosep_jax.audio.files import RECORDING_SUFFIXES, AudioError
from audiosep_jax.data.prepared import FULL_SCALE

RECORD_SECONDS = 15.0  # a whole record is read for each clip of it that training takes
# Annotations round, and tools that cut videos end on a frame of sound or picture.
LENGTH_TOLERANCE_SECONDS = 0.5
LENGTH_TOLERANCE_SHARE = 0.02
UNKNOWN_SECONDS = 10.0
_SPOOL_BYTES = 64 << 20  # decoded audio kept in memory; what is longer goes through a file
_FLOAT_BYTES = 4


@dataclasses.dataclass(frozen=True)
class Recording:
    """One recording of a data set."""

    id: str
    split: str
    captions: tuple[str, ...]
    # Paths where the file may be; the first that exists is taken. A path that does not end in one
    # of RECORDING_SUFFIXES is tried with each of them.
    places: tuple[str, ...] = ()
    seconds: tuple[float, float] | None = None  # least and most that the annotation allows
    twin: str = ""  # a file that must be as long as this one
    synthetic: tuple[int, int] | None = None  # (seed, index) of a clip that is made, not read


@dataclasses.dataclass(frozen=True)
class Skipped:
    """What is left out, and why."""

    id: str
    split: str
    reason: str


def expected(seconds: float) -> tuple[float, float]:
    """Least and most seconds of a recording that an annotation says lasts `seconds`."""
    tolerance = max(LENGTH_TOLERANCE_SECONDS, LENGTH_TOLERANCE_SHARE * seconds)
    return round(max(0.0, seconds - tolerance), 3), round(seconds + tolerance, 3)


def nominal_seconds(seconds: Sequence[float] | None) -> float:
    """About how long a recording of these bounds is, to share work out before it is decoded."""
    return seconds[1] if seconds else UNKNOWN_SECONDS


def find(recording: Recording) -> Path | None:
    """The recording's file, None where there is none."""
    for place in recording.places:
        if place.lower().endswith(RECORDING_SUFFIXES):
            if os.path.isfile(place):
                return Path(place)
            continue
        for suffix in RECORDING_SUFFIXES:
            if os.path.isfile(place + suffix):
                return Path(place + suffix)
    return None


def records(
    recording: Recording, sample_rate_hz: int, min_seconds: float, spool_folder: Path
) -> Iterator[tuple[float, np.ndarray]]:
    """(start_seconds, pcm_S int16) of its records, of at most RECORD_SECONDS and equal lengths.

    A recording that overshoots full scale is turned down as a whole, not clipped. Nothing is given
    before all of it was read and found good; memory is bounded however long it is.

    Raises:
        AudioError: its audio is missing, damaged, silent, or not as long as it should be.
    """
    with tempfile.SpooledTemporaryFile(max_size=_SPOOL_BYTES, dir=str(spool_folder)) as spool:
        num_samples, peak = 0, 0.0
        for block_S in _blocks(recording, sample_rate_hz):
            spool.write(np.ascontiguousarray(block_S, "<f4").data)
            num_samples += len(block_S)
            peak = max(peak, float(np.abs(block_S).max(initial=0.0)))
        _check(recording, num_samples, sample_rate_hz, min_seconds, peak)
        highest = (FULL_SCALE - 1) / FULL_SCALE
        gain = np.float32(FULL_SCALE * min(1.0, highest / peak if peak > 1 else 1.0))
        spool.seek(0)
        start = 0
        for length in record_lengths(num_samples, round(RECORD_SECONDS * sample_rate_hz)):
            audio_S = np.frombuffer(spool.read(length * _FLOAT_BYTES), "<f4")
            pcm_S = np.clip(np.rint(audio_S * gain), -FULL_SCALE, FULL_SCALE - 1)
            yield start / sample_rate_hz, pcm_S.astype(np.int16)
            start += length


def record_lengths(num_samples: int, most: int) -> list[int]:
    """Lengths, none above `most`, of as few parts as possible; they differ by one at most."""
    num_parts = -(-num_samples // most)
    cuts = [num_samples * part // num_parts for part in range(num_parts + 1)]
    return [end - begin for begin, end in itertools.pairwise(cuts)]


def _blocks(recording: Recording, sample_rate_hz: int) -> Iterator[np.ndarray]:
    if recording.synthetic:
        from audiosep_jax.data.synthetic import SyntheticSource

        seed, index = recording.synthetic
        yield SyntheticSource(index + 1, seed, sample_rate_hz).load(index)
        return
    path = find(recording)
    if path is None:
        raise AudioError(f"no such file: {os.path.basename(recording.places[0])}")
    yield from _without_path(path, lambda: audio_files.mono_blocks(path, sample_rate_hz))


def _without_path(path: Path, read: Callable[[], Iterator[np.ndarray]]) -> Iterator[np.ndarray]:
    """The report of a data set is the same wherever its files lay."""
    try:
        yield from read()
    except AudioError as error:
        raise AudioError(str(error).removeprefix(f"{path}: ")) from error


def _check(
    recording: Recording, num_samples: int, sample_rate_hz: int, min_seconds: float, peak: float
) -> None:
    seconds = num_samples / sample_rate_hz
    if seconds < min_seconds:
        raise AudioError(f"{seconds:.3g} s is shorter than min_seconds={min_seconds:g}")
    least, most = recording.seconds or (0.0, float("inf"))
    if not least <= seconds <= most:
        told = f"{least:g} to {most:g}" if least else f"at most {most:g}"
        raise AudioError(f"lasts {seconds:.2f} s, by its annotation {told} s")
    if round(peak * FULL_SCALE) == 0:
        raise AudioError("holds nothing but silence")
    if recording.twin:
        _check_twin(recording.twin, num_samples, sample_rate_hz)


def _check_twin(twin: str, num_samples: int, sample_rate_hz: int) -> None:
    name = os.path.basename(twin)
    try:
        other = sum(len(block_S) for block_S in audio_files.mono_blocks(twin, sample_rate_hz))
    except AudioError as error:
        reason = str(error).removeprefix(f"{twin}: ")
        raise AudioError(f"its other recording {name}: {reason}") from error
    if other != num_samples:
        both = f"{num_samples / sample_rate_hz:.3f} s and {other / sample_rate_hz:.3f} s"
        raise AudioError(f"not as long as its other recording {name} ({both})")


def to_json(recording: Recording) -> list[Any]:
    """Plain values, in the order of the fields."""
    r = recording  # not dataclasses.astuple, which copies deeply, for millions of them
    return [r.id, r.split, r.captions, r.places, r.seconds, r.twin, r.synthetic]


def from_json(row: list[Any]) -> Recording:
    """Inverse of `to_json`, through JSON."""
    id_, split, captions, places, seconds, twin, synthetic = row
    return Recording(
        id_,
        split,
        tuple(captions),
        tuple(places),
        tuple(seconds) if seconds else None,
        twin,
        tuple(synthetic) if synthetic else None,
    )
