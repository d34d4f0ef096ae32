"""Runs the tasks of a plan on all cores; a killed run leaves no process behind."""

import concurrent.futures
import contextlib
import dataclasses
import multiprocessing
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import connection
from pathlib import Path

from audiosep_jax.errors import InputError
from audiosep_jax.preparing.plan import Plan, tasks_of
from audiosep_jax.preparing.writer import Part, Settings, write_part


@dataclasses.dataclass(frozen=True)
class Spent:
    """What a run took, over all its processes."""

    num_recordings: int = 0
    core_seconds: float = 0.0  # at work on recordings, summed over the processes
    peak_megabytes: int = 0  # of the process that took most


def num_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def run_tasks(
    plan: Plan,
    tasks: Sequence[int],
    settings: Settings,
    num_workers: int,
    progress: Callable[[int], object],
) -> Spent:
    """Does the tasks; calls `progress` with the number of recordings each time some are done.

    Raises:
        InputError: the disk is full, or a worker process was killed; what is finished is kept.
    """
    folder, spent = plan.path.parent, Spent()
    if num_workers == 1 or len(tasks) < 2:
        for task in tasks:
            spent = _add(spent, _work(plan.path, plan.begins[task], folder, task, settings))
            progress(plan.sizes[task])
        return spent
    pool = concurrent.futures.ProcessPoolExecutor(
        min(num_workers, len(tasks)),
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_start_worker,
    )
    try:
        futures = {
            pool.submit(_work, plan.path, plan.begins[task], folder, task, settings): task
            for task in tasks
        }
        for future in concurrent.futures.as_completed(futures):
            spent = _add(spent, future.result())
            progress(plan.sizes[futures[future]])
    except BrokenProcessPool as error:
        raise InputError(
            "a worker process was killed, perhaps for want of memory; run the same command again "
            "to go on, with fewer --workers"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
    return spent


def _work(plan: Path, begin: int, folder: Path, task: int, settings: Settings) -> Spent:
    started = time.perf_counter()
    recordings = tasks_of(plan, begin)
    part: Part = write_part(recordings, folder, task, settings)
    del part  # it is read again from its file, by whoever puts the data set together
    return Spent(len(recordings), time.perf_counter() - started, peak_kilobytes() // 1024)


def peak_kilobytes() -> int:
    """The most memory that this process has held."""
    status = Path("/proc/self/status")
    if status.exists():  # Linux, whose getrusage counts what the parent held before as well
        peaks = [x for x in status.read_text().splitlines() if x.startswith("VmHWM")]
        return int(peaks[0].split()[1])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform != "darwin" else peak // 1024


def _add(a: Spent, b: Spent) -> Spent:
    return Spent(
        a.num_recordings + b.num_recordings,
        a.core_seconds + b.core_seconds,
        max(a.peak_megabytes, b.peak_megabytes),
    )


def _start_worker() -> None:
    """Ends the worker when its parent is killed; Ctrl-C is the parent's to handle."""
    with contextlib.suppress(ValueError):  # not in a main thread
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            connection.wait([parent.sentinel])
            os._exit(1)

    threading.Thread(target=watch, daemon=True, name="parent watch").start()
