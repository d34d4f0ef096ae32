"""Scores of mixtures on disk as they are made: lines are added to a file, none is ever changed.

The first line says which evaluation the file belongs to; a run that finds rows of its own goes on
where they end. Several processes share a folder, each with a file of its own.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

from audiosep_jax.errors import InputError

NAME = "results.partial"
Row = dict[str, Any]


def file_name(shard: tuple[int, int]) -> str:
    """Of the rows of one process."""
    index, count = shard
    return f"{NAME}.jsonl" if count == 1 else f"{NAME}.{index}-of-{count}.jsonl"


def read_all(folder: Path, about: Mapping[str, Any]) -> dict[int, Row]:
    """Rows of all processes by number; a scored row counts before one that could not be scored.

    InputError where a file holds the rows of another evaluation than `about` describes.
    """
    found: dict[int, Row] = {}
    for path in sorted(folder.glob(f"{NAME}*.jsonl")):
        for row in _read(path, about):
            if "reason" not in row or row["row"] not in found:
                found[row["row"]] = row
    return found


def discard(folder: Path, about: Mapping[str, Any], shard: tuple[int, int]) -> None:
    """Removes the rows of all processes; of several, those that others may be adding to stay."""
    for path in folder.glob(f"{NAME}*.jsonl"):
        if shard[1] == 1 or path.name == file_name(shard) or not _belongs(path, about):
            path.unlink(missing_ok=True)


def _belongs(path: Path, about: Mapping[str, Any]) -> bool:
    try:
        _read(path, about)
    except InputError:
        return False
    return True


class RowsFile:
    """The rows that one process adds; a line cut off by a kill is dropped when it goes on."""

    def __init__(self, path: Path, about: Mapping[str, Any]) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            content = path.read_bytes() if path.exists() else b""
            whole = content[: content.rfind(b"\n") + 1]
            if whole != content:
                with path.open("r+b") as file:
                    file.truncate(len(whole))
            self._file: TextIO = path.open("a", encoding="utf-8")
            if not whole:
                self.add({"about": dict(about)})
        except OSError as error:
            raise InputError(f"{path}: cannot be written ({error.strerror})") from error

    def add(self, row: Mapping[str, Any]) -> None:
        """Appends a line, which outlives the process from then on."""
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()


def _read(path: Path, about: Mapping[str, Any]) -> list[Row]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        # The last line may have been cut off by a kill.
        rows = [json.loads(line) for line in lines if line.endswith("\n")]
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as rows of an evaluation") from error
    if rows and rows[0].get("about") != dict(about):
        other = rows[0].get("about") or {}
        changed = next((key for key in about if other.get(key) != about[key]), "evaluation")
        raise InputError(
            f"{path.parent}: holds rows of another evaluation ({changed} differs); "
            "choose another --output, or --overwrite"
        )
    return rows[1:]
