"""The time of `audiosep evaluate` beside that of its forward passes, and its memory.

    python benchmarks/evaluation.py --num_clips 2000

Evaluates ResUNet30 with random weights on mixtures of files of noise: reads, mixes, separates,
scores and writes. The run has several parts. Before and after each, the forward pass of one clip
in memory is timed, so that a change of the machine's speed affects both. The target is 1.15.
"""

import argparse
import functools
import itertools
import statistics
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from networks import random_separator

from audiosep_jax.audio import files as audio_files
from audiosep_jax.cli import use_compilation_cache
from audiosep_jax.evaluation.lists import Item
from audiosep_jax.evaluation.results import RowLog
from audiosep_jax.evaluation.runner import make_estimator, score_items, scored_row
from audiosep_jax.model import make_model
from audiosep_jax.model.resunet import ResUNetConfig
from audiosep_jax.separation.separator import Separator

NUM_FILES = 16


class Clock(RowLog):
    """A log that also keeps the time of each row and the memory of the process at that time."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, {})
        self.seconds: list[float] = []
        self.megabytes: list[float] = []

    def add(self, row: Mapping[str, Any]) -> None:
        super().add(row)
        self.seconds.append(time.perf_counter())
        self.megabytes.append(resident_megabytes())


def resident_megabytes() -> float:
    """Read the resident memory of this process (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS"))


def write_items(folder: Path, num_clips: int, seconds: float, rate_hz: int) -> list[Item]:
    """Write a few files of noise; return items that mix two of them."""
    rng = np.random.default_rng(0)
    paths = [folder / f"{n}.wav" for n in range(NUM_FILES)]
    for path in paths:
        audio_S = 0.1 * rng.standard_normal(round(seconds * rate_hz), np.float32)
        audio_files.write(path, audio_S[None], rate_hz, subtype="PCM_16")
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


class BareForward:
    """The forward pass of one clip that is in memory."""

    def __init__(self, separator: Separator, num_samples: int) -> None:
        model = separator.model
        rng = np.random.default_rng(1)
        mixture_BS = 0.1 * rng.standard_normal((1, num_samples), np.float32)
        condition_BE = np.full((1, model.condition_features), model.condition_features**-0.5)
        forward = functools.partial(make_model(model).apply, train=False)
        batch = jax.device_put((mixture_BS, condition_BE.astype(np.float32)))
        self._call = functools.partial(jax.jit(forward), separator.variables, *batch)
        jax.block_until_ready(self._call())  # compiles

    def seconds(self, repeats: int) -> list[float]:
        """Time `repeats` calls."""
        taken = []
        for _ in range(repeats):
            start = time.perf_counter()
            jax.block_until_ready(self._call())
            taken.append(time.perf_counter() - start)
        return taken


def part_seconds(clock: Clock, first: int) -> float:
    """Seconds for a clip of a part of the run, without its first one, which compiles."""
    seconds = clock.seconds[first:]
    if len(seconds) < 2:
        raise SystemExit("error: every part needs more than one clip: fewer --parts")
    return (seconds[-1] - seconds[0]) / (len(seconds) - 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--num_clips", type=int, default=2000)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--parts", type=int, default=10, help="of the run, bare passes between")
    parser.add_argument("--repeats", type=int, default=8, help="of the bare passes, each time")
    parser.add_argument("--checkpoint", help="instead of ResUNet30 with random weights")
    parser.add_argument(
        "--baseline", default="", choices=["mixture", "irm"], help="instead of the network"
    )
    arguments = parser.parse_args()
    use_compilation_cache()  # the same program three times
    checkpoint = arguments.checkpoint
    separator = Separator.load(checkpoint) if checkpoint else random_separator(ResUNetConfig())
    model = separator.model
    forward = BareForward(separator, round(arguments.seconds * model.sample_rate_hz))
    bare, scored = [forward.seconds(arguments.repeats)], []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        items = write_items(folder, arguments.num_clips, arguments.seconds, model.sample_rate_hz)
        estimator = make_estimator(separator, arguments.baseline, items, model.sample_rate_hz)
        row_of = functools.partial(scored_row, estimator, [])
        with Clock(folder) as clock:
            for part in np.array_split(np.arange(len(items)), arguments.parts):
                score_items([items[n] for n in part], row_of, clock, {})
                scored.append(part_seconds(clock, part[0]))
                bare.append(forward.seconds(arguments.repeats))
    print(f"{jax.devices()[0].device_kind}, {model.sample_rate_hz} Hz, {len(items)} clips")
    report(clock.megabytes, scored, bare)


def report(megabytes: list[float], scored: list[float], bare: list[list[float]]) -> None:
    """Print the ratio over the run, and the ratios of each part to the passes around it."""
    beside = [statistics.mean([*a, *b]) for a, b in itertools.pairwise(bare)]
    ratios = sorted(x / y for x, y in zip(scored, beside, strict=True))
    calls = list(itertools.chain(*bare))
    print(f"evaluation    {statistics.mean(scored):.4f} s a clip")
    print(f"bare forward  {statistics.mean(calls):.4f} s a clip, {min(calls):.4f} at best")
    print(f"ratio         {statistics.mean(scored) / statistics.mean(calls):.3f} (target 1.15)")
    print(f"of the parts  {ratios[0]:.3f} to {ratios[-1]:.3f}, {statistics.median(ratios):.3f}")
    quarters = np.array_split(np.array(megabytes), 4)
    told = ", ".join(f"{quarter.max():.0f}" for quarter in quarters)
    print(f"memory        at most {told} MB in each quarter of the run")


if __name__ == "__main__":
    main()
