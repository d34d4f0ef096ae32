"""Open recordings: find what headers hide, and choose a decoder for each kind of file.

libsndfile decodes. Some files reach it in another way than by name, because it believes headers:

* a WAV whose writer died before it filled in the lengths, with mended lengths;
* an MP3 without a frame that states its length, through a pipe, since libsndfile otherwise
  estimates the length and stops there;
* videos, other formats, and streams behind one another, as the WAV that ffmpeg makes of them.
"""

import contextlib
import io
import itertools
import mmap
import os
import shutil
import struct
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import soundfile

from audiosep_jax.errors import InputError

# A stream of unknown length promises 2^63 - 1 frames.
UNKNOWN_FRAMES = 1 << 48
REPAIR = "ffmpeg -i FILE REPAIRED.wav keeps what is there"
_WAV, _AIFF = (b"RIFF", b"RIFX", b"RF64"), b"FORM"
# Writers that cannot seek back leave 0, all ones or "as much as fits" (sox, arecord) as the length.
_UNKNOWN_LENGTHS = range(0x7FFF0000, 0x1_0000_0000)
_OGG_BEGINS = 2  # flag of a page
_MP3_STREAM = 0xFFFE0C00  # bits of a frame's header: sync, version, layer and sample rate
# Containers that ffmpeg may open. Playlists and the like, which open other files, are not among
# them, and no protocol but `file` is allowed.
_FFMPEG_FORMATS = (
    "mov,matroska,webm,ogg,mp3,aac,flac,wav,flv,asf,avi,mpeg,mpegts,mpegvideo,amr,ac3,eac3,dts,"
    "ape,wv,tta,mxf"
)
# Silence is put where sound starts late or has gaps, so that its times fit the picture.
_KEEP_TIMES = "aresample=async=1:first_pts=0"
# The times of streams behind one another begin again with each.
_COUNT_TIMES = "asetpts=N/SR/TB"
_SEVERAL = "holds several recordings, one behind another"


class AudioError(InputError):
    """A file that holds no usable audio. The message is one line that names the file."""


def open_decoder(path: Path) -> tuple[soundfile.SoundFile, bool]:
    """Open a file with the decoder that delivers all of its samples.

    Returns:
        The open file, whose `frames` is at least UNKNOWN_FRAMES if only decoding shows the length,
        and whether ffmpeg has decoded it.

    Raises:
        AudioError: the file is missing, empty or truncated, or nothing here can decode it.
    """
    try:
        if not path.exists():
            raise AudioError(f"{path}: no such file")
        if path.is_dir() and not os.access(path, os.R_OK | os.X_OK):
            raise AudioError(f"{path}: cannot be opened (Permission denied)")
        if not path.is_file():  # opening a pipe would block
            raise AudioError(f"{path}: is not a file but a folder or device")
        if path.stat().st_size == 0:
            raise AudioError(f"{path}: is empty")
        if _has_streams_behind_it(path):
            return _decoded_by_ffmpeg(path, _SEVERAL, _COUNT_TIMES), True
        return _decoded_by_libsndfile(path), False
    except soundfile.SoundFileError as error:
        need = f"cannot be read as audio ({reason(error)})"
        return _decoded_by_ffmpeg(path, need, _KEEP_TIMES), True
    except OSError as error:
        raise AudioError(f"{path}: cannot be opened ({reason(error)})") from error


def reason(error: BaseException) -> str:
    """Reason of an error, on one line and without the path, which the caller names."""
    text = getattr(error, "error_string", None) or getattr(error, "strerror", None) or str(error)
    return " ".join(str(text or type(error).__name__).split()).rstrip(".")


# ---------------------------------------------------------------------- libsndfile


def _decoded_by_libsndfile(path: Path) -> soundfile.SoundFile:
    flags = os.O_RDONLY | getattr(os, "O_BINARY", 0)  # by descriptor, since names may be any bytes
    source = _Unfinished(path) if _is_unfinished(path) else os.open(path, flags)
    file = soundfile.SoundFile(source)
    if file.format == "MP3":
        piped = soundfile.SoundFile(_pipe_from(path))
        if piped.frames >= UNKNOWN_FRAMES:
            file, piped = piped, file
        piped.close()
    if file.frames >= UNKNOWN_FRAMES:
        # After each read soundfile seeks to where it is, which fails for pipes and at the end.
        file.seekable = lambda: False
    return file


def _pipe_from(path: Path) -> int:
    """Descriptor of a pipe that delivers the file; a thread writes it until the reader closes."""
    reading, writing = os.pipe()

    def feed() -> None:
        with contextlib.suppress(OSError), path.open("rb") as file, open(writing, "wb") as pipe:
            shutil.copyfileobj(file, pipe)

    threading.Thread(target=feed, daemon=True).start()
    return reading


def _is_unfinished(path: Path) -> bool:
    """Whether sound follows the header of a WAV file that states a length of 0."""
    with path.open("rb") as file:
        chunks = _chunks(path) if file.read(4) in (b"RIFF", b"RIFX") else []
    if not any(name == b"data" and length == 0 for name, _, length in chunks):
        return False
    # More chunks may follow an empty recording, to the end of the file.
    _, start, length = chunks[-1]
    return path.stat().st_size - (start + length) >= 8


class _Unfinished(io.FileIO):
    """A WAV file with 8 as its outer length.

    libsndfile reads to the end of the file if that is 8 and the length of `data` is 0.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._length = struct.pack(">I" if self.read(4) == b"RIFX" else "<I", 8)
        self.seek(0)

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        start = self.tell()
        count = super().readinto(buffer) or 0
        for at in range(max(start, 4), min(start + count, 8)):
            buffer[at - start : at - start + 1] = self._length[at - 4 : at - 3]
        return count


# ---------------------------------------------------------------------- containers


def _has_streams_behind_it(path: Path) -> bool:
    """Whether streams follow the first, which libsndfile would not read.

    Raises:
        AudioError: the file is truncated, or ffmpeg would not read those streams either.
    """
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        head = content[:8]
        if head.startswith(b"OggS"):
            return _check_ogg(path, content)
        if head.startswith(b"ID3") or (head[0] == 0xFF and head[1:2] >= b"\xe0"):
            return _mp3_goes_on(content)
        joined = head.startswith(b"fLaC") and content.find(head, 8) > 0
    for name, start, length in _chunks(path):
        joined = joined or name in (*_WAV, _AIFF)
        if name in (b"data", b"SSND") and length not in _UNKNOWN_LENGTHS:
            _check_end(path, start + length)
    if joined:
        raise AudioError(f"{path}: {_SEVERAL}, and only the first can be read; split the file")
    return False


def _check_end(path: Path, end: int) -> None:
    missing = end - path.stat().st_size
    if missing > 0:
        raise AudioError(f"{path}: is truncated, {missing} or more bytes are missing; {REPAIR}")


def _chunks(path: Path) -> list[tuple[bytes, int, int]]:
    """Name, start and length of the chunks of a WAV or AIFF file; none for other files."""
    found: list[tuple[bytes, int, int]] = []
    with path.open("rb") as file:
        kind = file.read(4)
        order = ">" if kind in (_AIFF, b"RIFX") else "<"
        offset, data_bytes_64 = 12, 0
        while kind in (*_WAV, _AIFF):
            file.seek(offset)
            head = file.read(8)
            # Sound instead of a chunk has other characters in its first bytes.
            if len(head) < 8 or not (head[:4].isascii() and head[:4].decode().isprintable()):
                break
            name, length = struct.unpack(order + "4sI", head)
            if name == b"ds64":
                data_bytes_64 = struct.unpack("<QQ", file.read(16).ljust(16, b"\0"))[1]
            if name == b"data" and kind == b"RF64" and length == 0xFFFFFFFF:
                length = data_bytes_64
            found.append((name, offset + 8, length))
            offset += 8 + length + length % 2
    return found


def _check_ogg(path: Path, content: mmap.mmap) -> bool:
    """Check that the last page is whole; return whether streams follow the first.

    A file whose last page does not end the stream is whole: recorders that died leave such files.
    """
    pages = list(_ogg_pages(content))
    _check_end(path, pages[-1][1] if pages else len(content) + 1)
    # All streams that belong together begin with the first pages.
    begins = [bool(flags & _OGG_BEGINS) for flags, _ in pages]
    return any(later and not before for before, later in itertools.pairwise(begins))


def _ogg_pages(content: mmap.mmap) -> Iterator[tuple[int, int]]:
    """Flags and end of each page; the last end may be beyond the file's."""
    start = content.find(b"OggS")
    while 0 <= start <= len(content) - 27:
        segments = content[start + 26]
        end = start + 27 + segments + sum(content[start + 27 : start + 27 + segments])
        yield content[start + 5], end
        start = content.find(b"OggS", end)


def _mp3_goes_on(content: mmap.mmap) -> bool:
    """Whether frames follow the stream whose length in bytes the first frame states."""
    start = _mp3_start(content, 0)
    head = content[start : start + 64]
    at = max(head.find(b"Xing"), head.find(b"Info"))
    if not 0 <= at <= 48:
        return False
    flags, *values = struct.unpack(">III", head[at + 4 : at + 16])
    if not flags & 2:  # the number of bytes is not stated
        return False
    behind = _mp3_start(content, start + values[flags & 1])
    first, later = (int.from_bytes(content[x : x + 4]) & _MP3_STREAM for x in (start, behind))
    return first == later and behind < len(content) - 128


def _mp3_start(content: mmap.mmap, start: int) -> int:
    """Start of the frame at `start`, or behind the tag and the padding there."""
    tag = content[start : start + 10]
    if tag.startswith(b"ID3") and len(tag) == 10:
        high, upper, lower, low = tag[6:]
        start += 10 + (high << 21 | upper << 14 | lower << 7 | low)
    while content[start : start + 1] == b"\0":
        start += 1
    return start


# ---------------------------------------------------------------------- ffmpeg


def _decoded_by_ffmpeg(path: Path, need: str, times: str) -> soundfile.SoundFile:
    """First audio stream of a file, as a temporary WAV file without a name.

    Args:
        need: says why libsndfile cannot read it.
        times: filter that decides what becomes of the times that the file states.
    """
    program = shutil.which("ffmpeg")
    if program is None:
        raise AudioError(f"{path}: {need}; install ffmpeg, which reads videos and many formats")
    with tempfile.NamedTemporaryFile(suffix=".wav") as file:
        options = ["-nostdin", "-v", "error", "-y", "-protocol_whitelist", "file"]
        options += ["-format_whitelist", _FFMPEG_FORMATS, "-i", f"file:{path.absolute()}"]
        output = ["-map", "0:a:0", "-af", times, "-vn", "-sn", "-dn"]
        output += ["-c:a", "pcm_f32le", "-rf64", "auto", "-f", "wav", file.name]
        ran = subprocess.run([program, *options, *output], capture_output=True, check=False)
        if ran.returncode:
            raise AudioError(f"{path}: {_explained(ran.stderr.decode(errors='replace'), need)}")
        return soundfile.SoundFile(open(file.name, "rb"))


def _explained(messages: str, need: str) -> str:
    """Error that ffmpeg's messages mean."""
    if "matches no streams" in messages:
        return "is a film without sound"
    # Lines of a demuxer begin with its name in brackets. The others say only that it failed.
    lines = [line.partition("] ")[2] for line in messages.splitlines() if line.startswith("[")]
    told = [line.strip() for line in lines if line.strip() and "whitelist" not in line]
    return f"cannot be read as audio (ffmpeg: {told[0][:200]})" if told else need
