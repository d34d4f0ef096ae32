"""What is seen of a run while it trains: numbers, speeds, the wait for data, memory, a trace."""

import contextlib
import resource
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from audiosep_jax.data.pipeline import BadClips
from audiosep_jax.training.config import Config
from audiosep_jax.training.log import RunLog
from audiosep_jax.training.roofline import device_peak_flops, step_flop

WARM_STEPS = 10  # of a run, before it is traced: they compile


class Progress:
    """Reads each step's metrics while the next is under way; logs, and stops on a bad loss.

    `stop` is set when a process has voted to.
    """

    def __init__(
        self,
        config: Config,
        log: RunLog,
        bad_clips: BadClips,
        first_step: int,
        skipped_steps: int,
    ) -> None:
        self.log, self.bad_clips = log, bad_clips
        self.stop = False
        self._config, self._skipped = config, skipped_steps
        num_samples = max(1, round(config.data.segment_seconds * config.model.sample_rate_hz))
        self._step_flop = step_flop(config.model, config.batch_size, num_samples)
        self._pending: tuple[int, dict[str, Any]] | None = None
        self._logged_step = first_step
        self.start_clock(first_step)

    def start_clock(self, step: int | None = None) -> None:
        """Leaves what was not training out of the speeds."""
        self._clock_step = self._logged_step if step is None else step
        self._clock = time.perf_counter()
        self._waited = 0.0

    @contextlib.contextmanager
    def waiting_for_data(self) -> Iterator[None]:
        """Counts the time inside as such."""
        start = time.perf_counter()
        yield
        self._waited += time.perf_counter() - start

    def record(self, step: int, metrics: dict[str, Any]) -> None:
        """Takes the metrics of a step that may still run, and reads those of the one before."""
        self.catch_up()
        self._pending = (step, metrics)

    def catch_up(self) -> None:
        """Waits for the newest step. FloatingPointError, InputError: training must not go on."""
        if self._pending is None:
            return
        step, metrics = self._pending
        self._pending = None
        metrics = jax.device_get(metrics)
        votes = metrics.pop("votes")
        values = {name: float(value) for name, value in metrics.items()}
        self.stop = bool(votes["stop"])
        for line in self.bad_clips.update(votes["bad_clips"]):
            self.log.say(line)
        self._check(step, values)
        self.log.bar.update(step - self.log.bar.n)
        self._logged_step = step
        if step % self._config.log_every_steps == 0:
            self._log(step, values)

    def _check(self, step: int, values: dict[str, float]) -> None:
        """Counts a step that was skipped, and stops when there were too many."""
        names = ("loss", "gradient_norm", "parameter_norm")
        bad = next((name for name in names if not np.isfinite(values[name])), None)
        if not values["skipped"]:
            if bad:  # finite gradients, and yet
                raise FloatingPointError(f"{bad} is {values[bad]} at step {step}: training stopped")
            return
        self._skipped += 1
        most = self._config.optim.max_skipped_steps
        what = f"{bad} is {values[bad]}" if bad else "a running statistic is not finite"
        if self._skipped > most:
            many = f" ({self._skipped} steps were skipped, optim.max_skipped_steps={most})"
            raise FloatingPointError(
                f"{what} at step {step}: training stopped{many if most else ''}"
            )
        self.log.say(f"step {step} is skipped: {what} ({self._skipped} of at most {most})")

    def _log(self, step: int, values: dict[str, float]) -> None:
        seconds = max(time.perf_counter() - self._clock, 1e-9)
        steps_per_second = (step - self._clock_step) / seconds
        waited = self._waited / seconds
        self.start_clock(step)
        rows = {f"train/{name}": value for name, value in values.items()}
        if steps_per_second:
            rows |= self._speeds(steps_per_second) | {"data_wait_share": waited}
        self.log.scalars(step, rows | memory())
        self.log.bar.set_postfix(
            loss=f"{values['loss']:.4f}",
            sdri=f"{values['sdri']:.1f}dB",
            clips=f"{steps_per_second * self._config.batch_size:.0f}/s",
        )

    def _speeds(self, steps_per_second: float) -> dict[str, float]:
        """`peak_share` only where the peak of the device is known."""
        flops = self._step_flop * steps_per_second
        speeds = {
            "steps_per_second": steps_per_second,
            "clips_per_second": steps_per_second * self._config.batch_size,
            "model_tflops": flops / 1e12,
        }
        peak_flops = device_peak_flops(
            jax.devices()[0].device_kind,
            self._config.model.dtype,
            self._config.device_peak_tflops * 1e12,
        )
        if peak_flops:
            speeds["peak_share"] = flops / (peak_flops * jax.device_count())
        return speeds


def memory() -> dict[str, float]:
    """Most that was ever in use, in GB: of the fullest device here, or else of this process."""
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    peaks = [each["peak_bytes_in_use"] for each in stats if "peak_bytes_in_use" in each]
    if peaks:
        return {"device_peak_gb": max(peaks) / 1e9}
    unit = 1 if sys.platform == "darwin" else 1024
    return {"host_peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9}


class Trace:
    """A trace of `num_steps` steps below `folder`, once the first of a run have compiled.

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
        """Around each step, and what it waits for; `close` ends a trace that is not yet full."""
        if self._steps and step == self._steps[0]:
            jax.profiler.start_trace(str(self._folder))
            self._running = True
        with jax.profiler.StepTraceAnnotation("train", step_num=step):
            yield
        if self._steps and step == self._steps[-1]:
            self.close()

    def close(self) -> None:
        """Writes it."""
        if self._running:
            self._running = False
            jax.profiler.stop_trace()
            self._say(f"trace of steps {self._steps[0]} to {self._steps[-1]}: {self._folder}")
