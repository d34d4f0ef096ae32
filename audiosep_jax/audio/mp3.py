"""MP3 frames: where the sound of a file is, and whether its first frame states the length."""

import itertools
import mmap
import re
import struct
from collections.abc import Iterator

_FEW_FRAMES = 4  # behind the stated end, as an inexact length leaves them
# Bitrates in kbit/s, of MPEG 1 by layer, and of MPEG 2 and 2.5. Nobody uses layer 1.
_BITRATES_1 = {
    2: (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    3: (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
}
_BITRATES_2 = (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)
_RATES_HZ = (44100, 48000, 32000)  # of MPEG 1; MPEG 2 has half of them, MPEG 2.5 a quarter
_MAYBE_HEADER = re.compile(rb"\xff[\xe2-\xff][\x10-\xef]", re.DOTALL)
_STREAM_BITS = 0xFFFE0C00  # of a header, which all frames share: sync, version, layer, sample rate


def first_frame(content: mmap.mmap) -> int | None:
    """Return where the first frame of an MP3 file starts; None for other files."""
    start = _behind_tags(content, 0)
    length = _frame_bytes(content[start : start + 4])
    follows = _behind_tags(content, start + length)
    if not length or (follows < len(content) and not _frame_bytes(content[follows : follows + 4])):
        return None
    return start


def stated_end(content: mmap.mmap, start: int) -> int | None:
    """Return where the sound ends by the first frame; None if it does not state the length.

    The frame is that of Xing or LAME. An end of `len(content)` stands for one that is not stated.
    """
    at = _tag_place(content, start)
    head = content[start + at : start + at + 16].ljust(16, b"\0")
    kind, flags, frames, size = struct.unpack(">4sIII", head)
    if kind not in (b"Xing", b"Info") or not flags & 1 or not frames:
        return None
    if not flags & 2 or not size:
        return len(content)
    second = start + _frame_bytes(content[start : start + 4])
    length = _frame_bytes(content[second : second + 4])
    if kind == b"Info" and abs(size - frames * length) > size // 50 + 4 * length:
        return None  # at a constant rate, as it states, the two do not fit
    return start + size


def _tag_place(content: mmap.mmap, start: int) -> int:
    """Return the place in the first frame of a description of the file; 0 if there is none."""
    head = content[start : start + 64]
    return max(0, *(head.find(kind, 0, 52) for kind in (b"Xing", b"Info", b"VBRI")))


def goes_on(content: mmap.mmap, end: int) -> bool:
    """Return whether more frames follow the stated end than an inexact length leaves there."""
    return len(list(itertools.islice(_frames(content, end), _FEW_FRAMES + 1))) > _FEW_FRAMES


def whole_frames(content: mmap.mmap, start: int) -> tuple[list[slice], bool]:
    """Return the parts of a file that hold whole frames, and whether all have one sample rate.

    A first frame that holds no sound but a description of the file is left out.
    """
    if _tag_place(content, start):
        start += _frame_bytes(content[start : start + 4])
    parts: list[slice] = []
    streams = set()
    for begin, end in _frames(content, start):
        streams.add(int.from_bytes(content[begin : begin + 4]) & _STREAM_BITS)
        if parts and parts[-1].stop == begin:
            parts[-1] = slice(parts[-1].start, end)
        else:
            parts.append(slice(begin, end))
    return parts, len(streams) == 1


def _frames(content: mmap.mmap, at: int) -> Iterator[tuple[int, int]]:
    """Yield the start and end of each whole frame, without what lies between frames."""
    while at < len(content):
        end = at + _frame_bytes(content[at : at + 4])
        if end == at:
            behind = _behind_tags(content, at)
            at = behind if behind > at else _next_frame(content, at + 1)
        elif end <= len(content):
            yield at, end
            at = end
        else:
            return


def _next_frame(content: mmap.mmap, at: int) -> int:
    """Return the next place where two frames follow one another, or the end of the file."""
    for found in _MAYBE_HEADER.finditer(content, at):
        length = _frame_bytes(content[found.start() : found.start() + 4])
        behind = found.start() + length
        if length and _frame_bytes(content[behind : behind + 4]):
            return found.start()
    return len(content)


def _frame_bytes(head: bytes) -> int:
    """Length of the frame that begins with these four bytes; 0 if none does."""
    if len(head) < 4 or head[0] != 0xFF or head[1] < 0xE0:
        return 0
    version, layer = head[1] >> 3 & 3, 4 - (head[1] >> 1 & 3)
    bitrate, rate, padding = head[2] >> 4, head[2] >> 2 & 3, head[2] >> 1 & 1
    if version == 1 or layer not in (2, 3) or bitrate in (0, 15) or rate == 3:
        return 0
    is_mpeg_1 = version == 3
    kbps = (_BITRATES_1[layer] if is_mpeg_1 else _BITRATES_2)[bitrate - 1]
    rate_hz = _RATES_HZ[rate] >> {3: 0, 2: 1, 0: 2}[version]
    return (144_000 if is_mpeg_1 or layer == 2 else 72_000) * kbps // rate_hz + padding


def _behind_tags(content: mmap.mmap, at: int) -> int:
    """Return the first place from `at` on where neither a tag nor a zero stands."""
    while True:
        head = content[at : at + 4096]
        if head.startswith(b"ID3") and len(head) >= 10:
            high, upper, lower, low = head[6:10]
            at += 10 + (high << 21 | upper << 14 | lower << 7 | low)
        elif head.startswith(b"TAG"):  # ID3v1
            at += 128
        elif head.startswith(b"APETAGEX") and len(head) >= 32:
            at += 32 + int.from_bytes(head[12:16], "little")
        elif head.startswith(b"\0"):
            at += len(head) - len(head.lstrip(b"\0"))
        else:
            return at
