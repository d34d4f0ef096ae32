"""Batches: jobs separated one after another, or at the same time on several devices.

A recording that fails is reported and does not stop the others.
"""

import dataclasses
import hashlib
import itertools
import json
import os
import queue
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

import jax
import numpy as np

from audiosep_jax import plots, remote, workers
from audiosep_jax.audio import files as audio_files
from audiosep_jax.audio.files import AudioReader
from audiosep_jax.cli import use_compilation_cache
from audiosep_jax.errors import InputError, named
from audiosep_jax.separation import editors
from audiosep_jax.separation.during import Span
from audiosep_jax.separation.files import SeparatedFile
from audiosep_jax.separation.jobs import (
    MAX_STEM_BYTES,
    Job,
    cut,
    output_names,
)
from audiosep_jax.separation.separator import Separator

FIGURES = (".png", ".svg")
SENT_TOGETHER, SHORT_BYTES = 4, 1 << 20  # recordings of a group for a cluster, and their files
Record = dict[str, Any]  # what is known about a finished recording, as JSON


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings of all jobs."""

    output: Path  # folder of the results
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # of `separate_file`
    residual: bool = False
    suffix: str | None = None  # of the results; None for that of their format
    beside: tuple[str, ...] = ()  # suffixes of figures, labels and files of all parts


@dataclasses.dataclass(eq=False)
class Task:
    """A job with the paths of its results and, once the weights are loaded, its conditions."""

    job: Job
    labels: Sequence[str]
    results: list[Path]  # of the queries, then of the residual if there is one; without suffix
    beside: Sequence[Path] = ()  # figures, labels and files of all parts
    condition_NE: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros((0, 0)))
    unwanted_ME: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros((0, 0)))
    reader: AudioReader | None = None  # the recording, if it is open already
    during_N: list[tuple[Span, ...]] = dataclasses.field(default_factory=list)
    refused: dict[Path, str] = dataclasses.field(default_factory=dict)  # see `protect`


def make_task(job: Job, labels: Sequence[str], settings: Settings) -> Task:
    """Name the results of a job: as its list does, or after the recording and the queries."""
    folder = settings.output / job.folder
    residual = ["residual"] if settings.residual else []
    paths = [folder / name for name in output_names(job.stem, [*labels, *residual])]
    for row, name in enumerate(job.outputs):
        if name is not None:
            paths[row] = settings.output / name
    stem = cut(job.stem, MAX_STEM_BYTES)
    return Task(job, labels, paths, [folder / f"{stem}.{suffix}" for suffix in settings.beside])


def protect(
    tasks: Sequence[Task], output: Path, inputs: Set[str], own: Mapping[str, str], overwrite: bool
) -> None:
    """Note which files the results of each task may not replace, and why.

    This precedes all work: a task that is repeated since its worker was killed replaces its files.

    Args:
        inputs: real paths of files that no result replaces.
        own: real path of the recording of each result of an earlier run, which may replace it.
    """
    suffixes: dict[str, set[str]] = {}  # of files, by their paths without
    folders = {path.parent for task in tasks for path in task.results}
    for path in itertools.chain.from_iterable(map(_entries, folders)):
        known = suffixes.setdefault(str(path.with_suffix("")).casefold(), set())
        known.update((path.suffix, path.suffix.lower()))
    for task in tasks:
        paths = [
            path.with_name(path.name + suffix)
            for path in task.results
            for suffix in suffixes.get(str(path).casefold(), ())
        ]
        for path in filter(os.path.lexists, [*paths, *task.beside]):
            owner = own.get(str(path.relative_to(output)))
            if os.path.realpath(path) in inputs:
                task.refused[path] = "is an input; choose another output"
            # A folder is refused by the writer.
            elif not (overwrite or path.is_dir() or owner == _real(task.job.recording)):
                task.refused[path] = "exists already; --overwrite replaces it"


def _entries(folder: Path) -> list[Path]:
    """Paths in a folder, none if it does not exist; InputError if they cannot be listed."""
    try:
        return [folder / name for name in os.listdir(folder)] if folder.is_dir() else []
    except OSError as error:  # results that exist would be replaced unseen
        raise InputError(f"{folder}: cannot be listed ({error.strerror})") from error


def check_distinct(tasks: Sequence[Task]) -> None:
    """Raise InputError if two results have the same name."""
    taken = set()
    for path in (str(path) for task in tasks for path in task.results):
        if path.casefold() in taken:
            raise InputError(f"{path}: two results have this name; give them others")
        taken.add(path.casefold())


def key_of(task: Task, settings: Settings, weights: str) -> str:
    """Hash of everything that changes the results: recording, queries, weights and settings."""
    try:
        stat = task.job.recording.stat()
    except (OSError, ValueError):
        return ""
    how = {**settings.options, "tile_seconds": None}
    names = [str(path.relative_to(settings.output)) for path in task.results]
    about = [task.job.name, stat.st_size, stat.st_mtime_ns, names, how, settings.beside, weights]
    digest = hashlib.sha256(json.dumps([*about, settings.suffix, task.during_N]).encode())
    digest.update(np.ascontiguousarray(task.condition_NE).tobytes())
    digest.update(b"without" + np.ascontiguousarray(task.unwanted_ME).tobytes())
    return digest.hexdigest()


# ---------------------------------------------------------------------- one recording


def separate_task(
    separator: Separator, task: Task, settings: Settings, progress: Callable[[float], None]
) -> Record:
    """Write the results of a task; return its record, with paths relative to the output folder.

    `progress` is called with the share of the recording that was done since the last call.
    """
    with task.reader or AudioReader(task.job.recording) as recording:
        form, paths = checked_paths(recording, task, settings)
        seconds = recording.num_samples / recording.sample_rate_hz
        parts = [*task.labels, "residual"]
        plot = next((path for path in task.beside if path.suffix in FIGURES), None)
        picture = Picture(["mixture", *parts], recording) if plot else None
        done = separator.separate_file(
            recording,
            paths[: len(task.labels)],
            task.condition_NE,
            unwanted_ME=task.unwanted_ME,
            during_N=task.during_N,
            residual=paths[-1] if settings.residual else None,
            progress=lambda more: progress(more / seconds),
            observe=picture.add if picture else None,
            **{**settings.options, **form},
        )
    for path in task.beside:
        if picture and path == plot:
            picture.draw(path)
        elif path.suffix == f".{editors.STEMS}":
            editors.write_stems(path, done.paths, parts[: len(done.paths)])
        else:
            editors.write_labels(path, task.labels, done.spans)
    return _record(task, done, settings.output)


def checked_paths(
    recording: AudioReader, task: Task, settings: Settings
) -> tuple[dict[str, str], list[Path]]:
    """Return the format and subtype, as options, and the paths of a task's results.

    InputError is raised if the format cannot be written or a result would replace another file.
    """
    asked = settings.options.get("output_format"), settings.options.get("subtype")
    format, subtype = audio_files.writable_format(recording, *asked)
    suffix = settings.suffix or audio_files.suffix_of(format, subtype)
    paths = [path.with_name(path.name + suffix) for path in task.results]
    for path in [*paths, *task.beside]:
        if not path.parent.resolve().is_relative_to(settings.output.resolve()):
            raise InputError(f"{path}: a link leads out of the output folder {settings.output}")
        if path in task.refused:
            raise InputError(f"{path}: {task.refused[path]}")
    return {"output_format": format, "subtype": subtype}, paths


def _record(task: Task, done: SeparatedFile, output: Path) -> Record:
    written = [*done.paths, *task.beside]
    results = [
        {
            "query": label,
            "output": str(done.paths[row].relative_to(output)),
            "presence": round(float(done.presence_N[row]), 4),
            "energy_share": round(float(done.share_N[row]), 6),
            "active": done.spans[row],
        }
        for row, label in enumerate(task.labels)
    ]
    return {
        "input": task.job.name,
        "recording": _real(task.job.recording),
        "seconds": round(done.num_samples / done.sample_rate_hz, 6),
        "sample_rate_hz": done.sample_rate_hz,
        "channels": done.num_channels,
        "format": f"{done.format} {done.subtype}",
        "gain": done.factor,
        "results": results,
        "files": {str(path.relative_to(output)): remote.state(path) for path in written},
    }


def _real(recording: Path) -> str:
    return remote.url_of(recording) or os.path.realpath(recording)


def public_record(record: Record, output: Path) -> Record:
    """The record as --json writes it: with full paths, and without what only --resume needs."""
    kept = {name: value for name, value in record.items() if name not in ("key", "recording")}
    results = [x | {"output": named(os.fspath(output / x["output"]))} for x in record["results"]]
    paths = [named(os.fspath(output / name)) for name in record["files"]]
    return kept | {"results": results, "files": paths}


class Picture:
    """Spectrograms of the mixture, the targets and the rest, collected block by block.

    All panels are at the level of the recording, also if the files are quieter by a factor.
    """

    def __init__(self, titles: Sequence[str], recording: AudioReader) -> None:
        size = recording.sample_rate_hz, recording.num_samples
        self._panels = [(title, plots.LogSpectrogram(*size)) for title in titles]

    def add(self, mixture_CS: np.ndarray, target_NCS: np.ndarray) -> None:
        signals = (mixture_CS, *target_NCS, mixture_CS - target_NCS.sum(0))
        for (_, panel), audio_CS in zip(self._panels, signals, strict=True):
            panel.add(audio_CS)

    def draw(self, path: Path) -> None:
        plots.draw_figure(self._panels, path)


# ---------------------------------------------------------------------- many recordings


def separate_all(
    separator: Separator,
    tasks: Sequence[Task],
    settings: Settings,
    devices: Sequence[jax.Device],
    progress: Callable[[float], object],
) -> Iterator[tuple[Task, Record | InputError]]:
    """Yield every task with its record, or with the error that it failed with, as they finish.

    Each device separates one recording at a time. After an interrupt, the work stops at the next
    block of each recording, which leaves no files behind.
    """
    stop = threading.Event()
    free: queue.Queue[Separator] = queue.Queue()
    for device in devices:
        free.put(separator.on_device(device))

    def advance(share: float) -> None:
        if stop.is_set():
            raise CancelledError
        progress(share)

    def work(task: Task) -> Record:
        mine = free.get()
        try:
            return separate_task(mine, task, settings, advance)
        finally:
            free.put(mine)

    with workers.threads(len(devices)) as submit:
        try:
            yield from workers.finished(submit, work, tasks, _failure)
        finally:
            stop.set()


def separate_on_cluster(
    separator: Separator,
    tasks: Sequence[Task],
    settings: Settings,
    address: str,
    progress: Callable[[float], object],
) -> Iterator[tuple[Task, Record | InputError]]:
    """Yield as `separate_all`; each worker of the Dask scheduler separates one at a time."""
    separator = dataclasses.replace(separator, _encoders={})  # which workers do not need

    def separated(task: Task) -> Record | InputError:
        try:
            return separate_task(separator, task, settings, lambda _: workers.raise_if_cancelled())
        except Exception as error:
            return _failure(task, error)

    def work(group: Sequence[Task]) -> list[Record | InputError]:
        use_compilation_cache()
        return [separated(task) for task in group]

    def lost(group: Sequence[Task], error: Exception) -> list[Record | InputError]:
        return [_failure(task, error) for task in group]

    with workers.cluster(address) as submit:
        for group, results in workers.finished(submit, work, _groups(tasks), lost):
            progress(len(group))
            yield from zip(group, results, strict=True)


def _groups(tasks: Sequence[Task]) -> Iterator[Sequence[Task]]:
    """Send a few short recordings together: the scheduler spends milliseconds on each group."""
    for start in range(0, len(tasks), SENT_TOGETHER):
        some = tasks[start : start + SENT_TOGETHER]
        paths = [task.job.recording for task in some]
        num_bytes = sum(os.path.getsize(path) for path in paths if os.path.isfile(path))
        yield from [some] if num_bytes <= SHORT_BYTES else ([task] for task in some)


def _failure(task: Task, error: Exception) -> InputError:
    """Error of one recording, which does not stop the others; other errors are raised."""
    if isinstance(error, (CancelledError, workers.WorkerError)):
        raise error
    if isinstance(error, InputError):
        return error
    reason = f"{type(error).__name__}: {str(error)[:300]}"
    return InputError(f"{task.job.recording}: cannot be separated ({reason})")


def devices_to_use() -> list[jax.Device]:
    """All accelerators of this process, or one CPU device, whose cores one recording fills."""
    devices = jax.local_devices()
    return devices if devices[0].platform != "cpu" else devices[:1]
