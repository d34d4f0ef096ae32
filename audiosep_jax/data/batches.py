"""Batches of mixtures: each row is a function of its target and its random numbers."""

import collections
import concurrent.futures
import dataclasses
import functools
import threading
from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

import numpy as np

from audiosep_jax.audio.files import AudioError
from audiosep_jax.data import augment as augment_lib
from audiosep_jax.data import cues
from audiosep_jax.data import mixing as mixing_lib
from audiosep_jax.data.augment import AugmentConfig
from audiosep_jax.data.mixing import MixingConfig
from audiosep_jax.data.source import Source
from audiosep_jax.data.sources import WeightedSources
from audiosep_jax.encoders.encoder import query_of
from audiosep_jax.errors import InputError

# Unusable clips in a row before a draw gives up. `data.max_bad_share` is the limit that counts:
# even where it allows 0.98, a draw fails once in a billion times.
MAX_TRIES = 1000
_MAX_REPORTED = 8  # unusable clips in a row's `bad_clips`, for each clip of the mixture
_BLIND_DRAWS = 64  # draws before looking through the whole source for a clip that is allowed
_KEPT_SEARCHES = 16
_CHECKED_SAMPLES = 1 << 21
_MOST_KINDS = 2  # kinds of captions of one clip: sentences and pictures


class ClipSampler:
    """Draws random clips of a source that may be in one mixture.

    Every recording is drawn equally often, or those of each source of a `WeightedSources` by its
    weight; then one of the recording's clips.

    Raises:
        InputError: the source is empty, or has a clip that cannot be mixed with any other, since
            each shares a caption with it.
    """

    def __init__(self, source: Source) -> None:
        if not len(source):
            raise InputError("the data set has no clips")
        self.source = source
        self.captions = source.captions
        lonely = self.captions.lonely()
        if lonely is not None:
            what = f"{source.name(lonely)} ({self.captions[lonely][0]!r})"
            raise InputError(f"no clip with another caption to mix with {what}")
        self._recordings = source.recordings
        self.num_recordings = source.num_recordings
        # Number of the first recording of each data set, and the number of recordings.
        self.edges: tuple[int, ...] = (0, self.num_recordings)
        self._shares = np.ones(1)
        if isinstance(source, WeightedSources):
            self.edges = tuple(np.searchsorted(self._recordings, source.starts).tolist())
            self._shares = np.cumsum(source.weights) / sum(source.weights)
        self._searches: dict[frozenset[int], np.ndarray] = {}

    @classmethod
    def of(cls, source: "Source | ClipSampler") -> "ClipSampler":
        """The sampler of a source, or the sampler itself."""
        return source if isinstance(source, ClipSampler) else cls(source)

    def clip_of(self, recording: int, rng: np.random.Generator) -> int:
        """Index of a random clip of a recording."""
        first, end = self._recordings[recording : recording + 2].tolist()
        return int(rng.integers(first, end)) if end - first > 1 else int(first)

    def caption_of(self, index: int, rng: np.random.Generator) -> int:
        """Number of a random caption of a clip."""
        numbers = self.captions.numbers(index)
        return numbers[int(rng.integers(len(numbers)))]

    def text(self, number: int) -> str:
        """Return the caption or relational sentence with this number in a row's `query`."""
        texts = self.captions.texts
        return texts[number] if number < len(texts) else cues.SENTENCES[number - len(texts)]

    def cue(self, target_S: np.ndarray, rest_S: np.ndarray, rng: np.random.Generator) -> int | None:
        """Draw a relational sentence that is true of the target; return its number, or None."""
        sentences = cues.holding(target_S, rest_S, self.source.sample_rate_hz)
        if not sentences:
            return None
        sentence = sentences[int(rng.integers(len(sentences)))]
        return len(self.captions.texts) + cues.SENTENCES.index(sentence)

    def blend(self, index: int, rng: np.random.Generator) -> tuple[list[int], list[float]]:
        """Draw a caption of each kind that a clip has: (numbers, weights), one kind repeated."""
        kinds = collections.defaultdict[str, list[int]](list)
        for number in self.captions.numbers(index):
            kinds[query_of(self.captions.texts[number])[0]].append(number)
        numbers = [own[int(rng.integers(len(own)))] for own in kinds.values()]
        weights = rng.uniform(1e-6, 1, _MOST_KINDS)  # of which only the ratio counts
        return (numbers * _MOST_KINDS)[:_MOST_KINDS], weights.tolist()

    def captions_of(self, index: int, rng: np.random.Generator) -> list[int]:
        """Number of a random caption of each sound of a clip, in random order."""
        numbers = [own[int(rng.integers(len(own)))] for own in self.captions.sounds(index)]
        return [numbers[k] for k in rng.permutation(len(numbers))]

    def draw(
        self,
        rng: np.random.Generator,
        avoid: frozenset[int] = frozenset(),
        bad: Collection[int] = (),
    ) -> int:
        """Index of a random clip without the keys in `avoid`, and not among the `bad` ones."""
        for _ in range(_BLIND_DRAWS):
            index = self.clip_of(self._any_recording(rng), rng)
            if index not in bad and self.captions.keys(index).isdisjoint(avoid):
                return index
        allowed = self._allowed(avoid)
        if bad:
            allowed = allowed[~np.isin(self._recordings[allowed], list(bad))]
        if not len(allowed):
            names = f" without the captions {self.captions.name_of_keys(avoid)!r}" if avoid else ""
            raise InputError(f"no clip{names} is left to draw; {len(bad)} were unusable")
        return self.clip_of(int(allowed[rng.integers(len(allowed))]), rng)

    def load(
        self,
        rng: np.random.Generator,
        num_samples: int,
        bad: list[int],
        *,
        avoid: frozenset[int] = frozenset(),
        first: int | None = None,
        **crop: Any,
    ) -> tuple[int, np.ndarray]:
        """(index, audio_S) of a random crop of `first`, or else of a random clip.

        Clips that cannot be read are appended to `bad`. No caption of the clip has its key in
        `avoid`, so that a mixture never holds two clips that one sentence describes.

        Args:
            crop: options of `crop_or_pad`.
        """
        last = ""
        for attempt in range(MAX_TRIES):
            try:
                index = self.draw(rng, avoid, bad) if attempt or first is None else first
            except InputError as error:
                raise InputError(f"{error}{last}") from error
            try:
                audio_S = self.source.load(index)
                return index, mixing_lib.crop_or_pad(audio_S, num_samples, rng, **crop)
            except AudioError as error:
                bad.append(index)
                last = f", last: {error}"
        raise InputError(f"{MAX_TRIES} clips drawn one after another were unusable{last}")

    def _any_recording(self, rng: np.random.Generator) -> int:
        which = 0
        if len(self._shares) > 1:
            last = len(self._shares) - 1
            which = min(int(np.searchsorted(self._shares, rng.random(), "right")), last)
        return self.edges[which] + int(rng.integers(self.edges[which + 1] - self.edges[which]))

    def _allowed(self, avoid: frozenset[int]) -> np.ndarray:
        """Recordings without the keys, ascending; the last results are kept."""
        allowed = self._searches.get(avoid)
        if allowed is None:
            clips = self.captions.without(avoid)
            allowed = np.flatnonzero(np.isin(self._recordings[:-1], clips))
            if len(self._searches) >= _KEPT_SEARCHES:
                self._searches = {}
            self._searches[avoid] = allowed
        return allowed

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_searches": {}}


class Row(NamedTuple):
    """One mixture; `query` is the number of a caption, `bad` the clips that could not be read.

    With several queries `query` lists their captions' numbers, first `mixing.num_queries` for the
    target, and -1 where there is none. Numbers after those of all captions are relational
    sentences. `weights` are those of a blend of queries.
    """

    mixture_S: np.ndarray
    target_S: np.ndarray
    query: int | list[int]
    bad: list[int]
    weights: Sequence[float] = ()


@dataclasses.dataclass(frozen=True)
class RowMaker:
    """Turns the number of a target's recording and random generators into a row."""

    sampler: ClipSampler
    mixing: MixingConfig
    augment: AugmentConfig
    num_samples: int

    def __post_init__(self) -> None:
        index, count = self.sampler.captions.most_sounds()
        if 1 < self.mixing.num_queries < count:
            name, field = self.sampler.source.name(index), "mixing.num_queries"
            raise InputError(f"{name} has {count} sounds; set {field}={count} or more, or 1")

    @property
    def num_queries(self) -> int:
        """Queries of each row: one, or enough for all sounds of the two clips."""
        return 2 * self.mixing.num_queries if self.mixing.num_queries > 1 else 1

    def __call__(self, recording: int, make_rng: Callable[[int], np.random.Generator]) -> Row:
        """Make a row; a target or an interferer that cannot be read is drawn anew.

        Augmentation draws from `make_rng(1)`, and for single clips from `make_rng(2)`, relational
        sentences from `make_rng(3)`, blends from `make_rng(4)`, the rest from `make_rng(0)`, so
        that neither augmentation nor queries change any clip, crop or gain.
        """
        row = self._by_caption(recording, make_rng)
        if self.mixing.cue_probability:
            rng = make_rng(3)
            if rng.random() < self.mixing.cue_probability:
                rest_S = row.mixture_S - row.target_S
                cue = self.sampler.cue(row.target_S, rest_S, rng)
                return row._replace(query=row.query if cue is None else cue)
        return row

    def _by_caption(self, recording: int, make_rng: Callable[[int], np.random.Generator]) -> Row:
        rng = make_rng(0)
        bad: list[int] = []
        loading = rng, make_rng(2) if self.augment.any else None, bad
        first = self.sampler.clip_of(recording, rng)
        index, target_S = self._load(*loading, first=first)
        query, weights = self._query(index, rng, make_rng)
        avoid = self.sampler.captions.excluded(index)
        num_interferers = int(rng.integers(1, self.mixing.max_mix_num))
        if not self.augment.any:
            others, interferers_KS = self._interferers(num_interferers, avoid, *loading)
            mixed = mixing_lib.mix(target_S, interferers_KS, self.mixing, rng)
            query = self._queries(query, [index, *others], rng)
            return Row(*mixed, query, bad, weights)

        augment_rng = make_rng(1)
        changes = augment_lib.draw_changes(self.augment, augment_rng)
        others, interferers_KS = self._interferers(
            0 if changes.silent_interferer else num_interferers, avoid, *loading
        )
        how = changes, self.augment, self.sampler.source.sample_rate_hz, augment_rng
        target_S = augment_lib.augment_target(target_S, *how)
        interferers_KS = [augment_lib.augment_clip(audio_S, *how) for audio_S in interferers_KS]
        mixture_S, target_S = mixing_lib.mix(target_S, interferers_KS, self.mixing, rng)
        clips = [index, *others]
        if changes.absent_target:
            query, clips = self._absent_caption((index, *others), augment_rng), []
            target_S = np.zeros_like(target_S)
        return Row(mixture_S, target_S, self._queries(query, clips, rng), bad, weights)

    def _query(
        self, index: int, rng: np.random.Generator, make_rng: Callable[[int], np.random.Generator]
    ) -> tuple[int | list[int], Sequence[float]]:
        """(query, weights) of a target."""
        query = self.sampler.caption_of(index, rng)
        if self.mixing.mixup_probability:
            rng = make_rng(4)
            if rng.random() < self.mixing.mixup_probability:
                return self.sampler.blend(index, rng)
        return query, ()

    def _queries(
        self, query: int | list[int], clips: list[int], rng: np.random.Generator
    ) -> int | list[int]:
        """Queries of a row: of each sound of the clips, or only `query` where there is one."""
        if self.num_queries == 1:
            return query
        numbers = np.full((2, self.mixing.num_queries), -1)
        numbers[0, 0] = query
        for row, clip in zip(numbers, clips, strict=False):
            own = self.sampler.captions_of(clip, rng)
            row[: len(own)] = own
        return list(numbers.ravel().tolist())

    def _load(
        self,
        rng: np.random.Generator,
        clip_rng: np.random.Generator | None,
        bad: list[int],
        **which: Any,
    ) -> tuple[int, np.ndarray]:
        """(index, audio_S) of a clip, with its own changes if there is a generator for them."""
        speed, gains_db = 1.0, None
        if clip_rng is not None:
            speed, gains_db = augment_lib.draw_clip_changes(self.augment, clip_rng)
        length = max(1, round(self.num_samples * speed))
        which |= {"num_crops": self.mixing.num_crops, "length": length}
        index, audio_S = self.sampler.load(rng, self.num_samples, bad, **which)
        return index, augment_lib.change_timbre(audio_S, self.num_samples, gains_db)

    def _interferers(
        self, count: int, avoid: frozenset[int], *loading: Any
    ) -> tuple[list[int], list[np.ndarray]]:
        loaded = [self._load(*loading, avoid=avoid) for _ in range(count)]
        return [index for index, _ in loaded], [audio_S for _, audio_S in loaded]

    def _absent_caption(self, indices: tuple[int, ...], rng: np.random.Generator) -> int:
        """Number of a caption that describes none of the clips."""
        captions = self.sampler.captions
        heard = frozenset[int]().union(*(captions.excluded(index) for index in indices))
        return self.sampler.caption_of(self.sampler.draw(rng, heard), rng)


def row_rng(key: np.ndarray, position: int, stream: int) -> np.random.Generator:
    """Random generator of a row; Philox counts from the position, so rows share no numbers."""
    return np.random.Generator(np.random.Philox(key=key, counter=[0, 0, stream, position]))


class BatchMaker:
    """Makes batches in place; threads share the rows.

    Rows come as (position in the stream, recording of the target). Instead of a condition the batch
    has `query` (B,) or (B, K), numbers of captions, so that worker processes need no embeddings.
    With `mixup_probability` it also has `weight` (B, K); a row without a blend has K equal queries.
    """

    def __init__(self, make_row: RowMaker, seed: int, num_threads: int) -> None:
        self.make_row = make_row
        self.key = np.random.Philox(seed).state["state"]["key"]
        self.num_threads = num_threads
        self._lock = threading.Lock()
        self._pool: concurrent.futures.ThreadPoolExecutor | None = None

    def __call__(self, rows_B2: np.ndarray) -> dict[str, np.ndarray]:
        """Make the batch of these rows."""
        rows, most_bad = len(rows_B2), _MAX_REPORTED * self.make_row.mixing.max_mix_num
        shape, mixing = (rows, self.make_row.num_samples), self.make_row.mixing
        num_queries = _MOST_KINDS if mixing.mixup_probability else self.make_row.num_queries
        batch: dict[str, np.ndarray] = {
            "mixture": np.empty(shape, np.float32),
            "target": np.empty(shape, np.float32),
            "query": np.empty((rows, num_queries) if num_queries > 1 else rows, np.int64),
            "bad_clips": np.full((rows, most_bad), -1, np.int32),
        }
        if mixing.mixup_probability:
            batch["weight"] = np.ones((rows, num_queries), np.float32)

        def fill(number: int) -> None:
            position, recording = rows_B2[number].tolist()
            row = self.make_row(recording, functools.partial(row_rng, self.key, position))
            batch["mixture"][number] = row.mixture_S
            batch["target"][number] = row.target_S
            batch["query"][number] = row.query
            if row.weights:
                batch["weight"][number] = row.weights
            bad = row.bad[:most_bad]
            batch["bad_clips"][number, : len(bad)] = bad

        list((map if self.num_threads < 2 else self._executor().map)(fill, range(rows)))
        return batch

    def close(self) -> None:
        """End the threads, after the rows that they are making."""
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


class BadClips:
    """The clips that training skipped: each is named once, too many of them end the run."""

    def __init__(self, source: Source, max_bad_share: float) -> None:
        self.source = source
        self.max_bad_share = max_bad_share
        self.indices: set[int] = set()

    def update(self, bad_clips_BM: np.ndarray) -> list[str]:
        """Return a line for each clip not seen before; InputError above `max_bad_share`."""
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
            audio_S = self.source.load(index)
            for start in range(0, len(audio_S), _CHECKED_SAMPLES):  # where they are long, decodes
                audio_S[start : start + _CHECKED_SAMPLES]
        except AudioError as error:
            return str(error).removeprefix(f"{self.source.name(index)}: ")
        return "could not be read, though it can be now"
