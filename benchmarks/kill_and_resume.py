"""Kills a training run at random moments, resumes it, and compares it with an uninterrupted one.

    python benchmarks/kill_and_resume.py --kills 10

Prints a row for each kill. Exits with 1 unless every loss and the final state are equal to the bit
and each checkpoint folder can be restored after every kill. Runs on the CPU, in a temporary folder.
"""

import argparse
import contextlib
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ["JAX_PLATFORMS"] = "cpu"  # for the runs too: elsewhere sums have no fixed order
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", str(Path(tempfile.gettempdir()) / "audiosep_jax_kills")
)

import jax
import numpy as np

from audiosep_jax.checkpoints import FOLDER, Checkpoints
from audiosep_jax.config import from_mapping
from audiosep_jax.run_log import METRICS_FILE
from audiosep_jax.steps import TrainState, init_state

ROOT = Path(__file__).resolve().parents[1]
SMALL = (
    *("--config.data.segment_seconds=0.5", "--config.data.num_synthetic_clips=200"),
    *("--config.model.window_samples=64", "--config.model.hop_samples=32"),
    *("--config.model.stem_channels=4", "--config.model.encoder_channels=(4,)"),
    *("--config.model.time_pools=(2,)", "--config.model.frequency_pools=(2,)"),
    *("--config.optim.ema_decay=0.9", "--config.batch_size=8", "--config.log_every_steps=1"),
    *("--config.valid.num_mixtures=8", "--config.valid.every_steps=20"),
    "--config.checkpoint.every_steps=4",
)
FAR = 1_000_000  # steps that a run has no time to reach
MAX_WAIT_SECONDS = 4.0


def start(workdir: Path, num_steps: int) -> subprocess.Popen[str]:
    """train.py on a small network."""
    command = [sys.executable, "train.py", "--config", "configs/demo.py", *SMALL]
    return subprocess.Popen(
        [*command, f"--config.num_steps={num_steps}", "--workdir", str(workdir)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(workdir: Path, num_steps: int) -> None:
    """Trains to the end; ends this program where that fails."""
    process = start(workdir, num_steps)
    output, _ = process.communicate()
    if process.returncode:
        sys.exit(f"train.py ended with {process.returncode}:\n{output}")


def kill_at_random(workdir: Path, rng: random.Random) -> float:
    """Seconds after its first new step was logged at which a run was killed."""
    metrics = workdir / METRICS_FILE
    old_file = metrics.stat().st_ino if metrics.is_file() else None
    process = start(workdir, FAR)
    opened_bytes = None
    while opened_bytes is None or metrics.stat().st_size <= opened_bytes:
        if process.poll() is not None:
            sys.exit(f"train.py ended with {process.returncode}:\n{process.communicate()[0]}")
        if opened_bytes is None and metrics.is_file() and metrics.stat().st_ino != old_file:
            opened_bytes = metrics.stat().st_size
        time.sleep(0.01)
    seconds = rng.uniform(0, MAX_WAIT_SECONDS)
    time.sleep(seconds)
    process.kill()
    process.communicate()
    return seconds


def losses(workdir: Path) -> dict[int, float]:
    """Training loss by step; a last line that a kill cut off is passed over."""
    found = {}
    for line in (workdir / METRICS_FILE).read_text(encoding="utf-8").splitlines(keepends=True):
        row: dict[str, Any] = json.loads(line) if line.endswith("\n") else {}
        if "train/loss" in row:
            found[row["step"]] = row["train/loss"]
    return found


def restore_all(workdir: Path) -> dict[int, TrainState]:
    """Every state that is saved below `workdir`, read completely; raises where one cannot be."""
    steps = sorted(int(p.name) for p in (workdir / FOLDER).iterdir() if p.name.isdecimal())
    with contextlib.closing(Checkpoints(workdir)) as checkpoints:
        if checkpoints.latest_step() != (steps[-1] if steps else None):
            raise ValueError(f"newest of {steps} is not what {checkpoints.latest_step()} says")
        return {step: _restore(checkpoints, step) for step in steps}


def _restore(checkpoints: Checkpoints, step: int) -> TrainState:
    config = from_mapping(checkpoints.about(step)["config"])
    shapes = jax.eval_shape(lambda: init_state(config.model, config.optim, jax.random.key(0)))
    state = checkpoints.restore_state(step, shapes)
    if int(state.step) != step:
        raise ValueError(f"the state in folder {step} is of step {int(state.step)}")
    return state


def differences(killed: Path, whole: Path, step: int) -> list[str]:
    """What is not equal to the bit between two runs that ended at `step`."""
    a, b = losses(killed), losses(whole)
    found = [f"loss of step {i}: {a.get(i)} and {b.get(i)}" for i in a | b if a.get(i) != b.get(i)]
    states = restore_all(killed)[step], restore_all(whole)[step]
    leaves = zip(*map(jax.tree.leaves_with_path, states), strict=True)
    for (path, x), (_, y) in leaves:
        if not np.array_equal(np.asarray(x), np.asarray(y)):
            found.append(f"final state: {jax.tree_util.keystr(path)}")
    return found


def main() -> int:
    """Exit code."""
    parser = argparse.ArgumentParser(
        description="Kill a run, resume it, compare it with a whole one."
    )
    parser.add_argument("--kills", type=int, default=10, help="how often to kill (default: 10)")
    parser.add_argument("--seed", type=int, default=None, help="of the moments (default: random)")
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as folder:
        killed, whole = Path(folder) / "killed", Path(folder) / "whole"
        print("kill  seconds after step  last step logged  checkpoints (all restored)")
        states: dict[int, TrainState] = {}
        for number in range(1, arguments.kills + 1):
            seconds = kill_at_random(killed, rng)
            states = restore_all(killed)
            last = max(losses(killed), default=0)
            print(f"{number:4}  {seconds:18.2f}  {last:16}  {list(states)}", flush=True)
        end = max(states, default=0) + 10
        finish(killed, end)
        finish(whole, end)
        found = differences(killed, whole, end)
    print("\n".join(found) or f"all {end} losses and the final state are equal to the bit")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
