"""A folder for what a server writes, also taken away after a server that was killed."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

try:
    import fcntl
except ImportError:  # Windows: what a killed server left is not told from what is in use
    fcntl = None  # type: ignore[assignment]

PREFIX = "audiosep_jax_demo_"
LOCK = "in-use"


@contextlib.contextmanager
def own_folder() -> Iterator[Path]:
    """A new folder in the system's temporary folder, removed at the end of the block.

    The system takes a lock from whoever holds it when that process ends, however it ends: folders
    whose lock is free are of servers that were killed, and are removed here.
    """
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        _remove_if_left(folder)
    with (
        tempfile.TemporaryDirectory(prefix=PREFIX) as name,
        open(Path(name, f"{LOCK}.new"), "w", encoding="utf-8") as lock,
    ):
        # Under its name only once it is locked, so that nobody finds it free meanwhile.
        _try_lock(lock)
        os.rename(lock.name, Path(name, LOCK))
        yield Path(name)


def _remove_if_left(folder: Path) -> None:
    if fcntl is None or folder.is_symlink():
        return
    # Without a lock, or not to be opened since it is another user's: left alone.
    with contextlib.suppress(OSError), open(folder / LOCK, "r+", encoding="utf-8") as lock:
        if folder.stat().st_uid == os.getuid() and _try_lock(lock):
            shutil.rmtree(folder, ignore_errors=True)


def _try_lock(lock: IO[str]) -> bool:
    if fcntl is None:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
