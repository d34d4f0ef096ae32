"""The cost of `--cluster` with short files, against the same work without it.

    python benchmarks/cluster.py --num_files 200 --rounds 3

Writes noise into a temporary folder. Separates it in one process, prepares it with a pool of
processes, and does both on a Dask scheduler with as many workers on this machine, in turns. Prints
for each command the median of the seconds of both, and their ratio. A first round, which is not
counted, loads and compiles.
"""

import argparse
import contextlib
import io
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import distributed
import numpy as np
import soundfile

from audiosep_jax.preparing import command as prepare
from audiosep_jax.separation import command as separate

RATE_HZ, SECONDS = 16000, 2.0
SEPARATE = ("clips", "--text", "rain", "--overwrite", "--output")
PREPARE = ("folders", "--root", "clips", "--output")


def seconds(main: Callable[[Sequence[str]], int], *arguments: str) -> float:
    """Seconds that a command takes, whose output is not shown."""
    start = time.perf_counter()
    with contextlib.redirect_stdout(io.TextIOWrapper(io.BytesIO())):
        assert main(arguments) == 0
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure what --cluster costs.")
    parser.add_argument("--num_files", type=int, default=200)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    rng = np.random.default_rng(0)
    options = {"n_workers": arguments.workers, "threads_per_worker": 1, "dashboard_address": ":0"}
    with (
        tempfile.TemporaryDirectory() as folder,
        contextlib.chdir(folder),
        distributed.LocalCluster(host="127.0.0.1", **options) as cluster,
    ):
        Path("clips/noise").mkdir(parents=True)
        for number in range(arguments.num_files):
            audio_S = rng.uniform(-0.1, 0.1, round(SECONDS * RATE_HZ))
            soundfile.write(f"clips/noise/{number}.wav", audio_S, RATE_HZ)
        found: dict[tuple[str, str], list[float]] = {}
        for turn in range(1 + arguments.rounds):
            for address in ("", cluster.scheduler_address):
                where = ["--cluster", address] if address else []
                pool = where or ["--workers", str(arguments.workers)]
                output = f"prepared-{turn}-{bool(address)}"
                took = seconds(separate.main, *SEPARATE, "separated", *where)
                found.setdefault(("separate", address), []).append(took)
                took = seconds(prepare.main, *PREPARE, output, *pool)
                found.setdefault(("prepare", address), []).append(took)
    for verb in ("separate", "prepare"):
        alone, spread = (
            statistics.median(values[1:]) for (name, _), values in found.items() if name == verb
        )
        print(f"{verb}: {alone:.2f} s alone, {spread:.2f} s on the cluster: {spread / alone:.3f}")


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    main()
