"""The plan of a data set: its recordings, cut into shards before any audio is read.

The lengths in the annotations decide where shards end. A shard therefore holds the same recordings
on every machine. The list of recordings is kept on disk: memory does not grow with it.
"""

import array
import bisect
import contextlib
import hashlib
import json
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from audiosep_jax import files, remote
from audiosep_jax.data.prepared import shard_name
from audiosep_jax.errors import InputError
from audiosep_jax.preparing.recordings import Recording, Skipped, as_text, find

PLAN_FILE = "plan.json"
VERSION = "1.0.0"
SHARD_BYTES = 192 << 20
# Small data sets have more and smaller shards, to keep all cores busy and lose little to a kill.
_LEAST_SHARDS = 32
_LEAST_SHARD_SECONDS = 100.0
_MOST_SHARD_RECORDINGS = 4096
_UNKNOWN_SECONDS = 10.0  # assumed length of a recording whose annotations state none


class Settings(NamedTuple):
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


class Plan(NamedTuple):
    """All shards of a data set, and the rows of the annotations that describe no recording."""

    folder: Path
    fingerprint: str
    shards: tuple[Shard, ...]
    skipped: tuple[Skipped, ...]


def make_plan(items: Iterable[Recording | Skipped], folder: Path, settings: Settings) -> Plan:
    """Cut recordings into shards, and list them in files of `folder`.

    The fingerprint covers the recordings and the settings, but not where the files are, so that
    several machines agree on it. InputError if `folder` was begun with another one.
    """
    digest = hashlib.sha256(json.dumps(settings._asdict()).encode())
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
                item = as_text(item)
                if lists[item.split].add(item):
                    id_, split, captions, _, *others, class_name = item
                    described = [id_, split, captions, *others, *filter(None, [class_name])]
                    digest.update(json.dumps(described).encode())
                    continue
                item = Skipped(item.id, item.split, "listed twice")
            skipped.append(item)
            digest.update(json.dumps(item).encode())
    plan_path, fingerprint = folder / PLAN_FILE, digest.hexdigest()[:32]
    if plan_path.exists() and files.read_json_object(plan_path).get("plan") != fingerprint:
        raise InputError(
            f"{folder}: was begun with other recordings or settings; "
            "remove it or choose another output folder"
        )
    files.write_json(plan_path, {"plan": fingerprint, **settings._asdict()})
    total_seconds = sum(sum(listed.seconds) for listed in lists.values())
    full = SHARD_BYTES / (2 * settings.sample_rate_hz)
    shard_seconds = max(_LEAST_SHARD_SECONDS, min(full, total_seconds / _LEAST_SHARDS))
    shards = [
        shard
        for split, listed in sorted(lists.items())
        for shard in _cut(listed, settings.name, split, shard_seconds)
    ]
    if remote.url_of(folder):
        for listed in lists.values():
            remote.upload(listed.path, listed.path)
    return Plan(folder, fingerprint, tuple(shards), tuple(skipped))


class _List:
    """List of the recordings of a split: a line of JSON each, with their lengths and offsets."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path, self._file = path, file
        self._seen: set[bytes] = set()
        self.seconds, self.offsets = array.array("d"), array.array("q")

    def add(self, recording: Recording) -> bool:
        """Append a recording; False if its id is in the list already."""
        key = hashlib.blake2b(recording.id.encode(), digest_size=8).digest()
        if key in self._seen:
            return False
        self._seen.add(key)
        self.offsets.append(self._file.tell())
        if any(map(remote.url_of, recording.places)):
            # A worker elsewhere cannot see which of the places exists.
            recording = recording._replace(places=[str(find(recording) or recording.places[0])])
        self.seconds.append(recording.seconds[1] if recording.seconds else _UNKNOWN_SECONDS)
        self._file.write(json.dumps(recording).encode() + b"\n")
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


def recordings_of(shard: Shard) -> Iterator[Recording]:
    """Recordings of a shard, in order."""
    with remote.opened(shard.listed) as file:
        file.seek(shard.offset)
        for _ in range(shard.num_recordings):
            yield Recording(*json.loads(file.readline()))
