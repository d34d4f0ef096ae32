"""Reads what `audiosep prepare` writes: a TFDS data set of int16 records.

A folder holds the files that TFDS itself opens (`dataset_info.json`, `features.json`,
`metadata.json`, shards in ArrayRecord), and for each split a text file with one line of JSON per
record, so that captions are known without reading audio. The records are read here without TFDS's
decoder, which is slower.
"""

import array
import bisect
import hashlib
import itertools
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Literal

import cachetools
import numpy as np
from array_record.python import array_record_module
from tensorflow_datasets.proto import tf_example_pb2

from audiosep_jax.audio import files as audio_files
from audiosep_jax.audio.files import AudioError
from audiosep_jax.data.captions import Captions, shared
from audiosep_jax.data.source import Source
from audiosep_jax.errors import InputError
from audiosep_jax.files import read_json_object

INFO_FILE = "dataset_info.json"
METADATA_FILE = "metadata.json"
FULL_SCALE = 32768
_READERS = 128  # open at once: each is a file; opening one takes a tenth of a millisecond
_READER_OPTIONS = "readahead_buffer_size:0"
_READER_BUFFER_BYTES = 1 << 15
_LINES_BYTES = 1 << 20  # parsed at once, which takes a third of the time of line by line


def shard_name(name: str, split: str, shard: int, num_shards: int) -> str:
    """File name that TFDS gives to a shard of a split."""
    return f"{name}-{split}.array_record-{shard:05d}-of-{num_shards:05d}"


def lines_name(name: str, split: str) -> str:
    """File with one line of JSON (id, start_seconds, captions, class) for each record."""
    return f"{name}-{split}.records.jsonl"


class PreparedSource(Source):
    """Records of one split, or of several written as `train+valid`.

    Args:
        folder: the output folder of `prepare`.
        split: name of the split.
        sample_rate_hz: rate of the clips; default: as stored. At another rate each record is
            resampled as it is loaded, which costs more than reading it.
        sample_by: `recording` draws the records of a recording together as often as those of any
            other; `duration` draws every record equally often.

    Raises:
        InputError: the folder is no finished data set, has no such split, or lacks a file.
    """

    def __init__(
        self,
        folder: str | Path,
        split: str = "train",
        sample_rate_hz: int | None = None,
        sample_by: Literal["recording", "duration"] = "recording",
    ) -> None:
        self.folder, self.split = Path(folder), split
        info, metadata = _content(self.folder, INFO_FILE), _content(self.folder, METADATA_FILE)
        try:
            self.stored_rate_hz = int(metadata["sample_rate_hz"])
            lengths = {
                x["name"]: [int(n) for n in x.get("shardLengths", [])] for x in info["splits"]
            }
            sizes = {row["name"]: int(row.get("numBytes", 0)) for row in info["splits"]}
            name, hashes = info["name"], metadata["fingerprints"]
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{self.folder}: was not written by prepare, no {error}") from error
        self.sample_rate_hz = sample_rate_hz or self.stored_rate_hz
        parts = split.split("+")
        for part in parts:
            if part not in lengths:
                known = ", ".join(sorted(lengths))
                fields = "data.train_split and data.valid_split name the splits"
                raise InputError(f"{self.folder}: has no split {part!r}, only {known}; {fields}")
        self._shards = [
            shard_name(name, part, shard, len(lengths[part]))
            for part in parts
            for shard in range(len(lengths[part]))
        ]
        self._check_shards(sum(sizes[part] for part in parts))
        # Index of each shard's first record, and at the end the number of records.
        shard_lengths = itertools.chain.from_iterable(lengths[part] for part in parts)
        self._starts = [0, *itertools.accumulate(shard_lengths)]
        self._lines = _Lines(
            [self.folder / lines_name(name, part) for part in parts], self._starts[-1]
        )
        self.captions = self._lines.captions
        identity = json.dumps([[part, hashes[part]] for part in parts])
        if sample_by == "recording" and len(self._lines.recordings) <= len(self):
            self.recordings = self._lines.recordings
            identity += " by recording"
        classes = list(self.captions.classes())
        identity += json.dumps(classes) if any(classes) else ""
        self._fingerprint = hashlib.sha256(identity.encode()).hexdigest()[:16]
        self._start_readers()

    @property
    def fingerprint(self) -> str:
        """Hash of the splits' fingerprints, which `prepare` has written, and of the classes."""
        return self._fingerprint

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
            where = f"{self.folder / self._shards[shard]}: {self.name(index)}"
            reason = " ".join(str(error).split())[:200]
            raise AudioError(f"{where} cannot be read, the file is damaged ({reason})") from error
        if self.sample_rate_hz == self.stored_rate_hz:
            return audio_S
        return audio_files.resample(audio_S[None], self.stored_rate_hz, self.sample_rate_hz)[0]

    def _reader(self, shard: int) -> Any:
        """Open reader of a shard, which threads may share."""
        with self._lock:
            if shard not in self._readers:
                self._readers[shard] = array_record_module.ArrayRecordReader(
                    str(self.folder / self._shards[shard]),
                    _READER_OPTIONS,
                    file_reader_buffer_size=_READER_BUFFER_BYTES,
                )
            return self._readers[shard]

    def _check_shards(self, promised_bytes: int) -> None:
        """Raise InputError for a copy that lacks a file or a file's end."""
        found_bytes = 0
        for name in self._shards:
            path = self.folder / name
            try:
                found_bytes += path.stat().st_size
            except OSError as error:
                raise InputError(f"{path}: cannot be opened ({error.strerror})") from error
        if found_bytes != promised_bytes:
            raise InputError(
                f"{self.folder}: the files of {self.split!r} have {found_bytes} bytes, not "
                f"{promised_bytes} as when they were written; copy or prepare them again"
            )

    def _start_readers(self) -> None:
        self._lock = threading.Lock()
        # A reader that is dropped closes once no thread reads with it.
        self._readers: Any = cachetools.LRUCache(_READERS)

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in vars(self).items() if k not in ("_lock", "_readers")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._start_readers()


class _Lines:
    """Lines of JSON in files, one file after another; read once for captions, then singly.

    `recordings` holds the index of each recording's first line, and the number of lines.
    """

    def __init__(self, paths: list[Path], num_lines: int) -> None:
        self._paths = paths
        sizes, firsts = array.array("q", [0]), array.array("q")
        classes: list[str] = []
        self.captions = Captions(self._read(sizes, firsts, classes), classes)
        if len(self.captions) != num_lines:
            where = ", ".join(map(str, paths))
            raise InputError(f"{where}: {len(self.captions)} lines for {num_lines} records")
        self.recordings = shared([*firsts, num_lines], np.int64)
        self._ends = shared(np.cumsum(sizes), np.int64)
        self._starts = [0, *itertools.accumulate(os.path.getsize(path) for path in paths)]

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self.captions):
            raise IndexError(f"record {index} of {len(self.captions)}")
        begin, end = self._ends[index : index + 2].tolist()
        part = bisect.bisect_right(self._starts, begin) - 1
        with _opened(self._paths[part]) as file:
            file.seek(begin - self._starts[part])
            row: dict[str, Any] = json.loads(file.read(end - begin))
        return row

    def _read(
        self, sizes: "array.array[int]", firsts: "array.array[int]", classes: list[str]
    ) -> Iterator[list[str]]:
        """Yield captions of each line; append its bytes, class, and each recording's first line."""
        last = None
        for path in self._paths:
            with _opened(path) as file:
                while lines := file.readlines(_LINES_BYTES):
                    for index, row in enumerate(_parsed(path, lines), start=len(sizes) - 1):
                        if row["id"] != last or not row["start_seconds"]:
                            firsts.append(index)
                        last = row["id"]
                        classes.append(row.get("class", ""))
                        yield row["captions"]
                    sizes.extend(map(len, lines))


def _parsed(path: Path, lines: list[bytes]) -> list[dict[str, Any]]:
    try:
        rows: list[dict[str, Any]] = json.loads(b"[" + b",".join(lines) + b"]")
    except ValueError as error:
        raise InputError(f"{path}: is damaged ({error}); copy or prepare it again") from error
    return rows


def _opened(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as error:
        raise InputError(f"{path}: cannot be opened ({error.strerror})") from error


def _content(folder: Path, name: str) -> dict[str, Any]:
    if not (folder / name).is_file():
        hint = "`audiosep prepare` makes one"
        raise InputError(f"{folder}: is no prepared data set, since it has no {name}; {hint}")
    return read_json_object(folder / name)
