"""Data sets of files, mixtures of data sets, and the section of the config that names them."""

import bisect
import concurrent.futures
import dataclasses
import hashlib
import itertools
import json
import operator
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import cachetools
import numpy as np
from pydantic import Field

from audiosep_jax.audio import files as audio_files
from audiosep_jax.audio.files import AudioError, AudioReader
from audiosep_jax.data.captions import Captions, shared
from audiosep_jax.data.clips import (
    Clips,
    class_folder_clips,
    esc50_clips,
    manifest_clips,
    speaker_clips,
)
from audiosep_jax.data.mixing import Audio
from audiosep_jax.data.source import Source
from audiosep_jax.errors import InputError
from audiosep_jax.settings import Count, CountOrZero, Positive, Share, section, setting

# Recordings of prepared data sets are cut into pieces of at most this, since a whole record is read
# for each crop of it.
RECORD_SECONDS = 15.0
_WHOLE_SECONDS = 30.0  # of longer files only the crop is decoded
_HEADER_THREADS = 16
# Any two different seeds make disjoint sets of synthetic clips.
SYNTHETIC_SEEDS = {"train": 2023, "valid": 7_000_003}

Kind = Literal[
    "synthetic", "synthetic_mixtures", "manifest", "esc50", "folders", "speakers", "prepared"
]
SampleBy = Literal["recording", "duration"]
Folds = Annotated[tuple[int, ...], Field(min_length=1)]
Tasks = Annotated[int, Field(ge=-1, le=256)]


@section
class DataConfig:
    """Settings of the clips to train on, and of how they are fed.

    The clips of a resumed run are compared by their fingerprint, so their place may change.
    """

    source: Kind = "manifest"
    root: str = setting(default="", per_process=True)
    # Several data sets instead of `root`: their paths; their kinds, if they are not all of the kind
    # `source`; their shares of the stream, by default in proportion to their recordings.
    roots: tuple[str, ...] = setting(default=(), per_process=True)
    sources: tuple[Kind, ...] = ()
    weights: tuple[Positive, ...] = ()
    # Validation manifest or folder; esc50 and prepared need none.
    valid_root: str = setting(default="", per_process=True)
    # Draw every recording equally often, or in proportion to its duration. The fingerprint of the
    # data contains the choice where it matters.
    sample_by: SampleBy = setting(default="recording", resumable=True)
    train_split: str = "train"  # of a prepared data set; "train+other" takes both
    valid_split: str = setting(default="valid", per_process=True)
    train_folds: Folds = (1, 2, 3, 4)
    valid_folds: Folds = setting(default=(5,), per_process=True)
    # Groups of captions or classes that cannot be told apart: none is mixed with a target of its
    # group, or asked for as absent where another of its group is heard.
    alike: tuple[tuple[str, ...], ...] = ()
    num_synthetic_clips: Annotated[int, Field(ge=2, le=10**7)] = 20000
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
        if self.source in ("synthetic", "synthetic_mixtures") and self.root:
            raise InputError(
                f"source={self.source!r} does not read root={self.root!r}; change source"
            )
        for name, values in (("sources", self.sources), ("weights", self.weights)):
            if values and len(values) != len(self.roots):
                count = f"{len(values)} entries for {len(self.roots)} roots"
                raise InputError(f"{name}={values} has {count}; give one for each")
        both = set(self.train_folds) & set(self.valid_folds)
        if "esc50" in (self.source, *self.sources) and both:
            raise InputError(
                f"valid_folds={self.valid_folds} and train_folds share fold {min(both)}"
            )

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """The kind of each of `roots`."""
        return self.sources or (self.source,) * len(self.roots)


def num_segment_samples(data: DataConfig, sample_rate_hz: int) -> int:
    """Length S of a training segment."""
    return max(1, round(data.segment_seconds * sample_rate_hz))


@dataclasses.dataclass(frozen=True)
class Excerpt:
    """Mono audio of a long file, of which only what is sliced is decoded."""

    path: str
    num_samples: int
    sample_rate_hz: int

    nbytes = 256  # for the cache

    def __len__(self) -> int:
        return self.num_samples

    def __getitem__(self, span: slice) -> np.ndarray:
        begin, end, _ = span.indices(self.num_samples)
        return audio_files.read_segment(self.path, begin, end, self.sample_rate_hz)


class FileSource(Source):
    """Clips in audio files, decoded on demand.

    Files of up to half a minute are decoded whole, and the last `cache_megabytes` of them stay in
    memory. Longer files are decoded where they are sliced. The cache belongs to the process: a
    pickled copy starts with an empty one.

    Args:
        min_seconds: shorter files are unusable.
        sample_by: `duration` cuts each file into equal pieces of at most `RECORD_SECONDS`, each of
            them a clip, as a prepared data set does. It reads the header of every file.
    """

    def __init__(
        self,
        clips: Clips,
        sample_rate_hz: int,
        min_seconds: float = 1.0,
        cache_megabytes: int = 512,
        sample_by: SampleBy = "recording",
    ) -> None:
        self.clips, self.captions, self.left_out = clips, clips.captions, clips.left_out
        self.sample_rate_hz = sample_rate_hz
        self.min_seconds = min_seconds
        self.cache_megabytes = cache_megabytes
        # Index of each file's first piece, and the number of pieces; None where a file is a clip.
        self.pieces: np.ndarray | None = None
        if sample_by == "duration":
            with concurrent.futures.ThreadPoolExecutor(_HEADER_THREADS) as pool:
                counts = list(pool.map(self._num_pieces, clips.paths))
            if max(counts) > 1:
                self.pieces = shared([0, *itertools.accumulate(counts)], np.int64)
                self.captions = self.captions.repeated(counts)
        self._start_cache()

    def name(self, index: int) -> str:
        """The clip's path, and the piece of it."""
        file, piece, count = self._place(index)
        return self.clips.paths[file] + (f" piece {piece + 1} of {count}" if count > 1 else "")

    def load(self, index: int) -> Audio:
        """audio_S, read-only; AudioError if unreadable or shorter than `min_seconds`."""
        file, piece, count = self._place(index)
        if file in self._unusable:
            raise AudioError(self._unusable[file])
        try:
            audio_S = self._decoded(file)
        except AudioError as error:
            self._unusable[file] = str(error)
            raise
        if count == 1:
            return audio_S
        begin, end = (len(audio_S) * k // count for k in (piece, piece + 1))
        return audio_S[begin:end]

    def names(self) -> Iterable[str]:
        """Names of all clips, in order."""
        return self.clips.paths if self.pieces is None else super().names()

    @cachetools.cachedmethod(lambda self: self._cache, lock=lambda self: self._lock)
    def _decoded(self, file: int) -> Audio:
        path = self.clips.paths[file]
        with AudioReader(path) as recording:
            rate_hz = recording.sample_rate_hz
            if recording.num_samples > _WHOLE_SECONDS * rate_hz:
                return Excerpt(path, self._resampled(recording), self.sample_rate_hz)
            audio_CS = recording.read_rest()
        seconds = audio_CS.shape[1] / rate_hz
        if seconds < self.min_seconds:
            short = f"{seconds:.3g} s is shorter than min_seconds={self.min_seconds:g}"
            raise AudioError(f"{path}: {short}")
        mono_CS = audio_files.to_mono(audio_CS)[None]
        audio_S = audio_files.resample(mono_CS, rate_hz, self.sample_rate_hz)[0]
        audio_S.flags.writeable = False  # shared between threads
        return audio_S

    def _resampled(self, recording: AudioReader) -> int:
        """Number of samples at the source's rate."""
        return -(-recording.num_samples * self.sample_rate_hz // recording.sample_rate_hz)

    def _num_pieces(self, path: str) -> int:
        try:
            with AudioReader(path) as recording:
                num_samples = self._resampled(recording)
        except AudioError:
            return 1  # it is reported when it is drawn
        return -(-num_samples // round(RECORD_SECONDS * self.sample_rate_hz))

    def _place(self, index: int) -> tuple[int, int, int]:
        """(number of the file, number of the piece in it, pieces of the file)."""
        if not 0 <= index < len(self):
            raise IndexError(f"clip {index} of {len(self)}")
        if self.pieces is None:
            return index, 0, 1
        file = int(np.searchsorted(self.pieces, index, "right")) - 1
        first, end = self.pieces[file : file + 2].tolist()
        return file, index - first, end - first

    def _start_cache(self) -> None:
        self._lock = threading.Lock()
        self._cache: Any = cachetools.LRUCache(
            self.cache_megabytes * 2**20, operator.attrgetter("nbytes")
        )
        self._unusable: dict[int, str] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in vars(self).items() if not k.startswith("_")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._start_cache()


class WeightedSources(Source):
    """The clips of several sources, one source after another, numbered through.

    Targets and interferers come from each in proportion to its weight, whatever its size. Weights
    of () stand for the numbers of recordings: every recording is then drawn equally often.
    """

    def __init__(self, sources: Sequence[Source], weights: Sequence[float] = ()) -> None:
        if not sources or any(not len(source) for source in sources):
            raise InputError("a data set of the mixture has no clips")
        self.sources = tuple(sources)
        self.sample_rate_hz = sources[0].sample_rate_hz
        firsts = [source.recordings[:-1] for source in sources]
        self.weights = tuple(float(weight) for weight in weights or map(len, firsts))
        self.starts = (0, *itertools.accumulate(len(source) for source in sources))
        self.captions = Captions.joined([source.captions for source in sources])
        self.left_out = tuple(path for source in sources for path in source.left_out)
        placed = [part + start for part, start in zip(firsts, self.starts, strict=False)]
        self.recordings = shared(np.concatenate([*placed, [len(self)]]), np.int64)

    @property
    def fingerprint(self) -> str:
        """Hash of the sources' own."""
        parts = json.dumps([source.fingerprint for source in self.sources])
        return hashlib.sha256(parts.encode()).hexdigest()[:16]

    def name(self, index: int) -> str:
        """Name that the clip's own source gives it."""
        source, place = self._place(index)
        return source.name(place)

    def load(self, index: int) -> Audio:
        """audio_S float32; AudioError if unusable."""
        source, place = self._place(index)
        return source.load(place)

    def _place(self, index: int) -> tuple[Source, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"clip {index} of {len(self)}")
        which = bisect.bisect_right(self.starts, index) - 1
        return self.sources[which], index - self.starts[which]


# ------------------------------------------------------------------------------ from a config

Split = Literal["train", "valid"]


def build_source(config: DataConfig, split: Split, sample_rate_hz: int) -> Source:
    """The training or the held-out clips that the config names."""
    source: Source
    if not config.roots or (config.valid_root and split == "valid"):
        source = _one_source(config, split, sample_rate_hz)
    else:
        one = dataclasses.replace(config, roots=(), sources=(), weights=())
        parts = [
            _one_source(dataclasses.replace(one, source=kind, root=root), split, sample_rate_hz)
            for root, kind in zip(config.roots, config.kinds, strict=True)
        ]
        source = WeightedSources(parts, config.weights)
    if config.alike:
        source.captions = source.captions.grouped(config.alike)
    return source


def _one_source(config: DataConfig, split: Split, sample_rate_hz: int) -> Source:
    kind, train = config.source, split == "train"
    if kind in ("synthetic", "synthetic_mixtures"):
        from audiosep_jax.data import synthetic

        mixed = kind == "synthetic_mixtures" and train  # validation asks for single sounds
        make = synthetic.SyntheticMixtures if mixed else synthetic.SyntheticSource
        return make(config.num_synthetic_clips, SYNTHETIC_SEEDS[split], sample_rate_hz)
    if kind == "prepared":
        from audiosep_jax.data.prepared import PreparedSource  # with TFDS, which takes a second

        folder = _existing("root", config.root if train else config.valid_root or config.root)
        name = config.train_split if train else config.valid_split
        return PreparedSource(folder, name, sample_rate_hz, config.sample_by)
    if kind == "esc50":
        folder = _existing("root", config.root or config.valid_root)
        clips = esc50_clips(folder, config.train_folds if train else config.valid_folds)
    else:
        readers = {"manifest": manifest_clips, "speakers": speaker_clips}
        read = readers.get(kind, class_folder_clips)
        field, place = ("root", config.root) if train else ("valid_root", config.valid_root)
        clips = read(_existing(field, place))
    return FileSource(
        clips, sample_rate_hz, config.min_seconds, config.cache_megabytes, config.sample_by
    )


def _existing(field: str, place: str) -> Path:
    path = Path(place).expanduser()
    if place and path.exists():
        return path
    problem = f"{place}: no such file or folder" if place else f"data.{field} is empty"
    what = "the data set" if field == "root" else "the validation data"
    raise InputError(f"{problem}; set data.{field} to the path of {what}")
