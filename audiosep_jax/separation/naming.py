"""File names of results: of any query, safe on any file system, inside the output folder."""

import os
import unicodedata
from collections.abc import Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath

from audiosep_jax.audio.files import RECORDING_SUFFIXES
from audiosep_jax.errors import InputError

MAX_QUERY_CHARACTERS = 60
# A file name holds at most 255 bytes, of which the temporary name needs some more.
MAX_QUERY_BYTES, MAX_STEM_BYTES = 120, 90
_NOT_IN_FILE_NAMES = '<>:"/\\|?*'
_FORBIDDEN_CATEGORIES = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")


def output_names(stem: str, labels: Sequence[str]) -> list[str]:
    """A file name without its suffix for each label, no two alike, none with a folder in it."""
    return distinct([f"{cut(stem, MAX_STEM_BYTES)} - {safe(label)}" for label in labels])


def distinct(names: Sequence[str]) -> list[str]:
    """The names, ` (2)` and so on behind those that came before, upper case or lower."""
    taken: set[str] = set()
    found = []
    for base in names:
        number, name = 1, base
        while name.casefold() in taken:
            number += 1
            name = f"{base} ({number})"
        taken.add(name.casefold())
        found.append(name)
    return found


def safe(label: str) -> str:
    """The label with `_` for what some file system forbids, at most 60 characters."""
    text = " ".join(unicodedata.normalize("NFC", label).split())
    letters = ["_" if _is_forbidden(letter) else letter for letter in text[:MAX_QUERY_CHARACTERS]]
    # Windows drops dots and spaces at the end.
    return cut("".join(letters), MAX_QUERY_BYTES).rstrip(". ") or "_"


def cut(text: str, max_bytes: int) -> str:
    """The longest beginning of `text` that takes at most `max_bytes` in a file name."""
    while len(os.fsencode(text)) > max_bytes:
        text = text[:-1]
    return text


def checked_name(name: str, where: str) -> PurePosixPath:
    """A relative path that a list gives for a result; InputError where it leads elsewhere."""
    path = PurePosixPath(name.replace("\\", "/"))
    outside = path.is_absolute() or ".." in path.parts or PureWindowsPath(name).drive
    if outside or not path.name or name.endswith(("/", "\\")):
        raise InputError(f"{where}: output {name!r} must be a file name inside the output folder")
    if path.suffix.lower() in RECORDING_SUFFIXES:  # that of the format is put behind
        path = path.with_suffix("")
    for part in path.parts:
        if any(_is_forbidden(letter) for letter in part) or part != part.strip().rstrip("."):
            raise InputError(f"{where}: output {name!r} holds what no file name should")
        if len(os.fsencode(part)) > MAX_QUERY_BYTES + MAX_STEM_BYTES:
            raise InputError(f"{where}: output {name[:40]!r}... is too long for a file name")
    return path


def check_inside(output: Path, path: Path) -> None:
    """InputError where a link leads a result out of the output folder."""
    if not path.parent.resolve().is_relative_to(output.resolve()):
        raise InputError(f"{path}: a link leads out of the output folder {output}")


def _is_forbidden(letter: str) -> bool:
    return letter in _NOT_IN_FILE_NAMES or unicodedata.category(letter) in _FORBIDDEN_CATEGORIES
