"""Jobs done one after another, or side by side on several devices; a bad one stops nothing."""

import dataclasses
import hashlib
import json
import os
import queue
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import jax
import numpy as np

from audiosep_jax import plots
from audiosep_jax.audio import files as audio_files
from audiosep_jax.audio.files import AudioReader
from audiosep_jax.errors import InputError
from audiosep_jax.separation.files import Clip, SeparatedFile
from audiosep_jax.separation.jobs import Job, state_of
from audiosep_jax.separation.naming import MAX_STEM_BYTES, check_inside, cut, output_names
from audiosep_jax.separation.separator import Separator
from audiosep_jax.separation.stream import AboveNyquist, Stereo


@dataclasses.dataclass(frozen=True)
class Settings:
    """How every job is done; as the options of separate.py."""

    residual: bool = False
    stereo: Stereo = "mid"
    above_nyquist: AboveNyquist = "keep"
    clip: Clip | None = None
    output_format: str | None = None
    subtype: str | None = None
    tile_seconds: float | None = None
    plot: str | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Task:
    """A job with its conditions, and where its results go, suffixes still missing."""

    job: Job
    labels: tuple[str, ...]
    condition_NE: np.ndarray
    unwanted_ME: np.ndarray
    results: tuple[Path, ...]  # of the queries, then of the residual where one is wanted
    plot: Path | None


@dataclasses.dataclass(frozen=True)
class Failure:
    """Why a recording was not separated, in one line that names it."""

    name: str
    message: str


def make_task(
    job: Job,
    labels: Sequence[str],
    condition_NE: np.ndarray,
    unwanted_ME: np.ndarray,
    settings: Settings,
    output: Path,
) -> Task:
    """The job with its results named: as a list says, or by recording and query."""
    wanted = [*labels, *(["residual"] if settings.residual else [])]
    folder = output / job.folder
    paths = [folder / name for name in output_names(job.stem, wanted)]
    for row, name in enumerate(job.outputs):
        if name is not None:
            paths[row] = output / name
    plot = None
    if settings.plot:
        plot = folder / f"{cut(job.stem, MAX_STEM_BYTES)}.{settings.plot}"
    return Task(job, tuple(labels), condition_NE, unwanted_ME, tuple(paths), plot)


def check_distinct(tasks: Sequence[Task]) -> None:
    """InputError where two results of a list would have the same name."""
    taken: dict[str, str] = {}
    for task in tasks:
        for path in task.results:
            name = taken.setdefault(str(path).casefold(), task.job.name)
            if name != task.job.name or list(task.results).count(path) > 1:
                raise InputError(f"{path}: two results have this name; give them others")


def key_of(task: Task, settings: Settings, weights: str, output: Path) -> str:
    """Names a result: changes with the recording, the queries, the weights and the settings."""
    try:
        stat = task.job.recording.stat()
    except (OSError, ValueError):
        return ""
    how = dataclasses.asdict(dataclasses.replace(settings, tile_seconds=None))
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
    output: Path,
    progress: Callable[[float], None],
    inputs: Set[str] = frozenset(),
) -> dict[str, Any]:
    """Write the results of a task; return its record, with paths relative to `output`.

    Raises:
        InputError: the recording cannot be used, or a result would replace one of `inputs`, which
            are real paths.
    """
    with AudioReader(task.job.recording) as recording:
        form = audio_files.writable_format(recording, settings.output_format, settings.subtype)
        paths = [path.with_name(path.name + audio_files.suffix_of(*form)) for path in task.results]
        for path in [*paths, *([task.plot] if task.plot else [])]:
            check_inside(output, path)
            if os.path.realpath(path) in inputs:
                raise InputError(f"{path}: is the input of a result; choose another output")
        picture = _Picture(task.labels, recording) if task.plot else None
        queries = len(task.labels)
        done = separator.separate_file(
            recording,
            paths[:queries],
            task.condition_NE,
            unwanted_ME=task.unwanted_ME,
            residual=paths[queries] if settings.residual else None,
            stereo=settings.stereo,
            above_nyquist=settings.above_nyquist,
            output_format=form[0],
            subtype=form[1],
            clip=settings.clip,
            tile_seconds=settings.tile_seconds,
            progress=progress,
            observe=picture.add if picture else None,
        )
    if picture and task.plot:
        picture.draw(task.plot)
    return _record(task, done, output)


def _record(task: Task, done: SeparatedFile, output: Path) -> dict[str, Any]:
    """What is known about a finished recording, as JSON."""
    files = [*done.paths, *([task.plot] if task.plot else [])]
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
        "seconds": round(done.num_samples / done.sample_rate_hz, 6),
        "sample_rate_hz": done.sample_rate_hz,
        "channels": done.num_channels,
        "format": f"{done.format} {done.subtype}",
        "gain": done.factor,
        "results": results,
        "files": {str(path.relative_to(output)): state_of(path) for path in files},
    }


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


# ---------------------------------------------------------------------- many


class Stopped(Exception):
    """Raised in a thread to end it where the command was interrupted."""


def separate_all(
    separator: Separator,
    tasks: Sequence[Task],
    settings: Settings,
    output: Path,
    *,
    devices: Sequence[jax.Device],
    progress: Callable[[float], None],
    inputs: Set[str] = frozenset(),
) -> Iterator[tuple[Task, dict[str, Any] | Failure]]:
    """Every task with its record, or why there is none, as they are finished.

    One recording at a time on each of the devices; none of `inputs` is written to.
    """
    stop = threading.Event()

    def advance(seconds: float) -> None:
        if stop.is_set():
            raise Stopped
        progress(seconds)

    free: queue.Queue[Separator] = queue.Queue()
    for device in devices:
        variables = jax.device_put(separator.variables, device)
        free.put(dataclasses.replace(separator, variables=variables))

    def run(task: Task) -> dict[str, Any] | Failure:
        mine = free.get()
        try:
            return separate_task(mine, task, settings, output, advance, inputs)
        except Stopped:
            raise
        except Exception as error:  # whatever it is, the other recordings are separated
            return Failure(task.job.name, _reason(task, error))
        finally:
            free.put(mine)

    if len(devices) == 1:
        for task in tasks:
            yield task, run(task)
        return
    with ThreadPoolExecutor(len(devices)) as pool:
        try:
            yield from _as_finished(pool, run, tasks)
        except BaseException:
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def _as_finished(
    pool: ThreadPoolExecutor, run: Callable[[Task], Any], tasks: Sequence[Task]
) -> Iterator[tuple[Task, Any]]:
    pending: dict[Future[Any], Task] = {pool.submit(run, task): task for task in tasks}
    while pending:
        done, _ = wait(pending, return_when=FIRST_COMPLETED)
        for future in done:
            yield pending.pop(future), future.result()


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
    """All accelerators of this process; of a CPU one, whose cores a single recording fills."""
    devices = jax.local_devices()
    return devices if devices[0].platform != "cpu" else devices[:1]


def total_seconds(tasks: Sequence[Task]) -> float:
    """Of the recordings by their headers; those that cannot be opened count nothing."""
    total = 0.0
    for task in tasks:
        try:
            with AudioReader(task.job.recording) as recording:
                total += recording.num_samples / recording.sample_rate_hz
        except Exception:  # it is told when that is separated
            continue
    return total


def whole_record(record: Mapping[str, Any], output: Path) -> dict[str, Any]:
    """A record with paths as a reader elsewhere needs them, and without what only resuming does."""
    results = [
        {**result, "output": os.fspath(output / result["output"])} for result in record["results"]
    ]
    kept = {name: value for name, value in record.items() if name not in ("key", "files")}
    files = [os.fspath(output / name) for name in record["files"]]
    return {**kept, "results": results, "files": files}
