"""Workers: how many to start, how to wait for them, and how they end with their parent."""

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from pathlib import Path
from typing import Any

SIGNAL_SECONDS = 0.5  # longest delay of a signal, see `finished`


def available_cores(local_processes: int = 1) -> int:
    """Cores that this process may use: those it is bound to, within its container's quota.

    `local_processes` share the cores of the machine and the quota.
    """
    machine = os.cpu_count() or 1
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else machine
    return max(1, min(bound, int(min(machine, container_quota()) / local_processes)))


def container_quota(
    groups: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")
) -> float:
    """Cores that the control groups of this process may use, infinity for all.

    `groups` is the file system of control groups, `own` the file that names those of the process.
    """
    quotas = [float("inf")]
    for line in own.read_text().splitlines() if own.exists() else ():
        _, controllers, name = line.split(":", 2)  # no controllers: version 2
        folder = groups / controllers / name.lstrip("/")
        for group in (folder, *folder.parents):
            for names in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):
                with contextlib.suppress(OSError, ValueError):  # ValueError: `max`, for no limit
                    quota, period = " ".join((group / x).read_text() for x in names).split()
                    quotas += [int(quota) / int(period)] if int(quota) > 0 else []
    return min(quotas)


def finished(futures: Iterable[Future[Any]]) -> Iterator[Future[Any]]:
    """Yield futures as they finish, and let the main thread handle signals meanwhile.

    A signal that arrives just before the main thread waits is handled only after the wait, which
    `concurrent.futures.as_completed` does not limit: SIGTERM could be without effect for hours.
    """
    left = set(futures)
    while left:
        done, left = wait(left, SIGNAL_SECONDS, FIRST_COMPLETED)
        yield from done


def end_with_parent() -> None:
    """Leave Ctrl-C and SIGTERM to the parent, and exit when the parent is gone.

    Called in a worker process as it starts. Without it, a parent that is killed leaves its workers
    waiting for ever.
    """
    with contextlib.suppress(ValueError):  # not the main thread
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)

    def watch() -> None:
        parent = multiprocessing.parent_process()
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True, name="parent watch").start()
