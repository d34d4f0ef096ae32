"""Remote storage: files at URLs such as s3://bucket/name, through fsspec.

A path in a temporary folder stands for each URL. Empty files there have the sizes and the times of
the remote ones, so that folders are listed and compared like local ones. Their content is fetched
just before it is read, and uploaded whole when it is written. The path alone tells the URL, also
to a process on another machine.
"""

import atexit
import contextlib
import functools
import hashlib
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from audiosep_jax.errors import STAND_IN, InputError

_PREFIX = "audiosep_jax_"
_URL = re.compile(r"([a-z][a-z0-9+.:-]*:///?)(.*)", re.DOTALL)
# Fields of fsspec's file information that change with the content, in order of preference.
_VERSIONS = ("ETag", "etag", "md5Hash", "content_md5", "mtime", "modify", "LastModified", "created")


@functools.cache
def _folder() -> Path:
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def path_of(url: str) -> Path | None:
    """Path that stands for a URL; None if the text is a local path."""
    match = _URL.fullmatch(url)
    return _folder() / STAND_IN / quote(match[1], safe="") / match[2] if match else None


def url_of(path: str | os.PathLike[str]) -> str:
    """URL that a path stands for; empty if it is a local path."""
    head, _, name = os.fspath(path).partition(f"/{STAND_IN}/")[2].partition("/")
    return unquote(head) + name


def show(path: Path, max_depth: int | None = None) -> None:
    """Create an empty file for the file at a URL, or for every file below the folder there."""
    with _file_system(path) as (system, name):
        system.invalidate_cache()
        found = {}
        with contextlib.suppress(FileNotFoundError):
            found = system.find(name, maxdepth=max_depth, detail=True)
            if not found:  # `find` passes over errors
                system.ls(name)
        if max_depth is None and path.exists():  # of an earlier command of this process
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        for each, about in found.items():
            below = each[len(name) :].strip("/")
            if ".." not in below.split("/"):  # a key may be any text
                _show_file(path / below, about or system.info(each))


def state(path: Path) -> list[int]:
    """Size in bytes and time of the last change in ns, which differ once a file is rewritten."""
    if url_of(path) and not path.exists():  # in a worker on another machine
        with _file_system(path) as (system, name):
            return _state(system.info(name))
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns]


def is_file(path: str) -> bool:
    """Return whether a file exists, on the disk or at the URL that the path stands for."""
    if os.path.isfile(path) or not url_of(path) or _is_shown(path):
        return os.path.isfile(path)
    with _file_system(path) as (system, name):
        return bool(system.isfile(name))


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Any]:
    """Open a file to read some of its bytes; a file that this machine has written is local."""
    if not url_of(path) or _is_shown(path):
        with path.open("rb") as file:
            yield file
        return
    with _file_system(path) as (system, name), system.open(name, "rb") as file:
        yield file


@contextlib.contextmanager
def fetched(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a path with the content: `path` itself, or a copy that is removed after the block."""
    if not url_of(path):
        yield Path(path)
        return
    with _scratch(path) as local:
        with _file_system(path) as (system, name):
            system.get_file(name, str(local))
        yield local


@contextlib.contextmanager
def uploading(path: Path) -> Iterator[Path]:
    """Yield a temporary path, which is uploaded when the block succeeds."""
    with _scratch(path) as local:
        yield local
        upload(local, path)
    if _is_shown(path):
        with _file_system(path) as (system, name):
            _show_file(path, system.info(name))


def upload(local: Path, path: Path) -> None:
    """Upload a whole file; storage with folders gets it under a temporary name first."""
    with _file_system(path) as (system, name):
        if not name.startswith("/"):  # object storage, in which a whole file appears at once
            system.put_file(str(local), name)
            return
        folder = name.rpartition("/")[0]
        partial = f"{folder}/.{uuid.uuid4().hex}.partial"
        system.makedirs(folder or "/", exist_ok=True)
        try:
            system.put_file(str(local), partial)
            system.mv(partial, name)
        except BaseException:
            with contextlib.suppress(Exception):
                system.rm_file(partial)
            raise


def copy(source: Path, target: Path) -> None:
    """Copy a file from one URL to another of the same storage."""
    with _file_system(source) as (system, name), _file_system(target) as (_, other):
        if other.startswith("/"):
            system.makedirs(other.rpartition("/")[0], exist_ok=True)
        system.cp_file(name, other)


def remove(path: Path) -> None:
    """Remove what is at a URL, if anything is."""
    with _file_system(path) as (system, name), contextlib.suppress(FileNotFoundError):
        system.rm(name, recursive=True)


@contextlib.contextmanager
def _file_system(path: str | os.PathLike[str]) -> Iterator[tuple[Any, str]]:
    """Yield fsspec's file system and name of a file; InputError gives the URL and the reason."""
    import fsspec

    url = url_of(path)
    try:
        yield fsspec.core.url_to_fs(url)
    except FileNotFoundError as error:
        raise InputError(f"{url}: no such file") from error
    except Exception as error:  # each package has its own
        reason = str(error) or type(error).__name__
        raise InputError(f"{url}: cannot be used ({reason})") from error


@contextlib.contextmanager
def _scratch(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a path in a new folder that stands for the same URL, so that messages name it."""
    with tempfile.TemporaryDirectory(prefix=_PREFIX) as folder:
        local = Path(folder, STAND_IN + os.fspath(path).partition(f"/{STAND_IN}")[2])
        local.parent.mkdir(parents=True)
        yield local


def _is_shown(path: str | os.PathLike[str]) -> bool:
    return os.path.isdir(os.fspath(path).partition(f"/{STAND_IN}/")[0])


def _show_file(path: Path, about: dict[str, Any]) -> None:
    size, time_ns = _state(about)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    with path.open("wb") as file:
        file.truncate(size)
    os.utime(path, ns=(time_ns, time_ns))


def _state(about: dict[str, Any]) -> list[int]:
    """Return the size, and a time that is derived from the version."""
    version = next((str(about[key]) for key in _VERSIONS if about.get(key)), "")
    digest = hashlib.blake2b(version.encode(), digest_size=7).digest()
    return [about.get("size") or 0, int.from_bytes(digest)]
