"""Where the page keeps its answers: a folder for each, until its reader is gone."""

import contextlib
import dataclasses
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path


class Cancelled(Exception):
    """The reader pressed Cancel, or left the page."""


@dataclasses.dataclass(frozen=True, eq=False)
class Job:
    """One request: the folder its files go to, and whether it is still wanted."""

    session: str
    token: str  # names the answer in addresses; cannot be guessed
    folder: Path
    started_seconds: float
    _stop: threading.Event = dataclasses.field(default_factory=threading.Event)

    def stop(self) -> None:
        self._stop.set()

    def check(self) -> None:
        """Raises Cancelled where nobody waits for the answer any more."""
        if self._stop.is_set():
            raise Cancelled


class Shelf:
    """Running jobs and finished answers by session, each session's newest; safe for threads."""

    def __init__(self, root: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._root, self._clock, self._lock = root, clock, threading.Lock()
        self._running: set[Job] = set()
        self._finished: dict[str, Job] = {}  # by token

    @contextlib.contextmanager
    def job(self, session: str) -> Iterator[Job]:
        """A new folder to work in; kept, in place of the session's last, where the block ends well.

        Raises:
            Cancelled: at the end of the block, or at any `check()` in it.
        """
        token = secrets.token_urlsafe(16)
        job = Job(session, token, self._root / token, self._clock())
        with self._lock:
            self._running.add(job)
        try:
            job.folder.mkdir(parents=True)
            yield job
            last = self._finish(job)
        except BaseException:
            with self._lock:
                self._running.discard(job)
            _remove([job])
            raise
        _remove(last)

    def file(self, token: str, name: str) -> Path | None:
        """A file of a finished answer, None where there is none of the name."""
        with self._lock:
            job = self._finished.get(token)
        # Compared with what is there: no name leads out of the folder.
        return next((x for x in job.folder.glob("*") if x.name == name), None) if job else None

    def cancel(self, session: str) -> bool:
        """Stops what the session has running; whether there was anything."""
        with self._lock:
            jobs = [job for job in self._running if job.session == session]
        for job in jobs:
            job.stop()
        return bool(jobs)

    def leave(self, session: str) -> None:
        """The reader is gone: stops the session's jobs and removes its answers."""
        self.cancel(session)
        self._drop(lambda job: job.session == session)

    def sweep(self, max_age_seconds: float) -> None:
        """Removes the answers to requests that are older."""
        oldest = self._clock() - max_age_seconds
        self._drop(lambda job: job.started_seconds < oldest)

    def clear(self) -> None:
        """Stops every job and removes every answer."""
        with self._lock:
            jobs = list(self._running)
        for job in jobs:
            job.stop()
        self._drop(lambda job: True)

    def _finish(self, job: Job) -> list[Job]:
        """Puts the answer on the shelf; those it replaces, for removal."""
        with self._lock:
            job.check()  # with the lock held, so that `leave` finds it on one side or the other
            self._running.discard(job)
            last = [x for x in self._finished.values() if x.session == job.session]
            for old in last:
                del self._finished[old.token]
            self._finished[job.token] = job
        return last

    def _drop(self, unwanted: Callable[[Job], bool]) -> None:
        with self._lock:
            jobs = [job for job in self._finished.values() if unwanted(job)]
            for job in jobs:
                del self._finished[job.token]
        _remove(jobs)


def _remove(jobs: list[Job]) -> None:
    for job in jobs:
        shutil.rmtree(job.folder, ignore_errors=True)
