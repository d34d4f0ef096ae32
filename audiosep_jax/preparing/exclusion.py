"""Recordings that are left out of training because an evaluation set has them."""

import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from audiosep_jax import files
from audiosep_jax.audio.files import RECORDING_SUFFIXES
from audiosep_jax.preparing.recordings import Recording, Skipped

REASON = "excluded: named in"
_ROW_NUMBERS = ("idx", "index")  # columns whose numbers are not ids
_SEGMENT = re.compile(r"(.{11})_\d+(_\d+)?")  # of a video, as tools name it: id, start, end


def excluding(
    items: Iterable[Recording | Skipped], lists: Iterable[Path]
) -> Iterator[Recording | Skipped]:
    """Yield the items; a recording for training that a list names becomes a Skipped.

    Names are compared without folders and suffixes. A recording is named by its id or by a name
    that its file may have; a video by its own id or that of a segment.
    """
    listed = [(_stem(name), path.name) for path in lists for name in _names(path)]
    named = dict(listed)
    videos = {_video(name): path for name, path in listed}
    for item in items:
        found = None
        if named and isinstance(item, Recording) and item.split.startswith("train"):
            places = (place for place in map(_stem, item.places) if not place.isdecimal())
            for name in (_stem(item.id), *places):
                found = found or named.get(name) or named.get(_video(name)) or videos.get(name)
        yield Skipped(item.id, item.split, f"{REASON} {found}") if found else item


def _names(path: Path) -> Iterator[str]:
    """Strings of a JSON file, or lines and cells of a CSV or text file."""
    if path.suffix.lower() == ".json":
        cells = _strings(files.read_json(path))
    else:
        header, *_ = lines = [cells for _, cells in files.csv_lines(path)] or [[]]
        numbers = {i for i, name in enumerate(header) if name.casefold() in _ROW_NUMBERS}
        cells = (cell for line in lines for i, cell in enumerate(line) if i not in numbers)
        yield from (", ".join(line) for line in lines)  # of a text file: a name may have commas
    for cell in cells:
        yield from filter(None, cell.split("+++"))  # VGGSound's list joins target and noise


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _strings(part)
    else:
        yield str(value)


def _stem(name: str) -> str:
    """Name without folders, the suffix of a recording, and the Y before the id of a video."""
    name = os.path.basename(name.replace("\\", "/"))
    name = name.partition("?v=")[2].partition("&")[0] or name  # an address of YouTube
    stem, suffix = os.path.splitext(name)
    name = stem if suffix.lower() in RECORDING_SUFFIXES else name
    return name[1:] if name[:1] == "Y" and len(_video(name[1:])) == 11 else name


def _video(name: str) -> str:
    """Id of the video of which `<id>_<start>` is a segment; other names as they are."""
    match = _SEGMENT.fullmatch(name)
    return match[1] if match else name
