"""Rows of a batch, each a function of its target and its random numbers, and batches of them."""

import concurrent.futures
import dataclasses
import functools
import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from audiosep_jax.data import augment as augment_lib
from audiosep_jax.data import mixing as mixing_lib
from audiosep_jax.data.augment import AugmentConfig
from audiosep_jax.data.drawing import MAX_TRIES, draw_clip, keys, load_clip
from audiosep_jax.data.mixing import MixingConfig
from audiosep_jax.data.sources import Source


@dataclasses.dataclass(frozen=True)
class Row:
    """One mixture; `query` is (index of a clip, number of its caption)."""

    mixture_S: np.ndarray
    target_S: np.ndarray
    query: tuple[int, int]
    bad: list[int]


@dataclasses.dataclass(frozen=True)
class RowMaker:
    """Turns the index of a target and random generators into a row."""

    source: Source
    mixing: MixingConfig
    augment: AugmentConfig
    num_samples: int

    @property
    def num_bad(self) -> int:
        """The most clips that a row can find unusable."""
        return MAX_TRIES * self.mixing.max_mix_num

    def __call__(self, target_index: int, make_rng: Callable[[int], np.random.Generator]) -> Row:
        """The row; target and interferers that cannot be read are drawn anew.

        Augmentation draws from `make_rng(1)`, the rest from `make_rng(0)`: augmentation moves no
        clip, crop or gain.
        """
        rng = make_rng(0)
        bad: list[int] = []
        index, audio_S = load_clip(self.source, rng, bad, first=int(target_index))
        target_S = mixing_lib.crop_or_pad(audio_S, self.num_samples, rng)
        captions = self.source.captions(index)
        query = index, int(rng.integers(len(captions)))
        num_interferers = int(rng.integers(1, self.mixing.max_mix_num))
        if not self.augment.any:
            _, interferers_KS = self._interferers(num_interferers, keys(captions), rng, bad)
            mixed = mixing_lib.mix(target_S, interferers_KS, self.mixing, rng)
            return Row(*mixed, query, bad)

        augment_rng = make_rng(1)
        plan = augment_lib.draw_plan(self.augment, augment_rng)
        others, interferers_KS = self._interferers(
            0 if plan.silent_interferer else num_interferers, keys(captions), rng, bad
        )
        how = plan, self.augment, self.source.sample_rate_hz, augment_rng
        target_S = augment_lib.augment_target(target_S, *how)
        interferers_KS = [augment_lib.augment_clip(audio_S, *how) for audio_S in interferers_KS]
        mixture_S, target_S = mixing_lib.mix(target_S, interferers_KS, self.mixing, rng)
        if plan.absent_target:
            query = self._query_of_none((index, *others), augment_rng)
            target_S = np.zeros_like(target_S)
        return Row(mixture_S, target_S, query, bad)

    def _interferers(
        self, number: int, avoid: set[str], rng: np.random.Generator, bad: list[int]
    ) -> tuple[list[int], list[np.ndarray]]:
        indices, audio_KS = [], []
        for _ in range(number):
            index, audio_S = load_clip(self.source, rng, bad, avoid=avoid)
            indices.append(index)
            audio_KS.append(mixing_lib.crop_or_pad(audio_S, self.num_samples, rng))
        return indices, audio_KS

    def _query_of_none(self, indices: tuple[int, ...], rng: np.random.Generator) -> tuple[int, int]:
        """A caption that describes none of the clips."""
        heard = set().union(*(keys(self.source.captions(index)) for index in indices))
        other = draw_clip(self.source, rng, heard, ())
        return other, int(rng.integers(len(self.source.captions(other))))


def row_rng(key: np.ndarray, position: int, stream: int) -> np.random.Generator:
    """The generator of a row: Philox counts from the row's place, so rows share no number."""
    return np.random.Generator(np.random.Philox(key=key, counter=[0, 0, stream, position]))


class BatchMaker:
    """Makes batches in place, their rows shared among threads.

    Rows come as (position in the stream, index of the target). Instead of a condition the batch
    has `query` (B, 2), so that worker processes need no embeddings.
    """

    def __init__(self, make_row: RowMaker, seed: int, num_threads: int) -> None:
        self.make_row = make_row
        self.key = np.random.Philox(seed).state["state"]["key"]
        self.num_threads = num_threads
        self._lock = threading.Lock()
        self._pool: concurrent.futures.ThreadPoolExecutor | None = None

    def batch_bytes(self, batch_size: int) -> int:
        """Size of a batch's audio."""
        return 2 * 4 * batch_size * self.make_row.num_samples

    def __call__(self, rows_B2: np.ndarray) -> dict[str, np.ndarray]:
        """The batch of these rows."""
        shape = len(rows_B2), self.make_row.num_samples
        batch: dict[str, np.ndarray] = {
            "mixture": np.empty(shape, np.float32),
            "target": np.empty(shape, np.float32),
            "query": np.empty((len(rows_B2), 2), np.int64),
            "bad_clips": np.full((len(rows_B2), self.make_row.num_bad), -1, np.int32),
        }

        def fill(number: int) -> None:
            position, target_index = rows_B2[number].tolist()
            row = self.make_row(target_index, functools.partial(row_rng, self.key, position))
            batch["mixture"][number] = row.mixture_S
            batch["target"][number] = row.target_S
            batch["query"][number] = row.query
            batch["bad_clips"][number, : len(row.bad)] = row.bad

        if self.num_threads < 2:
            for number in range(len(rows_B2)):
                fill(number)
        else:
            list(self._executor().map(fill, range(len(rows_B2))))
        return batch

    def close(self) -> None:
        """Ends the threads; rows under way are finished."""
        with self._lock:
            if self._pool is not None:
                self._pool.shutdown(wait=False, cancel_futures=True)

    def _executor(self) -> concurrent.futures.ThreadPoolExecutor:
        with self._lock:
            if self._pool is None:
                self._pool = concurrent.futures.ThreadPoolExecutor(self.num_threads, "rows")
            return self._pool

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in vars(self).items() if not k.startswith("_")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _lock=threading.Lock(), _pool=None)
