"""Shards of a prepared data set: each one is a task, written whole or not at all.

A run that was killed goes on with the shards that are missing.
"""

import errno
import functools
import hashlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from array_record.python import array_record_module
from tensorflow_datasets.core import example_serializer

from audiosep_jax import files, remote, workers
from audiosep_jax.audio.files import AudioError
from audiosep_jax.data.prepared import INFO_FILE, lines_name
from audiosep_jax.errors import InputError
from audiosep_jax.preparing import recordings as recordings_lib
from audiosep_jax.preparing.plan import VERSION, Plan, Settings, Shard, recordings_of
from audiosep_jax.preparing.recordings import Recording

REPORT_FILE = "prepare_report.json"
# int16 noise hardly compresses; unpacking it took three times as long as reading it.
WRITER_OPTIONS = "group_size:1,uncompressed"
_DESCRIPTION = "Captioned audio records of at most 15 s, int16 mono, by audiosep_jax."


# ----------------------------------------------------------------------------------- one shard


class Written(NamedTuple):
    """Account of a finished shard, stored beside it until the data set is complete."""

    num_recordings: int
    num_records: int
    num_samples: int
    num_bytes: int
    sha256: str
    skipped: Sequence[Sequence[str]]  # id and reason of each recording that was left out
    lines: str  # JSON lines of the records: id, start_seconds, captions, class if any


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
                    recording, settings.sample_rate_hz, settings.min_seconds, partial.parent
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
            num_bytes = partial.stat().st_size
            with partial.open("rb") as file:
                sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    except RuntimeError as error:  # ArrayRecord's own errors
        full, text = os.strerror(errno.ENOSPC), " ".join(str(error).split())
        reason = full if full in text else text[:200]
        raise InputError(f"{folder / shard.name}: cannot be written ({reason})") from error
    written = Written(
        num_recordings=shard.num_recordings - len(skipped),
        num_records=len(lines),
        num_samples=num_samples,
        num_bytes=num_bytes,
        sha256=sha256,
        skipped=skipped,
        lines="".join(lines),
    )
    files.write_json(folder / f"{shard.name}.json", written._asdict(), indent=None)


def read_account(folder: Path, shard: Shard) -> Written | None:
    """Account of a finished shard; None if the shard is missing, damaged or not finished."""
    try:
        written = Written(**files.read_json_object(folder / f"{shard.name}.json"))
        whole = (folder / shard.name).stat().st_size == written.num_bytes
    except (InputError, OSError, TypeError):
        return None
    return written if whole else None


def _line(recording: Recording, start_seconds: float) -> str:
    start = round(start_seconds, 6)
    row = {"id": recording.id, "start_seconds": start, "captions": recording.captions}
    row |= {"class": recording.class_name} if recording.class_name else {}
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
    cluster: str = "",
) -> None:
    """Write shards in worker processes; call `progress` with the recordings of each.

    With the address of a `cluster`, its workers write them. InputError if the disk is full, or a
    worker process was killed. Finished shards are kept.
    """
    write = functools.partial(write_shard, plan.folder, settings=settings)
    if not cluster and (num_workers == 1 or len(shards) < 2):
        for shard in shards:
            write(shard)
            progress(shard.num_recordings)
        return
    count = min(num_workers, len(shards))
    with workers.cluster(cluster) if cluster else workers.processes(count) as submit:
        for shard, _ in workers.finished(submit, write, shards):
            progress(shard.num_recordings)


def finish(plan: Plan, settings: Settings, output: Path) -> dict[str, Any]:
    """Turn the folder of finished shards into the data set `output`, and return its report."""
    splits: dict[str, list[Written]] = {}
    is_remote = bool(remote.url_of(output))
    if is_remote:  # workers elsewhere have written to it
        remote.show(plan.folder)
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
    metadata = ("metadata.json", "features.json", INFO_FILE)  # the last marks a whole data set
    kept |= {REPORT_FILE, *metadata}
    if is_remote:  # objects cannot be renamed
        for name in sorted(kept.difference(metadata)):
            remote.copy(plan.folder / name, output / name)
        for name in metadata:
            remote.upload(plan.folder / name, output / name)
        files.remove(plan.folder)
        return report
    for path in plan.folder.iterdir():
        if path.name not in kept:
            files.remove(path)
    output.parent.mkdir(parents=True, exist_ok=True)
    os.rename(plan.folder, output)  # takes the place of an empty folder, and of nothing else
    return report


def _report(plan: Plan, splits: dict[str, list[Written]], settings: Settings) -> dict[str, Any]:
    rate_hz = settings.sample_rate_hz
    skipped = [row._asdict() for row in plan.skipped]
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
