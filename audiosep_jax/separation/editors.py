"""Files for editors and players: labels of when each query is active, and all parts in one file."""

import contextlib
import html
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from audiosep_jax import files, remote
from audiosep_jax.errors import InputError

LABELS = ("txt", "vtt", "csv")  # Audacity's label track, WebVTT, and a table
STEMS = "mka"  # Matroska, which holds any number of tracks in every format that is written here


def write_labels(
    path: Path, queries: Sequence[str], spans: Sequence[Sequence[tuple[float, float]]]
) -> None:
    """Write the spans in seconds of all queries in order, in the format of the path's suffix."""
    names = [" ".join(query.split()) for query in queries]
    rows = sorted((*span, name) for name, own in zip(names, spans, strict=True) for span in own)
    if path.suffix == ".csv":
        files.write_csv(path, ("start", "end", "query"), rows)
    elif path.suffix == ".vtt":
        cues = [f"\n{_clock(a)} --> {_clock(b)}\n{html.escape(x, False)}\n" for a, b, x in rows]
        files.write_text(path, "".join(["WEBVTT\n", *cues]))
    else:
        files.write_text(path, "".join(f"{a:.6f}\t{b:.6f}\t{name}\n" for a, b, name in rows))


def _clock(seconds: float) -> str:
    minutes, milliseconds = divmod(round(1000 * seconds), 60_000)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{milliseconds / 1000:06.3f}"


def check_ffmpeg() -> str:
    """Return the path of ffmpeg; InputError if it is not installed."""
    if program := shutil.which("ffmpeg"):
        return program
    raise InputError("needs ffmpeg, which is not installed")


def write_stems(path: Path, parts: Sequence[Path], titles: Sequence[str]) -> None:
    """Write files as the tracks of one, with the same samples, and with titles.

    Raises:
        InputError: ffmpeg is missing, or Matroska cannot hold the format of the parts.
    """
    command = [check_ffmpeg(), "-nostdin", "-v", "error", "-y"]
    for track, title in enumerate(titles):
        command += ["-map", f"{track}:a", f"-metadata:s:a:{track}", f"title={title}"]
    with files.replacing(path) as partial, contextlib.ExitStack() as stack:
        local = [stack.enter_context(remote.fetched(part)) for part in parts]
        command[5:5] = [x for part in local for x in ("-i", f"file:{part.absolute()}")]
        command += ["-c", "copy", "-f", "matroska", f"file:{partial.absolute()}"]
        ran = subprocess.run(command, capture_output=True, check=False)
        if ran.returncode:
            told = ran.stderr.decode(errors="replace").strip().splitlines()
            raise InputError(f"{path}: ffmpeg cannot write it ({told[0][:200] if told else ''})")
