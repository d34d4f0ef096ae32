"""Reads what `audiosep prepare` writes: a TFDS data set of int16 records.

A folder holds what TFDS itself opens (`dataset_info.json`, `features.json`, `metadata.json`, shards
in ArrayRecord), and for each split a text file with one line of JSON per record, so that captions
are known without reading audio. Here the records are read without TFDS's decoder.
"""

import bisect
import collections
import hashlib
import itertools
import json
import mmap
import threading
from pathlib import Path
from typing import Any

import numpy as np
from array_record.python import array_record_module
from tensorflow_datasets.proto import tf_example_pb2

from audiosep_jax.audio import files as audio_files
from audiosep_jax.audio.files import AudioError
from audiosep_jax.errors import InputError

INFO_FILE = "dataset_info.json"
METADATA_FILE = "metadata.json"
FULL_SCALE = 32768
_READERS = 128  # open at once: each is a file; opening one takes a tenth of a millisecond
_READER_OPTIONS = "readahead_buffer_size:0"
_READER_BUFFER_BYTES = 1 << 15


def shard_name(name: str, split: str, shard: int, num_shards: int) -> str:
    """As TFDS calls the files of a split."""
    return f"{name}-{split}.array_record-{shard:05d}-of-{num_shards:05d}"


def lines_name(name: str, split: str) -> str:
    """The file with one line of JSON (id, start_seconds, captions) for each record of a split."""
    return f"{name}-{split}.records.jsonl"


class PreparedSource:
    """Records of one split, or of several written as `train+valid`, as a `sources.Source`.

    Args:
        folder: what `prepare` was given as --output.
        split: name of the split.
        sample_rate_hz: of the clips; where it is not the stored rate, each is resampled as it is
            loaded, which costs more than reading it.

    Raises:
        InputError: it is no finished data set, has no such split, or a file of it is missing.
    """

    def __init__(
        self, folder: str | Path, split: str = "train", sample_rate_hz: int | None = None
    ) -> None:
        self.folder, self.split = Path(folder), split
        info, metadata = _read_json(self.folder, INFO_FILE), _read_json(self.folder, METADATA_FILE)
        try:
            self.stored_rate_hz = int(metadata["sample_rate_hz"])
            lengths = {
                row["name"]: [int(length) for length in row.get("shardLengths", [])]
                for row in info["splits"]
            }
            stored_bytes = {row["name"]: int(row.get("numBytes", 0)) for row in info["splits"]}
            name, hashes = info["name"], metadata["fingerprints"]
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{self.folder}: was not written by prepare, no {error}") from error
        self.sample_rate_hz = sample_rate_hz or self.stored_rate_hz
        parts = split.split("+")
        for part in parts:
            if part not in lengths:
                there = ", ".join(sorted(lengths))
                raise InputError(f"{self.folder}: has no split {part!r}, only {there}")
        text = json.dumps([[part, hashes[part]] for part in parts])
        self.fingerprint = hashlib.sha256(text.encode()).hexdigest()[:16]
        self._shards = [
            self.folder / shard_name(name, part, shard, len(lengths[part]))
            for part in parts
            for shard in range(len(lengths[part]))
        ]
        self._check_shards(sum(stored_bytes[part] for part in parts))
        # Index of each shard's first record, and at the end the number of records.
        shard_lengths = itertools.chain.from_iterable(lengths[part] for part in parts)
        self._starts = [0, *itertools.accumulate(shard_lengths)]
        self._lines = _Lines(
            [self.folder / lines_name(name, part) for part in parts], self._starts[-1]
        )
        self._lock = threading.Lock()
        self._readers: collections.OrderedDict[int, Any] = collections.OrderedDict()

    def __len__(self) -> int:
        return self._starts[-1]

    def captions(self, index: int) -> tuple[str, ...]:
        """All sentences that describe the record; reads no audio."""
        return tuple(self._lines[index]["captions"])

    def name(self, index: int) -> str:
        """Id of the recording, and where in it the record starts if not at its beginning."""
        row = self._lines[index]
        start = f" from {row['start_seconds']:g} s" if row["start_seconds"] else ""
        return f"{row['id']}{start}"

    def load(self, index: int) -> np.ndarray:
        """audio_S float32 at `sample_rate_hz`; AudioError where the stored record is damaged."""
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        shard = bisect.bisect_right(self._starts, index) - 1
        try:
            record = self._reader(shard).read([index - self._starts[shard]])[0]
            example = tf_example_pb2.Example.FromString(record)
            pcm = example.features.feature["audio"].bytes_list.value[0]
            audio_S = np.frombuffer(pcm, "<i2") * np.float32(1 / FULL_SCALE)
        except Exception as error:  # of three libraries, without a common base
            where = f"{self._shards[shard]}: {self.name(index)}"
            reason = " ".join(str(error).split())[:200]
            raise AudioError(f"{where} cannot be read, the file is damaged ({reason})") from error
        if self.sample_rate_hz == self.stored_rate_hz:
            return audio_S
        return audio_files.resample(audio_S[None], self.stored_rate_hz, self.sample_rate_hz)[0]

    def _reader(self, shard: int) -> Any:
        """Open reader of a shard (safe to share between threads); drops the one unused longest."""
        with self._lock:
            if shard in self._readers:
                self._readers.move_to_end(shard)
                return self._readers[shard]
            reader = array_record_module.ArrayRecordReader(
                str(self._shards[shard]),
                _READER_OPTIONS,
                file_reader_buffer_size=_READER_BUFFER_BYTES,
            )
            self._readers[shard] = reader
            if len(self._readers) > _READERS:
                self._readers.popitem(last=False)  # closes once no thread reads with it
            return reader

    def _check_shards(self, promised_bytes: int) -> None:
        """A copy that lacks a file or a file's end is noticed at once."""
        found_bytes = 0
        for shard in self._shards:
            try:
                found_bytes += shard.stat().st_size
            except OSError as error:
                raise InputError(f"{shard}: cannot be opened ({error.strerror})") from error
        if found_bytes != promised_bytes:
            raise InputError(
                f"{self.folder}: the files of {self.split!r} have {found_bytes} bytes, not "
                f"{promised_bytes} as when they were written; copy or prepare them again"
            )

    def __getstate__(self) -> dict[str, Any]:
        return {
            "folder": self.folder,
            "split": self.split,
            "sample_rate_hz": self.sample_rate_hz,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]


class _Lines:
    """Lines of JSON in files, one after another; kept in the system's page cache, not in ours."""

    def __init__(self, paths: list[Path], num_lines: int) -> None:
        self._maps: list[mmap.mmap | bytes] = [_mapped(path) for path in paths]
        ends = [np.flatnonzero(np.frombuffer(text, np.uint8) == ord("\n")) for text in self._maps]
        self._ends = [np.concatenate([[-1], end]) for end in ends]
        self._starts = [0, *itertools.accumulate(len(end) for end in ends)]
        if self._starts[-1] != num_lines:
            where = ", ".join(map(str, paths))
            raise InputError(f"{where}: {self._starts[-1]} lines for {num_lines} records")

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < self._starts[-1]:
            raise IndexError(f"record {index} of {self._starts[-1]}")
        part = bisect.bisect_right(self._starts, index) - 1
        line = index - self._starts[part]
        begin, end = self._ends[part][line] + 1, self._ends[part][line + 1]
        found: dict[str, Any] = json.loads(self._maps[part][begin:end])
        return found


def _mapped(path: Path) -> mmap.mmap | bytes:
    try:
        with path.open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except ValueError:  # an empty file cannot be mapped
        return b""
    except OSError as error:
        raise InputError(f"{path}: cannot be opened ({error.strerror})") from error


def _read_json(folder: Path, name: str) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads((folder / name).read_text(encoding="utf-8"))
    except OSError as error:
        hint = "audiosep prepare makes one"
        raise InputError(f"{folder}: no prepared data set, it has no {name}; {hint}") from error
    except ValueError as error:
        raise InputError(f"{folder / name}: is damaged ({error})") from error
    return content
