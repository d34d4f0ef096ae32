"""Time, memory and results beside those of AudioSep's own PyTorch code, on a CPU.

    git clone https://github.com/Audio-AGI/AudioSep
    python -m venv original
    original/bin/pip install torch==2.13.0 torchlibrosa librosa scipy pyyaml lightning \
        huggingface_hub
    python benchmarks/against_original.py --audiosep AudioSep --python original/bin/python

Every engine has the same random weights, noise and condition, and a process that lives as long as
the others and is asked in turn. Prints a Markdown table: the best of the rounds, and in brackets
how many times less it is than the original's.

The code of the original is unchanged. Its text encoder, of which there are no weights here, is
replaced by one that returns the condition, which makes its first file earlier than with the real
one. A training step is that of the separator alone, of a batch of one: forward, L1 loss, backward
and AdamW with AMSGrad. Mixing and queries are no part of it.

`--parts` chooses what is measured: `inference` of the `--seconds`, `training` on 5 s, and `start`,
the time from the start of a process to the first file, 5 s long. Memory is the most that a process
has taken up to then, so lengths go up. An engine that is not installed is left out, with a line on
stderr.
"""

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from engines import ENGINES, RATE_HZ, Ours
from networks import random_separator, snr_db

from audiosep_jax.audio import files as audio_files
from audiosep_jax.model.resunet import ResUNetConfig

ORIGINAL, IN_CHUNKS = "PyTorch", "PyTorch in chunks"
OURS = [name for name, (kind, _) in ENGINES.items() if kind is Ours]
SHORT_SECONDS = 5.0  # of a training clip, and of the first file
WARM_UP_SECONDS = 12.0  # more than fits into one pass, so that tiles are compiled too
# In chunks the original returns silence for up to 5 s. onnxruntime needs 17 GB for 60 s at once.
LENGTHS = {IN_CHUNKS: (5.001, np.inf), "onnxruntime": (0, 12)}
Row = tuple[str, str, dict[str, float]]  # label, format of a value, value of each engine


class Engine:
    """The process of an engine."""

    def __init__(self, name: str, folder: Path, options: argparse.Namespace) -> None:
        self.name, pipe = name, subprocess.PIPE
        command = engine_command(name, interpreter(name, options), folder, options.audiosep)
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, bufsize=1)
        self.error = self._answer().get("error", "")

    def takes(self, length: float) -> bool:
        shortest, longest = LENGTHS.get(self.name, (0, np.inf))
        return shortest <= length <= longest

    def ask(self, length: float, *, train: bool = False) -> dict[str, float]:
        request = {"length": length, "train": train, "estimate": f"{self.name}.npy"}
        print(json.dumps(request), file=self._process.stdin)
        found = self._answer()
        tell(f"{self.name}, {length:g} s: {found['seconds']:.2f} s")
        return found

    def end(self) -> None:
        self._process.communicate()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"error: {self.name} ended")
        return json.loads(line)


@contextlib.contextmanager
def engines(names: Sequence[str], folder: Path, options: argparse.Namespace) -> Iterator[list[Any]]:
    """Start the engines, all of which are alive until the end, and leave out those that fail."""
    started = [Engine(name, folder, options) for name in names]
    for engine in started:
        if engine.error:
            tell(f"{engine.name} is left out: {engine.error}")
    try:
        yield [engine for engine in started if not engine.error]
    finally:
        for engine in started:
            engine.end()


def engine_command(name: str, python: str, folder: Path, audiosep: Path) -> list[str]:
    return [python, str(Path(__file__).with_name("engines.py")), name, str(folder), str(audiosep)]


def interpreter(name: str, options: argparse.Namespace) -> str:
    return options.python if name in (ORIGINAL, IN_CHUNKS) else sys.executable


def tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


# ---------------------------------------------------------------------- what is measured


def write_inputs(folder: Path, options: argparse.Namespace) -> None:
    """Write weights, their conversion for the original, noise and a condition."""
    separator = random_separator(ResUNetConfig())
    separator.save_pretrained(folder / "weights")
    convert = [sys.executable, "-m", "audiosep_jax", "convert"]
    files = [str(folder / "weights"), str(folder / "audiosep.ckpt")]
    subprocess.run([*convert, *files], check=True, stdout=subprocess.DEVNULL)
    rng, features = np.random.default_rng(0), separator.model.condition_features
    num_samples = round(RATE_HZ * max(*options.seconds, SHORT_SECONDS, WARM_UP_SECONDS))
    for name in ("mixture", "target"):
        np.save(folder / name, 0.1 * rng.standard_normal(num_samples, np.float32))
    condition_E = rng.standard_normal(features, np.float32)
    np.save(folder / "condition", condition_E / np.linalg.norm(condition_E))
    short_S = np.load(folder / "mixture.npy")[: round(RATE_HZ * SHORT_SECONDS)]
    audio_files.write(folder / "in.wav", short_S[None], RATE_HZ)


def inference(folder: Path, options: argparse.Namespace) -> Iterator[Row]:
    """Yield the rows of each length."""
    with engines(list(ENGINES), folder, options) as alive:
        for length in sorted(options.seconds):
            able = [engine for engine in alive if engine.takes(length)]
            for engine in able:
                engine.ask(min(length, WARM_UP_SECONDS))
            found: dict[str, list[Any]] = {engine.name: [] for engine in able}
            for _ in range(options.rounds):
                for engine in able:
                    found[engine.name].append(engine.ask(length))
            yield best(f"{length:g} s", found)
            yield memory(f"{length:g} s", found)
            estimates = {name: np.load(folder / f"{name}.npy") for name in found}
            reference_S = estimates.pop(ORIGINAL)
            equal = {name: snr_db(reference_S, x) for name, x in estimates.items()}
            yield f"{length:g} s, agreement", "{:.0f} dB", equal


def training(folder: Path, options: argparse.Namespace) -> Iterator[Row]:
    """Yield the rows of a step of training, of which the first one compiles."""
    with engines([ORIGINAL, "JAX"], folder, options) as alive:
        found: dict[str, list[Any]] = {engine.name: [] for engine in alive}
        for _ in range(1 + options.rounds):
            for engine in alive:
                found[engine.name].append(engine.ask(SHORT_SECONDS, train=True))
    steps = {name: answers[1:] for name, answers in found.items()}
    yield best("training step, 5 s", steps)
    yield memory("training step", steps)
    yield "loss of the last step", "{:.7f}", {name: x[-1]["loss"] for name, x in steps.items()}


def start(folder: Path, options: argparse.Namespace) -> Iterator[Row]:
    """Yield the rows of the first file: with empty caches, and with what the first run cached."""
    original = engine_command("first_file", options.python, folder, options.audiosep)
    commands = {ORIGINAL: original} | {name: our_command(name, folder) for name in OURS}
    found: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(1 + options.rounds):
        for name in list(found):
            seconds = first_file_seconds(commands[name], folder / "first")
            if seconds is None:
                tell(f"{name} is left out: it wrote no file")
                del found[name]
            else:
                tell(f"{name}, first file: {seconds:.2f} s")
                found[name].append(seconds)
    yield "first file, empty caches", "{:.2f} s", {name: row[0] for name, row in found.items()}
    yield "first file", "{:.2f} s", {name: min(row[1:]) for name, row in found.items()}


def our_command(name: str, folder: Path) -> list[str]:
    options = [f"--{key}={value}" for key, value in ENGINES[name][1].items()]
    command = ["separate.py", f"{folder}/in.wav", "--embedding", f"{folder}/condition.npy"]
    command += ["--checkpoint", f"{folder}/weights", "--output", f"{folder}/first"]
    return [sys.executable, *command, *options]


def first_file_seconds(command: list[str], output: Path) -> float | None:
    """Time from the start of a process to its file in an empty folder; None if it fails."""
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir()
    environment = os.environ | {"AUDIOSEP_JAX_CACHE": f"{output}.cache"}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    started = time.perf_counter()
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) as process:
        while process.poll() is None and not list(output.glob("[!.]*.wav")):
            time.sleep(0.01)
        seconds = time.perf_counter() - started
    return None if process.returncode else seconds


# ---------------------------------------------------------------------- table


def best(label: str, found: dict[str, list[Any]]) -> Row:
    return label, "{:.2f} s", {name: min(x["seconds"] for x in row) for name, row in found.items()}


def memory(label: str, found: dict[str, list[Any]]) -> Row:
    peaks = {name: row[-1]["gigabytes"] for name, row in found.items()}
    return f"{label}, memory", "{:.1f} GB", peaks


def cell(row: Row, name: str) -> str:
    _, form, values = row
    if name not in values:
        return "-"
    told = form.format(values[name])
    compared = name != ORIGINAL and ORIGINAL in values and form.endswith(("s", "GB"))
    return f"{told} ({values[ORIGINAL] / values[name]:.2f}x)" if compared else told


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--audiosep", type=Path, required=True, help="clone of the original")
    parser.add_argument("--python", default=sys.executable, help="interpreter for the original")
    parser.add_argument("--seconds", type=float, nargs="+", default=[5.0, 10.0, 60.0])
    parser.add_argument("--rounds", type=int, default=3, help="measured, after one that is not")
    parts = {"inference": inference, "training": training, "start": start}
    parser.add_argument("--parts", nargs="+", choices=parts, default=list(parts))
    options = parser.parse_args()
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    options.audiosep = options.audiosep.resolve()
    with tempfile.TemporaryDirectory() as name:
        write_inputs(Path(name), options)
        rows = [row for part in options.parts for row in parts[part](Path(name), options)]
    names = [name for name in ENGINES if any(name in values for _, _, values in rows)]
    print(f"| | {' | '.join(names)} |\n|---|{'---|' * len(names)}")
    for row in rows:
        print(f"| {row[0]} | {' | '.join(cell(row, name) for name in names)} |")


if __name__ == "__main__":
    main()
