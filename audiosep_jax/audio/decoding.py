"""Open recordings: check files before decoding, and choose a decoder for each kind.

libsndfile decodes. Some files reach it in another way than by name, because it believes headers:

* a WAV whose writer died before it filled in the lengths, with mended lengths;
* an MP3 without a frame that states its length, through a pipe, since libsndfile otherwise
  estimates the length and stops there;
* videos, other formats and files of several streams, as the WAV that ffmpeg makes of them.
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
from typing import BinaryIO

import soundfile

from audiosep_jax.errors import InputError

# A stream of unknown length promises 2^63 - 1 frames.
UNKNOWN_FRAMES = 1 << 48
# Writers that cannot seek back leave 0, all ones or "as much as fits" (sox, arecord) as the length.
_UNKNOWN_LENGTH = 0x7FFF0000
_WAV = (b"RIFF", b"RIFX", b"RF64")
_OGG_BEGINS = 2  # flag of a page
_MP3_SAME_STREAM = 0xFFFE0C00  # bits of a frame header: sync, version, layer and sample rate
REPAIR = "ffmpeg -i FILE REPAIRED.wav keeps what is there"
# Containers that ffmpeg may open. Playlists and the like, which open other files, are not among
# them, and no protocol but `file` is allowed.
_FFMPEG_FORMATS = (
    "mov,matroska,webm,ogg,mp3,aac,flac,wav,flv,asf,avi,mpeg,mpegts,mpegvideo,amr,ac3,eac3,dts,"
    "ape,wv,tta,mxf"
)
# Silence is put where sound starts late or has gaps, so that its times fit the picture.
_KEEP_TIMES = "aresample=async=1:first_pts=0"
# The times of several streams, one behind another, begin again with each.
_COUNT_TIMES = "asetpts=N/SR/TB"
_SEVERAL = "holds several recordings, one behind another"


class AudioError(InputError):
    """A file that holds no usable audio. The message is one line that names the file."""


def check_file(path: Path) -> None:
    """Raise AudioError for files that libsndfile would block on, or play although truncated."""
    try:
        if not path.exists():
            raise AudioError(f"{path}: no such file")
        if path.is_dir() and not os.access(path, os.R_OK | os.X_OK):
            raise AudioError(f"{path}: cannot be opened (Permission denied)")
        if not path.is_file():
            raise AudioError(f"{path}: is not a file but a folder or device")
        if path.stat().st_size == 0:
            raise AudioError(f"{path}: is empty")
        missing_bytes = _missing_bytes(path)
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        if isinstance(error, AudioError):
            raise
        raise AudioError(f"{path}: cannot be opened ({reason(error)})") from error
    if missing_bytes:
        raise AudioError(
            f"{path}: is truncated, {missing_bytes} or more of its bytes are missing; {REPAIR}"
        )


def open_decoder(path: Path) -> tuple[soundfile.SoundFile, bool]:
    """Open a file with the decoder that delivers all of its samples.

    Returns:
        The open file, whose `frames` is at least UNKNOWN_FRAMES if only decoding shows the length,
        and whether ffmpeg has decoded it.

    Raises:
        AudioError: nothing here can decode it.
    """
    if _has_several_streams(path):
        return _decoded_by_ffmpeg(path, _SEVERAL, _COUNT_TIMES), True
    try:
        file = soundfile.SoundFile(_source(path))
    except soundfile.SoundFileError as error:
        need = f"cannot be read as audio ({reason(error)})"
        return _decoded_by_ffmpeg(path, need, _KEEP_TIMES), True
    if file.format == "MP3":
        piped = soundfile.SoundFile(_pipe_from(path))
        if piped.frames >= UNKNOWN_FRAMES:
            file, piped = piped, file
        piped.close()
    if file.frames >= UNKNOWN_FRAMES:
        # After each read soundfile seeks to where it is, which fails for pipes and at the end.
        file.seekable = lambda: False
    return file, False


def native_name(path: Path) -> str | bytes:
    """The path as libsndfile takes it; on Linux a name need not be valid text."""
    return os.fspath(path) if os.name == "nt" else os.fsencode(path)


def reason(error: BaseException) -> str:
    """Reason of an error, on one line and without the path, which the caller names."""
    text = getattr(error, "error_string", None) or getattr(error, "strerror", None) or str(error)
    return " ".join(str(text or type(error).__name__).split()).rstrip(".")


# ---------------------------------------------------------------------- WAV and AIFF


def _missing_bytes(path: Path) -> int:
    """Number of bytes that the container states beyond the end of the file (0 if unknown)."""
    if path.open("rb").read(4) == b"OggS":
        return _missing_ogg_bytes(path)
    for name, start, length in _chunks(path):
        if name in (b"data", b"SSND"):
            known = length < _UNKNOWN_LENGTH or length > 0xFFFFFFFF
            return max(0, start + length - path.stat().st_size) if known else 0
    return 0


def _chunks(path: Path) -> list[tuple[bytes, int, int]]:
    """Name, start and length of the chunks of a WAV or AIFF file; none for other files."""
    found: list[tuple[bytes, int, int]] = []
    with path.open("rb") as file:
        kind = file.read(4)
        if kind not in (*_WAV, b"FORM"):
            return found
        order = ">" if kind in (b"FORM", b"RIFX") else "<"
        offset, data_bytes_64 = 12, 0
        while True:
            file.seek(offset)
            head = file.read(8)
            if len(head) < 8 or not _is_name(head[:4]):
                return found
            name, length = struct.unpack(order + "4sI", head)
            if name == b"ds64":
                data_bytes_64 = struct.unpack("<QQ", file.read(16).ljust(16, b"\0"))[1]
            if name == b"data" and kind == b"RF64" and length == 0xFFFFFFFF:
                length = data_bytes_64
            found.append((name, offset + 8, length))
            offset += 8 + length + length % 2


def _is_name(name: bytes) -> bool:
    return name.isascii() and name.decode().isprintable()


def _source(path: Path) -> str | bytes | BinaryIO:
    """The file's name, or a view with mended lengths if its writer has not filled them in."""
    with path.open("rb") as file:
        is_wav = file.read(4) in (b"RIFF", b"RIFX")
    chunks = _chunks(path) if is_wav else []
    if not any(name == b"data" and length == 0 for name, _, length in chunks):
        return native_name(path)
    # More chunks may follow an empty recording; sound follows the header of an unfinished one.
    _, start, length = chunks[-1]
    is_empty = path.stat().st_size - (start + length) < 8
    return native_name(path) if is_empty else _Unfinished(path)


class _Unfinished(io.FileIO):
    """A WAV file with 8 as its outer length.

    libsndfile reads to the end of the file if that is 8 and the length of `data` is 0.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        big = self.read(4) == b"RIFX"
        self._length = b"\0\0\0\x08" if big else b"\x08\0\0\0"
        self.seek(0)

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        start = self.tell()
        count = super().readinto(buffer) or 0
        for at in range(max(start, 4), min(start + count, 8)):
            buffer[at - start : at - start + 1] = self._length[at - 4 : at - 3]
        return count


# ---------------------------------------------------------------------- Ogg and MP3


def _ogg_pages(content: mmap.mmap) -> Iterator[tuple[int, int, int]]:
    """Flags, start and end of each Ogg page; the end may be beyond the file's."""
    start = content.find(b"OggS")
    while 0 <= start <= len(content) - 27:
        segments = content[start + 27 : start + 27 + content[start + 26]]
        end = start + 27 + content[start + 26] + sum(segments)
        yield content[start + 5], start, end
        start = content.find(b"OggS", end)


def _missing_ogg_bytes(path: Path) -> int:
    """Number of bytes missing at the end of the last page.

    A file without a last page that ends the stream is whole: recorders that died leave such files.
    """
    with path.open("rb") as file, _mapped(file) as content:
        end = max((end for _, _, end in _ogg_pages(content)), default=0)
        return max(0, end - len(content), 27 if end == 0 else 0)


def _has_several_streams(path: Path) -> bool:
    """Whether streams follow one another, of which libsndfile reads the first only.

    Raises:
        AudioError: they are of a format of which ffmpeg reads the first only, too.
    """
    with path.open("rb") as file:
        head = file.read(8)
        if head.startswith(b"OggS"):
            with _mapped(file) as content:
                flags = [bool(flags & _OGG_BEGINS) for flags, _, _ in _ogg_pages(content)]
            # All streams that belong together begin with the first pages.
            return any(later and not before for before, later in itertools.pairwise(flags))
        if head.startswith(b"ID3") or (head[0] == 0xFF and head[1:2] >= b"\xe0"):
            with _mapped(file) as content:
                return _mp3_goes_on(content)
        joined = any(name in (*_WAV, b"FORM") for name, _, _ in _chunks(path))
        if head.startswith(b"fLaC"):
            with _mapped(file) as content:
                joined = joined or content.find(head, 8) > 0
        if joined:
            raise AudioError(f"{path}: {_SEVERAL}, and only the first can be read; split the file")
    return False


def _mp3_goes_on(content: mmap.mmap) -> bool:
    """Whether frames follow behind the stream whose length the first frame states in bytes."""
    start = _mp3_start(content, 0)
    head = content[start : start + 64]
    at = max(head.find(b"Xing"), head.find(b"Info"))
    if at < 0 or len(head) < at + 16:
        return False
    flags, first, second = struct.unpack(">III", head[at + 4 : at + 16])
    if not flags & 2:  # the number of bytes is not stated
        return False
    behind = _mp3_start(content, start + (second if flags & 1 else first))
    later = content[behind : behind + 4].ljust(4, b"\0")
    same = int.from_bytes(later) & _MP3_SAME_STREAM == int.from_bytes(head[:4]) & _MP3_SAME_STREAM
    return bool(same and behind < len(content) - 128)


def _mp3_start(content: mmap.mmap, start: int) -> int:
    """Start of the frame at `start`, or behind the tag and the padding there."""
    if content[start : start + 3] == b"ID3" and len(content) > start + 10:
        high, *rest = content[start + 6 : start + 10]
        length = high
        for byte in rest:
            length = length << 7 | byte
        start += 10 + length
    while content[start : start + 1] == b"\0":
        start += 1
    return start


@contextlib.contextmanager
def _mapped(file: BinaryIO) -> Iterator[mmap.mmap]:
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        yield content


def _pipe_from(path: Path) -> int:
    """Descriptor of a pipe that delivers the file; a thread writes it until the reader closes."""
    reading, writing = os.pipe()

    def feed() -> None:
        with contextlib.suppress(OSError), path.open("rb") as file, open(writing, "wb") as pipe:
            shutil.copyfileobj(file, pipe)

    threading.Thread(target=feed, daemon=True).start()
    return reading


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
    lines = [line.strip() for line in messages.splitlines() if line.strip()]
    # Lines of a demuxer begin with its name in brackets. The others say only that it failed.
    told = [line.partition("] ")[2] for line in lines if line.startswith("[")]
    told = [line for line in told if "whitelist" not in line]
    return f"cannot be read as audio (ffmpeg: {told[0][:200]})" if told else need
