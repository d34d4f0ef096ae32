"""The cost of `audiosep prepare`, and its result after a kill half way.

    python benchmarks/prepare.py --num_files 20000

Prepares folders of short files, and ESC-10 if it is there, in a temporary folder. Prints a row for
each data set: the CPU time for a recording, the peak memory of any process, and whether a run that
was killed half way (`kill -9` of the parent) and started again wrote the same bytes. The exit code
is 1 if one did not. For ESC-10 it also prints the time to read a record and to decode its file.
"""

import argparse
import dataclasses
import hashlib
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import soundfile

from audiosep_jax.data.clips import esc50_clips
from audiosep_jax.data.prepared import PreparedSource
from audiosep_jax.data.sources import FileSource

ROOT = Path(__file__).resolve().parents[1]
ESC10 = ROOT.parent / "shared" / "data" / "esc10"
TREE_RATE_HZ, TREE_SECONDS, NUM_CLASSES = 8000, 0.2, 50
TREE = ("folders", "--sample_rate", str(TREE_RATE_HZ), "--min_seconds", "0.1")
ESC = ("esc50", "--valid_folds", "4")


@dataclasses.dataclass(frozen=True)
class Run:
    """Cost of an undisturbed run, over all its processes."""

    ms_per_recording: float
    peak_megabytes: int
    seconds: float


def make_tree(root: Path, num_files: int) -> None:
    """Write noise into class folders; no two files are equal."""
    rng = np.random.default_rng(num_files)
    for number in range(num_files):
        folder = root / f"sound_{number % NUM_CLASSES:02d}"
        folder.mkdir(parents=True, exist_ok=True)
        audio_S = rng.uniform(-0.5, 0.5, round(TREE_SECONDS * TREE_RATE_HZ))
        soundfile.write(folder / f"{number:06d}.wav", audio_S, TREE_RATE_HZ)


def command(source: tuple[str, ...], root: Path, output: Path, workers: int) -> list[str]:
    """Return the command line of a run."""
    places = ["--root", str(root), "--output", str(output), "--workers", str(workers)]
    return [sys.executable, "-m", "audiosep_jax", "prepare", *source, *places]


def run(arguments: list[str]) -> Run:
    """Run to the end and return the cost; exit if it fails."""
    started = time.perf_counter()
    process = subprocess.Popen(
        arguments, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert process.stdout is not None
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)  # includes the workers that it waited for
    process.returncode = os.waitstatus_to_exitcode(status)
    recordings = sum(int(count) for count in re.findall(r"of (\d+) recordings,", output))
    if process.returncode or not recordings:
        sys.exit(f"prepare ended with {process.returncode}:\n{output}")
    cpu_seconds = usage.ru_utime + usage.ru_stime
    seconds = time.perf_counter() - started
    return Run(1000 * cpu_seconds / recordings, usage.ru_maxrss // 1024, seconds)


def kill_half_way(arguments: list[str], parts: Path) -> str:
    """Kill a run when half of its shards are finished; return how many were, of how many."""
    process = subprocess.Popen(
        arguments, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    total = 0
    done: list[Path] = []
    while not total or len(done) < total // 2:
        if process.poll() is not None:
            sys.exit("prepare was over before it could be killed")
        done = list(parts.glob("*.array_record*.json"))
        splits = {path.name.split("-of-")[0].rsplit(".", 1)[0]: path.name for path in done}
        total = sum(int(name.split("-of-")[1][:5]) for name in splits.values())
        time.sleep(0.002)
    process.kill()
    process.wait()
    return f"{len(done)}/{total}"


def fingerprint(folder: Path) -> dict[str, str]:
    """Compute the SHA-256 of every file."""
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.iterdir())
    }


def compare(name: str, source: tuple[str, ...], root: Path, work: Path, workers: int) -> bool:
    """Print a row, and return True if the killed run gave the same bytes."""
    whole, killed = work / f"{name}_whole", work / f"{name}_killed"
    cost = run(command(source, root, whole, workers))
    at = kill_half_way(command(source, root, killed, workers), work / f"{killed.name}.parts")
    if killed.exists():
        sys.exit(f"{killed}: exists before it is finished")
    # The number of processes must not matter either.
    rest = command(source, root, killed, workers + 1)
    ended = subprocess.run(rest, cwd=ROOT, capture_output=True, text=True, check=False)
    if ended.returncode:
        sys.exit(f"prepare ended with {ended.returncode}:\n{ended.stderr}")
    same = fingerprint(whole) == fingerprint(killed)
    print(
        f"{name:>12} {cost.ms_per_recording:12.2f} {cost.seconds:10.1f} {cost.peak_megabytes:10}"
        f" {at:>12} {'same' if same else 'OTHER'}",
        flush=True,
    )
    return same


def reading(data: Path) -> str:
    """Describe the time to read a record and to decode its file, with one thread."""
    prepared = PreparedSource(data)
    clips = esc50_clips(ESC10, (1, 2, 3))
    files = FileSource(clips, prepared.sample_rate_hz, cache_megabytes=0)
    order = np.random.default_rng(0).permutation(len(clips))
    spent = []
    for source in (prepared, files):
        started = time.perf_counter()
        for index in order:
            source.load(int(index))
        spent.append(1000 * (time.perf_counter() - started) / len(order))
    return f"reading a clip: {spent[0]:.3f} ms prepared, {spent[1]:.2f} ms from its file"


def main() -> int:
    """Return the exit code."""
    parser = argparse.ArgumentParser(description="Cost of preparing, and what a kill does to it.")
    parser.add_argument("--num_files", type=int, default=20000, help="of the largest tree")
    parser.add_argument("--workers", type=int, default=2, help="processes (default: 2)")
    arguments = parser.parse_args()
    print("  recordings  CPU ms each  seconds  peak MB/process  killed at  bytes after it")
    same = True
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        if ESC10.is_dir():
            same &= compare("esc10", ESC, ESC10, work, arguments.workers)
            print(reading(work / "esc10_whole"))
        for count in (arguments.num_files // 16, arguments.num_files // 4, arguments.num_files):
            make_tree(work / f"tree_{count}", count)
            same &= compare(str(count), TREE, work / f"tree_{count}", work, arguments.workers)
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
