"""Storage of the page: a temporary folder for each server, and in it one for each answer."""

import contextlib
import dataclasses
import os
import secrets
import shutil
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import filelock

PREFIX = "audiosep_jax_demo_"
_LOCK = "in-use.lock"


@contextlib.contextmanager
def own_folder() -> Iterator[Path]:
    """Yield a new temporary folder for all files of a server; remove it at the end of the block.

    A lock in the folder, which the system releases however the process ends, marks it as in use.
    Folders of servers that were killed are removed here.
    """
    for path in Path(tempfile.gettempdir()).glob(f"{PREFIX}*/{_LOCK}"):
        if not path.parent.is_symlink() and os.access(path, os.W_OK):
            with contextlib.suppress(OSError), filelock.FileLock(path, blocking=False):
                shutil.rmtree(path.parent, ignore_errors=True)
    while True:
        folder = Path(tempfile.mkdtemp(prefix=PREFIX)).resolve()
        lock = filelock.FileLock(folder / _LOCK)
        lock.acquire()
        if folder.exists():  # unless another server found it before it was locked
            break
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        lock.release()


class Cancelled(Exception):
    """The visitor pressed Cancel or closed the page."""


@dataclasses.dataclass(frozen=True, eq=False)
class Job:
    """One request and the folder of its files, whose name cannot be guessed."""

    folder: Path
    parts: list[Path] = dataclasses.field(default_factory=list)  # they add up to the recording
    stop: threading.Event = dataclasses.field(default_factory=threading.Event)

    def check(self) -> None:
        """Raise Cancelled if nobody waits for the answer any more."""
        if self.stop.is_set():
            raise Cancelled


class Answers:
    """Running jobs, and each session's newest answer and its newest remix. Safe for threads."""

    def __init__(self, root: Path) -> None:
        self._root, self._lock = root, threading.Lock()
        self._running: set[tuple[str, Job]] = set()
        self._finished: dict[str, list[Job]] = {}  # of each session: its answer, and its remix

    @contextlib.contextmanager
    def job(self, session: str, *, remix: bool = False) -> Iterator[Job]:
        """Yield a new folder, which replaces the session's answer when the block succeeds.

        The answer's remix is replaced with it, or alone if the job is a remix.

        Cancelled is raised if the session was cancelled or left before the block ended.
        """
        job = Job(self._root / secrets.token_urlsafe(16))
        unwanted = [job]
        with self._lock:
            self._running.add((session, job))
        try:
            job.folder.mkdir(parents=True)
            yield job
            with self._lock:  # so that `leave` sees the job either running or finished
                job.check()
                finished = self._finished.get(session, [])
                self._finished[session], unwanted = [*finished[:remix], job], finished[remix:]
        finally:
            with self._lock:
                self._running.discard((session, job))
            _remove(unwanted)

    def parts(self, session: str) -> list[Path]:
        """Return the parts of the recording in the answer of a session; none without an answer."""
        with self._lock:
            return self._finished[session][0].parts if session in self._finished else []

    def cancel(self, session: str) -> None:
        """Stop the jobs of a session."""
        with self._lock:
            for owner, job in self._running:
                if owner == session:
                    job.stop.set()

    def leave(self, session: str) -> None:
        """Stop the jobs of a session and remove its answer."""
        self.cancel(session)
        with self._lock:
            jobs = self._finished.pop(session, [])
        _remove(jobs)

    def close(self) -> None:
        """Stop all jobs and remove all answers."""
        for session in {*self._finished, *(owner for owner, _ in self._running)}:
            self.leave(session)


def _remove(jobs: list[Job]) -> None:
    for job in jobs:
        shutil.rmtree(job.folder, ignore_errors=True)
