"""Jobs: recordings, folders and lists turned into work, and names for the results.

A job is one recording with its queries. Its results are named so that no two of a command are
equal, whatever the file system, and none is outside the output folder.
"""

import dataclasses
import os
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from audiosep_jax import files, remote
from audiosep_jax.cli import naming, say
from audiosep_jax.encoders import KINDS
from audiosep_jax.errors import InputError, named
from audiosep_jax.separation.during import Span, parse_spans
from audiosep_jax.separation.queries import Part, Query

COLUMNS = ("file", "query", "image", "during", "output")
MAX_QUERY_CHARACTERS = 60
# A file name has at most 255 bytes; a temporary name adds some to that of the result.
MAX_QUERY_BYTES, MAX_STEM_BYTES = 120, 90
_NOT_IN_FILE_NAMES = '<>:"/\\|?*'
_FORBIDDEN_CATEGORIES = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")


@dataclasses.dataclass(frozen=True)
class Job:
    """One recording, and what to separate from it."""

    recording: Path
    name: str  # of the recording, in messages and reports
    folder: PurePosixPath  # of the results, below the output folder
    stem: str  # beginning of their file names
    queries: tuple[Query, ...]
    outputs: tuple[PurePosixPath | None, ...] = ()  # names from a list, without suffix, or None
    during: tuple[tuple[Span, ...], ...] = ()  # spans of each query


def is_list(source: Path) -> bool:
    return source.suffix.lower() == ".csv" and not os.path.isdir(source)


def plan(
    sources: Sequence[Path],
    output: Path,
    queries: Sequence[Query],
    during: tuple[Span, ...] = (),
) -> list[Job]:
    """Return the jobs of recordings and folders of them, or of a CSV of files and queries.

    Processes with the same arguments get the same jobs. Only a list is opened. `during` are the
    spans of all queries but those that have their own in the list.
    """
    lists = [source for source in sources if is_list(source)]
    if lists and len(sources) > 1:
        raise InputError(f"{lists[0]}: a list must be the only input; put all files into it")
    if lists:
        return _of_list(lists[0], queries, during)
    if not queries:
        raise InputError(f"--{', --'.join(KINDS)}: one of them is needed; --help shows an example")
    found: dict[str, tuple[Path, str, PurePosixPath]] = {}  # a recording given twice is done once
    for source in sources:
        if "\0" in str(source) or (len(sources) > 1 and not os.path.lexists(source)):
            raise InputError(f"{source}: no such file or folder")
        below = _recordings(source, output) if os.path.isdir(source) else None
        for path in below or [Path(source.name)]:
            recording = source / path if below else source
            name = str(path) if below and len(sources) == 1 else named(str(recording))
            found.setdefault(os.path.abspath(recording), (recording, name, PurePosixPath(path)))
    places = _places([place for _, _, place in found.values()])
    return [
        Job(
            *(recording, name, place.parent, place.name, tuple(queries)),
            during=(during,) * len(queries),
        )
        for (recording, name, _), place in zip(found.values(), places, strict=True)
    ]


def _recordings(source: Path, output: Path) -> list[Path]:
    """Return the sorted recordings below a folder, relative to it.

    Hidden files and the output folder are left out; a line on stderr tells of other files. A folder
    that cannot be opened is included, so that it is reported like such a recording.
    """
    from audiosep_jax.audio.files import RECORDING_SUFFIXES

    results = output.resolve()
    if source.resolve() == results:
        raise InputError(f"--output {output}: is the input folder; choose another")
    found: list[Path] = []
    others: list[Path] = []

    def closed(error: OSError) -> None:
        if Path(error.filename) == source:
            raise InputError(f"{source}: cannot be opened ({error.strerror})") from error
        found.append(Path(error.filename))

    for folder, folders, names in os.walk(source, onerror=closed):
        here = Path(folder)
        folders[:] = [x for x in folders if x[0] != "." and (here / x).resolve() != results]
        for path in (here / name for name in names if name[0] != "."):
            (found if path.suffix.lower() in RECORDING_SUFFIXES else others).append(path)
    left_out = f"files of other kinds: {len(others)}, such as {min(others)}" if others else ""
    if not found:
        raise InputError(f"{source}: holds no recordings; {left_out}".removesuffix("; "))
    if others:
        say(f"{source}: left out are {left_out}")
    return sorted(path.relative_to(source) for path in found)


def _places(paths: Sequence[PurePosixPath]) -> list[PurePosixPath]:
    """Paths without suffix; equal ones keep their suffix, and get a number if that is not enough.

    Names are cut so that they fit into the name of a result together with a number.
    """
    count = Counter(str(path.with_suffix("")).casefold() for path in paths)
    names = []
    for path in paths:
        bare = path.with_suffix("")
        place = path if count[str(bare).casefold()] > 1 else bare
        names.append(str(place.with_name(cut(place.name, MAX_STEM_BYTES - len(" (9999)")))))
    return [PurePosixPath(name) for name in distinct(names)]


# ---------------------------------------------------------------------- lists


def _of_list(source: Path, queries: Sequence[Query], during: tuple[Span, ...]) -> list[Job]:
    """Make a job for each file of the list, with the queries of all its rows."""
    rows = _rows(source)
    has_query = not {"query", "image"}.isdisjoint(rows[0][1])
    if has_query and queries:
        raise InputError(f"{source}: has a column of queries; leave out those of the command line")
    if not has_query and not queries:
        raise InputError(f"{source}: has no column query; add it, or give --text for every file")
    if not has_query and "output" in rows[0][1] and len(queries) > 1:
        raise InputError(f"{source}: a column output names one result; give one --text")
    recordings: dict[str, Path] = {}
    grouped: dict[str, list[tuple[Query, PurePosixPath | None, tuple[Span, ...]]]] = {}
    for where, row in rows:
        if not row["file"] or "\0" in row["file"]:
            raise InputError(f"{where}: has no file")
        found = [_query(row, source.parent, where)] if has_query else queries
        output = checked_name(row["output"], where) if row.get("output") else None
        with naming(where):
            spans = parse_spans(row["during"]) if row.get("during") else during
        name = row["file"]
        if not os.path.lexists(source.parent / name):  # it may have been written on Windows
            name = name.replace("\\", "/")
        recordings[name] = remote.path_of(name) or source.parent / name
        if remote.url_of(recordings[name]):
            remote.show(recordings[name])
        known = grouped.setdefault(name, [])
        known += [x for x in ((query, output, spans) for query in found) if x not in known]
    places = _places([_mirrored(name) for name in grouped])
    return [
        Job(
            recordings[name],
            name,
            place.parent,
            place.name,
            *map(tuple, zip(*found, strict=True)),
        )
        for (name, found), place in zip(grouped.items(), places, strict=True)
    ]


def _query(row: Mapping[str, str], folder: Path, where: str) -> Query:
    """The only query of a row: a sentence, or the path of a picture, from the list's folder."""
    text, image = row.get("query"), row.get("image")
    if bool(text) == bool(image):
        raise InputError(f"{where}: has {'a query and an image' if text else 'no query'}")
    return (Part("image", str(folder / image)) if image else Part("text", text or ""),)


def _rows(source: Path) -> list[tuple[str, dict[str, str]]]:
    """File and line of each row, for messages, and its cells by column."""
    rows = [
        (f"{source}: line {number}", {name.casefold(): cell for name, cell in row.items()})
        for number, row in files.read_csv(source, ("file",))
    ]
    if not rows:
        raise InputError(f"{source}: lists no files")
    unknown = [name for name in rows[0][1] if name not in COLUMNS]
    if unknown:
        raise InputError(
            f"{source}: has a column {unknown[0][:40]!r}; known are {', '.join(COLUMNS)}"
        )
    return rows


def _mirrored(name: str) -> PurePosixPath:
    """Path of a listed file below the output folder: as below the list, or else its name alone."""
    path = PurePosixPath(name)
    outside = path.is_absolute() or ".." in path.parts or not path.name or "://" in name
    return PurePosixPath(path.name.strip(".") or "_") if outside else path


# ---------------------------------------------------------------------- names of results


def output_names(stem: str, labels: Sequence[str]) -> list[str]:
    """Return a file name without suffix for each label, no two equal, none with a folder in it."""
    return distinct([f"{cut(stem, MAX_STEM_BYTES)} - {safe(label)}" for label in labels])


def distinct(names: Sequence[str]) -> list[str]:
    """Add ` (2)` and so on to names that came before, in upper or lower case."""
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
    """Replace what some file system forbids with `_`, and keep at most 60 characters."""
    text = " ".join(unicodedata.normalize("NFC", label).split())
    letters = ["_" if _is_forbidden(letter) else letter for letter in text[:MAX_QUERY_CHARACTERS]]
    # Windows drops dots and spaces at the end.
    return cut("".join(letters), MAX_QUERY_BYTES).rstrip(". ") or "_"


def cut(text: str, max_bytes: int) -> str:
    """The longest beginning of `text` that has at most `max_bytes` in a file name."""
    while len(os.fsencode(text)) > max_bytes:
        text = text[:-1]
    return text


def checked_name(name: str, where: str) -> PurePosixPath:
    """Return the relative path of a result without the suffix of a recording."""
    from audiosep_jax.audio.files import RECORDING_SUFFIXES

    path = PurePosixPath(name.replace("\\", "/"))
    outside = path.is_absolute() or ".." in path.parts or PureWindowsPath(name).drive
    if outside or not path.name or name.endswith(("/", "\\")):
        raise InputError(f"{where}: output {name!r} must be a file name inside the output folder")
    if path.suffix.lower() in RECORDING_SUFFIXES:  # the suffix of the format is appended later
        path = path.with_suffix("")
    for part in path.parts:
        if any(_is_forbidden(letter) for letter in part) or part != part.strip().rstrip("."):
            raise InputError(f"{where}: output {name!r} has characters that file names should not")
        if len(os.fsencode(part)) > MAX_QUERY_BYTES + MAX_STEM_BYTES:
            raise InputError(f"{where}: output {name[:40]!r}... is too long for a file name")
    return path


def _is_forbidden(letter: str) -> bool:
    return letter in _NOT_IN_FILE_NAMES or unicodedata.category(letter) in _FORBIDDEN_CATEGORIES


# ---------------------------------------------------------------------- finished work


def finished_records(log: files.FinishedLog, output: Path) -> dict[str, dict[str, Any]]:
    """Records by key of the recordings whose results are all as they were written."""
    records = {record["key"]: record for record in log.records() if {"key", "files"} <= {*record}}
    return {key: record for key, record in records.items() if _is_whole(record, output)}


def own_files(log: files.FinishedLog) -> dict[str, str]:
    """Real path of the recording of each result that the log names."""
    records = [record for record in log.records() if {"recording", "files"} <= {*record}]
    return {name: record["recording"] for record in records for name in record["files"]}


def _is_whole(record: Mapping[str, Any], output: Path) -> bool:
    try:
        return all(remote.state(output / name) == state for name, state in record["files"].items())
    except (OSError, ValueError, AttributeError):
        return False
