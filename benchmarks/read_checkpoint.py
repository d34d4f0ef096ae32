"""Memory and time for reading the separator out of a 1.3 GB Lightning checkpoint (Linux).

    python benchmarks/read_checkpoint.py

Writes a synthetic checkpoint to the temporary folder, reads `ss_model.*` in a fresh process as a
conversion does (every array copied once) and prints the peak memory above that of the interpreter
with its imports, the time beside plainly reading as many bytes, and removes the file.
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from audiosep_jax.weights.torch_files import read_state_dict, write_torch

SEPARATOR_PARAMETERS = 26_500_000
FILE_BYTES = 1_300_000_000
MAX_MEGABYTES = 500
REPEATS = 5


def synthetic_state_dict() -> dict[str, np.ndarray]:
    """106 MB of `ss_model.*` in 100 tensors; `query_encoder.*` repeats one block for the rest."""
    rng = np.random.default_rng(0)
    parts = np.array_split(rng.random(SEPARATOR_PARAMETERS, np.float32), 100)
    state_dict = {f"ss_model.{index}.weight": part for index, part in enumerate(parts)}
    block = rng.random(4_000_000, np.float32)
    num_blocks = (FILE_BYTES - SEPARATOR_PARAMETERS * 4) // block.nbytes
    return state_dict | {f"query_encoder.{index}.weight": block for index in range(num_blocks)}


def peak_megabytes() -> float:
    """Highest resident memory so far, mapped pages of the file included."""
    status = Path("/proc/self/status").read_text()
    (line,) = (line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024 / 1e6


def best_seconds(action: Callable[[], object]) -> float:
    """Shortest of a few runs, the file being in the page cache."""
    seconds = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        action()
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def read_separator(path: Path) -> int:
    arrays = read_state_dict(path, prefixes=("ss_model.",))
    copies = [np.array(array) for array in arrays.values()]
    return sum(copy.nbytes for copy in copies)


def measure(path: Path) -> None:
    """In the fresh process: prints what it found as JSON."""
    before = peak_megabytes()
    num_bytes = read_separator(path)
    above = peak_megabytes() - before
    read = best_seconds(lambda: read_separator(path))
    plain = best_seconds(lambda: np.fromfile(path, np.uint8, count=num_bytes))
    print(json.dumps({"bytes": num_bytes, "above": above, "read": read, "plain": plain}))


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "synthetic.ckpt"
        write_torch(path, synthetic_state_dict(), lightning=True)
        print(f"checkpoint: {path.stat().st_size / 1e6:.0f} MB")
        command = [sys.executable, __file__, "--measure", str(path)]
        found = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    print(f"ss_model.*: {found['bytes'] / 1e6:.0f} MB")
    print(f"peak above the interpreter: {found['above']:.0f} MB (bound: {MAX_MEGABYTES} MB)")
    print(f"time: {found['read']:.3f} s, {found['read'] / found['plain']:.2f} x a plain read")
    if found["above"] > MAX_MEGABYTES:
        sys.exit("reading takes more memory than it may")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        measure(Path(sys.argv[2]))
    else:
        main()
