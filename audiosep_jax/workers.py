"""Workers: threads, processes or the machines of a Dask cluster, which do tasks in any order."""

import asyncio
import contextlib
import functools
import itertools
import multiprocessing
import os
import pickle
import queue
import signal
import socket
import sys
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

from audiosep_jax.errors import InputError

SIGNAL_SECONDS = 0.5  # longest delay of a signal, see `finished`
CONNECT_SECONDS = 5.0
MAX_SUBMITTED = 10_000  # tasks at a time: the memory of a scheduler is limited
_one_task = threading.Lock()  # in a process of a cluster, whose threads share the current folder

Submit = Callable[..., "Future[Any]"]  # as `Executor.submit`
Task = TypeVar("Task")


class WorkerError(InputError):
    """A worker of a cluster cannot do any task as this process would."""


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


def finished(
    submit: Submit,
    function: Callable[[Task], Any],
    tasks: Iterable[Task],
    failed: Callable[[Task, Exception], Any] | None = None,
) -> Iterator[tuple[Task, Any]]:
    """Call a function for each task in workers; yield tasks and results as they finish.

    The main thread handles signals meanwhile. A signal that arrives just before it waits is handled
    only after the wait, which `concurrent.futures.as_completed` does not limit: SIGTERM could be
    without effect for hours.

    Args:
        failed: makes a result of the error of a task; by default the error is raised.
    """
    left: dict[Future[Any], Task] = {}
    ready: queue.SimpleQueue[Future[Any]] = queue.SimpleQueue()
    waiting = iter(tasks)
    while True:
        for task in itertools.islice(waiting, MAX_SUBMITTED - len(left)):
            future = submit(function, task)
            left[future] = task
            future.add_done_callback(ready.put)
        if not left:
            return
        try:
            future = ready.get(timeout=SIGNAL_SECONDS)
        except queue.Empty:
            continue
        task = left.pop(future)
        try:
            result = future.result()
        except Exception as error:
            if failed is None:
                raise
            result = failed(task, error)
        del future  # while it exists, a cluster repeats the task when its worker is lost
        yield task, result


# ---------------------------------------------------------------------- cluster


@contextlib.contextmanager
def cluster(address: str) -> Iterator[Submit]:
    """Connect to a Dask scheduler, and yield what submits tasks to its workers.

    Workers do a task in the current folder of this process, one at a time in each process of
    theirs. The task of a worker that was lost is done by another one. A function is loaded once in
    each process, with what it refers to.

    Raises:
        InputError: the package `distributed` is missing, no scheduler answers, or packages differ.
    """
    try:
        import cloudpickle
        import distributed
    except ImportError as error:
        hint = "pip install 'audiosep-jax[cluster]'"
        raise InputError(f"a cluster needs the package distributed: {hint}") from error

    async def reach() -> None:
        how = distributed.Security().get_connection_args("client")
        comm = await distributed.core.connect(address, CONNECT_SECONDS, **how)
        await comm.close()

    @functools.cache
    def shared(function: Callable[[Task], Any]) -> Any:
        """Pickled function in the memory of workers, to which it is sent once."""
        return client.submit(bytes, cloudpickle.dumps(function), pure=False)

    def submit(function: Callable[[Task], Any], task: Task) -> "Future[Any]":
        pickled = cloudpickle.dumps(task)  # the scheduler shall not import what it needs
        return executor.submit(_call_in_folder, folder, _versions(), shared(function), pickled)

    try:  # without this, a client waits for ever for a server of another kind
        asyncio.run(asyncio.wait_for(reach(), 2 * CONNECT_SECONDS))
    except (OSError, ValueError) as error:
        reason = str(error) or "timeout"
        raise InputError(f"{address}: no Dask scheduler answers ({reason})") from error
    warnings.filterwarnings("ignore", module="distributed.client")  # versions, large functions
    with distributed.Client(address, set_as_default=False) as client:
        versions = client.run(_versions, on_error="return")
        try:
            versions["the scheduler"] = client.run_on_scheduler(_versions)
        except ImportError as error:
            versions["the scheduler"] = error
        for name, found in versions.items():
            if found != _versions():
                raise InputError(f"{address}: {name} has {found}, not {_versions()}")
        executor, folder = client.get_executor(pure=False), os.getcwd()
        try:
            yield submit
        except (CancelledError, distributed.scheduler.KilledWorker) as error:
            reason = str(error).partition("\n")[0] or "the connection to the scheduler was lost"
            raise InputError(f"{address}: {reason}; the same command continues") from error


@functools.cache
def _versions() -> str:
    found = [f"python {sys.version_info.major}.{sys.version_info.minor}"]
    for name in ("audiosep-jax", "distributed", "jax"):
        with contextlib.suppress(metadata.PackageNotFoundError):  # a checkout, not installed
            found.append(f"{name} {metadata.version(name)}")
    return ", ".join(found)


def _call_in_folder(folder: str, versions: str, function: bytes, task: bytes) -> Any:
    """Call a function in the current folder of the process that submitted it; run by a worker."""
    host = socket.gethostname()
    if _versions() != versions:
        raise WorkerError(f"the worker {host} has {_versions()}, not {versions}; install the same")
    with _one_task:
        try:
            os.chdir(folder)
        except OSError as error:
            reason = f"the worker {host} cannot open {folder} ({error.strerror})"
            raise WorkerError(f"{reason}; workers must see the same files") from error
        return _loaded(function)(pickle.loads(task))


@functools.lru_cache(maxsize=2)
def _loaded(function: bytes) -> Callable[[Any], Any]:
    """Load a function, with what it keeps, once in a process."""
    return pickle.loads(function)


def raise_if_cancelled() -> None:
    """Raise CancelledError if nobody waits any more for the task that this worker is doing."""
    from distributed import get_worker

    worker = get_worker()
    task = worker.state.tasks.get(worker.get_current_task())
    if task is None or task.state != "executing":
        raise CancelledError


# ---------------------------------------------------------------------- threads, processes


@contextlib.contextmanager
def threads(number: int) -> Iterator[Submit]:
    """Start threads, and yield what submits tasks to them; at the end, waiting ones are dropped."""
    pool = ThreadPoolExecutor(number)
    try:
        yield pool.submit
    finally:
        pool.shutdown(cancel_futures=True)


@contextlib.contextmanager
def processes(num_workers: int) -> Iterator[Submit]:
    """Start worker processes on this machine, and yield what submits tasks to them.

    An error waits for the tasks that are being done; an interrupt kills them.

    Raises:
        InputError: a worker process was killed.
    """
    spawn = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(num_workers, spawn, initializer=end_with_parent)
    try:
        yield pool.submit
    except BrokenProcessPool as error:
        raise InputError(
            "a worker process was killed, perhaps because memory ran out; run the same command "
            "again to go on, with fewer workers"
        ) from error
    except BaseException as error:
        for worker in [] if isinstance(error, Exception) else multiprocessing.active_children():
            worker.kill()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


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
