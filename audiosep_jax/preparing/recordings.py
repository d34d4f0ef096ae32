"""Recordings: as annotations describe them, and their audio as int16 records."""

import itertools
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from audiosep_jax import remote
from audiosep_jax.audio import files as audio_files
from audiosep_jax.audio.files import RECORDING_SUFFIXES, AudioError
from audiosep_jax.data.sources import RECORD_SECONDS
from audiosep_jax.errors import named

# Annotations are rounded, and tools that cut videos stop at the border of a frame.
LENGTH_TOLERANCE_SECONDS, LENGTH_TOLERANCE_SHARE = 0.5, 0.02
_SPOOL_BYTES = 64 << 20  # decoded audio kept in memory; longer recordings go through a file


class Recording(NamedTuple):
    """One recording of a data set."""

    id: str
    split: str
    captions: Sequence[str]
    # Paths where the file may be; the first that exists is taken. A path that does not end in one
    # of RECORDING_SUFFIXES is tried with each of them, in lower and then in upper case.
    places: Sequence[str] = ()
    seconds: tuple[float, float] | None = None  # least and most that the annotation allows
    synthetic: tuple[int, int] | None = None  # (seed, index) of a generated clip
    class_name: str = ""


class Skipped(NamedTuple):
    """Recording, or row of the annotations, that is left out, and the reason."""

    id: str
    split: str
    reason: str


def expected(seconds: float) -> tuple[float, float]:
    """Bounds, in seconds, of the length of a recording annotated as `seconds` long."""
    tolerance = max(LENGTH_TOLERANCE_SECONDS, LENGTH_TOLERANCE_SHARE * seconds)
    return round(max(0.0, seconds - tolerance), 3), round(seconds + tolerance, 3)


def find(recording: Recording) -> Path | None:
    """Return the file of a recording, or None if it does not exist."""
    for suffixes in (RECORDING_SUFFIXES, [suffix.upper() for suffix in RECORDING_SUFFIXES]):
        for place in recording.places:
            whole = place.lower().endswith(RECORDING_SUFFIXES)
            for suffix in ("",) if whole else suffixes:
                if remote.is_file(place + suffix):
                    return Path(place + suffix)
    return None


def records(
    recording: Recording, sample_rate_hz: int, min_seconds: float, spool_folder: Path
) -> Iterator[tuple[float, np.ndarray]]:
    """Yield (start_seconds, pcm_S int16) of records of equal length, at most RECORD_SECONDS.

    A recording that exceeds full scale is scaled down as a whole, not clipped. The first record is
    yielded when all of the recording has been read and checked; memory is bounded.

    Raises:
        AudioError: the audio is missing, damaged, silent, or of another length than annotated.
    """
    from audiosep_jax.data.prepared import FULL_SCALE  # slow to import; --help must be fast

    with tempfile.SpooledTemporaryFile(max_size=_SPOOL_BYTES, dir=str(spool_folder)) as spool:
        num_samples, peak = 0, 0.0
        for block_S in _blocks(recording, sample_rate_hz):
            spool.write(np.ascontiguousarray(block_S, "<f4").data)
            num_samples += len(block_S)
            peak = max(peak, float(np.abs(block_S).max(initial=0.0)))
        _check(recording, num_samples, sample_rate_hz, min_seconds)
        if round(peak * FULL_SCALE) == 0:
            raise AudioError("is silent")
        highest = (FULL_SCALE - 1) / FULL_SCALE
        gain = np.float32(FULL_SCALE * min(1.0, highest / peak if peak > 1 else 1.0))
        spool.seek(0)
        start = 0
        for length in record_lengths(num_samples, round(RECORD_SECONDS * sample_rate_hz)):
            audio_S = np.frombuffer(spool.read(4 * length), "<f4")
            pcm_S = np.clip(np.rint(audio_S * gain), -FULL_SCALE, FULL_SCALE - 1)
            yield start / sample_rate_hz, pcm_S.astype(np.int16)
            start += length


def record_lengths(num_samples: int, most: int) -> list[int]:
    """Lengths of as few parts as possible, none above `most`; they differ by at most one."""
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
    try:
        yield from audio_files.mono_blocks(path, sample_rate_hz)
    except AudioError as error:  # without the path, so that reports are equal everywhere
        raise AudioError(str(error).removeprefix(named(f"{path}: "))) from error


def _check(recording: Recording, num_samples: int, sample_rate_hz: int, min_seconds: float) -> None:
    seconds = num_samples / sample_rate_hz
    if seconds < min_seconds:
        raise AudioError(f"{seconds:.3g} s is shorter than min_seconds={min_seconds:g}")
    least, most = recording.seconds or (0.0, float("inf"))
    if not least <= seconds <= most:
        bounds = f"{least:g} to {most:g}" if least else f"at most {most:g}"
        raise AudioError(f"lasts {seconds:.2f} s; its annotation says {bounds} s")


def as_text(recording: Recording) -> Recording:
    """Recording whose id, class and captions can be written as UTF-8.

    Names of files may hold other bytes, and JSON half of a character; both are written out.
    """
    id_, class_name, *captions = (
        text.encode(errors="backslashreplace").decode()
        for text in (recording.id, recording.class_name, *recording.captions)
    )
    return recording._replace(id=id_, captions=captions, class_name=class_name)
