"""Read, resample and write audio; nothing else in the library opens an audio file."""

import io
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import soundfile
import soxr

from audiosep_jax.errors import InputError

_PLAUSIBLE_RATE_HZ = range(100, 10_000_001)
_READ_FRAMES = 1 << 20
_OGG_MAX_PAGE_BYTES = 27 + 255 + 255 * 255
# Writers that cannot seek back leave 0, all ones or "as much as fits" (sox, arecord) as the length.
_UNKNOWN_LENGTH = 0x7FFF0000
_INTEGER_SUBTYPES = ("PCM_U8", "PCM_16", "PCM_24", "PCM_32")
_WAV_MAX_BYTES = 0xFFFFFFFF - 4096


class AudioError(InputError):
    """A file that holds no usable audio; the message is one line that names the file."""


def read(path: str | os.PathLike[str]) -> tuple[np.ndarray, int]:
    """(audio_CS float32, sample_rate_hz) of any file libsndfile reads; AudioError if unusable."""
    blocks, sample_rate_hz = [], 0
    for block_SC, sample_rate_hz in _blocks(Path(path)):  # noqa: B007
        blocks.append(block_SC)
    audio_SC = blocks[0] if len(blocks) == 1 else np.concatenate(blocks)
    return np.ascontiguousarray(audio_SC.T), sample_rate_hz


def mono_blocks(path: str | os.PathLike[str], sample_rate_hz: int) -> Iterator[np.ndarray]:
    """Blocks of audio_S: what `read`, `to_mono` and `resample` give, in memory for one block."""
    stream, num_read, num_given = None, 0, 0
    for block_SC, rate_hz in _blocks(Path(path)):
        block_S = to_mono(block_SC.T)
        if rate_hz == sample_rate_hz:
            yield block_S
            continue
        stream = stream or soxr.ResampleStream(rate_hz, sample_rate_hz, 1, quality="HQ")
        num_read += len(block_S)
        resampled_S = stream.resample_chunk(np.ascontiguousarray(block_S))
        num_given += len(resampled_S)
        yield resampled_S
    if stream is not None:
        rest_S = stream.resample_chunk(np.zeros(_padding(rate_hz, sample_rate_hz), "f4"), last=True)
        yield rest_S[: -(-num_read * sample_rate_hz // rate_hz) - num_given]


def to_mono(audio_CS: np.ndarray) -> np.ndarray:
    """audio_S, the mean of the channels."""
    return audio_CS[0] if len(audio_CS) == 1 else audio_CS.mean(axis=0)


def resample(audio_CS: np.ndarray, from_hz: int, to_hz: int) -> np.ndarray:
    """Band-limited conversion of (channels, S) to exactly ceil(S * to_hz / from_hz) samples."""
    if from_hz == to_hz:
        return audio_CS
    num_samples = -(-audio_CS.shape[1] * to_hz // from_hz)
    padded_CS = np.pad(audio_CS, ((0, 0), (0, _padding(from_hz, to_hz))))
    resampled_SC = soxr.resample(padded_CS.T, from_hz, to_hz, quality="HQ")
    return np.ascontiguousarray(resampled_SC[:num_samples].T)


def write(
    path: str | os.PathLike[str],
    audio_CS: np.ndarray,
    sample_rate_hz: int,
    *,
    subtype: str = "FLOAT",
) -> None:
    """Write (channels, S) as WAV, whole or not at all; an integer subtype refuses to clip."""
    path = Path(path)
    _check_writable(path, audio_CS, subtype)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise IsADirectoryError("it is a folder")
        # RF64 is WAV with 64-bit lengths; 8 bytes a sample is the most that a subtype takes.
        container = "WAV" if audio_CS.size * 8 < _WAV_MAX_BYTES else "RF64"
        soundfile.write(part, audio_CS.T, sample_rate_hz, format=container, subtype=subtype)
        os.replace(part, path)
    except (OSError, soundfile.SoundFileError, AssertionError) as error:
        # soundfile asserts that every frame went out: a full disk arrives here as AssertionError.
        raise InputError(f"{path}: cannot be written ({_reason(error)})") from error
    finally:
        _remove(part)


def _openable(path: Path) -> Path | io.BytesIO:
    """The path, or a mended copy of a WAV whose writer never came back to fill in its lengths."""
    with path.open("rb") as file:
        unfinished = file.read(8) == b"RIFF\0\0\0\0"
    if not unfinished:
        return path
    # libsndfile reads to the end of the file where the lengths are 8 and 0, but not where 0 and 0.
    content = bytearray(path.read_bytes())
    content[4] = 8
    return io.BytesIO(content)


def _blocks(path: Path) -> Iterator[tuple[np.ndarray, int]]:
    """(audio_SC, sample_rate_hz) a block at a time, without trusting the header for how many."""
    _check_file(path)
    num_frames = 0
    try:
        with soundfile.SoundFile(_openable(path)) as file:
            sample_rate_hz, promised_frames = file.samplerate, file.frames
            if sample_rate_hz not in _PLAUSIBLE_RATE_HZ:
                raise AudioError(f"{path}: its header gives a sample rate of {sample_rate_hz} Hz")
            while len(block_SC := file.read(_READ_FRAMES, dtype="float32", always_2d=True)):
                if not np.isfinite(block_SC).all():
                    raise AudioError(f"{path}: contains NaN or infinite samples")
                num_frames += len(block_SC)
                yield block_SC, sample_rate_hz
    except (soundfile.SoundFileError, OSError) as error:
        raise AudioError(f"{path}: cannot be read as audio ({_reason(error)})") from error
    if num_frames == 0:
        raise AudioError(f"{path}: contains no samples")
    # A FLAC stream of unknown length promises 2^63 - 1 frames.
    if num_frames < promised_frames < 1 << 48:
        found = f"{num_frames} of {promised_frames} samples"
        raise AudioError(f"{path}: is truncated, only {found} are there")


def _padding(from_hz: int, to_hz: int) -> int:
    """Zeros behind the end that make soxr, which rounds lengths, compute the last sample too."""
    return -(-2 * from_hz // to_hz) + 1


def _check_file(path: Path) -> None:
    """What can be said before decoding; libsndfile plays a truncated WAV or Ogg as if whole."""
    try:
        if not path.exists():
            raise AudioError(f"{path}: no such file")
        if not path.is_file():
            raise AudioError(f"{path}: is not a file but a folder or device")
        num_bytes = path.stat().st_size
        if num_bytes == 0:
            raise AudioError(f"{path}: is empty")
        missing_bytes = _missing_bytes(path, num_bytes)
    except OSError as error:
        raise AudioError(f"{path}: cannot be opened ({_reason(error)})") from error
    if missing_bytes:
        raise AudioError(f"{path}: is truncated, {missing_bytes} or more of its bytes are missing")


def _missing_bytes(path: Path, num_bytes: int) -> int:
    """How many bytes the container promises beyond the end of the file (0 for other formats)."""
    with path.open("rb") as file:
        head = file.read(12)
        if head[:4] in (b"RIFF", b"RIFX", b"RF64", b"FORM"):
            promised = _end_of_audio_chunk(file, num_bytes, head[:4])
        elif head[:4] == b"OggS":
            file.seek(max(0, num_bytes - 2 * _OGG_MAX_PAGE_BYTES))
            promised = num_bytes + _missing_ogg_bytes(file.read())
        else:
            promised = 0
    return max(0, promised - num_bytes)


def _end_of_audio_chunk(file: BinaryIO, num_bytes: int, form: bytes) -> int:
    """The offset where the audio chunk ends by its header, 0 if unknown.

    The outer RIFF size is often off by a few bytes in files that are whole; the chunk's is not.
    """
    order = ">" if form in (b"FORM", b"RIFX") else "<"
    offset, data_bytes_64 = 12, 0
    while offset + 8 <= num_bytes:
        file.seek(offset)
        name, chunk_bytes = struct.unpack(order + "4sI", file.read(8))
        if name == b"ds64":
            data_bytes_64 = struct.unpack("<QQ", file.read(16).ljust(16, b"\0"))[1]
        if name in (b"data", b"SSND"):
            if form == b"RF64" and chunk_bytes == 0xFFFFFFFF:
                return offset + 8 + data_bytes_64
            return 0 if chunk_bytes >= _UNKNOWN_LENGTH else offset + 8 + chunk_bytes
        offset += 8 + chunk_bytes + chunk_bytes % 2
    return 0


def _missing_ogg_bytes(tail: bytes) -> int:
    """Bytes (at least) missing behind `tail`: the last page must be whole and end the stream."""
    start = tail.rfind(b"OggS")
    page = tail[start:]
    if start < 0 or len(page) < 27 or len(page) < 27 + page[26]:
        return 1
    page_bytes = 27 + page[26] + sum(page[27 : 27 + page[26]])
    ends_stream = bool(page[5] & 4)
    return max(page_bytes - len(page), 0 if ends_stream else 1)


def _check_writable(path: Path, audio_CS: np.ndarray, subtype: str) -> None:
    if not soundfile.check_format("WAV", subtype):
        raise InputError(f"{path}: WAV has no subtype {subtype!r}")
    if audio_CS.ndim != 2 or audio_CS.size == 0:
        raise InputError(f"{path}: no audio of shape (channels, samples) to write")
    peak = float(np.abs(audio_CS).max())
    if not np.isfinite(peak):
        raise InputError(f"{path}: not written, the audio contains NaN or infinite samples")
    if subtype in _INTEGER_SUBTYPES and peak > 1:
        raise InputError(f"{path}: not written, a peak of {peak:.3g} would clip in {subtype}")


def _remove(part: Path) -> None:
    try:
        part.unlink(missing_ok=True)
    except OSError:  # its folder is a file or may not be written: then there is no part either
        return


def _reason(error: Exception) -> str:
    """The error in a few words on one line, without the path that the caller names."""
    text = getattr(error, "error_string", None) or getattr(error, "strerror", None) or str(error)
    return " ".join(str(text or type(error).__name__).split()).rstrip(".")
