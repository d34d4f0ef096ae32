"""Threads and processes that make batches ahead of time, and how they end."""

import contextlib
import multiprocessing
import os
import shutil
import signal
import sys
import threading
from collections.abc import Generator, Iterator
from multiprocessing import resource_tracker
from typing import Any

import grain
import numpy as np
from absl import flags

from audiosep_jax.data.data_config import DataConfig
from audiosep_jax.errors import InputError

# How many cores one process is given: its threads share one interpreter lock, which a row holds
# for about a sixth of its time (docs/pipeline.md).
CORES_PER_PROCESS = 8
_SHARED_MEMORY = "/dev/shm"


def available_cores() -> int:
    """Cores that this process may use."""
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def threads_and_workers(data: DataConfig, cores: int) -> tuple[int, int]:
    """(threads of each process that makes batches, worker processes), with -1 worked out.

    Threads alone while one interpreter can feed them, since a batch of a worker process is copied
    twice more (40 % slower on two cores); beyond that, a worker for every CORES_PER_PROCESS cores.
    """
    workers = data.num_workers
    if workers < 0:
        few = data.num_threads == 0 or cores <= CORES_PER_PROCESS
        workers = 0 if few else -(-cores // CORES_PER_PROCESS)
    threads = data.num_threads
    if threads < 0:
        threads = max(1, cores // max(workers, 1))
    return threads, workers


def num_buffered(data: DataConfig, batch_bytes: int) -> int:
    """Batches made ahead: `prefetch_batches`, or as many as `prefetch_megabytes` hold."""
    return max(1, min(data.prefetch_batches, data.prefetch_megabytes * 2**20 // batch_bytes))


def read(
    batches: grain.MapDataset,
    *,
    num_threads: int,
    num_workers: int,
    buffered: int,
    batch_bytes: int,
) -> Generator[dict[str, np.ndarray], None, None]:
    """The batches in order; closing the generator ends threads and processes."""
    if not num_workers:
        # Two batches at once, so that threads which finish the one go on with the next.
        options = grain.ReadOptions(
            num_threads=min(2, num_threads), prefetch_buffer_size=buffered if num_threads else 0
        )
        return _drain(iter(batches.to_iter_dataset(options)))
    # Grain keeps as many again of each worker's batches in a thread of ours.
    queued = max(1, buffered // (2 * num_workers))
    _check_shared_memory((2 * queued + 1) * num_workers * batch_bytes)
    _allow_unparsed_flags()
    dataset = batches.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=1))
    dataset = dataset.mp_prefetch(
        grain.MultiprocessingOptions(num_workers=num_workers, per_worker_buffer_size=queued),
        worker_init_fn=_start_worker,
    )
    return _drain_workers(dataset)


def _drain(iterator: Any) -> Generator[dict[str, np.ndarray], None, None]:
    try:
        yield from iterator
    finally:
        iterator.close()


def _drain_workers(dataset: Any) -> Generator[dict[str, np.ndarray], None, None]:
    iterator = iter(dataset)
    try:
        with _signals_held():
            batch = next(iterator)
        while True:
            # Workers hand over shared memory, which must not outlive them: copy it.
            copied = {key: np.array(rows) for key, rows in batch.items()}
            del batch
            yield copied
            del copied
            batch = next(iterator)
    finally:
        iterator.close()


@contextlib.contextmanager
def _signals_held() -> Iterator[None]:
    """Processes started here never see SIGINT and SIGTERM; for us these wait till the end of it.

    A worker inherits the mask. Were it only to ignore them itself, its first second was open.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    resource_tracker.ensure_running()  # as it starts, it lets the signals through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _allow_unparsed_flags() -> None:
    """Grain reads an absl flag when it starts workers, which fails outside `absl.app.run`."""
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()


def _check_shared_memory(needed_bytes: int) -> None:
    """A container's few megabytes would end a worker with a bus error."""
    if not os.path.isdir(_SHARED_MEMORY):
        return
    free = shutil.disk_usage(_SHARED_MEMORY).free
    if free < needed_bytes:
        sizes = f"{free >> 20} MB free and worker processes need {-(-needed_bytes >> 20)} MB"
        raise InputError(
            f"{_SHARED_MEMORY} has {sizes}: set data.num_workers=0 or a smaller "
            "data.prefetch_megabytes, or start the container with a larger --shm-size"
        )


def _start_worker(worker_index: int, worker_count: int) -> None:
    """Keep a worker off the accelerator, and let nothing but its parent's end end it."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    # A terminal or a scheduler signals every process; the parent wants to finish its step.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)

    def watch() -> None:
        parent = multiprocessing.parent_process()
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True, name="parent watch").start()
