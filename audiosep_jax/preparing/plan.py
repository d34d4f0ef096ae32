"""Cuts the work of preparing a data set into tasks that any machine can do, in any order.

The plan lies on disk, a line of JSON for each task, so that memory does not grow with the data
set. It depends on the annotations and settings alone, not on where files lie or how many cores
there are: so a run that was killed, and machines that share the work, agree on it.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from audiosep_jax.errors import InputError
from audiosep_jax.preparing.recordings import (
    Recording,
    Skipped,
    from_json,
    nominal_seconds,
    to_json,
)
from audiosep_jax.preparing.writer import SHARD_BYTES, Settings

TASKS_FILE, ABOUT_FILE = "plan.jsonl", "plan.json"
# Small sets are cut finer, to keep all cores busy and little to do again after a kill.
_LEAST_TASKS = 32
_LEAST_TASK_SECONDS = 100.0
_MOST_TASK_RECORDINGS = 4096


@dataclasses.dataclass(frozen=True)
class Plan:
    """Where each task is to be found, and what was left out while planning."""

    path: Path
    fingerprint: str
    begins: tuple[int, ...]  # offset of each task's line
    sizes: tuple[int, ...]  # recordings in each task
    skipped: tuple[Skipped, ...]


def make_plan(items: Iterable[Recording | Skipped], folder: Path, settings: Settings) -> Plan:
    """Writes the plan into `folder`; InputError where another one was begun there."""
    partial = folder / f".plan.{os.getpid()}.partial"
    try:
        skipped, seconds = _write_recordings(items, partial)
        plan = _write_tasks(partial, folder, settings, seconds, skipped)
    finally:
        partial.unlink(missing_ok=True)
    return plan


def tasks_of(path: Path, begin: int) -> list[Recording]:
    """The recordings of the task whose line begins there."""
    with path.open("rb") as file:
        file.seek(begin)
        return [from_json(row) for row in json.loads(file.readline())]


def plan_fingerprint(folder: Path) -> str | None:
    """Of the plan that was begun in a folder, None where there is none."""
    try:
        about = json.loads((folder / ABOUT_FILE).read_text(encoding="utf-8"))
        return str(about["fingerprint"])
    except OSError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{folder / ABOUT_FILE}: is damaged; remove {folder}") from error


def _write_recordings(
    items: Iterable[Recording | Skipped], path: Path
) -> tuple[tuple[Skipped, ...], float]:
    """A line for each recording; what is left out, and the seconds of the rest."""
    skipped, seconds, seen = [], 0.0, set()
    with path.open("w", encoding="utf-8") as file:
        for item in items:
            if isinstance(item, Skipped):
                skipped.append(item)
                continue
            key = hashlib.blake2b(f"{item.split}/{item.id}".encode(), digest_size=8).digest()
            if key in seen:
                skipped.append(Skipped(item.id, item.split, "listed twice"))
                continue
            seen.add(key)
            seconds += nominal_seconds(item.seconds)
            file.write(json.dumps(to_json(item)) + "\n")
    return tuple(skipped), seconds


def _write_tasks(
    listed: Path, folder: Path, settings: Settings, seconds: float, skipped: tuple[Skipped, ...]
) -> Plan:
    digest = hashlib.sha256(json.dumps(dataclasses.asdict(settings)).encode())
    digest.update(json.dumps([dataclasses.astuple(row) for row in skipped]).encode())
    partial, begins, sizes = folder / f".tasks.{os.getpid()}.partial", [], []
    try:
        with partial.open("wb") as file:
            for rows in _tasks(listed, _task_seconds(seconds, settings)):
                begins.append(file.tell())
                sizes.append(len(rows))
                file.write(json.dumps(rows).encode() + b"\n")
                digest.update(json.dumps([_portable(row) for row in rows]).encode())
        fingerprint = digest.hexdigest()[:32]
        begun = plan_fingerprint(folder)
        if begun not in (None, fingerprint):
            raise InputError(
                f"{folder}: was begun with other recordings or settings; "
                "remove it or choose another --output"
            )
        os.replace(partial, folder / TASKS_FILE)
    finally:
        partial.unlink(missing_ok=True)
    if begun is None:
        about = {
            "fingerprint": fingerprint,
            "num_tasks": len(sizes),
            **dataclasses.asdict(settings),
        }
        partial.write_text(json.dumps(about), encoding="utf-8")
        os.replace(partial, folder / ABOUT_FILE)
    return Plan(folder / TASKS_FILE, fingerprint, tuple(begins), tuple(sizes), skipped)


def _task_seconds(seconds: float, settings: Settings) -> float:
    full = SHARD_BYTES / (2 * settings.sample_rate_hz)
    return max(_LEAST_TASK_SECONDS, min(full, seconds / _LEAST_TASKS))


def _tasks(listed: Path, task_seconds: float) -> Iterator[list[Any]]:
    """Rows of one split each, in the order of the list."""
    open_tasks: dict[str, list[Any]] = {}
    filled: dict[str, float] = {}
    with listed.open(encoding="utf-8") as file:
        for line in file:
            row = json.loads(line)
            split, seconds = row[1], nominal_seconds(row[4])
            rows = open_tasks.setdefault(split, [])
            rows.append(row)
            filled[split] = filled.get(split, 0.0) + seconds
            if filled[split] >= task_seconds or len(rows) >= _MOST_TASK_RECORDINGS:
                yield open_tasks.pop(split)
                filled[split] = 0.0
    yield from (rows for _, rows in sorted(open_tasks.items()))


def _portable(row: list[Any]) -> list[Any]:
    """Without places and twin, which differ between machines."""
    id_, split, captions, _, seconds, _, synthetic = row
    return [id_, split, captions, seconds, synthetic]
