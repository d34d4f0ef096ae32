"""The reports of a run: metrics.jsonl, TensorBoard, the terminal, and a profiler trace."""

import contextlib
import hashlib
import importlib.metadata
import json
import math
import resource
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tqdm import tqdm

from audiosep_jax import files
from audiosep_jax.data.batches import BadClips
from audiosep_jax.errors import InputError
from audiosep_jax.plots import spectrogram_picture
from audiosep_jax.training.config import Config
from audiosep_jax.training.devices import device_peak_flops
from audiosep_jax.training.processes import RunFailed, failing_together, gather

METRICS_FILE = "metrics.jsonl"
WARM_STEPS = 10  # steps before a trace: they compile
PACKAGE = Path(__file__).parents[1]


class RunLog:
    """Rows of metrics.jsonl, events of TensorBoard, and lines above a progress bar.

    Rows of steps after `first_step`, which a resumed run trains again, are removed. With
    `write=False`, for all processes but the first, every method does nothing.
    """

    def __init__(
        self, workdir: Path, first_step: int, num_steps: int, *, write: bool = True
    ) -> None:
        self._folder = workdir / "tensorboard"
        self._rows: files.FinishedLog | None = None
        self._events: Any = None
        if write:
            self._open(workdir, first_step)
        self.bar = tqdm(
            total=num_steps,
            initial=first_step,
            unit="step",
            disable=not write,
            dynamic_ncols=True,
            mininterval=1 if sys.stderr.isatty() else 30,  # seconds between two updates
            smoothing=0.05,
        )

    def _open(self, workdir: Path, first_step: int) -> None:
        try:
            path = workdir / METRICS_FILE
            if path.exists():
                steps = range(first_step + 1)
                rows = [row for row in files.read_records(path) if row.get("step") in steps]
                files.write_text(path, "".join(json.dumps(row) + "\n" for row in rows))
            self._rows = files.FinishedLog(workdir, path.stem)
            self._folder.mkdir(parents=True, exist_ok=True)
            self._events = EventsWriter(str(self._folder / "events"), f".{time.time_ns()}")
        except OSError as error:
            raise files.cannot_write(workdir, error) from error
        self._event(first_step + 1, session_log=SessionLog(status=SessionLog.START))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Write one row and one point of every curve. Values that are not finite become null.

        Raises:
            RunFailed: the disk is full.
        """
        if self._rows is None:
            return
        finite = {name: float(x) if math.isfinite(x) else None for name, x in values.items()}
        try:
            self._rows.add({"step": step, **finite})
        except InputError as error:
            raise RunFailed(str(error)) from error
        for name, value in values.items():
            self._event(step, summary=summary.scalar(name, value))

    def say(self, text: str) -> None:
        """Print a line above the progress bar."""
        if self._rows is not None:
            self.bar.write(text)
            sys.stdout.flush()

    def example(self, step: int, name: str, sounds: Mapping[str, np.ndarray], model: Any) -> None:
        """Write spectrograms below one another, and the audio, of one validation example."""
        if self._events is None:
            return
        picture = spectrogram_picture(list(sounds.values()), model.sample_rate_hz)
        tag = f"{name}/{' above '.join(sounds)}"
        self._event(step, summary=summary.image(tag, picture, dataformats="HWC"))
        peak = max(1.0, *(np.abs(audio_S).max() for audio_S in sounds.values()))
        for kind, audio_S in sounds.items():
            sound = summary.audio(f"{name}/{kind}", audio_S[:, None] / peak, model.sample_rate_hz)
            self._event(step, summary=sound)

    def close(self) -> None:
        """Close the files."""
        self.bar.close()
        if self._rows is not None:
            self._rows.close()
            with contextlib.suppress(OSError):
                self._events.close()
        self._rows = self._events = None

    def _event(self, step: int, **what: Any) -> None:
        # SummaryWriter's thread dies on a full disk, and the events after that wait forever.
        if self._events is not None:
            try:
                self._events.write_event(Event(step=step, wall_time=time.time(), **what))
                self._events.flush()
            except OSError as error:
                raise RunFailed(str(files.cannot_write(self._folder, error))) from error


class Progress:
    """Reads the metrics of a step while the next one runs, logs their means, stops on a bad loss.

    All processes use it alike, since they exchange the clips that they could not read.
    """

    def __init__(
        self, config: Config, log: RunLog, bad_clips: BadClips, first_step: int, skipped_steps: int
    ) -> None:
        self.log, self.bad_clips = log, bad_clips
        self._config, self._skipped = config, skipped_steps
        self.step_flop = 0.0  # operations of a step on one device; 0 if unknown
        self._pending: tuple[int, dict[str, Any]] | None = None
        self._new_bad: set[int] = set()
        self._values: dict[str, list[float]] = defaultdict(list)
        self._read_step = first_step
        self.start_clock()

    def start_clock(self) -> None:
        """Restart the clock, so that validation does not count in the speeds."""
        self._clock_step = self._read_step
        self._clock = time.perf_counter()
        self._waited = 0.0

    @contextlib.contextmanager
    def waiting_for_data(self) -> Iterator[None]:
        """Count the time of the block as time spent waiting for data."""
        start = time.perf_counter()
        yield
        self._waited += time.perf_counter() - start

    def record(self, step: int, metrics: dict[str, Any], bad_clips: np.ndarray) -> None:
        """Take the metrics of a step that may still run, and read those of the step before."""
        self.catch_up()
        self._pending = (step, metrics)
        self._new_bad |= set(np.ravel(bad_clips).tolist()) - {-1}

    def catch_up(self) -> None:
        """Wait for the newest step; FloatingPointError if too many steps were not finite."""
        if self._pending is None:
            return
        (step, metrics), self._pending = self._pending, None
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        self._check(step, values)
        for name, value in values.items():
            self._values[name].append(value)
        self.log.bar.update(step - self.log.bar.n)
        self._read_step = step
        if step % self._config.log_every_steps == 0:
            self.exchange_bad_clips()
            with failing_together():
                self._log(step)

    def exchange_bad_clips(self) -> None:
        """Name the clips that any process has skipped; InputError if there are too many."""
        new, self._new_bad = sorted(self._new_bad), set()
        everyone = np.array([i for indices in gather(new) for i in indices], np.int64)
        for line in self.bad_clips.update(everyone):
            self.log.say(line)

    def _check(self, step: int, values: dict[str, float]) -> None:
        """Count a step that was skipped, and stop when there are too many."""
        names = ("loss", "gradient_norm", "parameter_norm")
        bad = next((name for name in names if not np.isfinite(values[name])), None)
        what = f"{bad} is {values[bad]}" if bad else "a running statistic is not finite"
        if not values["skipped"]:
            if bad:  # although the gradients are finite
                raise FloatingPointError(f"{what} at step {step}: training stopped")
            return
        self._skipped += 1
        most = self._config.optim.max_skipped_steps
        if self._skipped > most:
            raise FloatingPointError(
                f"{what} at step {step}: training stopped after {self._skipped} skipped steps; "
                f"optim.max_skipped_steps={self._skipped} lets it skip this one"
            )
        self.log.say(f"step {step} is skipped: {what} ({self._skipped} of at most {most})")

    def _log(self, step: int) -> None:
        seconds = max(time.perf_counter() - self._clock, 1e-9)
        steps_per_second = (step - self._clock_step) / seconds
        wait = self._waited / seconds
        self.start_clock()
        # Only finite values, so that a skipped step does not hide the others.
        finite = {name: [x for x in xs if math.isfinite(x)] for name, xs in self._values.items()}
        means = {name: float(np.mean(xs)) if xs else math.nan for name, xs in finite.items()}
        means["learning_rate"] = self._values["learning_rate"][-1]
        self._values.clear()
        epoch = step * self._config.batch_size / self.bad_clips.source.num_recordings
        used, num_bad = memory(), len(self.bad_clips.indices)
        rows = {f"train/{name}": value for name, value in means.items()}
        if steps_per_second:
            rows |= self._speeds(steps_per_second) | {"data_wait_share": wait}
        self.log.scalars(step, rows | {"epoch": epoch, "bad_clips": num_bad, **used})
        shown = {
            "loss": f"{means['loss']:.4f}",
            "sdri": f"{means['sdri']:.1f}dB",
            "epoch": f"{epoch:.2f}",
            "clips": f"{steps_per_second * self._config.batch_size:.0f}/s",
            "data_wait": f"{wait:.0%}",
            "memory": f"{next(iter(used.values())):.1f}GB",
        }
        self.log.bar.set_postfix(shown | ({"bad_clips": num_bad} if num_bad else {}), refresh=False)

    def _speeds(self, steps_per_second: float) -> dict[str, float]:
        """Steps and clips per second; arithmetic if it is known, and its share of the peak."""
        clips_per_second = steps_per_second * self._config.batch_size
        speeds = {"steps_per_second": steps_per_second, "clips_per_second": clips_per_second}
        flops = self.step_flop * steps_per_second  # of one device
        known = device_peak_flops(jax.devices()[0].device_kind, self._config.model.dtype)
        peak_flops = 1e12 * self._config.device_peak_tflops or known
        if flops:
            speeds["model_tflops"] = flops * jax.device_count() / 1e12
        if flops and peak_flops:
            speeds["peak_share"] = flops / peak_flops
        return speeds


def memory() -> dict[str, float]:
    """Peak memory in GB: of the fullest device here, or of this process if devices report none."""
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    peaks = [each["peak_bytes_in_use"] for each in stats if "peak_bytes_in_use" in each]
    if peaks:
        return {"device_peak_gb": max(peaks) / 1e9}
    unit = 1 if sys.platform == "darwin" else 1024
    return {"host_peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9}


class Trace:
    """A profiler trace of `num_steps` steps, once the first steps of a run have compiled.

    TensorBoard opens the folder (Profile), Perfetto the `.trace.json.gz` in it.
    """

    def __init__(
        self, folder: Path, num_steps: int, first_step: int, say: Callable[[str], None]
    ) -> None:
        first = first_step + WARM_STEPS + 1
        self._folder, self._say = folder, say
        self._steps = range(first, first + num_steps)
        self._running = False

    @contextlib.contextmanager
    def step(self, step: int) -> Iterator[None]:
        """Mark a step and its wait for data; the first and the last one start and end the trace."""
        if step in self._steps[:1]:
            jax.profiler.start_trace(str(self._folder))
            self._running = True
        with jax.profiler.StepTraceAnnotation("train", step_num=step):
            yield
        if step in self._steps[-1:]:
            self.close()

    def close(self) -> None:
        """Write the trace, even if it has fewer steps than asked for."""
        if self._running:
            self._running = False
            jax.profiler.stop_trace()
            self._say(f"trace of steps {self._steps[0]} to {self._steps[-1]}: {self._folder}")


def code_version() -> dict[str, str]:
    """Version of the package, git commit of its checkout if it is one, hash of its sources."""
    commit, checkout = "", PACKAGE.parent
    if (checkout / ".git").exists():
        command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
        with contextlib.suppress(OSError):  # no git
            done = subprocess.run(
                command, cwd=checkout, capture_output=True, text=True, check=False
            )
            commit = done.stdout.strip()
    version = "not installed"  # a checkout that is only on the path
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        version = importlib.metadata.version("audiosep-jax")
    return {"version": version, "commit": commit, "sources": source_hash(PACKAGE)}


def source_hash(folder: Path) -> str:
    """Hash of the names and contents of all Python files below a folder."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]
