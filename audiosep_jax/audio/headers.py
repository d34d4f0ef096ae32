"""What a file's first and last bytes tell before it is decoded: whether it is whole, what it is."""

import io
import os
import struct
from pathlib import Path
from typing import BinaryIO

from audiosep_jax.errors import InputError

_OGG_MAX_PAGE_BYTES = 27 + 255 + 255 * 255
# Writers that cannot seek back leave 0, all ones or "as much as fits" (sox, arecord) as the length.
_UNKNOWN_LENGTH = 0x7FFF0000
# (offset, bytes) of containers that ffmpeg is asked for: playlists and the like would open others.
_VIDEO_MARKS = (
    (4, b"ftyp"),
    (4, b"moov"),
    (4, b"mdat"),
    (4, b"wide"),
    (0, b"\x1aE\xdf\xa3"),  # Matroska, WebM
    (0, b"FLV"),
    (0, b"\x30\x26\xb2\x75"),  # ASF: WMA, WMV
    (0, b"\x00\x00\x01\xba"),  # MPEG program stream
    (0, b"\xff\xf1"),  # AAC
    (0, b"\xff\xf9"),
    (0, b"#!AMR"),
    (0, b"OggS"),  # with a video stream in it
    (8, b"AVI "),
)


class AudioError(InputError):
    """A file that holds no usable audio; the message is one line that names the file."""


def check_file(path: Path) -> None:
    """What can be said before decoding; libsndfile plays a truncated WAV or Ogg as if whole."""
    try:
        if not path.exists():
            raise AudioError(f"{path}: no such file")
        if path.is_dir() and not os.access(path, os.R_OK | os.X_OK):
            raise AudioError(f"{path}: cannot be opened (Permission denied)")
        if not path.is_file():
            raise AudioError(f"{path}: is not a file but a folder or device")
        num_bytes = path.stat().st_size
        if num_bytes == 0:
            raise AudioError(f"{path}: is empty")
        missing_bytes = _missing_bytes(path, num_bytes)
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        if isinstance(error, AudioError):
            raise
        raise AudioError(f"{path}: cannot be opened ({reason(error)})") from error
    if missing_bytes:
        raise AudioError(f"{path}: is truncated, {missing_bytes} or more of its bytes are missing")


def native_name(path: Path) -> str | bytes:
    """The path as libsndfile takes it; on Linux a name need not be valid text."""
    return os.fspath(path) if os.name == "nt" else os.fsencode(path)


def openable(path: Path) -> str | bytes | BinaryIO:
    """The path, or a mended view of a WAV whose writer never came back to fill in its lengths."""
    with path.open("rb") as file:
        unfinished = file.read(8) == b"RIFF\0\0\0\0"
    return _Mended(path) if unfinished else native_name(path)


def is_video(path: Path) -> bool:
    """Whether a file has the marks of a container that ffmpeg reads and libsndfile does not."""
    with path.open("rb") as file:
        head = file.read(189)
    is_transport_stream = len(head) == 189 and head[0] == head[188] == 0x47
    return is_transport_stream or any(head[at:].startswith(mark) for at, mark in _VIDEO_MARKS)


def reason(error: Exception) -> str:
    """The error in a few words on one line, without the path that the caller names."""
    text = getattr(error, "error_string", None) or getattr(error, "strerror", None) or str(error)
    return " ".join(str(text or type(error).__name__).split()).rstrip(".")


class _Mended(io.FileIO):
    """libsndfile reads to the end of the file where the lengths are 8 and 0, not where 0 and 0."""

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        start = self.tell()
        count = super().readinto(buffer) or 0
        if start <= 4 < start + count:
            buffer[4 - start : 5 - start] = b"\x08"
        return count


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
