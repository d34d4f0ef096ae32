"""What there is to separate: a file, a folder or a list turned into jobs, shared, and recorded."""

import csv
import dataclasses
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from audiosep_jax.audio.files import RECORDING_SUFFIXES
from audiosep_jax.errors import InputError
from audiosep_jax.separation.naming import (
    MAX_STEM_BYTES,
    checked_name,
    cut,
    distinct,
)
from audiosep_jax.separation.queries import Part, Query, queries_of

Item = TypeVar("Item")
MAX_CELL_CHARACTERS = 4096
NUMBERED_BYTES = MAX_STEM_BYTES - len(" (9999)")
COLUMNS = ("file", "query", "output")


@dataclasses.dataclass(frozen=True)
class Job:
    """One recording, and what to take out of it."""

    recording: Path
    name: str  # of it in reports: relative to the folder or the list that it is of
    folder: PurePosixPath  # of its results, below the output folder
    stem: str  # of their names
    queries: tuple[Query, ...]
    outputs: tuple[PurePosixPath | None, ...] = ()  # of each query, where a list names them

    @property
    def parts(self) -> tuple[Part, ...]:
        return tuple(part for query in self.queries for part in query.parts)


def is_list(source: Path) -> bool:
    return source.suffix.lower() == ".csv" and not os.path.isdir(source)


def plan(source: Path, output: Path, queries: Sequence[Query]) -> list[Job]:
    """The jobs of a recording, a folder of them, or a CSV of file and query.

    The same for every process that is given the same; nothing but the list is opened.

    Raises:
        InputError: a folder holds no recordings, a list is wrong, or a query is missing.
    """
    if is_list(source):
        return _of_list(source, queries)
    if not queries:
        raise InputError("--text, --embedding or --audio_query is needed; --help shows an example")
    if os.path.isdir(source):
        return _of_folder(source, output, queries)
    return [Job(source, str(source), PurePosixPath(), source.stem, tuple(queries))]


def share(jobs: Sequence[Item], index: int, count: int) -> list[Item]:
    """Those of process `index` (from 0) of `count`: every `count`-th."""
    return list(jobs[index::count])


# ---------------------------------------------------------------------- folders


def _of_folder(source: Path, output: Path, queries: Sequence[Query]) -> list[Job]:
    if source.resolve() == output.resolve():
        raise InputError(f"--output {output}: is the input folder; choose another")
    paths = [path.relative_to(source) for path in _recordings(source, output.resolve())]
    if not paths:
        raise InputError(f"{source}: holds no recordings")
    places = _places([PurePosixPath(path) for path in paths])
    return [
        Job(source / path, str(path), place.parent, place.name, tuple(queries))
        for path, place in zip(paths, places, strict=True)
    ]


def _recordings(source: Path, output: Path) -> list[Path]:
    """Files that their names say are recordings, sorted; hidden ones and results left out.

    A folder that cannot be opened is among them, so that it is told at the end as such files are.
    """
    found: list[Path] = []

    def closed(error: OSError) -> None:
        if Path(error.filename) == source:
            raise InputError(f"{source}: cannot be opened ({error.strerror})") from error
        found.append(Path(error.filename))

    for folder, folders, names in os.walk(source, onerror=closed):
        here = Path(folder)
        folders[:] = [
            name
            for name in folders
            if not name.startswith(".") and (here / name).resolve() != output
        ]
        found += [
            here / name
            for name in names
            if not name.startswith(".") and Path(name).suffix.lower() in RECORDING_SUFFIXES
        ]
    return sorted(found)


def _places(paths: Sequence[PurePosixPath]) -> list[PurePosixPath]:
    """The paths without suffix, but with it where two would be alike, and then with a number.

    Names are cut as those of results are, and further where a number has to fit behind them.
    """
    keys = [str(path.with_suffix("")).casefold() for path in paths]
    count = Counter(keys)
    pairs = zip(paths, keys, strict=True)
    names = [path if count[key] > 1 else path.with_suffix("") for path, key in pairs]
    names = [path.with_name(cut(path.name, MAX_STEM_BYTES)) for path in names]
    count = Counter(str(path).casefold() for path in names)
    names = [
        path.with_name(cut(path.name, NUMBERED_BYTES)) if count[str(path).casefold()] > 1 else path
        for path in names
    ]
    return [PurePosixPath(name) for name in distinct([str(path) for path in names])]


# ---------------------------------------------------------------------- lists


def _of_list(source: Path, queries: Sequence[Query]) -> list[Job]:
    """A job for each file of the list, with the queries of all its rows."""
    rows = _rows(source)
    has_query = "query" in rows[0][1]
    if has_query and queries:
        raise InputError(f"{source}: has a column query; leave out --text and the like")
    if not has_query and not queries:
        raise InputError(f"{source}: has no column query; give it, or --text for every file")
    if not has_query and "output" in rows[0][1] and len(queries) > 1:
        raise InputError(f"{source}: a column output names one result; give one --text")
    grouped: dict[str, list[tuple[Query, PurePosixPath | None]]] = {}
    for where, row in rows:
        name = row["file"].strip()
        if not name or "\0" in name:
            raise InputError(f"{where}: has no file")
        found = queries_of([Part("text", _query(row, where))]) if has_query else queries
        output = checked_name(row["output"], where) if row.get("output", "").strip() else None
        known = grouped.setdefault(name, [])
        known += [(query, output) for query in found if (query, output) not in known]
    places = _places([_mirrored(name) for name in grouped])
    return [
        Job(
            source.parent / name,
            name,
            place.parent,
            place.name,
            tuple(query for query, _ in found),
            tuple(output for _, output in found),
        )
        for (name, found), place in zip(grouped.items(), places, strict=True)
    ]


def _mirrored(name: str) -> PurePosixPath:
    """Where below the output folder the results of a listed file go: as it lies below the list."""
    path = PurePosixPath(name)
    outside = path.is_absolute() or ".." in path.parts or not path.name
    return PurePosixPath(path.name.strip(".") or "_") if outside else path


def _query(row: Mapping[str, str], where: str) -> str:
    text = row["query"]
    if not text.strip():
        raise InputError(f"{where}: has no query")
    return text


def _rows(source: Path) -> list[tuple[str, dict[str, str]]]:
    """(where it stands, cells by column) of every row that is not blank."""
    try:
        with source.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            header = [name.strip() for name in next(reader, [])]
            _check_header(source, header)
            rows = [
                (f"{source}: line {reader.line_num}", cells)
                for cells in reader
                if any(cell.strip() for cell in cells)
            ]
    except OSError as error:
        raise InputError(f"{source}: cannot be opened ({error.strerror or error})") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{source}: is no CSV of text in UTF-8 ({error})") from error
    if not rows:
        raise InputError(f"{source}: lists no files")
    for where, cells in rows:
        if len(cells) != len(header):
            raise InputError(f"{where}: has {len(cells)} cells where the header has {len(header)}")
        if any(len(cell) > MAX_CELL_CHARACTERS for cell in cells):
            raise InputError(f"{where}: holds more than {MAX_CELL_CHARACTERS} characters in a cell")
    return [(where, dict(zip(header, cells, strict=True))) for where, cells in rows]


def _check_header(source: Path, header: Sequence[str]) -> None:
    if "file" not in header or len(set(header)) < len(header):
        found = ",".join(header)[:60]
        raise InputError(
            f"{source}: its first line must be file,query or file,query,output, not {found}"
        )
    unknown = [name for name in header if name not in COLUMNS]
    if unknown:
        raise InputError(
            f"{source}: has a column {unknown[0][:40]!r}; known are {', '.join(COLUMNS)}"
        )


# ---------------------------------------------------------------------- what is done


class Ledger:
    """A line of JSON for every recording that is finished, in the output folder.

    Processes that share the work write a file each, and read all.
    """

    def __init__(self, output: Path, index: int = 0, count: int = 1) -> None:
        suffix = f".{index}-of-{count}" if count > 1 else ""
        self._output, self._path = output, output / f"separated{suffix}.jsonl"

    def finished(self) -> dict[str, dict[str, Any]]:
        """Records by key, of those whose results are all there and whole."""
        records: dict[str, dict[str, Any]] = {}
        for path in sorted(self._output.glob("separated*.jsonl")):
            records |= {record["key"]: record for record in _records(path)}
        return {key: record for key, record in records.items() if self._is_whole(record)}

    def add(self, record: Mapping[str, Any]) -> None:
        """Appends a record in one write."""
        line = json.dumps(record) + "\n"
        try:
            with self._path.open("ab+") as file:
                # A kill may have left half a line.
                torn = file.tell() and not _ends_with_newline(file)
                file.write((b"\n" if torn else b"") + line.encode())
        except OSError as error:
            raise InputError(f"{self._path}: cannot be written ({error.strerror})") from error

    def _is_whole(self, record: Mapping[str, Any]) -> bool:
        try:
            return all(
                state_of(self._output / name) == state for name, state in record["files"].items()
            )
        except (OSError, ValueError, AttributeError):
            return False


def state_of(path: Path) -> list[int]:
    """Bytes and time of the last change, ns: another's once something else has written the file."""
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns]


def _ends_with_newline(file: Any) -> bool:
    file.seek(-1, os.SEEK_END)
    return file.read(1) == b"\n"


def _records(path: Path) -> Iterator[dict[str, Any]]:
    """The lines that are whole records."""
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    for line in lines:
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and {"key", "files"} <= record.keys():
            yield record


def all_parts(jobs: Iterable[Job]) -> list[Part]:
    """Every distinct part of the jobs' queries."""
    return list(dict.fromkeys(part for job in jobs for part in job.parts))
