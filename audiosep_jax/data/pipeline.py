"""Batches of mixtures from a source: a function of (seed, step), whoever computes them.

Position `step * batch_size + row` of one endless stream decides everything about a row: which clip
is its target (each clip once an epoch, in a new order) and the seed of all its random draws. Hosts,
threads and worker processes only share the positions out, and resuming is starting further on.
"""

from collections.abc import Generator, Mapping

import grain
import numpy as np

from audiosep_jax.data import workers
from audiosep_jax.data.augment import AugmentConfig
from audiosep_jax.data.data_config import DataConfig, num_segment_samples
from audiosep_jax.data.drawing import BadClips, check_captions
from audiosep_jax.data.mixing import MixingConfig
from audiosep_jax.data.mixture_rows import BatchMaker, RowMaker
from audiosep_jax.data.sources import Source
from audiosep_jax.data.validation import validation_set
from audiosep_jax.data.weighted import WeightedSources
from audiosep_jax.errors import InputError

__all__ = ["BadClips", "check_captions", "train_batches", "validation_set"]

# Positions that change places where data sets are mixed; far more than there are hosts. Grain's
# shuffle of a smaller range takes longer: 17 us a position here, 41 for 1024.
_WINDOW = 4096


def train_batches(
    source: Source,
    conditions: Mapping[str, np.ndarray],
    mixing: MixingConfig,
    data: DataConfig,
    augment: AugmentConfig | None = None,
    *,
    seed: int,
    batch_size: int,
    first_step: int,
    process_index: int = 0,
    process_count: int = 1,
) -> Generator[dict[str, np.ndarray], None, None]:
    """This host's rows `process_index::process_count` of global batches first_step, + 1, ...

    `conditions` maps every caption of the source to its (E,) embedding. An exception ends the
    stream for good. Call `close()` when done: it stops threads and worker processes.
    """
    if batch_size < 1 or batch_size % process_count:
        raise InputError(f"batch_size {batch_size} is no multiple of {process_count} hosts")
    check_captions(source, conditions)
    # Hashed, so that no epoch of one seed repeats an epoch of the next, as seed + epoch would.
    shuffle_seed, draw_seed = np.random.SeedSequence(seed).generate_state(2).tolist()
    num_threads, num_workers = workers.threads_and_workers(data, workers.available_cores())
    num_samples = num_segment_samples(data, source.sample_rate_hz)
    make_row = RowMaker(source, mixing, augment or AugmentConfig(), num_samples)
    maker = BatchMaker(make_row, draw_seed, num_threads)
    rows = _targets(source, shuffle_seed).map_with_index(_numbered)
    rows = rows[first_step * batch_size + process_index :: process_count]
    batch_bytes = maker.batch_bytes(batch_size // process_count)
    batches = workers.read(
        rows.batch(batch_size // process_count).map(maker),
        num_threads=num_threads,
        num_workers=num_workers,
        buffered=workers.num_buffered(data, batch_bytes),
        batch_bytes=batch_bytes,
    )
    return _with_conditions(batches, maker, conditions)


def _targets(source: Source, seed: int) -> grain.MapDataset:
    """The endless stream of targets; of several data sets, each goes through its own epochs."""
    if not isinstance(source, WeightedSources):
        return grain.MapDataset.range(len(source)).shuffle(seed=seed).repeat()
    window_seed, *seeds = np.random.SeedSequence(seed).generate_state(1 + len(source.sources))
    parts = [
        grain.MapDataset.range(start, end).shuffle(seed=int(part_seed)).repeat()
        for start, end, part_seed in zip(source.starts, source.starts[1:], seeds, strict=False)
    ]
    mixed = grain.MapDataset.mix(parts, weights=source.proportions)
    # Mixed in a fixed pattern: without this, one of two hosts got all of one of two data sets.
    # Grain adds the window's number to the seed, and takes 32 bits of it.
    return grain.experimental.WindowShuffleMapDataset(
        mixed, window_size=_WINDOW, seed=int(window_seed) >> 1
    )


def _numbered(position: int, target_index: int) -> np.ndarray:
    return np.array([position, target_index], np.int64)


def _with_conditions(
    batches: Generator[dict[str, np.ndarray], None, None],
    maker: BatchMaker,
    conditions: Mapping[str, np.ndarray],
) -> Generator[dict[str, np.ndarray], None, None]:
    source = maker.make_row.source
    try:
        for batch in batches:
            captions = [source.captions(i)[number] for i, number in batch.pop("query").tolist()]
            batch["condition"] = np.stack([conditions[x] for x in captions]).astype(np.float32)
            yield batch
            del batch
    finally:
        batches.close()
        maker.close()
