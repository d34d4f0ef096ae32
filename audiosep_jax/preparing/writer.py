"""Writes prepared data sets: shards by many processes, and one TFDS data set out of them.

TFDS would write shard after shard and hold each in memory. Here every part of the work is a task
with files of its own, named when they are whole; at the end a `ShardBasedBuilder` takes them in.
"""

import contextlib
import dataclasses
import functools
import hashlib
import io
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from array_record.python import array_record_module
from tensorflow_datasets.core import example_serializer
from tensorflow_datasets.core.writer import ExampleWriter

from audiosep_jax.audio.files import AudioError
from audiosep_jax.data.prepared import lines_name, shard_name
from audiosep_jax.errors import InputError
from audiosep_jax.preparing import recordings as recordings_lib
from audiosep_jax.preparing.recordings import Recording, Skipped

REPORT_FILE = "prepare_report.json"
SHARD_BYTES = 192 << 20
# int16 noise hardly compresses; unpacking it took three times as long as reading it.
WRITER_OPTIONS = "group_size:1,uncompressed"
VERSION = "1.0.0"
_DESCRIPTION = "Captioned audio records of at most 15 s, int16 mono, by audiosep_jax.prepare."


@dataclasses.dataclass(frozen=True)
class Settings:
    """What, beside the recordings, decides the bytes that are written."""

    name: str
    sample_rate_hz: int
    min_seconds: float
    version: str = VERSION


@dataclasses.dataclass(frozen=True)
class Part:
    """What one task wrote: shards, a file of lines, and what it left out."""

    split: str
    num_recordings: int
    num_samples: int
    shards: tuple[tuple[str, int, int, str], ...]  # file name, records, bytes, SHA-256
    skipped: tuple[tuple[str, str], ...]  # id, reason


def part_name(task: int) -> str:
    """Stem of the files of a task."""
    return f"{task:06d}"


def read_part(folder: Path, task: int) -> Part | None:
    """What the task wrote, None where it is not finished."""
    try:
        row = json.loads((folder / f"{part_name(task)}.json").read_text(encoding="utf-8"))
    except OSError:
        return None
    except ValueError as error:
        raise InputError(f"{folder / part_name(task)}.json: is damaged; remove it") from error
    pairs = {key: tuple(map(tuple, row[key])) for key in ("shards", "skipped")}
    return Part(**{**row, **pairs})


def part_files(folder: Path, task: int, part: Part) -> list[Path]:
    """All files of a finished task, the one that says it is finished last."""
    names = [name for name, *_ in part.shards]
    return [folder / name for name in (*names, *(part_name(task) + x for x in (".jsonl", ".json")))]


def write_part(
    recordings: Sequence[Recording], folder: Path, task: int, settings: Settings
) -> Part:
    """Decodes the recordings of a task, all of one split, and writes its files."""
    shards = _Shards(folder, task)
    lines, skipped, num_samples = [], [], 0
    encode = _Encoder()
    try:
        for recording in recordings:
            pieces = recordings_lib.records(
                recording, settings.sample_rate_hz, settings.min_seconds, folder
            )
            try:
                for start_seconds, pcm_S in pieces:
                    shards.add(encode(recording, start_seconds, pcm_S))
                    lines.append(_line(recording, start_seconds))
                    num_samples += len(pcm_S)
            except AudioError as error:
                skipped.append((recording.id, str(error)))
        part = Part(
            recordings[0].split,
            len(recordings) - len(skipped),
            num_samples,
            tuple(shards.close()),
            tuple(skipped),
        )
        _write_text(folder / f"{part_name(task)}.jsonl", "".join(lines))
        _write_text(folder / f"{part_name(task)}.json", json.dumps(dataclasses.asdict(part)))
    except (OSError, RuntimeError) as error:  # array_record's errors are RuntimeErrors
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())[:200]
        raise InputError(f"{folder}: cannot be written ({reason})") from error
    finally:
        shards.discard()
    return part


def features() -> tfds.features.FeaturesDict:
    """Of one record. Bytes, since TFDS stores a list of int16 as varints, four times as slow."""
    return tfds.features.FeaturesDict(
        {
            "audio": tfds.features.Tensor(shape=(None,), dtype=np.int16, encoding="bytes"),
            "captions": tfds.features.Sequence(tfds.features.Text()),
            "id": tfds.features.Text(),
            "start_seconds": tfds.features.Scalar(dtype=np.float32),
        }
    )


class _Encoder:
    """Serialises records as TFDS does, but equal records to equal bytes in every process."""

    def __init__(self) -> None:
        self._features = features()
        info = self._features.get_serialized_info()
        self._serializer = example_serializer.ExampleSerializer(info)

    def __call__(self, recording: Recording, start_seconds: float, pcm_S: np.ndarray) -> bytes:
        row = {
            "audio": pcm_S,
            "captions": list(recording.captions),
            "id": recording.id,
            "start_seconds": np.float32(start_seconds),
        }
        example = self._serializer.get_tf_example(self._features.encode_example(row))
        # Without this the order of the fields hangs on addresses in memory.
        return bytes(example.SerializeToString(deterministic=True))


def _line(recording: Recording, start_seconds: float) -> str:
    row = {
        "id": recording.id,
        "start_seconds": round(start_seconds, 6),
        "captions": recording.captions,
    }
    return json.dumps(row, ensure_ascii=False) + "\n"


class _Shards:
    """ArrayRecord files of a task; a new one is begun where one is full."""

    def __init__(self, folder: Path, task: int) -> None:
        self._folder, self._task = folder, task
        self._finished: list[tuple[str, int, int, str]] = []
        self._writer: Any = None
        self._num_records = self._num_bytes = 0

    @property
    def _partial(self) -> Path:
        return self._folder / f".{part_name(self._task)}.{os.getpid()}.partial"

    def add(self, record: bytes) -> None:
        if self._writer is None:
            self._writer = array_record_module.ArrayRecordWriter(
                os.fspath(self._partial), WRITER_OPTIONS
            )
            self._num_records = self._num_bytes = 0
        self._writer.write(record)
        self._num_records += 1
        self._num_bytes += len(record)
        if self._num_bytes >= SHARD_BYTES:
            self._finish()

    def close(self) -> list[tuple[str, int, int, str]]:
        """File name, records, bytes and SHA-256 of each shard."""
        if self._writer is not None:
            self._finish()
        return self._finished

    def discard(self) -> None:
        """Removes what was not finished."""
        self._partial.unlink(missing_ok=True)

    def _finish(self) -> None:
        self._writer.close()
        self._writer = None
        reader = array_record_module.ArrayRecordReader(os.fspath(self._partial))
        if reader.num_records() != self._num_records:
            raise OSError(f"{reader.num_records()} of {self._num_records} records were written")
        name = f"{part_name(self._task)}-{len(self._finished):03d}.array_record"
        with self._partial.open("rb") as file:
            os.fsync(file.fileno())
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        num_bytes = self._partial.stat().st_size
        os.replace(self._partial, self._folder / name)
        self._finished.append((name, self._num_records, num_bytes, digest))


def _write_text(path: Path, text: str) -> None:
    """Whole or not at all."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with partial.open("w", encoding="utf-8", newline="\n") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


# ------------------------------------------------------------------------------- one data set


def assemble(
    folder: Path,
    parts: Sequence[Part],
    skipped_rows: Iterable[Skipped],
    settings: Settings,
    output: Path,
    plan_fingerprint: str,
) -> dict[str, Any]:
    """Makes the data set `output`, at once, of all finished parts in `folder`; its report."""
    splits: dict[str, list[int]] = {}
    for task, part in enumerate(parts):
        if part.shards:
            splits.setdefault(part.split, []).append(task)
    report = _report(parts, skipped_rows, settings)
    metadata = {
        **report,
        "plan": plan_fingerprint,
        "fingerprints": {
            split: _fingerprint([parts[task] for task in tasks]) for split, tasks in splits.items()
        },
    }
    work = folder / "assembled"
    shutil.rmtree(work, ignore_errors=True)
    shards = {
        split: [(folder / name, num) for task in tasks for name, num, *_ in parts[task].shards]
        for split, tasks in splits.items()
    }
    try:
        builder = _builder(settings.name, shards, metadata, work)
        with contextlib.redirect_stdout(io.StringIO()):  # it would say that it downloads
            builder.download_and_prepare()
        made = Path(builder.data_dir)
        for split, tasks in splits.items():
            with (made / lines_name(settings.name, split)).open("wb") as lines:
                for task in tasks:
                    lines.write((folder / f"{part_name(task)}.jsonl").read_bytes())
        report_text = json.dumps(report, indent=1, ensure_ascii=False) + "\n"
        (made / REPORT_FILE).write_text(report_text, encoding="utf-8")
        output.parent.mkdir(parents=True, exist_ok=True)
        os.rename(made, output)  # takes the place of an empty folder, and of nothing else
    except OSError as error:
        raise InputError(f"{output}: cannot be written ({error.strerror or error})") from error
    return report


def _report(
    parts: Sequence[Part], skipped_rows: Iterable[Skipped], settings: Settings
) -> dict[str, Any]:
    splits: dict[str, dict[str, Any]] = {}
    skipped = [dataclasses.asdict(row) for row in skipped_rows]
    for part in parts:
        row = splits.setdefault(part.split, {"recordings": 0, "records": 0, "seconds": 0.0})
        row["recordings"] += part.num_recordings
        row["records"] += sum(num for _, num, *_ in part.shards)
        row["seconds"] = round(row["seconds"] + part.num_samples / settings.sample_rate_hz, 3)
        skipped += [{"id": id_, "split": part.split, "reason": why} for id_, why in part.skipped]
    return {
        "source": settings.name,
        "sample_rate_hz": settings.sample_rate_hz,
        "min_seconds": settings.min_seconds,
        "splits": splits,
        "num_skipped": len(skipped),
        "skipped": skipped,
    }


def _fingerprint(parts: Iterable[Part]) -> str:
    """Of a split's content: the hashes of its shards, which hold the captions too."""
    digest = hashlib.sha256()
    for part in parts:
        for *_, sha256 in part.shards:
            digest.update(bytes.fromhex(sha256))
    return digest.hexdigest()


def _builder(
    name: str,
    shards: Mapping[str, Sequence[tuple[Path, int]]],
    metadata: Mapping[str, Any],
    data_dir: Path,
) -> tfds.core.DatasetBuilder:
    """A builder whose shards, given as (file, number of records), are written already."""
    written = {
        shard_name(name, split, number, len(files)): path
        for split, files in shards.items()
        for number, (path, _) in enumerate(files)
    }

    class Builder(tfds.core.ShardBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
        VERSION = tfds.core.Version(VERSION)
        # TFDS looks for checksums of downloads beside our code, with a package it does not require.
        code_path = url_infos = None

        def _info(self) -> tfds.core.DatasetInfo:
            return tfds.core.DatasetInfo(
                builder=self,
                description=_DESCRIPTION,
                features=features(),
                metadata=tfds.core.MetadataDict(metadata),
                disable_shuffling=True,
            )

        def _shard_iterators_per_split(self, dl_manager: Any) -> dict[str, list[Any]]:
            return {
                split: [functools.partial(_placeholders, num_records) for _, num_records in files]
                for split, files in shards.items()
            }

        def _example_writer(self) -> ExampleWriter:
            return _WrittenShards(written)

    Builder.name = name
    return Builder(data_dir=os.fspath(data_dir), file_format="array_record")


def _placeholders(num_records: int) -> Iterator[tuple[int, dict[str, Any]]]:
    """TFDS counts what it is given; the records themselves are written already."""
    return ((number, {}) for number in range(num_records))


class _WrittenShards(ExampleWriter):
    """Puts the file of a shard where TFDS asks for it to be written."""

    def __init__(self, written: Mapping[str, Path]) -> None:
        super().__init__(tfds.core.FileFormat.ARRAY_RECORD)
        self._written = written

    def write(self, path: Any, examples: Iterable[Any]) -> None:
        link(self._written[os.path.basename(path)], Path(os.fspath(path)))


def link(source: Path, destination: Path) -> None:
    """A second name for a file, or a copy where the disk knows no second names."""
    with contextlib.suppress(OSError):
        os.link(source, destination)
        return
    shutil.copyfile(source, destination)
