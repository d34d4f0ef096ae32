"""Disturb training runs of several processes, and compare them with undisturbed ones.

    python benchmarks/chaos.py --kills 20
    python benchmarks/chaos.py --layouts

The first disturbs a run of two processes at random moments: SIGKILL, SIGTERM or SIGSTOP to one of
them, or a full disk (a small tmpfs, which only root can mount). Each time the run resumes. The exit
code is 1 unless every loss and the final state equal those of an undisturbed run to the bit, and
every checkpoint can be restored after each disturbance.

The second trains ten steps with 1 x 1, 1 x 8, 2 x 4 and 4 x 2 processes and devices, and five steps
with 2 x 4 followed by five with 4 x 2, and prints the differences of batches and parameters.

Both run on the CPU in a temporary folder, and take minutes.
"""

import argparse
import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ["JAX_PLATFORMS"] = "cpu"  # also for the runs; elsewhere sums have no fixed order
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", str(Path(tempfile.gettempdir()) / "audiosep_jax_chaos")
)

import jax
import numpy as np
from absl import logging

from audiosep_jax.data.pipeline import train_batches
from audiosep_jax.data.sources import build_source
from audiosep_jax.training.checkpoints import Checkpoints, saved_steps
from audiosep_jax.training.config import Config, from_mapping
from audiosep_jax.training.log import METRICS_FILE
from audiosep_jax.training.start import state_shapes
from audiosep_jax.training.steps import TrainState

ROOT = Path(__file__).resolve().parents[1]
SMALL = (
    *("--config.data.segment_seconds=1.0", "--config.data.num_synthetic_clips=200"),
    *("--config.model.window_samples=64", "--config.model.hop_samples=32"),
    *("--config.model.stem_channels=4", "--config.model.encoder_channels=(4,)"),
    *("--config.model.time_pools=(2,)", "--config.model.frequency_pools=(2,)"),
    *("--config.optim.ema_decay=0.9", "--config.batch_size=8", "--config.log_every_steps=1"),
    # With the default a gradient that is only rounding, which depends on the layout, moves a weight
    # by a whole step.
    *("--config.optim.epsilon=0.01", "--config.optim.warmup=none"),
    *("--config.valid.num_mixtures=8", "--config.valid.every_steps=1000000"),
    *("--config.checkpoint.every_steps=10", "--heartbeat_seconds=10"),
)
FAR = 1_000_000  # steps that a run has no time to reach
MAX_WAIT_SECONDS = 4.0
PATIENCE_SECONDS = 120.0  # for a process that should end
DISK_MEGABYTES = 24
WAYS = ("kill", "terminate", "cut off", "full disk")


class Run:
    """train.py with a small network, in processes whose output goes to files."""

    def __init__(self, workdir: Path, num_steps: int, processes: int = 2, devices: int = 1) -> None:
        with socket.socket() as free:
            free.bind(("localhost", 0))
            address = f"--coordinator_address=localhost:{free.getsockname()[1]}"
        metrics = workdir / METRICS_FILE
        self.metrics, self._old_file = metrics, metrics.stat().st_ino if metrics.is_file() else None
        # Quick to compile; all runs use it, so their numbers can be compared.
        flags = (
            f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0"
        )
        command = [sys.executable, "train.py", "--config", "configs/demo.py", *SMALL]
        command += [f"--config.num_steps={num_steps}", "--workdir", str(workdir)]
        if processes > 1:
            command += [address, f"--num_processes={processes}"]
        self.files = [tempfile.TemporaryFile("w+") for _ in range(processes)]  # noqa: SIM115
        self.processes = [
            subprocess.Popen(
                [*command, *([f"--process_id={index}"] if processes > 1 else [])],
                cwd=ROOT,
                env=os.environ | {"XLA_FLAGS": flags},
                stdout=file,
                stderr=subprocess.STDOUT,
            )
            for index, file in enumerate(self.files)
        ]

    def wait_for_steps(self) -> None:
        """Wait until the run has logged a new step."""
        opened_bytes = None
        while opened_bytes is None or self.metrics.stat().st_size <= opened_bytes:
            if any(process.poll() is not None for process in self.processes):
                self.fail("ended before its first step")
            if opened_bytes is None and self.metrics.is_file():
                status = self.metrics.stat()
                opened_bytes = status.st_size if status.st_ino != self._old_file else None
            time.sleep(0.01)

    def end(self) -> list[int]:
        """Wait until all processes have ended; return their exit codes."""
        deadline = time.monotonic() + PATIENCE_SECONDS * 5
        for process in self.processes:
            try:
                process.wait(max(deadline - time.monotonic(), 0.1))
            except subprocess.TimeoutExpired:
                self.fail("does not end")
        return [process.returncode for process in self.processes]

    def fail(self, what: str) -> None:
        """End the processes and this program, and print all output."""
        for process in self.processes:
            process.kill()
        sys.exit(f"the run {what}:\n" + "\n".join(map(self.output, range(len(self.files)))))

    def output(self, index: int) -> str:
        """Output of a process so far."""
        self.files[index].seek(0)
        return self.files[index].read()

    def error(self, index: int) -> str:
        """Last line that begins with `error:`, or nothing."""
        lines = [x for x in self.output(index).splitlines() if x.startswith("error: ")]
        return lines[-1] if lines else ""


def finish(workdir: Path, num_steps: int, processes: int = 2, devices: int = 1) -> None:
    """Train to the end; end this program if that fails."""
    run = Run(workdir, num_steps, processes, devices)
    if any(run.end()):
        run.fail("failed")


# ------------------------------------------------------------------ disturbances


def disturb(run: Run, way: str, victim: int, folder: Path) -> str:
    """Disturb the run and return its message; end this program if it does not end as it should."""
    if way == "full disk":
        with filled(folder):
            expect(run, [1, 1])
        wanted = "No space left on device"
        if wanted not in run.error(0):
            run.fail("did not name the full disk")
        return run.error(0)
    process, other = run.processes[victim], run.processes[1 - victim]
    if way == "terminate":
        process.send_signal(signal.SIGTERM)
        expect(run, [75, 75])
        return run.output(0).splitlines()[-1]
    process.send_signal(signal.SIGKILL if way == "kill" else signal.SIGSTOP)
    try:
        other.wait(PATIENCE_SECONDS)
    except subprocess.TimeoutExpired:
        run.fail("hangs without its other process")
    process.kill()
    process.wait()
    if other.returncode not in (1, -signal.SIGABRT):  # train.py's code and that of JAX
        run.fail(f"ended with {other.returncode} when the other process was gone")
    return run.error(1 - victim) or "JAX ended the other process"


def expect(run: Run, codes: list[int]) -> None:
    """End this program if the processes do not end with these exit codes."""
    if run.end() != codes:
        run.fail(f"ended with {[p.returncode for p in run.processes]} instead of {codes}")


@contextlib.contextmanager
def filled(folder: Path) -> Iterator[None]:
    """Keep the disk of a folder full, whatever is deleted on it."""
    path, over = folder / "filler", threading.Event()

    def fill() -> None:
        with path.open("wb", buffering=0) as file:
            while not over.is_set():
                try:
                    file.write(bytes(4096))
                except OSError:
                    time.sleep(0.001)

    thread = threading.Thread(target=fill)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        path.unlink()


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[bool]:
    """Mount a tmpfs at the folder; False if this process may not mount one."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MEGABYTES}m", "tmpfs", str(folder)]
    mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", str(folder)], check=True)


# ------------------------------------------------------------------ comparisons


def losses(workdir: Path) -> dict[int, float]:
    """Training loss by step, without a last line that a kill cut off."""
    found = {}
    for line in (workdir / METRICS_FILE).read_text(encoding="utf-8").splitlines(keepends=True):
        row: dict[str, Any] = json.loads(line) if line.endswith("\n") else {}
        if "train/loss" in row:
            found[row["step"]] = row["train/loss"]
    return found


def restore_all(workdir: Path) -> dict[int, TrainState]:
    """Read every saved state completely; raise if one cannot be read."""
    steps = saved_steps(workdir)
    if not steps:
        return {}
    with contextlib.closing(Checkpoints(workdir)) as checkpoints:
        if checkpoints.latest_step() != steps[-1]:
            raise ValueError(f"the newest of {steps} is not {checkpoints.latest_step()}")
        return {step: restore(checkpoints, step) for step in steps}


def restore(checkpoints: Checkpoints, step: int) -> TrainState:
    """Read the state of a step; raise if it is of another step."""
    shapes = state_shapes(from_mapping(checkpoints.about(step)["config"]))
    state = checkpoints.restore_state(step, shapes)
    if int(state.step) != step:
        raise ValueError(f"the state in folder {step} is of step {int(state.step)}")
    return state


def differences(disturbed: Path, whole: Path, step: int) -> list[str]:
    """Describe what is not equal to the bit between two runs that ended at `step`."""
    a, b = losses(disturbed), losses(whole)
    found = [f"loss of step {i}: {a.get(i)} and {b.get(i)}" for i in a | b if a.get(i) != b.get(i)]
    states = restore_all(disturbed)[step], restore_all(whole)[step]
    leaves = zip(*map(jax.tree.leaves_with_path, states), strict=True)
    for (path, x), (_, y) in leaves:
        if not np.array_equal(np.asarray(x), np.asarray(y)):
            found.append(f"final state: {jax.tree_util.keystr(path)}")
    return found


def largest_difference(a: TrainState, b: TrainState) -> float:
    """Largest difference of any parameter between two states."""
    pairs = zip(jax.tree.leaves(a.params), jax.tree.leaves(b.params), strict=True)
    return max(float(np.abs(np.asarray(x) - np.asarray(y)).max()) for x, y in pairs)


# ------------------------------------------------------------------ the two experiments


def chaos(kills: int, seed: int | None) -> int:
    """Disturb a run `kills` times; return the exit code."""
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory() as name, small_disk(Path(name) / "disk") as mounted:
        folder = Path(name)
        disturbed, whole = folder / "disk" / "run", folder / "whole"
        ways = WAYS if mounted else WAYS[:-1]
        if not mounted:
            print("no tmpfs can be mounted: full disks are left out")
        states: dict[int, TrainState] = {}
        for number in range(1, kills + 1):
            way = ways[(number - 1) % len(ways)]
            run, victim = Run(disturbed, FAR), rng.randrange(2)
            run.wait_for_steps()
            seconds = rng.uniform(0, MAX_WAIT_SECONDS)
            time.sleep(seconds)
            said = disturb(run, way, victim, folder / "disk")
            states = restore_all(disturbed)
            last = max(losses(disturbed), default=0)
            who = "" if way == "full disk" else f" of process {victim}"
            print(f"{number}: {way}{who} after {seconds:.2f} s, at step {last}; whole: "
                  f"{list(states)}; {said}".replace(name, ""), flush=True)  # fmt: skip
        end = max(states, default=0) + 10
        finish(disturbed, end)
        finish(whole, end)
        found = differences(disturbed, whole, end)
    print("\n".join(found) or f"all {end} losses and the final state are equal to the bit")
    return 1 if found else 0


def layouts(num_steps: int = 10) -> int:
    """Train with several layouts; return the exit code."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for processes, devices in ((1, 8), (1, 1), (2, 4), (4, 2)):
            finish(folder / f"{processes}x{devices}", num_steps, processes, devices)
        finish(folder / "2x4, then 4x2", num_steps // 2, 2, 4)
        finish(folder / "2x4, then 4x2", num_steps, 4, 2)
        config = config_of(folder / "1x8", num_steps)
        joined = [batches(config, processes, num_steps) for processes in (1, 2, 4)]
        same = all(np.array_equal(joined[0], other) for other in joined[1:])
        print(f"global batches of 1, 2 and 4 processes: {'equal to the bit' if same else 'DIFFER'}")
        worst = 0.0
        expected = restore_all(folder / "1x8")[num_steps]
        for other in ("1x1", "2x4", "4x2", "2x4, then 4x2"):
            states = restore_all(folder / other)
            difference = largest_difference(expected, states[num_steps])
            worst = max(worst, difference)
            print(f"{num_steps} steps, 1x8 and {other}: parameters differ by {difference:.1e}")
        moved = largest_difference(expected, states[num_steps // 2])
        print(f"in the second half of the steps they move by up to {moved:.1e}")
    return 0 if same and worst <= 1e-6 else 1


def config_of(workdir: Path, step: int) -> Config:
    """Config of a checkpoint."""
    with contextlib.closing(Checkpoints(workdir)) as checkpoints:
        return from_mapping(checkpoints.about(step)["config"])


def batches(config: Config, processes: int, num_steps: int) -> np.ndarray:
    """Mixtures `(steps, B, S)` of all processes, in the order of the stream."""
    source = build_source(config.data, "train", config.model.sample_rate_hz)
    captions = set(source.captions.texts)
    conditions = dict.fromkeys(captions, np.zeros(1, np.float32))
    whole: Any = None
    for process in range(processes):
        stream = train_batches(
            *(source, conditions, config.mixing, config.data),
            seed=config.seed,
            batch_size=config.batch_size,
            first_step=0,
            process_index=process,
            process_count=processes,
        )
        with contextlib.closing(stream):
            rows = np.stack([next(stream)["mixture"] for _ in range(num_steps)])
        whole = np.zeros((num_steps, config.batch_size, rows.shape[2])) if whole is None else whole
        whole[:, process::processes] = rows
    return whole


def main() -> int:
    """Run the experiment that the options choose; return the exit code."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n")[0],
        epilog="example: python benchmarks/chaos.py --kills 20",
    )
    parser.add_argument("--kills", type=int, default=20, help="disturbances (default: 20)")
    parser.add_argument(
        "--seed", type=int, default=None, help="seed of the moments (default: random)"
    )
    parser.add_argument(
        "--layouts", action="store_true", help="compare layouts of processes and devices"
    )
    arguments = parser.parse_args()
    logging.set_verbosity(logging.ERROR)  # hides warnings of Orbax
    return layouts() if arguments.layouts else chaos(arguments.kills, arguments.seed)


if __name__ == "__main__":
    sys.exit(main())
