"""Batches of mixtures from a source: a function of (seed, step), whoever computes them.

Position `step * batch_size + row` of one endless stream decides everything about a row: which clip
is its target (each clip once an epoch, in a new order) and the seed of all its random draws. Hosts,
threads and worker processes only share the positions out, and resuming is starting further on.
"""

import dataclasses
import functools
import os
import threading
import time
from collections.abc import Collection, Generator, Iterable, Mapping
from typing import Any

import grain
import numpy as np
from absl import flags

from audiosep_jax.audio_io import AudioError
from audiosep_jax.data import mixing as mixing_lib
from audiosep_jax.data.mixing import MixingConfig, caption_key
from audiosep_jax.data.sources import DataConfig, Source
from audiosep_jax.errors import InputError

_MAX_TRIES = 8  # unreadable clips in a row before a draw gives up
_BLIND_DRAWS = 64  # draws before looking through the whole source for a clip that is allowed
_AUDIBLE_ENERGY = 1e-8  # -80 dB of full scale
_WATCH_SECONDS = 2.0


def train_batches(
    source: Source,
    conditions: Mapping[str, np.ndarray],
    mixing: MixingConfig,
    data: DataConfig,
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
    maker = MixtureMaker(source, conditions, mixing, num_segment_samples(source, data))
    # Hashed, so that no epoch of one seed repeats an epoch of the next, as seed + epoch would.
    shuffle_seed, draw_seed = np.random.SeedSequence(seed).generate_state(2)
    rows = grain.MapDataset.range(len(source)).shuffle(seed=int(shuffle_seed)).repeat()
    rows = rows.random_map(maker, seed=int(draw_seed))
    rows = rows[first_step * batch_size + process_index :: process_count]
    return _read(rows.batch(batch_size // process_count), data)


def num_segment_samples(source: Source, data: DataConfig) -> int:
    """Length S of a training segment."""
    return max(1, round(data.segment_seconds * source.sample_rate_hz))


@dataclasses.dataclass(frozen=True)
class MixtureMaker:
    """Turns the index of a target and a generator into one row of a batch."""

    source: Source
    conditions: Mapping[str, np.ndarray]
    mixing: MixingConfig
    num_samples: int

    def __call__(self, target_index: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """The row; target and interferers that cannot be read are drawn anew."""
        bad: list[int] = []
        index, audio_S = load_clip(self.source, rng, bad, first=int(target_index))
        target_S = mixing_lib.crop_or_pad(audio_S, self.num_samples, rng)
        captions = self.source.captions(index)
        caption = captions[int(rng.integers(len(captions)))]
        avoid = _keys(captions)
        interferers_KS = [
            mixing_lib.crop_or_pad(
                load_clip(self.source, rng, bad, avoid=avoid)[1], self.num_samples, rng
            )
            for _ in range(int(rng.integers(1, self.mixing.max_mix_num)))
        ]
        mixture_S, target_S = mixing_lib.mix(target_S, interferers_KS, self.mixing, rng)
        return {
            "mixture": mixture_S,
            "target": target_S,
            "condition": np.asarray(self.conditions[caption], np.float32),
            "bad_clips": self._padded(bad),
        }

    def _padded(self, bad: list[int]) -> np.ndarray:
        padding = [-1] * (_MAX_TRIES * self.mixing.max_mix_num - len(bad))
        return np.array(bad + padding, np.int32)


def load_clip(
    source: Source,
    rng: np.random.Generator,
    bad: list[int],
    *,
    avoid: Collection[str] = (),
    first: int | None = None,
) -> tuple[int, np.ndarray]:
    """(index, audio_S) of `first` or else a random clip; unreadable ones are appended to `bad`.

    No caption of the clip has its key in `avoid`, so that a mixture never holds two clips that one
    sentence describes.
    """
    for attempt in range(_MAX_TRIES):
        index = _draw(source, rng, avoid, bad) if attempt or first is None else first
        try:
            return index, source.load(index)
        except AudioError as error:
            bad.append(index)
            reason = error
    raise InputError(f"{_MAX_TRIES} clips drawn one after another were unusable, last: {reason}")


def _draw(
    source: Source, rng: np.random.Generator, avoid: Collection[str], bad: Collection[int]
) -> int:
    """A random clip with no caption to avoid and not known to be bad."""

    def allowed(index: int) -> bool:
        return index not in bad and _keys(source.captions(index)).isdisjoint(avoid)

    for _ in range(_BLIND_DRAWS):
        index = int(rng.integers(len(source)))
        if allowed(index):
            return index
    candidates = [index for index in range(len(source)) if allowed(index)]
    if not candidates:
        without = f" without the captions {', '.join(sorted(avoid))!r}" if avoid else ""
        raise InputError(f"no clip{without} is left to draw; {len(bad)} were unusable")
    return candidates[int(rng.integers(len(candidates)))]


def check_captions(source: Source, conditions: Mapping[str, np.ndarray]) -> None:
    """Every caption has a condition, and every clip another one that it can be mixed with."""
    if not len(source):
        raise InputError("the data set has no clips")
    clips_of: dict[str, set[int]] = {}
    first_of: dict[frozenset[str], int] = {}
    for index in range(len(source)):
        keys = frozenset(_keys(source.captions(index)))
        first_of.setdefault(keys, index)
        for key in keys:
            clips_of.setdefault(key, set()).add(index)
        for caption in source.captions(index):
            if caption not in conditions:
                raise ValueError(f"no condition for the caption {caption!r}")
    for keys, index in first_of.items():
        same = [clips_of[key] for key in keys]
        # The sum of sizes is cheap and nearly always tells; the union is exact.
        if sum(map(len, same)) >= len(source) and len(set().union(*same)) == len(source):
            what = f"{source.name(index)} ({source.captions(index)[0]!r})"
            raise InputError(f"no clip with another caption to mix with {what}")


def _keys(captions: Iterable[str]) -> set[str]:
    return {caption_key(caption) for caption in captions}


# ---------------------------------------------------------------- threads and worker processes


def _read(
    batches: grain.MapDataset, data: DataConfig
) -> Generator[dict[str, np.ndarray], None, None]:
    """The batches, prefetched; the default ReadOptions would hold 500 of them in memory."""
    buffered = max(data.prefetch_batches, data.num_threads) if data.num_threads else 0
    options = grain.ReadOptions(num_threads=data.num_threads, prefetch_buffer_size=buffered)
    dataset = batches.to_iter_dataset(options)
    if data.num_workers:
        _allow_unparsed_flags()
        dataset = dataset.mp_prefetch(
            grain.MultiprocessingOptions(
                num_workers=data.num_workers,
                per_worker_buffer_size=-(-data.prefetch_batches // data.num_workers),
            ),
            worker_init_fn=functools.partial(_start_worker, os.getpid()),
        )
    iterator = iter(dataset)
    try:
        for batch in iterator:
            # Workers hand over shared memory, which must not outlive them: copy it.
            yield (
                {key: np.array(rows) for key, rows in batch.items()} if data.num_workers else batch
            )
    finally:
        iterator.close()


def _allow_unparsed_flags() -> None:
    """Grain reads an absl flag when it starts workers, which fails outside `absl.app.run`."""
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()


def _start_worker(parent_pid: int, worker_index: int, worker_count: int) -> None:
    """Keep a worker off the accelerator, and end it when its parent is killed."""
    os.environ["JAX_PLATFORMS"] = "cpu"

    def watch() -> None:
        while os.getppid() == parent_pid:
            time.sleep(_WATCH_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="parent watch").start()


# ------------------------------------------------------------------------------ bad clips


class BadClips:
    """The clips that training skipped: each is named once, too many of them end the run."""

    def __init__(self, source: Source, max_bad_share: float) -> None:
        self.source = source
        self.max_bad_share = max_bad_share
        self.indices: set[int] = set()

    def update(self, bad_clips_BM: np.ndarray) -> list[str]:
        """One line for each clip not seen before; InputError above `max_bad_share`."""
        new = sorted(set(np.asarray(bad_clips_BM).ravel().tolist()) - self.indices - {-1})
        self.indices.update(new)
        lines = [f"skipping {self.source.name(index)}: {self._reason(index)}" for index in new]
        share = len(self.indices) / len(self.source)
        if new and share > self.max_bad_share:
            count = f"{len(self.indices)} of {len(self.source)} clips ({share:.1%}) are unusable"
            limit = f"more than data.max_bad_share={self.max_bad_share:g}"
            raise InputError(f"{count}, {limit}; last: {lines[-1].removeprefix('skipping ')}")
        return lines

    def _reason(self, index: int) -> str:
        try:
            self.source.load(index)
        except AudioError as error:
            return str(error).removeprefix(f"{self.source.name(index)}: ")
        return "could not be read, though it can be now"


# ----------------------------------------------------------------------------- validation


def validation_set(
    source: Source,
    conditions: Mapping[str, np.ndarray],
    mixing: MixingConfig,
    data: DataConfig,
    *,
    seed: int,
    num_mixtures: int,
    gain_db: int = 0,
) -> dict[str, Any]:
    """N fixed mixtures of two clips at exactly `gain_db` of SNR, on the keys of the batch schema.

    `wrong_condition` (N, E) is the embedding of a caption that describes neither clip (that of the
    interferer where there is no third caption), `bad_clips` a list of the indices skipped.
    """
    check_captions(source, conditions)
    rng = np.random.default_rng(np.random.SeedSequence(seed))
    num_samples = num_segment_samples(source, data)
    rounds = -(-num_mixtures // len(source))
    order = np.concatenate([rng.permutation(len(source)) for _ in range(rounds)])
    bad: list[int] = []
    rows = [
        _validation_row(source, int(first), num_samples, gain_db, mixing.declipped_peak, rng, bad)
        for first in order[:num_mixtures]
    ]
    return {
        "mixture": np.stack([row.mixture_S for row in rows]),
        "target": np.stack([row.target_S for row in rows]),
        "condition": np.stack([conditions[row.caption] for row in rows]),
        "wrong_condition": np.stack([conditions[row.wrong_caption] for row in rows]),
        "caption": [row.caption for row in rows],
        "source_id": [source.name(row.index) for row in rows],
        "bad_clips": sorted(set(bad)),
    }


@dataclasses.dataclass(frozen=True)
class _ValidationRow:
    index: int
    mixture_S: np.ndarray
    target_S: np.ndarray
    caption: str
    wrong_caption: str


def _validation_row(
    source: Source,
    first: int,
    num_samples: int,
    snr_db: float,
    peak: float,
    rng: np.random.Generator,
    bad: list[int],
) -> _ValidationRow:
    index, target_S = _audible_segment(source, num_samples, rng, bad, first=first)
    captions = source.captions(index)
    avoid = _keys(captions)
    other, interferer_S = _audible_segment(source, num_samples, rng, bad, avoid=avoid)
    mixture_S, target_S = mixing_lib.mix_at_snr(target_S, interferer_S, snr_db, peak)
    return _ValidationRow(
        index,
        mixture_S,
        target_S,
        _pick(captions, rng),
        _pick(_wrong_captions(source, index, other, rng), rng),
    )


def _audible_segment(
    source: Source,
    num_samples: int,
    rng: np.random.Generator,
    bad: list[int],
    *,
    avoid: Collection[str] = (),
    first: int | None = None,
) -> tuple[int, np.ndarray]:
    """Like `load_clip`, cropped; a stretch of silence has no SNR, so another clip is drawn."""
    for attempt in range(_BLIND_DRAWS):
        index, audio_S = load_clip(source, rng, bad, avoid=avoid, first=None if attempt else first)
        segment_S = mixing_lib.crop_or_pad(audio_S, num_samples, rng)
        if mixing_lib.energy(segment_S) > _AUDIBLE_ENERGY:
            return index, segment_S
    raise InputError(f"{_BLIND_DRAWS} stretches drawn for validation were all silent")


def _wrong_captions(
    source: Source, target: int, interferer: int, rng: np.random.Generator
) -> tuple[str, ...]:
    """Captions of a clip that shares none with the two, else those of the interferer."""
    both = _keys(source.captions(target)) | _keys(source.captions(interferer))
    try:
        return source.captions(_draw(source, rng, both, ()))
    except InputError:
        return source.captions(interferer)


def _pick(captions: tuple[str, ...], rng: np.random.Generator) -> str:
    return captions[int(rng.integers(len(captions)))]
