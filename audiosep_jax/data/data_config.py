"""The room `data.` of a config."""

import dataclasses
import math

from audiosep_jax.errors import InputError

KINDS = ("synthetic", "manifest", "esc50", "folders", "prepared")


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Which clips to train on and how to feed them."""

    source: str = "manifest"  # one of KINDS
    root: str = ""
    # Several data sets instead of `root`: their places, their kinds where they are not all
    # `source`, and their shares of the stream, () for the numbers of their clips.
    roots: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()
    weights: tuple[float, ...] = ()
    valid_root: str = ""  # validation manifest or folder; esc50 and prepared need none
    train_split: str = "train"  # of a prepared data set; "train+other" takes both
    valid_split: str = "valid"
    train_folds: tuple[int, ...] = (1, 2, 3, 4)
    valid_folds: tuple[int, ...] = (5,)
    num_synthetic_clips: int = 20000
    segment_seconds: float = 5.0
    min_seconds: float = 1.0
    max_bad_share: float = 0.05
    cache_megabytes: int = 512  # per process: decoded clips are kept in memory up to this
    num_threads: int = -1  # of each process that makes batches; -1: as many as it has cores
    num_workers: int = -1  # processes that make batches; -1: as many as the cores call for
    prefetch_batches: int = 4
    prefetch_megabytes: int = 2048  # fewer batches than prefetch_batches, where they take more

    def __post_init__(self) -> None:
        _check_choice("source", self.source)
        self._check_roots()
        for name, folds in (("train_folds", self.train_folds), ("valid_folds", self.valid_folds)):
            if not folds or not all(isinstance(fold, int) for fold in folds):
                raise InputError(f"data.{name} must be a tuple of fold numbers, not {folds!r}")
        shared = set(self.train_folds) & set(self.valid_folds)
        if "esc50" in (self.source, *self.sources) and shared:
            raise InputError(f"data.valid_folds shares fold {min(shared)} with data.train_folds")
        _check_integer("num_synthetic_clips", self.num_synthetic_clips, 2, 2**31 - 1)
        _check_number("segment_seconds", self.segment_seconds, 0.01, 3600)
        _check_number("min_seconds", self.min_seconds, 0, 3600)
        _check_number("max_bad_share", self.max_bad_share, 0, 1)
        _check_number("cache_megabytes", self.cache_megabytes, 0, 2**31 - 1)
        _check_integer("num_threads", self.num_threads, -1, 256)
        _check_integer("num_workers", self.num_workers, -1, 256)
        _check_integer("prefetch_batches", self.prefetch_batches, 1, 1024)
        _check_integer("prefetch_megabytes", self.prefetch_megabytes, 1, 2**31 - 1)

    def _check_roots(self) -> None:
        if self.roots and self.root:
            raise InputError("data.root and data.roots are both given; keep one")
        for name, values in (("sources", self.sources), ("weights", self.weights)):
            if values and len(values) != len(self.roots):
                count = f"{len(values)} entries for {len(self.roots)} data.roots"
                raise InputError(f"data.{name} has {count}; give one for each")
        for kind in self.sources:
            _check_choice("sources", kind)
        if not all(0 < weight < math.inf for weight in self.weights):
            raise InputError(f"data.weights must be above 0, not {self.weights}; leave a set out")

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kind of each of `roots`."""
        return self.sources or (self.source,) * len(self.roots)


def num_segment_samples(data: DataConfig, sample_rate_hz: int) -> int:
    """Length S of a training segment."""
    return max(1, round(data.segment_seconds * sample_rate_hz))


def _check_choice(name: str, value: str) -> None:
    if value not in KINDS:
        raise InputError(f"data.{name} must be one of {', '.join(KINDS)}, not {value!r}")


def _check_integer(name: str, value: int, least: int, most: int) -> None:
    if not isinstance(value, int):
        raise InputError(f"data.{name} must be an integer, not {value!r}")
    _check_number(name, value, least, most)


def _check_number(name: str, value: float, least: float, most: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
        raise InputError(f"data.{name} must be a number from {least:g} to {most:g}, not {value!r}")
