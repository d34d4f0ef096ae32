"""What scoring costs beside separating: seconds a clip, and memory from first to last.

    python benchmarks/evaluation.py --num_clips 2000

Mixtures of clips of noise on disk go through ResUNet30 with random weights, once as
`audiosep_jax.evaluate` does it (read, mixed, separated, scored, written) and, before and after,
through the bare forward pass of one batch that lies in memory. The target is a ratio of 1.15.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from networks import random_separator

from audiosep_jax import audio_io
from audiosep_jax.compilation_cache import use_compilation_cache
from audiosep_jax.evaluation.baselines import body_of
from audiosep_jax.evaluation.lists import Item
from audiosep_jax.evaluation.rows import RowsFile, file_name
from audiosep_jax.evaluation.runner import Estimator, RunConfig, score_items
from audiosep_jax.resunet import ModelConfig
from audiosep_jax.separator import Separator
from audiosep_jax.steps import parallel_eval_step, place_state, split_batch

NUM_FILES = 16


class Clock(RowsFile):
    """Notes when each row came, and how much memory the process had then."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, {})
        self.seconds: list[float] = []
        self.megabytes: list[float] = []

    def add(self, row: Mapping[str, Any]) -> None:
        super().add(row)
        if "row" in row:
            self.seconds.append(time.perf_counter())
            self.megabytes.append(resident_megabytes())


def resident_megabytes() -> float:
    """Memory of this process, on Linux."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS"))


def write_items(folder: Path, num_clips: int, seconds: float, rate_hz: int) -> list[Item]:
    """Items that mix every two of a few files of noise."""
    rng = np.random.default_rng(0)
    paths = [folder / f"{n}.wav" for n in range(NUM_FILES)]
    for path in paths:
        audio_S = 0.1 * rng.standard_normal(round(seconds * rate_hz), np.float32)
        audio_io.write(path, audio_S[None], rate_hz, subtype="PCM_16")
    return [
        Item(
            row=n,
            id=str(n),
            query="noise",
            label="noise",
            target=paths[n % NUM_FILES],
            mixture=None,
            noises=(paths[(n + 1 + n // NUM_FILES) % NUM_FILES],),
            snr_db=0.0,
        )
        for n in range(num_clips)
    ]


def make_estimator(separator: Separator, baseline: str) -> Estimator:
    """What is measured: the separator, or a baseline at its rate."""
    model = separator.model
    condition_E = np.full(model.condition_features, model.condition_features**-0.5, np.float32)
    conditions = {"noise": condition_E}
    variables = {} if baseline else separator.variables
    return Estimator(body_of(baseline, model), variables, model.sample_rate_hz, conditions)


def bare_seconds(estimator: Estimator, batch_size: int, num_samples: int, repeats: int) -> float:
    """Median seconds a clip of the forward pass alone; the first, which compiles, left out."""
    rng = np.random.default_rng(1)
    mixture_BS = 0.1 * rng.standard_normal((batch_size, num_samples), np.float32)
    condition_BE = np.stack([estimator.conditions["noise"]] * batch_size)
    batch = split_batch({"mixture": mixture_BS, "condition": condition_BE})
    step = parallel_eval_step(lambda variables, x: {"estimate": estimator.body(variables, x)})
    variables, taken = place_state(estimator.variables), []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        jax.block_until_ready(step(variables, batch))
        taken.append((time.perf_counter() - start) / batch_size)
    return statistics.median(taken[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--num_clips", type=int, default=2000)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--batch_size", type=int, default=jax.local_device_count())
    parser.add_argument("--repeats", type=int, default=8, help="of the bare forward pass")
    parser.add_argument("--checkpoint", help="instead of ResUNet30 with random weights")
    parser.add_argument(
        "--baseline", default="", choices=["mixture", "irm"], help="instead of the network"
    )
    arguments = parser.parse_args()
    use_compilation_cache()  # the same program three times
    checkpoint = arguments.checkpoint
    separator = Separator.load(checkpoint) if checkpoint else random_separator(ModelConfig())
    model = separator.model
    estimator = make_estimator(separator, arguments.baseline)
    num_samples = round(arguments.seconds * model.sample_rate_hz)
    bare = [bare_seconds(estimator, arguments.batch_size, num_samples, arguments.repeats)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        items = write_items(folder, arguments.num_clips, arguments.seconds, model.sample_rate_hz)
        with Clock(folder / file_name((0, 1))) as clock:
            config = RunConfig(arguments.batch_size)
            score_items(items, estimator, model.sample_rate_hz, clock, {}, config)
    bare.append(bare_seconds(estimator, arguments.batch_size, num_samples, arguments.repeats))
    report(clock, bare, arguments.batch_size, model.sample_rate_hz)


def report(clock: Clock, bare: list[float], batch_size: int, rate_hz: int) -> None:
    """Seconds a clip from the first batch to the last, over those of the bare forward pass."""
    taken = clock.seconds[-1] - clock.seconds[batch_size - 1]
    per_clip = taken / (len(clock.seconds) - batch_size)
    device = f"{jax.local_device_count()} x {jax.devices()[0].device_kind}, {rate_hz} Hz"
    print(f"{device}, {len(clock.seconds)} clips in batches of {batch_size}")
    print(f"evaluation    {per_clip:.3f} s a clip")
    print(f"bare forward  {bare[0]:.3f} s a clip before, {bare[1]:.3f} after")
    print(f"ratio         {per_clip / statistics.mean(bare):.3f} (target 1.15)")
    quarter = len(clock.megabytes) // 4
    parts = [max(clock.megabytes[n * quarter : (n + 1) * quarter]) for n in range(4)]
    told = ", ".join(f"{part:.0f}" for part in parts)
    print(f"memory        at most {told} MB in each quarter of the run")


if __name__ == "__main__":
    main()
