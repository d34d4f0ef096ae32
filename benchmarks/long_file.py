"""Memory and time of separating long files. Neither memory nor time a minute must grow.

    python benchmarks/long_file.py --minutes 10 60
    python benchmarks/long_file.py --minutes 1 2 --published

For each length, a new process separates a stereo file of noise at 44.1 kHz into a target and the
residual. It uses the weights of --checkpoint, or random ones with --published. The last file is
separated once more by a process that is killed in the middle, which must leave no finished file.
"""

import argparse
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from networks import random_separator

from audiosep_jax.audio.files import AudioWriter
from audiosep_jax.cli import use_compilation_cache
from audiosep_jax.model.resunet import ResUNetConfig
from audiosep_jax.separation.separator import Separator

RATE_HZ = 44100
BLOCK_SECONDS = 10


def write_noise(path: Path, minutes: float) -> None:
    rng = np.random.default_rng(0)
    with AudioWriter(path, RATE_HZ, 2, subtype="PCM_16") as out:
        for _ in range(round(minutes * 60 / BLOCK_SECONDS)):
            noise_CS = rng.standard_normal((2, BLOCK_SECONDS * RATE_HZ), np.float32)
            out.write(np.clip(0.1 * noise_CS, -1, 1))


def separate(arguments: argparse.Namespace) -> None:
    """Separate the file and print seconds, peak memory and seconds for each second of audio."""
    use_compilation_cache()
    if arguments.published:
        separator = random_separator(ResUNetConfig())
    else:
        separator = Separator.from_pretrained(arguments.checkpoint)
    features = separator.model.condition_features
    condition_NE = np.full((1, features), features**-0.5, np.float32)
    folder = arguments.separate
    ready: list[tuple[float, float]] = []  # time of each block, and its seconds of audio

    def progress(seconds: float) -> None:
        ready.append((time.perf_counter(), seconds))
        print("on", flush=True)

    started = time.perf_counter()
    separator.separate_file(
        folder / "in.wav",
        [folder / "target.wav"],
        condition_NE,
        residual=folder / "residual.wav",
        clip="clamp",
        tile_seconds=arguments.tile_seconds,
        progress=progress,
    )
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    # The first tile is left out, because it is compiled.
    later = (started + seconds - ready[0][0]) / sum(done for _, done in ready[1:])
    print(f"done {seconds} {peak} {later}", flush=True)


def command(arguments: argparse.Namespace, folder: Path) -> list[str]:
    options = [sys.executable, __file__, "--separate", str(folder)]
    options += ["--published"] if arguments.published else ["--checkpoint", arguments.checkpoint]
    if arguments.tile_seconds:
        options += ["--tile_seconds", str(arguments.tile_seconds)]
    return options


def killed(arguments: argparse.Namespace, folder: Path) -> list[str]:
    """Kill a run in the middle; return the files that it leaves, except temporary ones."""
    for path in folder.iterdir():
        if path.name != "in.wav":
            path.unlink()
    with subprocess.Popen(command(arguments, folder), stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        for _ in range(3):
            process.stdout.readline()
        process.send_signal(signal.SIGKILL)
    return [name for name in os.listdir(folder) if name != "in.wav" and not name.startswith(".")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, nargs="+", default=[10.0, 60.0])
    parser.add_argument("--checkpoint", default="runs/esc50")
    parser.add_argument("--published", action="store_true", help="ResUNet30 with random weights")
    parser.add_argument("--tile_seconds", type=float)
    parser.add_argument("--separate", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.separate:
        separate(arguments)
        return
    per_minute = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for minutes in arguments.minutes:
            write_noise(folder / "in.wav", minutes)
            ran = subprocess.run(command(arguments, folder), check=True, capture_output=True)
            seconds, peak, later = map(float, ran.stdout.split(b"done ")[1].split())
            per_minute.append(60 * later)
            rate = 60 * minutes / seconds
            print(
                f"{minutes:g} min: {seconds:.1f} s, {rate:.1f} s of audio a second, {peak:.2f} GB"
            )
        ratio = per_minute[-1] / per_minute[0]
        print(f"time for a minute after the first tile, last length to first: {ratio:.3f}")
        left = killed(arguments, folder)
        print(f"files that a kill in the middle leaves: {', '.join(left) or 'none'}")


if __name__ == "__main__":
    main()
