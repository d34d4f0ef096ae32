"""Files: written whole or not at all, and read with errors that say where and why."""

import contextlib
import csv
import io
import itertools
import json
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import platformdirs

from audiosep_jax import remote
from audiosep_jax.errors import InputError

CACHE_VARIABLE = "AUDIOSEP_JAX_CACHE"
_DELIMITERS = ",;\t"
_NOT_UTF_8 = "backslashreplace"  # names of files may hold bytes that are no text


def cache_folder(*names: str) -> Path:
    """Folder below the package's cache folder; it may not exist yet.

    The environment variable AUDIOSEP_JAX_CACHE names the cache folder. The default is the user's
    cache folder of the operating system, such as `~/.cache/audiosep_jax`.
    """
    named = os.environ.get(CACHE_VARIABLE)
    root = Path(named).expanduser() if named else platformdirs.user_cache_path("audiosep_jax")
    return root.joinpath(*names)


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `path`, which takes its place when the block succeeds.

    The block writes a file or makes a folder there. When it raises, or is interrupted, `path` is
    left as it was and the temporary file is removed. Missing parent folders are created, and
    removed again if nothing is written. The temporary name keeps the suffix of `path`, since some
    writers choose their format by it. A file of remote storage is uploaded when it is whole.

    Raises:
        InputError: the file cannot be written, for example because the disk is full.
    """
    path = Path(path)
    if remote.url_of(path):
        try:
            with remote.uploading(path) as partial:
                yield partial
        except OSError as error:
            raise cannot_write(path, error) from error
        return
    partial = path.with_name(f".{uuid.uuid4().hex}.partial{path.suffix}")
    new_folders = [folder for folder in path.absolute().parents if not folder.exists()]
    try:
        make_folder(path.parent)
        yield partial
        if partial.is_file():
            with partial.open("rb") as file:
                os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            remove(partial)
            for folder in new_folders:
                folder.rmdir()  # fails, which ends the loop, if it is not empty


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a UTF-8 text file whole or not at all."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8", errors=_NOT_UTF_8, newline="\n")


def write_json(path: str | os.PathLike[str], value: Any, indent: int | None = 1) -> None:
    """Write a JSON file whole or not at all."""
    write_text(path, json.dumps(value, indent=indent) + "\n")


def write_csv(
    path: str | os.PathLike[str], header: Sequence[str], rows: Sequence[Sequence[object]]
) -> None:
    """Write a CSV file with a header line, whole or not at all."""
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    write_text(path, text.getvalue())


def make_folder(path: Path) -> None:
    """Create a folder and its parents, if they are missing."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        exists = isinstance(error, FileExistsError)
        reason = "a file has this name" if exists else error.strerror or error
        message = f"{path}: the folder cannot be created ({reason}){_cache_hint(path)}"
        raise InputError(message) from error


def check_writable(path: Path) -> None:
    """Raise InputError if no file or folder could be created at `path`; create nothing."""
    if remote.url_of(path):  # only an upload tells
        probe = path.with_name(f".{uuid.uuid4().hex}.partial")
        remote.upload(Path(os.devnull), probe)
        remote.remove(probe)
        return
    absolute = path.absolute()
    for place in (absolute, *absolute.parents):
        try:
            os.stat(place)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except (OSError, ValueError) as error:  # such as a name that is too long
            raise InputError(f"{path}: cannot be written ({error})") from error
        break
    folder = absolute.parent if place == absolute else place
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise InputError(f"{path}: cannot be written; {folder} is not a writable folder")


def remove(path: Path) -> None:
    """Remove a file or a folder, if it exists."""
    if remote.url_of(path):
        remote.remove(path)
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def cannot_write(path: str | os.PathLike[str], error: OSError) -> InputError:
    """Error that names the file and the system's reason, such as "No space left on device"."""
    return InputError(f"{path}: cannot be written ({error.strerror or error}){_cache_hint(path)}")


def _cache_hint(path: str | os.PathLike[str]) -> str:
    """End of a message about a file of the cache, which the user has not named."""
    if cache_folder() not in (Path(path), *Path(path).parents):
        return ""
    return f"; the environment variable {CACHE_VARIABLE} names another folder for the cache"


def not_the_file(path: str | os.PathLike[str]) -> str | None:
    """Say what was saved in place of a binary file: nothing, a Git LFS pointer or a web page."""
    if not os.path.isfile(path):
        return None
    with open(path, "rb") as file:
        head = file.read(512).lstrip().lower()
    if not head:
        return "is empty; fetch it again"
    if head.startswith(b"version https://git-lfs"):
        return (
            "is a Git LFS pointer, not the file itself: run `git lfs pull` in its repository, or "
            "fetch the file from its page"
        )
    if head.startswith((b"<!doctype html", b"<html", b"<?xml", b"<head", b"<body")):
        return "is a web page, not the file itself: save the target of the download link"
    return None


def read_text(path: str | os.PathLike[str]) -> str:
    """Text of a UTF-8 file, without a byte order mark; InputError if it is none."""
    with _reading(path) as local:
        return local.read_text(encoding="utf-8-sig")


def read_bytes(path: str | os.PathLike[str]) -> bytes:
    """Content of a file."""
    with remote.fetched(path) as local:
        return local.read_bytes()


@contextlib.contextmanager
def _reading(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield where to read a file; raise InputError, with the path, for the errors of reading."""
    try:
        with remote.fetched(path) as local:
            yield local
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is not text in UTF-8; save it with that encoding") from error


def read_json(
    path: str | os.PathLike[str], object_hook: Callable[[dict[str, Any]], Any] | None = None
) -> Any:
    """Value of a JSON file, `object_hook` of each object; InputError says why it is unreadable."""
    text = read_text(path)
    try:
        return json.loads(text, object_hook=object_hook)
    except (ValueError, RecursionError) as error:
        reason = not_the_file(path) or f"is not JSON ({error})"
        raise InputError(f"{path}: {reason}") from error


def read_json_object(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Fields of a JSON file that holds an object; InputError if it holds something else."""
    value = read_json(path)
    if not isinstance(value, dict):
        raise InputError(f"{path}: holds a JSON {type(value).__name__}, not an object with fields")
    return value


class Row(NamedTuple):
    """Cells of one line of a CSV file by column, and the number of the line."""

    number: int  # from 1, as an editor counts
    cells: dict[str, str]


def csv_lines(
    path: str | os.PathLike[str], encoding: str = "utf-8-sig"
) -> Iterator[tuple[int, list[str]]]:
    """Yield number and cells of each line of a CSV file that is not blank.

    Lines are numbered from 1, as an editor counts; spaces around cells are removed. The delimiter
    is a comma, a semicolon or a tab, whichever is most frequent in the first line that is not
    blank, or what a first line `sep=;` of a spreadsheet says.
    """
    number = 0
    with _reading(path) as local, open(local, newline="", encoding=encoding) as file:
        try:
            head = [file.readline()]
            while head[-1] and not head[-1].strip(_DELIMITERS + " \r\n"):
                head.append(file.readline())
            named = head[-1].rstrip("\r\n") in [f"sep={x}" for x in _DELIMITERS]
            delimiter = head[-1][4] if named else max(_DELIMITERS, key=head[-1].count)
            # strict: an unclosed quote would otherwise swallow the rest of the file.
            reader = csv.reader(
                itertools.chain(head, file),
                delimiter=delimiter,
                skipinitialspace=True,
                strict=True,
            )
            for row in itertools.islice(reader, len(head) if named else 0, None):
                number = reader.line_num
                cells = [cell.strip() for cell in row]
                if any(cells):
                    yield number, cells
        except csv.Error as error:
            raise InputError(f"{path}: the row after line {number} is not CSV ({error})") from error


def read_csv(
    path: str | os.PathLike[str],
    columns: Sequence[str] = (),
    optional: Sequence[str] = (),
    *,
    ragged: bool = False,
    encoding: str = "utf-8-sig",
) -> list[Row]:
    """Rows of a CSV file with a header. A repeated name is numbered: `noise`, `noise (2)`.

    The header must hold `columns`, and may hold `optional` ones, in any case. If rows are
    `ragged`, cells that they lack are empty, and those beyond the header are ignored.

    Raises:
        InputError: the file cannot be read, a column is missing or named twice, or a row has
            another number of cells than the header.
    """
    lines = list(csv_lines(path, encoding))
    if not lines:
        raise InputError(f"{path}: is empty; its first line must name the columns")
    known = {name.casefold(): name for name in (*columns, *optional)}
    names = [known.get(name.casefold(), name) for name in lines[0][1]]
    counts = [names[: index + 1].count(name) for index, name in enumerate(names)]
    header = [f"{x} ({n})" if n > 1 else x for x, n in zip(names, counts, strict=True)]
    for name in columns:
        if name not in header:
            found = ", ".join(names)[:80]
            raise InputError(f"{path}: has no column {name!r}; its first line names {found}")
    for name in known.values():
        if f"{name} (2)" in header and f"{name} (2)" not in columns:
            raise InputError(f"{path}: names the column {name!r} twice")
    for number, cells in lines[1:]:
        if not ragged and (len(cells) < len(header) or any(cells[len(header) :])):
            raise InputError(
                f"{path}: line {number} has {len(cells)} cells where the header has {len(header)}"
            )
    empty = itertools.repeat("")
    return [
        Row(number, dict(zip(header, itertools.chain(cells, empty), strict=False)))
        for number, cells in lines[1:]
    ]


class FinishedLog:
    """Log of finished work: one JSON object a line, which outlives a kill.

    Processes that share the work append to a file each and read all of them. A line that a kill cut
    off is ignored when the log is read, and removed when the log is opened to append. In remote
    storage the file is uploaded again and again, which takes at most a twentieth of the time.

    Args:
        folder: holds the log's files.
        name: stem of the files, such as `separated`.
        shard: (index, count) of this process.
    """

    def __init__(self, folder: Path, name: str, shard: tuple[int, int] = (0, 1)) -> None:
        index, count = shard
        suffix = f".{index}-of-{count}" if count > 1 else ""
        self._folder, self._name = folder, name
        self.path = folder / f"{name}{suffix}.jsonl"
        self._file: TextIO | None = None
        self._next_upload = 0.0

    def records(self) -> Iterator[dict[str, Any]]:
        """Records of all processes, in the order of the files' names."""
        for path in self.paths():
            yield from read_records(path)

    def paths(self) -> list[Path]:
        """Files of all processes."""
        if remote.url_of(self._folder) and self._file is None:  # others may have begun meanwhile
            remote.show(self._folder, max_depth=1)
        return sorted(self._folder.glob(f"{self._name}*.jsonl"))

    def add(self, record: Mapping[str, Any]) -> None:
        """Append a record; it is on the local disk when this returns."""
        try:
            if self._file is None:
                make_folder(self._folder)
                if remote.url_of(self.path) and self.path.exists():
                    with remote.fetched(self.path) as local:
                        shutil.copyfile(local, self.path)
                _drop_torn_line(self.path)
                self._file = self.path.open("a", encoding="utf-8")
            self._file.write(json.dumps(record) + "\n")
            self._file.flush()
        except OSError as error:
            raise cannot_write(self.path, error) from error
        start = time.monotonic()
        if remote.url_of(self.path) and start > self._next_upload:
            remote.upload(self.path, self.path)
            now = time.monotonic()
            self._next_upload = now + 20 * (now - start)

    def close(self) -> None:
        """Close the file; `add` opens it again."""
        if self._file is not None:
            with contextlib.suppress(OSError):  # of a line that `add` has reported
                self._file.close()
            self._file = None
            if remote.url_of(self.path):
                remote.upload(self.path, self.path)

    def __enter__(self) -> "FinishedLog":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_records(path: Path) -> Iterator[dict[str, Any]]:
    """JSON objects of the whole lines of a file; lines that are cut off or damaged are left out."""
    with _reading(path) as local:
        lines = local.read_bytes().splitlines(keepends=True)
    for line in lines:
        with contextlib.suppress(ValueError):
            record = json.loads(line) if line.endswith(b"\n") else None
            if isinstance(record, dict):
                yield record


def _drop_torn_line(path: Path) -> None:
    """Remove the last line of a file if a kill has cut it off."""
    with contextlib.suppress(FileNotFoundError), path.open("r+b") as file:
        content = file.read()
        file.truncate(content.rfind(b"\n") + 1)


def made_once(destination: Path, make: Callable[[Path], None]) -> Path:
    """Return `destination`, a file or folder of the cache, after `make(partial)` if it is missing.

    Several processes may make it at the same time; one of the results is kept.
    """
    if destination.exists():
        return destination
    try:
        with replacing(destination) as partial:
            make(partial)
    except InputError:
        if not destination.exists():  # a folder that another process has finished meanwhile
            raise
    return destination
