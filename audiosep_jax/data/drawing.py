"""Random clips that may sound together, and the bad ones among them."""

import array
from collections.abc import Collection, Iterable, Mapping

import numpy as np

from audiosep_jax.audio.files import AudioError
from audiosep_jax.data.mixing import caption_key
from audiosep_jax.data.sources import Source
from audiosep_jax.data.weighted import WeightedSources
from audiosep_jax.errors import InputError

MAX_TRIES = 8  # unreadable clips in a row before a draw gives up
BLIND_DRAWS = 64  # draws before looking through the whole source for a clip that is allowed


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
    for attempt in range(MAX_TRIES):
        index = draw_clip(source, rng, avoid, bad) if attempt or first is None else first
        try:
            return index, source.load(index)
        except AudioError as error:
            bad.append(index)
            reason = error
    raise InputError(f"{MAX_TRIES} clips drawn one after another were unusable, last: {reason}")


def draw_clip(
    source: Source, rng: np.random.Generator, avoid: Collection[str], bad: Collection[int]
) -> int:
    """A random clip with no caption to avoid and not known to be bad."""

    def allowed(index: int) -> bool:
        return index not in bad and keys(source.captions(index)).isdisjoint(avoid)

    for _ in range(BLIND_DRAWS):
        index = _any_clip(source, rng)
        if allowed(index):
            return index
    candidates = [index for index in range(len(source)) if allowed(index)]
    if not candidates:
        without = f" without the captions {', '.join(sorted(avoid))!r}" if avoid else ""
        raise InputError(f"no clip{without} is left to draw; {len(bad)} were unusable")
    return candidates[int(rng.integers(len(candidates)))]


def _any_clip(source: Source, rng: np.random.Generator) -> int:
    if isinstance(source, WeightedSources):
        return source.draw(rng)
    return int(rng.integers(len(source)))


def keys(captions: Iterable[str]) -> set[str]:
    """What the captions are compared by."""
    return {caption_key(caption) for caption in captions}


def check_captions(source: Source, conditions: Mapping[str, np.ndarray]) -> None:
    """Every caption has a condition, and every clip another one that it can be mixed with.

    In memory for millions of clips: 12 bytes a caption, its hash and its clip.
    """
    if not len(source):
        raise InputError("the data set has no clips")
    hashes, owners = array.array("q"), array.array("i")
    for index in range(len(source)):
        captions = source.captions(index)
        for caption in captions:
            if caption not in conditions:
                raise ValueError(f"no condition for the caption {caption!r}")
        for key in keys(captions):
            hashes.append(hash(key))
            owners.append(index)
    lonely = _without_partner(np.asarray(hashes), np.asarray(owners), len(source))
    if lonely is not None:
        what = f"{source.name(lonely)} ({source.captions(lonely)[0]!r})"
        raise InputError(f"no clip with another caption to mix with {what}")


def _without_partner(key_N: np.ndarray, owner_N: np.ndarray, num_clips: int) -> int | None:
    """First clip that shares a key with every clip, or None. The N pairs are sorted by owner."""
    _, number_N, count = np.unique(key_N, return_inverse=True, return_counts=True)
    # The sum of counts is cheap and nearly always tells; the union is exact.
    clips_met = np.bincount(owner_N, weights=count[number_N], minlength=num_clips)
    seen: set[bytes] = set()
    for index in np.flatnonzero(clips_met >= num_clips).tolist():
        begin, end = np.searchsorted(owner_N, [index, index + 1])
        own = np.sort(number_N[begin:end])
        if own.tobytes() not in seen:
            seen.add(own.tobytes())
            if len(np.unique(owner_N[np.isin(number_N, own)])) == num_clips:
                return int(index)
    return None


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
