"""Open recordings: find what headers hide, and choose a decoder for each kind of file.

libsndfile decodes. Some files reach it in another way than by name, because it believes headers:

* a recording whose writer died before it filled in the lengths, with mended lengths;
* an MP3 whose first frame does not state its length: its whole frames, through a pipe, since
  libsndfile otherwise estimates the length and stops there;
* videos, other formats, and streams behind one another, as the WAV that ffmpeg makes of them.
"""

import contextlib
import io
import mmap
import os
import re
import shutil
import struct
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import soundfile

from audiosep_jax.audio import mp3
from audiosep_jax.errors import InputError

# A stream of unknown length promises 2^63 - 1 frames.
UNKNOWN_FRAMES = 1 << 48
REPAIR = "ffmpeg -i FILE REPAIRED.wav keeps what is there"
_RIFF = (b"RIFF", b"RIFX", b"RF64", b"BW64")
# Format of the head of a chunk, where the first one is, and the alignment of the others.
_CHUNKS = {
    **dict.fromkeys(_RIFF, ("<4sI", 12, 2)),
    b"RIFX": (">4sI", 12, 2),
    b"FORM": (">4sI", 12, 2),
    b"caff": (">4sQ", 8, 1),
    b"riff": ("<4s12xQ", 40, 8),
}
_SOUND = (b"data", b"SSND")
# Place and content of lengths with which libsndfile reads sound to the end of the file.
_MENDED = {
    b"RIFF": (4, b"\x08\0\0\0"),
    b"RIFX": (4, b"\0\0\0\x08"),
    b".snd": (8, b"\xff\xff\xff\xff"),
}
# Formats of which libsndfile and ffmpeg read the first of several: their first bytes.
_FIRST_ONLY = re.compile(rb"fLaC|\x1aE\xdf\xa3|0&\xb2u|....ftyp", re.DOTALL)
_OGG_BEGINS = 2  # flag of a page
# Containers that ffmpeg may open. Playlists and the like, which open other files, are not among
# them, and no protocol but `file` is allowed.
_FFMPEG_FORMATS = (
    "mov,matroska,webm,ogg,mp3,aac,flac,wav,caf,flv,asf,avi,mpeg,mpegts,mpegvideo,amr,ac3,eac3,dts,"
    "ape,wv,tta,mxf"
)
FFMPEG_INPUT = "-nostdin -v error -y -protocol_whitelist file -format_whitelist".split()  # noqa: SIM905
FFMPEG_INPUT += [_FFMPEG_FORMATS]
# Silence is put where sound starts late or has gaps, so that its times fit the picture.
_KEEP_TIMES = "aresample=async=1:first_pts=0"
# The times of streams behind one another begin again with each.
_COUNT_TIMES = "asetpts=N/SR/TB"
_SEVERAL = "holds several recordings, one behind another"
_SPLIT = f"{_SEVERAL}, and only the first can be read; split the file"
_BLOCK_BYTES = 1 << 16


class AudioError(InputError):
    """A file that holds no usable audio. The message is one line that names the file."""


def open_decoder(path: Path, max_seconds: float = 1e9) -> tuple[soundfile.SoundFile, bool]:
    """Open a file with the decoder that delivers all of its samples.

    Args:
        max_seconds: ffmpeg decodes little more than that.

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
            raise AudioError(f"{path}: is a folder, pipe or device; save the sound to a file first")
        if path.stat().st_size == 0:
            raise AudioError(f"{path}: is empty")
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as whole:
            decoded = _decoded_by_libsndfile(path, whole)
        if decoded is None:
            return _decoded_by_ffmpeg(path, _SEVERAL, _COUNT_TIMES, max_seconds), True
        return decoded, False
    except soundfile.SoundFileError as error:
        need = f"cannot be read as audio ({reason(error)})"
        return _decoded_by_ffmpeg(path, need, _KEEP_TIMES, max_seconds), True
    except OSError as error:
        raise AudioError(f"{path}: cannot be opened ({reason(error)})") from error


def reason(error: BaseException) -> str:
    """Reason of an error, on one line and without the path, which the caller names."""
    text = getattr(error, "error_string", None) or getattr(error, "strerror", None) or str(error)
    return " ".join(str(text or type(error).__name__).split()).rstrip(".")


# ---------------------------------------------------------------------- libsndfile


def _decoded_by_libsndfile(path: Path, content: mmap.mmap) -> soundfile.SoundFile | None:
    """Open a file with libsndfile; None if streams follow the first that only ffmpeg reads.

    Raises:
        AudioError: the file is truncated, or nothing reads the streams behind the first.
    """
    flags = os.O_RDONLY | getattr(os, "O_BINARY", 0)  # by descriptor, since names may be any bytes
    first = mp3.first_frame(content)
    if first is not None:
        end = mp3.stated_end(content, first)
        if end is None:
            parts, one_rate = mp3.whole_frames(content, first)
            return _to_the_end(_pipe_from(path, parts)) if one_rate else None
        return None if mp3.goes_on(content, end) else soundfile.SoundFile(os.open(path, flags))
    if content[:4] == b"OggS" and _check_ogg(path, content):
        return None
    if _FIRST_ONLY.match(content) and content.find(content[:8], 8) > 0:
        raise AudioError(f"{path}: {_SPLIT}")
    mended = _check_chunks(path, content)
    return _to_the_end(_Mended(path, *mended) if mended else os.open(path, flags))


def _to_the_end(source: int | io.RawIOBase) -> soundfile.SoundFile:
    """Open a file of which libsndfile may not know the length."""
    file = soundfile.SoundFile(source)
    if file.frames >= UNKNOWN_FRAMES:
        # After each read soundfile seeks to where it is, which fails for pipes and at the end.
        file.seekable = lambda: False
    return file


def _pipe_from(path: Path, parts: Sequence[slice]) -> int:
    """Descriptor of a pipe that delivers parts of a file, which a thread writes to it."""
    reading, writing = os.pipe()

    def feed() -> None:
        # Ends with an error when the reader closes.
        with contextlib.suppress(OSError), path.open("rb") as file, open(writing, "wb") as pipe:
            for part in parts:
                file.seek(part.start)
                for start in range(part.start, part.stop, _BLOCK_BYTES):
                    pipe.write(file.read(min(_BLOCK_BYTES, part.stop - start)))

    threading.Thread(target=feed, daemon=True).start()
    return reading


class _Mended(io.FileIO):
    """A file that is read with other bytes at one place."""

    def __init__(self, path: Path, place: int, content: bytes) -> None:
        super().__init__(path)
        self._place, self._content = place, content

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        start = self.tell()
        count = super().readinto(buffer) or 0
        for at in range(len(self._content)):
            here = self._place + at - start
            if 0 <= here < count:
                buffer[here : here + 1] = self._content[at : at + 1]
        return count


# ---------------------------------------------------------------------- headers


def _check_chunks(path: Path, content: mmap.mmap) -> tuple[int, bytes] | None:
    """Check the lengths in the header; return a place and the bytes that mend them there.

    Writers that cannot seek back leave 0, all ones or "as much as fits" (sox, arecord) as the
    length of the sound. libsndfile reads the sound to its end in all of these cases but 0.
    """
    chunks = _chunks(content)
    names = [name for name, _, _ in chunks]
    sounds = [chunk for chunk in chunks if chunk[0] in _SOUND]
    if len(sounds) > 1 or any(name in (*_CHUNKS, b".snd") for name in names):
        raise AudioError(f"{path}: {_SPLIT}")
    for _, start, length in sounds:
        if length not in range(0x7FFF0000, 1 << 32) and length < 1 << 62:
            _check_end(path, start + length)
        # More chunks may follow an empty recording, to the end of the file.
        if length == 0 and len(content) - sum(chunks[-1][1:]) >= 8:
            if content[:4] == b"RF64":
                return content.find(b"ds64") + 16, struct.pack("<Q", len(content) - start)
            return _MENDED.get(content[:4])
    return None


def _check_end(path: Path, end: int) -> None:
    missing = end - path.stat().st_size
    if missing > 0:
        raise AudioError(f"{path}: is truncated, {missing} or more bytes are missing; {REPAIR}")


def _chunks(content: mmap.mmap) -> list[tuple[bytes, int, int]]:
    """Name, start and length of the chunks of a WAV, AIFF, CAF, W64 or AU file."""
    kind = content[:4]
    if kind == b".snd":
        start, length = struct.unpack(">II", content[4:12].ljust(8, b"\0"))
        end = start + length
        return [(b"data", start, length), (content[end : end + 4], end, 0)]
    if kind not in _CHUNKS or (
        kind in (*_RIFF, b"FORM") and content[8:12] not in (b"WAVE", b"AIFF", b"AIFC")
    ):
        return []
    layout, at, alignment = _CHUNKS[kind]
    found: list[tuple[bytes, int, int]] = []
    data_bytes_64 = 0
    while len(head := content[at : at + struct.calcsize(layout)]) == struct.calcsize(layout):
        name, length = struct.unpack(layout, head)
        # Sound instead of a chunk has other characters in its first bytes.
        if not (name.isascii() and name.decode().isprintable()):
            break
        start = at + len(head)
        if kind == b"riff":
            length = max(0, length - len(head))
        if name == b"ds64":
            data_bytes_64 = struct.unpack("<QQ", content[start : start + 16].ljust(16, b"\0"))[1]
        if name == b"data" and length == 0xFFFFFFFF and kind in (b"RF64", b"BW64"):
            length = data_bytes_64
        found.append((name, start, length))
        at = start + length + (-length % alignment)
    return found


def _check_ogg(path: Path, content: mmap.mmap) -> bool:
    """Check that the last page is whole; return whether streams follow the first.

    A file whose last page does not end the stream is whole: recorders that died leave such files.
    """
    pages = list(_ogg_pages(content))
    _check_end(path, pages[-1][2] if pages else len(content) + 1)
    # All streams that belong together begin with the first pages.
    codecs, at_start, follows = set(), True, False
    for start, body, _ in pages:
        codec = content[body : body + 5]
        if not content[start + 5] & _OGG_BEGINS:
            at_start = False
        elif at_start:
            codecs.add(codec)
        elif codec in codecs:
            follows = True
        else:  # which ffmpeg does not switch to
            raise AudioError(f"{path}: {_SPLIT}")
    return follows


def _ogg_pages(content: mmap.mmap) -> Iterator[tuple[int, int, int]]:
    """Start, start of the body and end of each page; the last end may be beyond the file's."""
    start = content.find(b"OggS")
    while 0 <= start <= len(content) - 27:
        body = start + 27 + content[start + 26]
        end = body + sum(content[start + 27 : body])
        yield start, body, end
        start = content.find(b"OggS", end)


# ---------------------------------------------------------------------- ffmpeg


def _decoded_by_ffmpeg(
    path: Path, need: str, times: str, max_seconds: float
) -> soundfile.SoundFile:
    """First audio stream of a file, as a temporary WAV file without a name.

    Args:
        need: says why libsndfile cannot read it.
        times: filter that decides what becomes of the times that the file states.
    """
    program = shutil.which("ffmpeg")
    if program is None:
        raise AudioError(f"{path}: {need}; install ffmpeg, which reads videos and many formats")
    with tempfile.NamedTemporaryFile(suffix=".wav") as file:
        options = [*FFMPEG_INPUT, "-t", f"{max_seconds + 1:.3f}", "-i", f"file:{path.absolute()}"]
        output = ["-map", "0:a:0", "-af", times, "-vn", "-sn", "-dn"]
        output += ["-c:a", "pcm_f32le", "-rf64", "auto", "-f", "wav", file.name]
        if times == _KEEP_TIMES:
            # In transport streams, times count from the first of the streams that are used.
            output += ["-map", "0:a:0", "-map", "0:v?", "-c", "copy", "-f", "null", "-"]
        ran = subprocess.run([program, *options, *output], capture_output=True, check=False)
        messages = ran.stderr.decode(errors="replace")
        if "partial file" in messages:  # the index of an MP4 or MOV promises more
            raise AudioError(f"{path}: is truncated; {REPAIR}")
        if ran.returncode:
            raise AudioError(f"{path}: {_explained(messages, need)}")
        return soundfile.SoundFile(open(file.name, "rb"))


def _explained(messages: str, need: str) -> str:
    """Error that ffmpeg's messages mean."""
    if "matches no streams" in messages:
        return "is a film without sound"
    if "No space left" in messages:
        return f"cannot be decoded (no space left in {tempfile.gettempdir()})"
    if "moov atom not found" in messages:
        missing = "the index at the end of an MP4 or MOV file is missing"
        return f"cannot be read as audio ({missing}); fetch it again"
    # Lines of a demuxer begin with its name in brackets. The others say only that it failed.
    lines = [line.partition("] ")[2] for line in messages.splitlines() if line.startswith("[")]
    told = [line.strip() for line in lines if line.strip() and "whitelist" not in line]
    return f"cannot be read as audio (ffmpeg: {told[0][:200]})" if told else need
