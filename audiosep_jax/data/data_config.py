"""Settings under `data.`: which clips to train on, and how to feed them."""

import typing
from typing import Annotated, Literal

from pydantic import Field

from audiosep_jax.errors import InputError
from audiosep_jax.settings import Count, CountOrZero, Positive, Share, section, setting

Kind = Literal["synthetic", "manifest", "esc50", "folders", "prepared"]
KINDS: tuple[str, ...] = typing.get_args(Kind)
Folds = Annotated[tuple[int, ...], Field(min_length=1)]
Tasks = Annotated[int, Field(ge=-1, le=256)]


@section
class DataConfig:
    """Which clips to train on and how to feed them.

    The clips of a resumed run are compared by their fingerprint, so their place may change.
    """

    source: Kind = "manifest"
    root: str = setting(default="", per_process=True)
    # Several data sets instead of `root`: their places, their kinds where they are not all
    # `source`, and their shares of the stream, () for the numbers of their clips.
    roots: tuple[str, ...] = setting(default=(), per_process=True)
    sources: tuple[Kind, ...] = ()
    weights: tuple[Positive, ...] = ()
    # Validation manifest or folder; esc50 and prepared need none.
    valid_root: str = setting(default="", per_process=True)
    train_split: str = "train"  # of a prepared data set; "train+other" takes both
    valid_split: str = setting(default="valid", per_process=True)
    train_folds: Folds = (1, 2, 3, 4)
    valid_folds: Folds = setting(default=(5,), per_process=True)
    num_synthetic_clips: Annotated[int, Field(ge=2, le=2**31 - 1)] = 20000
    segment_seconds: Annotated[float, Field(ge=0.01, le=3600)] = 5.0
    min_seconds: Annotated[float, Field(ge=0, le=3600)] = 1.0
    max_bad_share: Share = setting(default=0.05, resumable=True)
    # Decoded clips are kept in the memory of each process up to this.
    cache_megabytes: CountOrZero = setting(default=512, per_process=True)
    # Threads of each process that makes batches; -1: as many as it has cores.
    num_threads: Tasks = setting(default=-1, per_process=True)
    # Processes that make batches; -1: as many as the cores call for.
    num_workers: Tasks = setting(default=-1, per_process=True)
    prefetch_batches: Annotated[int, Field(ge=1, le=1024)] = setting(default=4, per_process=True)
    # Fewer batches than prefetch_batches are kept where they take more than this.
    prefetch_megabytes: Count = setting(default=2048, per_process=True)

    def __post_init__(self) -> None:
        if self.roots and self.root:
            raise InputError(f"root={self.root!r} and roots={self.roots} are both given; keep one")
        for name, values in (("sources", self.sources), ("weights", self.weights)):
            if values and len(values) != len(self.roots):
                count = f"{len(values)} entries for {len(self.roots)} roots"
                raise InputError(f"{name}={values} has {count}; give one for each")
        shared = set(self.train_folds) & set(self.valid_folds)
        if "esc50" in (self.source, *self.sources) and shared:
            raise InputError(
                f"valid_folds={self.valid_folds} and train_folds share fold {min(shared)}"
            )

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """The kind of each of `roots`."""
        return self.sources or (self.source,) * len(self.roots)


def num_segment_samples(data: DataConfig, sample_rate_hz: int) -> int:
    """Length S of a training segment."""
    return max(1, round(data.segment_seconds * sample_rate_hz))
