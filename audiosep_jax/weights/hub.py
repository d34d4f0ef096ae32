"""Files of models, from a local folder or from a hub through its client; conversions made once.

What the client leaves to us: the content of a file is compared with the hash that names it (the
client compares its size only), and errors are told in one line.
"""

import contextlib
import dataclasses
import fnmatch
import glob
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from huggingface_hub import HfApi, constants, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from audiosep_jax.errors import InputError

# A Space is written as in its address.
SPACES = "spaces/"
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
_SHA256, _GIT_SHA1 = re.compile(r"[0-9a-f]{64}"), re.compile(r"[0-9a-f]{40}")
# `files` may name several files of which the first that is there is taken.
OR = "|"


def snapshot(
    source: str,
    files: Sequence[str],
    *,
    option: str,
    revision: str | None = None,
    optional: Sequence[str] = (),
) -> Path:
    """Folder that holds `files` of a model, fetched where it is not here yet.

    Args:
        source: a local folder, or a hub id: `owner/name`, for a Space `spaces/owner/name`.
        files: names relative to the folder, or patterns such as `*.json`; each must be there.
            Of `model.safetensors|pytorch_model.bin` the first that is there is taken.
        option: how a user gives a local folder instead, such as `--config.text.model=DIR`.
        revision: branch, tag or commit of the hub's repository.
        optional: as `files`, fetched where there are any.

    Raises:
        InputError: there is no such folder or repository, a file is missing or damaged, or it is
            not in the cache and cannot be fetched.
    """
    wanted = _Wanted(source, files, optional, option, revision)
    if os.path.isdir(source):
        wanted.choose(_listing(Path(source)), f"; {option} takes another folder")
        return Path(source)
    if not is_hub_id(source):
        reason = "no such folder, and no hub id (owner/name)"
        raise InputError(f"{source}: {reason}; {option} takes either")
    folder, chosen = _fetch(wanted)
    for name in chosen:
        _verify(folder / name, f"{source}: {name}")
    return folder


def is_hub_id(source: str) -> bool:
    """Whether `source` has the form of a hub id, `owner/name` or `spaces/owner/name`."""
    name = source.removeprefix(SPACES)
    return bool(_HUB_ID.fullmatch(name)) and all(part.strip(".") for part in name.split("/"))


def cache_folder() -> Path:
    """Where our conversions lie: `AUDIOSEP_JAX_CACHE`, by default `~/.cache/audiosep_jax`."""
    named = os.environ.get("AUDIOSEP_JAX_CACHE")
    return Path(named).expanduser() if named else Path.home() / ".cache" / "audiosep_jax"


def converted(source: Path, name: str, convert: Callable[[Path, Path], None]) -> Path:
    """What `convert(source, destination)` makes, a file or folder, once per content of `source`.

    `name` is the destination's; change it whenever `convert` would make something else.
    """
    destination = cache_folder() / "converted" / file_hash(source) / name
    if destination.exists():
        return destination
    # The name's ending tells some writers the format.
    partial = destination.with_name(f"{os.getpid()}.partial.{name}")
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        convert(source, partial)
        with contextlib.suppress(FileExistsError):
            _rename(partial, destination)
    except OSError as error:
        raise InputError(
            f"{destination}: cannot be written ({error.strerror}); "
            "the environment variable AUDIOSEP_JAX_CACHE names another folder"
        ) from error
    finally:
        remove(partial)
    return destination


def file_hash(path: Path) -> str:
    """SHA-256 of a file as 64 hex digits; read once, then known by its place, size and time."""
    blob = path.resolve()
    if _SHA256.fullmatch(blob.name) and blob.parent.name == "blobs":
        return blob.name  # the hub's cache, of which `snapshot` has checked it
    return _remembered(blob, "sha256", lambda: _digest(blob, hashlib.sha256()))


def upload(folder: Path, repo_id: str, *, private: bool) -> str:
    """Puts a folder's files into a repository, made where missing; its address."""
    if not is_hub_id(repo_id) or repo_id.startswith(SPACES):
        raise InputError(f"{repo_id}: is no hub id of a model, owner/name")
    api = HfApi()
    try:
        address = api.create_repo(repo_id, private=private, exist_ok=True)
        api.upload_folder(repo_id=repo_id, folder_path=folder)
    except Exception as error:  # as in `_fetch`
        where = f"{constants.ENDPOINT} ({_first_line(error)})"
        raise InputError(f"{repo_id}: cannot be written at {where}; are you logged in?") from error
    return str(address)


def remove(path: Path) -> None:
    """Removes a file or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    with contextlib.suppress(OSError):
        path.unlink()


@dataclasses.dataclass(frozen=True)
class _Wanted:
    """What is asked of the hub."""

    source: str
    files: Sequence[str]
    optional: Sequence[str]
    option: str
    revision: str | None

    @property
    def repo_type(self) -> str:
        return "space" if self.source.startswith(SPACES) else "model"

    @property
    def repo_id(self) -> str:
        return self.source.removeprefix(SPACES)

    def choose(self, names: Iterable[str], hint: str) -> list[str]:
        """The names meant; InputError, with `hint` at its end, where one is missing."""
        names, chosen = sorted(names), []
        for wanted in (*self.files, *self.optional):
            patterns = wanted.split(OR)
            found = [[x for x in names if fnmatch.fnmatchcase(x, pattern)] for pattern in patterns]
            matches = next(filter(None, found), [])
            if not matches and wanted in self.files:
                raise InputError(f"{self.source}: has no {wanted.replace(OR, ' or ')}{hint}")
            chosen += [name for name in matches if name not in chosen]
        return chosen


def _fetch(wanted: _Wanted) -> tuple[Path, list[str]]:
    """Folder in the client's cache and the chosen names in it."""
    source, option, at = wanted.source, wanted.option, f"at {constants.ENDPOINT}"
    try:
        return _download(wanted)
    except InputError:
        raise
    except GatedRepoError as error:
        raise InputError(f"{source}: wants its terms accepted, and a login, {at}") from error
    except RevisionNotFoundError as error:
        raise InputError(f"{source}: has no revision {wanted.revision} {at}") from error
    except RepositoryNotFoundError as error:
        reason = f"no such folder here and no such repository {at} (if it is private, log in)"
        raise InputError(f"{source}: {reason}; {option} takes either") from error
    except HFValidationError as error:
        raise InputError(f"{source}: is no hub id: {_first_line(error)}") from error
    except Exception as error:  # what the client lets through of its HTTP library has no base
        return _from_cache(wanted, error)


def _download(wanted: _Wanted) -> tuple[Path, list[str]]:
    api = HfApi()
    ask = api.space_info if wanted.repo_type == "space" else api.model_info
    info = ask(wanted.repo_id, revision=wanted.revision)
    names = [sibling.rfilename for sibling in info.siblings or ()]
    chosen = wanted.choose(names, f" at {constants.ENDPOINT}; {wanted.option} takes another")
    patterns = [glob.escape(name) for name in chosen]
    folder = Path(
        snapshot_download(
            wanted.repo_id,
            repo_type=wanted.repo_type,
            revision=wanted.revision,
            allow_patterns=patterns,
        )
    )
    for name in chosen:
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{name} was not fetched")
    return folder, chosen


def _from_cache(wanted: _Wanted, why: Exception) -> tuple[Path, list[str]]:
    """As `_download`, without a network; one line on what is missing where it is not all there."""
    told = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else _first_line(why)
    hint = (
        f" in the cache {constants.HF_HUB_CACHE}, and {constants.ENDPOINT} cannot be asked ({told})"
        f"; fetch it once with a network, or give a local folder with {wanted.option}"
    )
    try:
        folder = Path(
            snapshot_download(
                wanted.repo_id,
                repo_type=wanted.repo_type,
                revision=wanted.revision,
                local_files_only=True,
                allow_patterns=[],  # `choose` looks whether ours are there
            )
        )
    except LocalEntryNotFoundError as error:
        files = " ".join(wanted.files).replace(OR, " or ")
        raise InputError(f"{wanted.source}: has no {files}{hint}") from error
    return folder, wanted.choose(_listing(folder), hint)


def _listing(folder: Path) -> list[str]:
    """Names, relative and with `/`, of the files below a folder that can be opened."""
    return [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]


def _verify(path: Path, what: str) -> None:
    """InputError, and the file gone from the cache, where its content is not what the hub's was."""
    blob = path.resolve()
    if blob == path or blob.parent.name != "blobs":  # a system without links has no name to tell
        return
    if _SHA256.fullmatch(blob.name):
        found = _remembered(blob, "sha256", lambda: _digest(blob, hashlib.sha256()))
    elif _GIT_SHA1.fullmatch(blob.name):
        git = hashlib.sha1(b"blob %d\0" % blob.stat().st_size, usedforsecurity=False)
        found = _remembered(blob, "git", lambda: _digest(blob, git))
    else:
        return
    if found != blob.name:
        remove(path)
        remove(blob)
        raise InputError(
            f"{what} was damaged on its way (its hash is {found[:12]}, the hub's "
            f"{blob.name[:12]}); it has been removed from the cache, try again"
        )


def _digest(path: Path, digest: "hashlib._Hash") -> str:
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _remembered(path: Path, kind: str, compute: Callable[[], str]) -> str:
    """A hash of a file, stored under all that changes when the file does."""
    status = path.stat()
    stamp = [kind, str(path), status.st_size, status.st_mtime_ns, status.st_ino]
    key = hashlib.sha256(json.dumps(stamp).encode()).hexdigest()
    note = cache_folder() / "hashes" / key
    with contextlib.suppress(OSError):
        return note.read_text(encoding="ascii")
    found = compute()
    with contextlib.suppress(OSError):  # a cache that cannot be written costs time only
        note.parent.mkdir(parents=True, exist_ok=True)
        partial = note.with_name(f"{key}.{os.getpid()}")
        partial.write_text(found, encoding="ascii")
        os.replace(partial, note)
    return found


def _rename(partial: Path, destination: Path) -> None:
    """Renames, and leaves alone what another process has finished meanwhile."""
    try:
        os.rename(partial, destination)
    except OSError:
        if not destination.exists():
            raise


def _first_line(error: BaseException) -> str:
    if isinstance(error, HfHubHTTPError) and error.response is not None:
        return f"HTTP {error.response.status_code}"
    cause = error.__cause__ if isinstance(error, LocalEntryNotFoundError) else None
    text = str(cause or error).strip() or type(error).__name__
    return " ".join(text.splitlines()[0].split())[:200]
