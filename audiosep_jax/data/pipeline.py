"""Batches of mixtures from a source: a function of (seed, step), whoever computes them.

Position `step * batch_size + row` of one endless stream decides everything about a row: which
recording is its target (each once an epoch, in a new order) and the seed of all its random draws.
Hosts, threads and worker processes only share the positions out, and resuming is starting further
on.
"""

import contextlib
import os
import queue
import shutil
import signal
import threading
from collections.abc import Callable, Generator, Mapping
from multiprocessing import resource_tracker
from typing import Any

import grain
import numpy as np
from absl import flags

from audiosep_jax.data.augment import AugmentConfig
from audiosep_jax.data.batches import BatchMaker, ClipSampler, RowMaker
from audiosep_jax.data.mixing import MixingConfig
from audiosep_jax.data.source import Source
from audiosep_jax.data.sources import DataConfig, WeightedSources, num_segment_samples
from audiosep_jax.errors import InputError
from audiosep_jax.workers import available_cores, end_with_parent

Batch = dict[str, Any]
Batches = Generator[Batch, None, None]

# Positions that change places where data sets are mixed; far more than there are hosts. Grain's
# shuffle of a smaller range takes longer: 17 us a position here, 41 for 1024.
_WINDOW = 4096
# Rows of the stream, which would last for millions of years. Grain cannot tell the length of a
# longer one in batches of one row.
_NUM_ROWS = 2**60
# Cores for each process that makes batches: its threads share one interpreter lock, which a row
# holds for about a sixth of its time (docs/pipeline.md).
CORES_PER_PROCESS = 8
_READY_BATCHES = 2  # on their way to the devices, behind those that Grain buffers
_SHARED_MEMORY = "/dev/shm"


def train_batches(
    source: Source | ClipSampler,
    conditions: Mapping[str, np.ndarray] | None,
    mixing: MixingConfig,
    data: DataConfig,
    augment: AugmentConfig | None = None,
    *,
    seed: int,
    batch_size: int,
    first_step: int,
    process_index: int = 0,
    process_count: int = 1,
    local_processes: int = 1,
    place: Callable[[Batch], Batch] | None = None,
) -> Batches:
    """Return the global batches first_step, first_step + 1, ... without end.

    An exception ends the stream for good. Call `close()` when done: it ends threads and worker
    processes.

    Args:
        conditions: the (E,) embedding of every caption of the source, and of relational sentences;
            None for batches without conditions.
        batch_size: rows of a global batch; this host's are `process_index::process_count` of them.
        local_processes: number of hosts on this machine, which share its cores.
        place: applied to each batch ahead of time, in a thread; moves it to the devices.

    Raises:
        InputError: the batch cannot be shared among the hosts, or the source cannot be mixed.
    """
    if batch_size % process_count:
        raise InputError(f"batch_size {batch_size} is no multiple of {process_count} hosts")
    sampler = ClipSampler.of(source)
    # Hashed, so that no epoch of one seed repeats an epoch of the next, as seed + epoch would.
    shuffle_seed, draw_seed = np.random.SeedSequence(seed).generate_state(2).tolist()
    num_threads, num_workers = threads_and_workers(data, available_cores(local_processes))
    num_samples = num_segment_samples(data, sampler.source.sample_rate_hz)
    make_row = RowMaker(sampler, mixing, augment or AugmentConfig(), num_samples)
    maker = BatchMaker(make_row, draw_seed, num_threads)
    rows = target_recordings(sampler, shuffle_seed).map_with_index(_numbered)
    rows = rows[first_step * batch_size + process_index : _NUM_ROWS : process_count]
    own_rows = batch_size // process_count
    batch_bytes = 2 * 4 * own_rows * num_samples  # of its audio
    made = _make(
        rows.batch(own_rows).map(maker),
        num_threads=num_threads,
        num_workers=num_workers,
        buffered=max(1, num_buffered(data, batch_bytes) - _READY_BATCHES),
        batch_bytes=batch_bytes,
    )

    def finished(batch: Batch) -> Batch:
        """Copy out of shared memory, which must not outlive the workers; add the conditions."""
        batch = {key: np.array(rows) if num_workers else rows for key, rows in batch.items()}
        query, weight = batch.pop("query"), batch.pop("weight", None)
        if conditions is None:
            return place(batch) if place else batch
        captions = map(sampler.text, query.clip(0).ravel().tolist())
        rows = np.stack([conditions[x] for x in captions]).astype(np.float32)
        batch["condition"] = rows.reshape(*query.shape, -1)
        if weight is not None:
            sum_BE = np.einsum("bk,bke->be", weight, batch["condition"])
            batch["condition"] = sum_BE / np.linalg.norm(sum_BE, axis=1, keepdims=True)
        elif query.ndim > 1:
            own_K = np.arange(query.shape[1]) < mixing.num_queries
            batch["member"] = np.where(query < 0, 0, np.where(own_K, 1, -1)).astype(np.float32)
        return place(batch) if place else batch

    def stream() -> Batches:
        ahead = num_threads or num_workers
        with contextlib.closing(maker), contextlib.closing(made):
            yield from map_ahead(finished, made) if ahead else map(finished, made)

    return stream()


def target_recordings(sampler: ClipSampler, seed: int) -> grain.MapDataset:
    """Return the endless stream of targets; each data set goes through its own epochs."""
    if not isinstance(sampler.source, WeightedSources):
        return grain.MapDataset.range(sampler.num_recordings).shuffle(seed=seed).repeat()
    window_seed, *seeds = np.random.SeedSequence(seed).generate_state(len(sampler.edges))
    parts = [
        grain.MapDataset.range(start, end).shuffle(seed=int(part_seed)).repeat()
        for start, end, part_seed in zip(sampler.edges, sampler.edges[1:], seeds, strict=False)
    ]
    mixed = grain.MapDataset.mix(parts, weights=proportions(sampler.source.weights))
    # Mixed in a fixed pattern: without this, one of two hosts got all of one of two data sets.
    # Grain adds the window's number to the seed, and takes 32 bits of it.
    return grain.experimental.WindowShuffleMapDataset(
        mixed, window_size=_WINDOW, seed=int(window_seed) >> 1
    )


def proportions(weights: tuple[float, ...]) -> tuple[int, ...]:
    """Weights as whole numbers: Grain keeps no more of them than hundredths of the smallest."""
    return tuple(round(weight / min(weights) * 100) for weight in weights)


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


def map_ahead(change: Callable[[Any], Any], items: Generator[Any, None, None]) -> Batches:
    """Yield `change(item)` of each item, computed ahead of time in a thread.

    An exception there is raised here. Closing the generator ends the thread and `items`.
    """
    ready: queue.Queue[tuple[Any, BaseException | None]] = queue.Queue(_READY_BATCHES)
    closed = threading.Event()

    def work() -> None:
        _hold_signals()
        try:
            for item in items:
                ready.put((change(item), None))
                del item
                if closed.is_set():
                    return
        except BaseException as error:
            ready.put((None, error))
        finally:
            items.close()

    thread = threading.Thread(target=work, daemon=True, name="batches")
    thread.start()
    try:
        while True:
            item, error = ready.get()
            if error is not None:
                raise error
            yield item
            del item
    finally:
        closed.set()
        while thread.is_alive():  # it may wait for a place in the queue
            with contextlib.suppress(queue.Empty):
                ready.get(timeout=0.05)


def _numbered(position: int, recording: int) -> np.ndarray:
    return np.array([position, recording], np.int64)


def _make(
    batches: grain.MapDataset,
    *,
    num_threads: int,
    num_workers: int,
    buffered: int,
    batch_bytes: int,
) -> Batches:
    """Yield the batches in order; closing the generator ends threads and processes."""
    if num_workers:
        # Grain keeps as many again of each worker's batches in a thread of ours.
        queued = max(1, buffered // (2 * num_workers))
        _check_shared_memory((2 * queued + 1) * num_workers * batch_bytes)
        if not flags.FLAGS.is_parsed():  # Grain reads a flag when it starts workers
            flags.FLAGS.mark_as_parsed()
        dataset = batches.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=1))
        dataset = dataset.mp_prefetch(
            grain.MultiprocessingOptions(num_workers=num_workers, per_worker_buffer_size=queued),
            worker_init_fn=_start_worker,
        )
    else:
        # Two batches at once, so that threads which finish the one go on with the next.
        options = grain.ReadOptions(
            num_threads=min(2, num_threads), prefetch_buffer_size=buffered if num_threads else 0
        )
        dataset = batches.to_iter_dataset(options)

    def drain() -> Batches:
        with contextlib.closing(iter(dataset)) as iterator:
            yield from iterator

    return drain()


def _hold_signals() -> None:
    """Keep SIGINT and SIGTERM from this thread, and from processes that it starts.

    They inherit the mask. If workers only ignored the signals themselves, their first second would
    be open to them.
    """
    if hasattr(signal, "pthread_sigmask"):
        resource_tracker.ensure_running()  # as it starts, it unblocks the signals again
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})


def _check_shared_memory(needed_bytes: int) -> None:
    """Raise InputError where a container's few megabytes would end a worker with a bus error."""
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
    """Keep a worker off the accelerator, and let only its parent end it."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    end_with_parent()
