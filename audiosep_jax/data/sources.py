"""Where clips come from: every source looks like a list of mono clips with captions.

Batches made of them have these keys (this is the public schema):

    mixture    (B, S) float32   what the network hears
    target     (B, S) float32   the clip in it that the caption describes
    condition  (B, E) float32   embedding of the caption, L2-normalised
    bad_clips  (B, M) int32     indices of clips skipped while making that row, padded with -1

and, for evaluation, lists of N strings: `caption`, and `source_id` (name of the target's clip).
"""

import collections
import csv
import dataclasses
import hashlib
import json
import os
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np

from audiosep_jax.audio import files as audio_files
from audiosep_jax.audio.files import AudioError
from audiosep_jax.data.data_config import DataConfig
from audiosep_jax.errors import InputError

_ROOT_HINT = "give the data set's place with --config.data.root=DIR"
_VALID_ROOT_HINT = "give the validation set's place with --config.data.valid_root=DIR"
# Any two different seeds make disjoint sets of synthetic clips.
_SYNTHETIC_SEEDS = {"train": 2023, "valid": 7_000_003}


class Source(Protocol):
    """A list of clips; picklable, and safe to call from several threads."""

    sample_rate_hz: int

    def __len__(self) -> int: ...

    def captions(self, index: int) -> tuple[str, ...]:
        """All sentences that describe the clip; at least one."""

    def name(self, index: int) -> str:
        """What to call the clip in messages: its path or id."""

    def load(self, index: int) -> np.ndarray:
        """The clip as audio_S, float32 at `sample_rate_hz`; AudioError if unusable."""


@dataclasses.dataclass(frozen=True)
class Clip:
    """One audio file and the sentences that describe it."""

    path: Path
    captions: tuple[str, ...]


class FileSource:
    """Clips in audio files, decoded on demand; the last `cache_megabytes` of them stay in memory.

    The cache belongs to the process: a pickled copy starts with an empty one.
    """

    def __init__(
        self,
        clips: Sequence[Clip],
        sample_rate_hz: int,
        min_seconds: float = 1.0,
        cache_megabytes: int = 512,
    ) -> None:
        self.clips = tuple(clips)
        self.sample_rate_hz = sample_rate_hz
        self.min_seconds = min_seconds
        self.cache_megabytes = cache_megabytes
        self._start_cache()

    def __len__(self) -> int:
        return len(self.clips)

    def captions(self, index: int) -> tuple[str, ...]:
        """All sentences that describe the clip."""
        return self.clips[index].captions

    def name(self, index: int) -> str:
        """The clip's path."""
        return str(self.clips[index].path)

    def load(self, index: int) -> np.ndarray:
        """audio_S, read-only; AudioError if unreadable or shorter than `min_seconds`."""
        with self._lock:
            if index in self._cached:
                self._cached.move_to_end(index)
                return self._cached[index]
        audio_S = self._decode(self.clips[index].path)
        audio_S.flags.writeable = False  # shared between threads
        self._keep(index, audio_S)
        return audio_S

    def _decode(self, path: Path) -> np.ndarray:
        audio_CS, rate_hz = audio_files.read(path)
        seconds = audio_CS.shape[1] / rate_hz
        if seconds < self.min_seconds:
            short = f"{seconds:.3g} s is shorter than min_seconds={self.min_seconds:g}"
            raise AudioError(f"{path}: {short}")
        mono_CS = audio_files.to_mono(audio_CS)[None]
        return audio_files.resample(mono_CS, rate_hz, self.sample_rate_hz)[0]

    def _keep(self, index: int, audio_S: np.ndarray) -> None:
        with self._lock:
            if index in self._cached:  # another thread was faster
                return
            self._cached[index] = audio_S
            self._cached_bytes += audio_S.nbytes
            while self._cached_bytes > self.cache_megabytes * 2**20:
                self._cached_bytes -= self._cached.popitem(last=False)[1].nbytes

    def _start_cache(self) -> None:
        self._lock = threading.Lock()
        self._cached: collections.OrderedDict[int, np.ndarray] = collections.OrderedDict()
        self._cached_bytes = 0

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in vars(self).items() if not k.startswith("_")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._start_cache()


def manifest_clips(path: str | os.PathLike[str]) -> list[Clip]:
    """Clips of AudioSep's `{"data": [{"wav": ..., "caption": ...}]}`; paths relative to it."""
    path = Path(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: manifest cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise InputError(f"{path}: manifest is not JSON ({error})") from error
    rows = content.get("data") if isinstance(content, dict) else None
    if not isinstance(rows, list) or not rows:
        raise InputError(f'{path}: manifest has no list "data" of {{"wav": ..., "caption": ...}}')
    return [_manifest_clip(path, number, row) for number, row in enumerate(rows)]


def _manifest_clip(path: Path, number: int, row: Any) -> Clip:
    where = f"{path}: row {number + 1} (data[{number}])"
    if not isinstance(row, dict):
        raise InputError(f'{where} is not {{"wav": ..., "caption": ...}}')
    wav, captions = row.get("wav"), row.get("caption")
    if not isinstance(wav, str) or not wav.strip():
        raise InputError(f'{where} has no "wav"')
    captions = [captions] if isinstance(captions, str) else captions
    if not isinstance(captions, list) or not captions:
        raise InputError(f'{where} has no "caption"')
    if not all(isinstance(caption, str) and caption.strip() for caption in captions):
        raise InputError(f"{where} has an empty caption")
    return Clip(path.parent / wav, tuple(captions))


def esc50_clips(root: str | os.PathLike[str], folds: Iterable[int]) -> list[Clip]:
    """Clips of the given folds of a folder laid out as ESC-50; captions are the categories."""
    root, folds = Path(root), sorted(set(folds))
    table = root / "meta" / "esc50.csv"
    if not (root / "audio").is_dir():
        raise InputError(f"{root / 'audio'}: no such folder; {_ROOT_HINT}")
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    except (OSError, ValueError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{table}: cannot be read ({reason}); {_ROOT_HINT}") from error
    clips = [
        Clip(root / "audio" / row["filename"], (_folder_caption(row["category"]),))
        for row in (_esc50_row(table, number, row) for number, row in enumerate(rows, start=2))
        if int(row["fold"]) in folds
    ]
    if not clips:
        raise InputError(f"{table}: no clip in folds {', '.join(map(str, folds))}")
    return clips


def _esc50_row(table: Path, line: int, row: dict[str, str]) -> dict[str, str]:
    for column in ("filename", "fold", "category"):
        if not (row.get(column) or "").strip():
            raise InputError(f"{table}: line {line} has no {column!r}")
    if not row["fold"].strip().isdecimal():
        raise InputError(f"{table}: line {line} has fold {row['fold']!r}, not a number")
    return row


def class_folder_clips(root: str | os.PathLike[str]) -> list[Clip]:
    """Clips of `root/<class name>/<any audio file>`; captions are the folders' names."""
    root = Path(root)
    if not root.is_dir():
        raise InputError(f"{root}: no such folder; {_ROOT_HINT}")
    folders = sorted(path for path in root.iterdir() if path.is_dir() and path.name[0] != ".")
    clips = [
        Clip(path, (_folder_caption(folder.name),))
        for folder in folders
        for path in sorted(folder.iterdir())
        if path.suffix.lower() in audio_files.RECORDING_SUFFIXES and path.name[0] != "."
    ]
    if not clips:
        raise InputError(f"{root}: no audio file in any folder of it; {_ROOT_HINT}")
    for clip in clips:
        if not clip.captions[0]:
            raise InputError(f"{clip.path.parent}: the folder's name gives no caption")
    return clips


def build_source(
    config: DataConfig, split: Literal["train", "valid"], sample_rate_hz: int
) -> Source:
    """The training or the held-out clips that the config names."""
    train = split == "train"
    if not config.roots or (config.valid_root and not train):
        return _one_source(config, split, sample_rate_hz)
    from audiosep_jax.data.weighted import WeightedSources

    parts = [
        _one_source(
            dataclasses.replace(config, source=kind, root=root, roots=(), sources=(), weights=()),
            split,
            sample_rate_hz,
        )
        for root, kind in zip(config.roots, config.kinds, strict=True)
    ]
    return WeightedSources(parts, config.weights)


def _one_source(config: DataConfig, split: str, sample_rate_hz: int) -> Source:
    train = split == "train"
    if config.source == "synthetic":
        from audiosep_jax.data.synthetic import SyntheticSource

        seed = _SYNTHETIC_SEEDS[split]
        return SyntheticSource(config.num_synthetic_clips, seed, sample_rate_hz)
    if config.source == "prepared":
        from audiosep_jax.data.prepared import PreparedSource  # with TFDS, which takes a second

        folder = _existing(config.root if train else config.valid_root or config.root, _ROOT_HINT)
        name = config.train_split if train else config.valid_split
        return PreparedSource(folder, name, sample_rate_hz)
    if config.source == "esc50":
        clips = esc50_clips(
            _existing(config.root or config.valid_root, _ROOT_HINT),
            config.train_folds if train else config.valid_folds,
        )
    else:
        hint = _ROOT_HINT if train else _VALID_ROOT_HINT
        place = _existing(config.root if train else config.valid_root, hint)
        clips = class_folder_clips(place) if config.source == "folders" else manifest_clips(place)
    return FileSource(clips, sample_rate_hz, config.min_seconds, config.cache_megabytes)


def _existing(place: str, hint: str) -> Path:
    if not place:
        raise InputError(f"no data set is named; {hint}")
    if not Path(place).exists():
        raise InputError(f"{place}: no such file or folder; {hint}")
    return Path(place)


def _folder_caption(name: str) -> str:
    return " ".join(name.replace("_", " ").replace("-", " ").split())


@runtime_checkable
class _Fingerprinted(Protocol):
    fingerprint: str


def source_fingerprint(source: Source) -> str:
    """Hash of the clips' file names and captions, in order, wherever the files lie.

    A source that knows a `fingerprint` of its own is not read through.
    """
    if isinstance(source, _Fingerprinted):
        return source.fingerprint
    digest = hashlib.sha256()
    for index in range(len(source)):
        name = Path(source.name(index)).name
        digest.update(json.dumps([name, *source.captions(index)]).encode() + b"\n")
    return digest.hexdigest()[:16]
