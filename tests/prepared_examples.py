"""Small data sets for the tests of preparing and of reading prepared data."""

import json
from pathlib import Path

import numpy as np
import soundfile

from audiosep_jax.preparing import command

RATE_HZ = 8000


def save(path, seconds=1.0, rate_hz=RATE_HZ, num_channels=1, seed=0, peak=0.5):
    """Noise in 16 bits."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    audio_SC = rng.uniform(-peak, peak, (round(seconds * rate_hz), num_channels))
    soundfile.write(path, audio_SC, rate_hz)
    return path


def class_folders(root, num_clips=25, seconds=0.5):
    """Clips of two classes, no two alike."""
    for number in range(num_clips):
        name = ("big_dog", "rain")[number % 2]
        save(root / name / f"{number:03d}.wav", seconds=seconds, seed=number)
    return root


def run(output, source, *arguments, workers=1):
    """Exit code of the command, at the tests' rate."""
    fixed = ["--sample_rate", str(RATE_HZ), "--min_seconds", "0.1", "--workers", str(workers)]
    return command.main([source, "--output", str(output), *fixed, *map(str, arguments)])


def contents(folder):
    """Bytes of every file, by name."""
    return {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}


def report(folder):
    """Report of `audiosep prepare`."""
    return json.loads((folder / "prepare_report.json").read_text())
