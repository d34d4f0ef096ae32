"""Files of models from a local folder or from a hub, through the hub's own client.

The client compares only the size of what it fetches. This module compares the content of each file
with the hash that names it in the client's cache, and reports errors in one line.
"""

import contextlib
import difflib
import fnmatch
import functools
import glob
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import huggingface_hub  # imports its parts, which are slow to import, when they are used
from huggingface_hub import constants, errors

from audiosep_jax.errors import InputError
from audiosep_jax.files import cache_folder, made_once, remove, write_text

SPACES = "spaces/"  # prefix of a Space's id, as in its address
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
_SHA256, _GIT_SHA1 = re.compile(r"[0-9a-f]{64}"), re.compile(r"[0-9a-f]{40}")
OR = "|"  # separates alternative file names

Choose = Callable[..., list[str]]


def snapshot(
    source: str, files: Sequence[str], *, revision: str | None = None, optional: Sequence[str] = ()
) -> Path:
    """Return the folder with the `files` of a model; fetch those that are not in the cache.

    Args:
        source: a local folder, or a hub id: `owner/name`, or `spaces/owner/name` for a Space.
        files: names relative to the folder, or patterns such as `*.json`; each must exist. Of
            `model.safetensors|pytorch_model.bin`, the first that exists is used.
        revision: branch, tag or commit of the hub's repository.
        optional: as `files`, but they need not exist.

    Raises:
        InputError: there is no such folder or repository, a file is missing or damaged, or it is
            neither in the cache nor reachable.
    """
    choose = functools.partial(_choose, source, files, optional)
    if os.path.isdir(source):
        choose(_listing(Path(source)))
        return Path(source)
    if not is_hub_id(source):
        raise InputError(f"{source}: no such folder, and not a hub id (owner/name){_near(source)}")
    kind = "space" if source.startswith(SPACES) else "model"
    repo = {"repo_id": source.removeprefix(SPACES), "repo_type": kind, "revision": revision}
    folder, chosen = _fetch(source, repo, choose)
    for name in chosen:
        _verify(folder / name, f"{source}: {name}")
    return folder


def is_hub_id(source: str) -> bool:
    """Return True if `source` has the form of a hub id: `owner/name` or `spaces/owner/name`."""
    name = source.removeprefix(SPACES)
    return bool(_HUB_ID.fullmatch(name)) and all(part.strip(".") for part in name.split("/"))


def converted(source: Path, name: str, convert: Callable[[Path, Path], None]) -> Path:
    """Return what `convert(source, destination)` makes, once for each content of `source`.

    `name` is the destination's. Change it whenever `convert` comes to make something else.
    """
    destination = cache_folder("converted", file_hash(source), name)
    return made_once(destination, lambda partial: convert(source, partial))


def file_hash(path: Path) -> str:
    """SHA-256 of a file as 64 hex digits. The file is read once for each place, size and time."""
    blob = path.resolve()
    if _SHA256.fullmatch(blob.name) and blob.parent.name == "blobs":
        return blob.name  # in the hub's cache, where `snapshot` has verified it
    return _remembered(blob, "sha256", hashlib.sha256())


def upload(folder: Path, repo_id: str, *, private: bool) -> str:
    """Upload a folder's files to a repository, which is created if needed; return its address."""
    if not is_hub_id(repo_id) or repo_id.startswith(SPACES):
        raise InputError(f"{repo_id}: is not the hub id of a model, owner/name")
    api = huggingface_hub.HfApi()
    try:
        address = api.create_repo(repo_id, private=private, exist_ok=True)
        api.upload_folder(repo_id=repo_id, folder_path=folder)
    except Exception as error:  # as in `_fetch`
        where = f"{constants.ENDPOINT} ({_first_line(error)})"
        raise InputError(f"{repo_id}: cannot be written at {where}; are you logged in?") from error
    return str(address)


def _choose(
    source: str,
    files: Sequence[str],
    optional: Sequence[str],
    names: Iterable[str],
    where: str = "",
) -> list[str]:
    """Choose the names that `files` and `optional` describe; `where` ends the message of an error.

    Raises:
        InputError: none of the names is one of `files`.
    """
    names, chosen = sorted(names), []
    for wanted in (*files, *optional):
        found = [fnmatch.filter(names, pattern) for pattern in wanted.split(OR)]
        matches = next(filter(None, found), [])
        if not matches and wanted in files:
            raise InputError(f"{source}: has no {wanted.replace(OR, ' or ')}{where}")
        chosen += [name for name in matches if name not in chosen]
    return chosen


def _fetch(source: str, repo: dict[str, Any], choose: Choose) -> tuple[Path, list[str]]:
    """Return the folder in the client's cache and the chosen names in it."""
    at = f"at {constants.ENDPOINT}"
    try:
        info: Any = huggingface_hub.HfApi().repo_info(**repo)
        chosen = choose([sibling.rfilename for sibling in info.siblings or ()], f" {at}")
        patterns = [glob.escape(name) for name in chosen]
        folder = Path(huggingface_hub.snapshot_download(**repo, allow_patterns=patterns))
        for name in chosen:
            os.stat(folder / name)
        return folder, chosen
    except InputError:
        raise
    except errors.GatedRepoError as error:
        raise InputError(f"{source}: requires a login and accepted terms {at}") from error
    except errors.RevisionNotFoundError as error:
        raise InputError(f"{source}: has no revision {repo['revision']} {at}") from error
    except errors.RepositoryNotFoundError as error:
        reason = f"no such folder here and no such repository {at} (if it is private, log in)"
        raise InputError(f"{source}: {reason}{_near(source)}") from error
    except Exception as error:  # the client passes on errors of its HTTP library, of any class
        reason = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else _first_line(error)
        where = (
            f" in the cache {constants.HF_HUB_CACHE}, and {constants.ENDPOINT} cannot be reached "
            f"({reason}); fetch it once with a network, or give a local folder{_near(source)}"
        )
    return _from_cache(repo, choose, where)


def _from_cache(repo: dict[str, Any], choose: Choose, where: str) -> tuple[Path, list[str]]:
    """As `_fetch`, without a network."""
    cached = functools.partial(huggingface_hub.snapshot_download, **repo, local_files_only=True)
    try:
        folder = Path(cached(allow_patterns=[]))
    except errors.LocalEntryNotFoundError:
        return Path(), choose([], where)  # raises
    return folder, choose(_listing(folder), where)


def _listing(folder: Path) -> list[str]:
    """Names of the files below a folder, relative to it and with `/`."""
    return [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]


def _near(source: str) -> str:
    """End of a message for a mistyped path: the nearest name in the folder that should hold it."""
    path = Path(source)
    try:
        names = [entry.name for entry in path.parent.iterdir() if entry.name != path.name]
    except (OSError, ValueError):
        return ""
    near = difflib.get_close_matches(path.name, names, n=1)
    return f"; did you mean {path.with_name(near[0])}?" if near else ""


def _verify(path: Path, what: str) -> None:
    """Raise InputError, and remove the file from the cache, if its content is not the hub's."""
    blob = path.resolve()
    if blob == path or blob.parent.name != "blobs":  # without links, no name holds the hash
        return
    if _SHA256.fullmatch(blob.name):
        found = _remembered(blob, "sha256", hashlib.sha256())
    elif _GIT_SHA1.fullmatch(blob.name):
        git = hashlib.sha1(b"blob %d\0" % blob.stat().st_size, usedforsecurity=False)
        found = _remembered(blob, "git", git)
    else:
        return
    if found != blob.name:
        for file in (path, blob):
            with contextlib.suppress(OSError):
                remove(file)
        raise InputError(
            f"{what} was damaged on its way (its hash is {found[:12]}, the hub's "
            f"{blob.name[:12]}); it has been removed from the cache, try again"
        )


def _remembered(path: Path, kind: str, digest: "hashlib._Hash") -> str:
    """Hash of a file, stored under everything that changes when the file does.

    `HfApi.verify_repo_checksums` cannot take its place: it needs a network and reads all files
    again at each call.
    """
    status = path.stat()
    stamp = [kind, str(path), status.st_size, status.st_mtime_ns, status.st_ino]
    note = cache_folder("hashes", hashlib.sha256(json.dumps(stamp).encode()).hexdigest())
    with contextlib.suppress(OSError):
        return note.read_text(encoding="ascii")
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    with contextlib.suppress(InputError):  # without a writable cache, it is computed again
        write_text(note, digest.hexdigest())
    return digest.hexdigest()


def _first_line(error: BaseException) -> str:
    if isinstance(error, errors.HfHubHTTPError) and error.response is not None:
        return f"HTTP {error.response.status_code}"
    missing = isinstance(error, errors.LocalEntryNotFoundError)
    cause = error.__cause__ if missing else None
    text = str(cause or error).strip() or type(error).__name__
    return " ".join(text.splitlines()[0].split())[:200]
