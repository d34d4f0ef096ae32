"""Batches: jobs separated one after another, or at the same time on several devices.

A recording that fails is reported and does not stop the others.
"""

import dataclasses
import hashlib
import json
import os
import queue
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import jax
import numpy as np

from audiosep_jax import plots
from audiosep_jax.audio import files as audio_files
from audiosep_jax.audio.files import AudioReader
from audiosep_jax.errors import InputError
from audiosep_jax.separation import AboveNyquist, Clip, Stereo
from audiosep_jax.separation.files import SeparatedFile
from audiosep_jax.separation.jobs import (
    MAX_STEM_BYTES,
    Job,
    check_inside,
    cut,
    output_names,
    state_of,
)
from audiosep_jax.separation.separator import Separator


@dataclasses.dataclass(frozen=True)
class Settings:
    """Options that hold for all jobs, as `audiosep separate --help` explains them.

    suffix: suffix of the results; None for that of their format.
    """

    residual: bool = False
    stereo: Stereo = "mid"
    above_nyquist: AboveNyquist = "keep"
    clip: Clip | None = None
    output_format: str | None = None
    subtype: str | None = None
    suffix: str | None = None
    tile_seconds: float | None = None
    plot: str | None = None
    overwrite: bool = False


@dataclasses.dataclass(frozen=True, eq=False)
class Task:
    """A job with its conditions, and the paths of its results without suffix.

    results: of the queries, then of the residual if there is one.
    condition_NE, unwanted_ME: embeddings, which are set once the weights are loaded.
    reader: the recording, if it is open already.
    """

    job: Job
    labels: tuple[str, ...]
    results: tuple[Path, ...]
    plot: Path | None
    condition_NE: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros((0, 0)))
    unwanted_ME: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros((0, 0)))
    reader: AudioReader | None = None


@dataclasses.dataclass(frozen=True)
class Files:
    """Files that results must not replace.

    output: folder of all results.
    inputs: real paths of recordings and queries, which are never replaced.
    own: for paths that an earlier run wrote, the real path of their recording, whose new results
        may replace them.
    """

    output: Path
    inputs: frozenset[str] = frozenset()
    own: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Failure:
    """A recording that was not separated, and why, in one line that names it."""

    name: str
    message: str


def make_task(job: Job, labels: Sequence[str], settings: Settings, output: Path) -> Task:
    """Name the results of a job: as its list does, or after the recording and the queries."""
    folder = output / job.folder
    residual = ["residual"] if settings.residual else []
    paths = [folder / name for name in output_names(job.stem, [*labels, *residual])]
    for row, name in enumerate(job.outputs):
        if name is not None:
            paths[row] = output / name
    plot = None
    if settings.plot:
        plot = folder / f"{cut(job.stem, MAX_STEM_BYTES)}.{settings.plot}"
    return Task(job, tuple(labels), tuple(paths), plot)


def check_distinct(tasks: Sequence[Task]) -> None:
    """Raise InputError if two results have the same name."""
    taken: dict[str, str] = {}
    for task in tasks:
        for path in task.results:
            name = taken.setdefault(str(path).casefold(), task.job.name)
            if name != task.job.name or list(task.results).count(path) > 1:
                raise InputError(f"{path}: two results have this name; give them others")


def key_of(task: Task, settings: Settings, weights: str, output: Path) -> str:
    """Hash of everything that changes the results: recording, queries, weights and settings."""
    try:
        stat = task.job.recording.stat()
    except (OSError, ValueError):
        return ""
    how = dataclasses.asdict(dataclasses.replace(settings, tile_seconds=None, overwrite=False))
    names = [str(path.relative_to(output)) for path in task.results]
    about = [task.job.name, stat.st_size, stat.st_mtime_ns, names, how, weights]
    digest = hashlib.sha256(json.dumps(about).encode())
    digest.update(np.ascontiguousarray(task.condition_NE).tobytes())
    digest.update(b"without" + np.ascontiguousarray(task.unwanted_ME).tobytes())
    return digest.hexdigest()


# ---------------------------------------------------------------------- one recording


def separate_task(
    separator: Separator,
    task: Task,
    settings: Settings,
    files: Files,
    progress: Callable[[float], None],
) -> dict[str, Any]:
    """Write the results of a task; return its record, with paths relative to the output folder.

    Args:
        progress: called with the share of the recording that was done since the last call.

    Raises:
        InputError: the recording cannot be used, or a result would replace another file.
    """
    with task.reader or AudioReader(task.job.recording) as recording:
        (format, subtype), paths = checked_paths(recording, task, settings, files)
        picture = _Picture(task.labels, recording) if task.plot else None
        seconds = recording.num_samples / recording.sample_rate_hz
        queries = len(task.labels)
        done = separator.separate_file(
            recording,
            paths[:queries],
            task.condition_NE,
            unwanted_ME=task.unwanted_ME,
            residual=paths[queries] if settings.residual else None,
            stereo=settings.stereo,
            above_nyquist=settings.above_nyquist,
            output_format=format,
            subtype=subtype,
            clip=settings.clip,
            tile_seconds=settings.tile_seconds,
            progress=lambda more: progress(more / seconds),
            observe=picture.add if picture else None,
        )
    if picture and task.plot:
        picture.draw(task.plot)
    return _record(task, done, files.output)


def checked_paths(
    recording: AudioReader, task: Task, settings: Settings, files: Files
) -> tuple[tuple[str, str], list[Path]]:
    """Return (format, subtype) and the paths of a task's results.

    Raises:
        InputError: the format cannot be written, or a result would replace another file.
    """
    form = audio_files.writable_format(recording, settings.output_format, settings.subtype)
    suffix = settings.suffix or audio_files.suffix_of(*form)
    paths = [path.with_name(path.name + suffix) for path in task.results]
    for path in [*paths, *([task.plot] if task.plot else [])]:
        _check_path(path, task, settings, files)
    return form, paths


def _check_path(path: Path, task: Task, settings: Settings, files: Files) -> None:
    """Raise InputError if a result would replace a file that it must not replace."""
    check_inside(files.output, path)
    if os.path.realpath(path) in files.inputs:
        raise InputError(f"{path}: is an input; choose another output")
    if settings.overwrite or not os.path.lexists(path) or path.is_dir():
        return
    if files.own.get(str(path.relative_to(files.output))) != os.path.realpath(task.job.recording):
        raise InputError(f"{path}: exists already; --overwrite replaces it")


def _record(task: Task, done: SeparatedFile, output: Path) -> dict[str, Any]:
    """What is known about a finished recording, as JSON."""
    written = [*done.paths, *([task.plot] if task.plot else [])]
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
        "recording": os.path.realpath(task.job.recording),
        "seconds": round(done.num_samples / done.sample_rate_hz, 6),
        "sample_rate_hz": done.sample_rate_hz,
        "channels": done.num_channels,
        "format": f"{done.format} {done.subtype}",
        "gain": done.factor,
        "results": results,
        "files": {str(path.relative_to(output)): state_of(path) for path in written},
    }


def public_record(record: Mapping[str, Any], output: Path) -> dict[str, Any]:
    """The record as --json writes it: with full paths, and without what only --resume needs."""
    results = [
        {**result, "output": os.fspath(output / result["output"])} for result in record["results"]
    ]
    kept = {k: value for k, value in record.items() if k not in ("key", "files", "recording")}
    paths = [os.fspath(output / name) for name in record["files"]]
    return {**kept, "results": results, "files": paths}


class _Picture:
    """Spectrograms of the mixture, the targets and the rest, collected block by block.

    All panels are at the level of the recording, also if the files are quieter by a factor.
    """

    def __init__(self, labels: Sequence[str], recording: AudioReader) -> None:
        self._titles = ["mixture", *labels, "residual"]
        self._panels = [
            plots.LogSpectrogram(recording.sample_rate_hz, recording.num_samples)
            for _ in self._titles
        ]

    def add(self, mixture_CS: np.ndarray, target_NCS: np.ndarray) -> None:
        rest_CS = mixture_CS - target_NCS.sum(0)
        for panel, audio_CS in zip(self._panels, (mixture_CS, *target_NCS, rest_CS), strict=True):
            panel.add(audio_CS)

    def draw(self, path: Path) -> None:
        plots.draw_figure(list(zip(self._titles, self._panels, strict=True)), path)


# ---------------------------------------------------------------------- many recordings


class Stopped(Exception):
    """Ends the work on a recording after the command was interrupted."""


def separate_all(
    separator: Separator,
    tasks: Sequence[Task],
    settings: Settings,
    files: Files,
    *,
    devices: Sequence[jax.Device],
    progress: Callable[[float], None],
) -> Iterator[tuple[Task, dict[str, Any] | Failure]]:
    """Yield every task with its record or its failure, as they finish.

    Each device separates one recording at a time. After an interrupt, the work stops at the next
    block of each recording, which leaves no files behind.
    """
    stop = threading.Event()
    free: queue.Queue[Separator] = queue.Queue()
    for device in devices:
        free.put(separator.on_device(device))

    def advance(share: float) -> None:
        if stop.is_set():
            raise Stopped
        progress(share)

    def work(task: Task) -> dict[str, Any] | Failure:
        mine = free.get()
        try:
            return separate_task(mine, task, settings, files, advance)
        except Stopped:
            raise
        except Exception as error:  # the other recordings are separated whatever it is
            return Failure(task.job.name, _reason(task, error))
        finally:
            free.put(mine)

    with ThreadPoolExecutor(len(devices)) as executor:
        try:
            yield from _as_finished(executor, work, tasks)
        except BaseException:
            stop.set()
            executor.shutdown(wait=True, cancel_futures=True)
            raise


def _as_finished(
    executor: Executor, work: Callable[[Task], Any], tasks: Sequence[Task]
) -> Iterator[tuple[Task, Any]]:
    submitted = {executor.submit(work, task): task for task in tasks}
    for future in as_completed(submitted):
        yield submitted[future], future.result()


def _reason(task: Task, error: Exception) -> str:
    """One line that names the recording and says what is wrong."""
    text = " ".join(str(error).split())
    if isinstance(error, InputError):
        return text
    if isinstance(error, OSError):
        text = " ".join(str(error.strerror or error).split())
    kind = "" if isinstance(error, OSError) else f"{type(error).__name__}: "
    return f"{task.job.recording}: cannot be separated ({kind}{text[:300]})"


def devices_to_use() -> list[jax.Device]:
    """All accelerators of this process, or one CPU device, whose cores one recording fills."""
    devices = jax.local_devices()
    return devices if devices[0].platform != "cpu" else devices[:1]
