"""Shards of a prepared data set: each one is a task, written whole or not at all.

The recordings are cut into shards before any audio is read, by the lengths in the annotations. A
shard therefore holds the same recordings on every machine, and a run that was killed goes on with
the shards that are missing. The list of recordings is kept on disk: memory does not grow with it.
"""

import array
import bisect
import concurrent.futures
import contextlib
import dataclasses
import functools
import hashlib
import json
import multiprocessing
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from array_record.python import array_record_module
from tensorflow_datasets.core import example_serializer

from audiosep_jax import files, workers
from audiosep_jax.audio.files import AudioError
from audiosep_jax.data.prepared import lines_name, shard_name
from audiosep_jax.errors import InputError
from audiosep_jax.preparing import recordings as recordings_lib
from audiosep_jax.preparing.recordings import Recording, Skipped

REPORT_FILE = "prepare_report.json"
PLAN_FILE = "plan.json"
SHARD_BYTES = 192 << 20
# int16 noise hardly compresses; unpacking it took three times as long as reading it.
WRITER_OPTIONS = "group_size:1,uncompressed"
VERSION = "1.0.0"
# Small data sets have more and smaller shards, to keep all cores busy and lose little to a kill.
_LEAST_SHARDS = 32
_LEAST_SHARD_SECONDS = 100.0
_MOST_SHARD_RECORDINGS = 4096
_UNKNOWN_SECONDS = 10.0  # assumed length of a recording whose annotations state none
_DESCRIPTION = "Captioned audio records of at most 15 s, int16 mono, by audiosep_jax."


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings that determine, with the recordings, the bytes that are written."""

    name: str
    sample_rate_hz: int
    min_seconds: float
    version: str = VERSION


class Shard(NamedTuple):
    """A file of the data set, and where its recordings are listed."""

    split: str
    name: str
    listed: Path  # list of the recordings of its split
    offset: int  # of the shard's first line in the list, in bytes
    num_recordings: int


@dataclasses.dataclass(frozen=True)
class Plan:
    """All shards of a data set, and the rows of the annotations that describe no recording."""

    folder: Path
    fingerprint: str
    shards: tuple[Shard, ...]
    skipped: tuple[Skipped, ...]


# ------------------------------------------------------------------------------------- the plan


def make_plan(items: Iterable[Recording | Skipped], folder: Path, settings: Settings) -> Plan:
    """Cut recordings into shards, and list them in files of `folder`.

    The fingerprint covers the recordings and the settings, but not where the files are, so that
    several machines agree on it.

    Raises:
        InputError: `folder` was begun with other recordings or settings.
    """
    digest = hashlib.sha256(json.dumps(dataclasses.asdict(settings)).encode())
    lists: dict[str, _List] = {}
    skipped: list[Skipped] = []
    # Machines that share the folder have lists of their own: their file names may differ.
    lists_folder = Path(tempfile.mkdtemp(prefix=".lists-", dir=folder))
    with contextlib.ExitStack() as stack:
        for item in items:
            if isinstance(item, Recording):
                if item.split not in lists:
                    path = lists_folder / f"{item.split}.jsonl"
                    lists[item.split] = _List(path, stack.enter_context(path.open("wb")))
                row = recordings_lib.to_json(item)
                if lists[item.split].add(item, row):
                    id_, split, captions, _, seconds, _, synthetic = row
                    digest.update(json.dumps([id_, split, captions, seconds, synthetic]).encode())
                    continue
                item = Skipped(item.id, item.split, "listed twice")
            skipped.append(item)
            digest.update(json.dumps(dataclasses.astuple(item)).encode())
    plan_path, fingerprint = folder / PLAN_FILE, digest.hexdigest()[:32]
    if plan_path.exists() and files.read_json_object(plan_path).get("plan") != fingerprint:
        raise InputError(
            f"{folder}: was begun with other recordings or settings; "
            "remove it or choose another output folder"
        )
    files.write_json(plan_path, {"plan": fingerprint, **dataclasses.asdict(settings)})
    total_seconds = sum(sum(listed.seconds) for listed in lists.values())
    full = SHARD_BYTES / (2 * settings.sample_rate_hz)
    shard_seconds = max(_LEAST_SHARD_SECONDS, min(full, total_seconds / _LEAST_SHARDS))
    shards = [
        shard
        for split, listed in sorted(lists.items())
        for shard in _cut(listed, settings.name, split, shard_seconds)
    ]
    return Plan(folder, fingerprint, tuple(shards), tuple(skipped))


class _List:
    """List of the recordings of a split: a line of JSON each, with their lengths and offsets."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path, self._file = path, file
        self._seen: set[bytes] = set()
        self.seconds, self.offsets = array.array("d"), array.array("q")

    def add(self, recording: Recording, row: list[Any]) -> bool:
        """Append a recording; False if its id is in the list already."""
        key = hashlib.blake2b(recording.id.encode(errors="replace"), digest_size=8).digest()
        if key in self._seen:
            return False
        self._seen.add(key)
        self.offsets.append(self._file.tell())
        self.seconds.append(recording.seconds[1] if recording.seconds else _UNKNOWN_SECONDS)
        self._file.write(json.dumps(row).encode() + b"\n")
        return True


def _cut(listed: _List, name: str, split: str, shard_seconds: float) -> list[Shard]:
    """Consecutive recordings of about `shard_seconds` each."""
    ends, total = np.cumsum(listed.seconds), len(listed.seconds)
    starts = [0]
    while starts[-1] < total:
        done = ends[starts[-1] - 1] if starts[-1] else 0.0
        end = bisect.bisect_left(ends, done + shard_seconds - 1e-6) + 1
        starts.append(min(end, starts[-1] + _MOST_SHARD_RECORDINGS, total))
    count = len(starts) - 1
    return [
        Shard(
            split,
            shard_name(name, split, number, count),
            listed.path,
            listed.offsets[starts[number]],
            starts[number + 1] - starts[number],
        )
        for number in range(count)
    ]


# ----------------------------------------------------------------------------------- one shard


@dataclasses.dataclass(frozen=True)
class Written:
    """Account of a finished shard, stored beside it until the data set is complete."""

    num_recordings: int
    num_records: int
    num_samples: int
    num_bytes: int
    sha256: str
    skipped: tuple[tuple[str, str], ...]  # id and reason of each recording that was left out
    lines: str  # JSON lines of the records: id, start_seconds, captions


def write_shard(folder: Path, shard: Shard, settings: Settings) -> None:
    """Decode the recordings of a shard and write its file, then the account of it."""
    lines: list[str] = []
    skipped: list[tuple[str, str]] = []
    num_samples = 0
    try:
        with files.replacing(folder / shard.name) as partial:
            writer = array_record_module.ArrayRecordWriter(os.fspath(partial), WRITER_OPTIONS)
            for recording in recordings_of(shard):
                pieces = recordings_lib.records(
                    recording, settings.sample_rate_hz, settings.min_seconds, folder
                )
                try:
                    for start_seconds, pcm_S in pieces:
                        writer.write(_encoded(recording, start_seconds, pcm_S))
                        lines.append(_line(recording, start_seconds))
                        num_samples += len(pcm_S)
                except AudioError as error:
                    skipped.append((recording.id, str(error)))
            writer.close()
            found = array_record_module.ArrayRecordReader(os.fspath(partial)).num_records()
            if found != len(lines):
                raise RuntimeError(f"{found} of {len(lines)} records were written")
            with partial.open("rb") as file:
                sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    except RuntimeError as error:  # ArrayRecord's own errors
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{folder / shard.name}: cannot be written ({reason})") from error
    written = Written(
        num_recordings=shard.num_recordings - len(skipped),
        num_records=len(lines),
        num_samples=num_samples,
        num_bytes=(folder / shard.name).stat().st_size,
        sha256=sha256,
        skipped=tuple(skipped),
        lines="".join(lines),
    )
    files.write_json(folder / f"{shard.name}.json", dataclasses.asdict(written), indent=None)


def read_account(folder: Path, shard: Shard) -> Written | None:
    """Account of a finished shard; None if the shard is missing, damaged or not finished."""
    try:
        row = files.read_json_object(folder / f"{shard.name}.json")
        written = Written(**{**row, "skipped": tuple(map(tuple, row["skipped"]))})
        whole = (folder / shard.name).stat().st_size == written.num_bytes
    except (InputError, OSError, KeyError, TypeError):
        return None
    return written if whole else None


def recordings_of(shard: Shard) -> Iterator[Recording]:
    """Recordings of a shard, in order."""
    with shard.listed.open("rb") as file:
        file.seek(shard.offset)
        for _ in range(shard.num_recordings):
            yield recordings_lib.from_json(json.loads(file.readline()))


def _line(recording: Recording, start_seconds: float) -> str:
    start = round(start_seconds, 6)
    row = {"id": recording.id, "start_seconds": start, "captions": recording.captions}
    return json.dumps(row, ensure_ascii=False) + "\n"


@functools.cache
def features() -> tfds.features.FeaturesDict:
    """Features of a record. TFDS would store a list of int16 as varints, four times as slow."""
    return tfds.features.FeaturesDict(
        {
            "audio": tfds.features.Tensor(shape=(None,), dtype=np.int16, encoding="bytes"),
            "captions": tfds.features.Sequence(tfds.features.Text()),
            "id": tfds.features.Text(),
            "start_seconds": tfds.features.Scalar(dtype=np.float32),
        }
    )


@functools.cache
def _serializer() -> example_serializer.ExampleSerializer:
    return example_serializer.ExampleSerializer(features().get_serialized_info())


def _encoded(recording: Recording, start_seconds: float, pcm_S: np.ndarray) -> bytes:
    """Serialise a record as TFDS does, and equal records to equal bytes in every process."""
    row = {
        "audio": pcm_S,
        "captions": list(recording.captions),
        "id": recording.id,
        "start_seconds": np.float32(start_seconds),
    }
    example = _serializer().get_tf_example(features().encode_example(row))
    # Without `deterministic`, the order of the fields depends on addresses in memory.
    return bytes(example.SerializeToString(deterministic=True))


# ----------------------------------------------------------------------------------- all shards


def write_shards(
    plan: Plan,
    shards: Sequence[Shard],
    settings: Settings,
    num_workers: int,
    progress: Callable[[int], object],
) -> None:
    """Write shards in worker processes; call `progress` with the recordings of each.

    Raises:
        InputError: the disk is full, or a worker process was killed. Finished shards are kept.
    """
    if num_workers == 1 or len(shards) < 2:
        for shard in shards:
            write_shard(plan.folder, shard, settings)
            progress(shard.num_recordings)
        return
    pool = concurrent.futures.ProcessPoolExecutor(
        min(num_workers, len(shards)),
        mp_context=multiprocessing.get_context("spawn"),
        initializer=workers.end_with_parent,
    )
    try:
        futures = {pool.submit(write_shard, plan.folder, x, settings): x for x in shards}
        for future in concurrent.futures.as_completed(futures):
            future.result()
            progress(futures[future].num_recordings)
    except BrokenProcessPool as error:
        raise InputError(
            "a worker process was killed, perhaps because memory ran out; run the same command "
            "again to go on, with fewer workers"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def finish(plan: Plan, settings: Settings, output: Path) -> dict[str, Any]:
    """Turn the folder of finished shards into the data set `output`, and return its report."""
    splits: dict[str, list[Written]] = {}
    for shard in plan.shards:
        written = read_account(plan.folder, shard)
        if written is None:
            raise InputError(f"{plan.folder / shard.name}: is missing or damaged; prepare again")
        splits.setdefault(shard.split, []).append(written)
    report = _report(plan, splits, settings)
    filled = {split: row for split, row in splits.items() if report["splits"][split]["records"]}
    if not filled:
        files.remove(plan.folder)  # otherwise repaired files would still count as skipped
        raise InputError(
            f"{output}: no recording is usable; the first reason: {report['skipped'][0]['reason']}"
        )
    for shard in plan.shards:
        if shard.split not in filled:  # TFDS refuses a split without records
            files.remove(plan.folder / shard.name)
    _write_metadata(plan, settings, report, filled)
    for split, row in filled.items():
        text = "".join(written.lines for written in row)
        files.write_text(plan.folder / lines_name(settings.name, split), text)
    files.write_json(plan.folder / REPORT_FILE, report)
    kept = {shard.name for shard in plan.shards if shard.split in filled}
    kept |= {lines_name(settings.name, split) for split in filled}
    kept |= {REPORT_FILE, "dataset_info.json", "features.json", "metadata.json"}
    for path in plan.folder.iterdir():
        if path.name not in kept:
            files.remove(path)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        os.rename(plan.folder, output)  # takes the place of an empty folder, and of nothing else
    except OSError as error:
        raise files.cannot_write(output, error) from error
    return report


def _report(plan: Plan, splits: dict[str, list[Written]], settings: Settings) -> dict[str, Any]:
    rate_hz = settings.sample_rate_hz
    skipped = [dataclasses.asdict(row) for row in plan.skipped]
    skipped += [
        {"id": id_, "split": split, "reason": reason}
        for split, row in splits.items()
        for written in row
        for id_, reason in written.skipped
    ]
    return {
        "source": settings.name,
        "sample_rate_hz": rate_hz,
        "min_seconds": settings.min_seconds,
        "splits": {
            split: {
                "recordings": sum(written.num_recordings for written in row),
                "records": sum(written.num_records for written in row),
                "seconds": round(sum(written.num_samples for written in row) / rate_hz, 3),
            }
            for split, row in splits.items()
        },
        "num_skipped": len(skipped),
        "skipped": skipped,
    }


def _write_metadata(
    plan: Plan,
    settings: Settings,
    report: dict[str, Any],
    splits: dict[str, list[Written]],
) -> None:
    """Write the files by which TFDS, and `PreparedSource`, know the data set."""
    hashes = {
        split: hashlib.sha256(bytes.fromhex("".join(w.sha256 for w in row))).hexdigest()
        for split, row in splits.items()
    }
    metadata = {**report, "plan": plan.fingerprint, "fingerprints": hashes}
    infos = [
        tfds.core.SplitInfo(
            name=split,
            shard_lengths=[written.num_records for written in row],
            num_bytes=sum(written.num_bytes for written in row),
            filename_template=tfds.core.ShardedFileTemplate(
                data_dir=plan.folder,
                dataset_name=settings.name,
                split=split,
                filetype_suffix="array_record",
            ),
        )
        for split, row in splits.items()
    ]
    tfds.folder_dataset.write_metadata(
        data_dir=plan.folder,
        features=features(),
        split_infos=infos,
        version=VERSION,
        check_data=False,
        description=_DESCRIPTION,
        metadata=tfds.core.MetadataDict(metadata),
    )
