"""Reads tables of annotations, and says where the files they name may lie."""

import csv
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from audiosep_jax.errors import InputError

HINT = "docs/data.md says what belongs there"


def lines(
    table: Path, *, skip_spaces: bool = False, encoding: str = "utf-8-sig"
) -> Iterator[tuple[int, list[str]]]:
    """(line number, fields) of a CSV file."""
    try:
        with table.open(newline="", encoding=encoding) as file:
            reader = csv.reader(file, skipinitialspace=skip_spaces)
            for row in reader:
                yield reader.line_num, row
    except OSError as error:
        raise InputError(f"{table}: cannot be read ({error.strerror}); {HINT}") from error
    except (ValueError, csv.Error) as error:
        raise InputError(f"{table}: is no CSV file in UTF-8 ({error})") from error


def rows(
    table: Path, columns: Sequence[str], *, encoding: str = "utf-8-sig"
) -> Iterator[tuple[int, dict[str, str]]]:
    """(line number, fields by column) of a CSV file with a header; what is missing is empty."""
    found = lines(table, encoding=encoding)
    _, header = next(found, (0, []))
    missing = [column for column in columns if column not in header]
    if missing:
        raise InputError(f"{table}: its first line names no column {missing[0]!r}; {HINT}")
    for line, fields in found:
        if fields:
            padded = [*fields, *[""] * (len(header) - len(fields))]
            yield line, dict(zip(header, padded, strict=False))


def read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); {HINT}") from error
    except ValueError as error:
        raise InputError(f"{path}: is not JSON ({error})") from error


def existing(folders: Sequence[Path], default: Path) -> list[Path]:
    """Those that are there; where none is, the one that should be."""
    return list(dict.fromkeys(folder for folder in folders if folder.is_dir())) or [default]


def places(folders: Iterable[Path], names: Iterable[str]) -> tuple[str, ...]:
    return tuple(os.path.join(folder, name) for name in names for folder in folders)
