"""Exported ONNX files in onnxruntime against `Separator`: SNR, and times in turns.

    python benchmarks/onnx_file.py --seconds 5 60
    python benchmarks/onnx_file.py --checkpoint runs/esc50 --seconds 5 60

One file separates the recordings whole, another one in tiles, and both are compared with the engine
`jax`. The recordings are noise. Without --checkpoint the network is ResUNet30 with random weights
that use every layer; 60 s of it take 17 GB in one pass. The target is 100 dB.
"""

import argparse
import json
import runpy
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from absl import logging
from networks import random_separator, snr_db

from audiosep_jax.model.resunet import ResUNetConfig
from audiosep_jax.separation.export import export_onnx
from audiosep_jax.separation.separator import Separator

EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "onnx_separate.py"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--checkpoint", help="weights (default: random ones of ResUNet30)")
    parser.add_argument("--seconds", type=float, nargs="+", default=[5.0])
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    logging.set_verbosity(logging.ERROR)
    separator = random_separator(ResUNetConfig())
    if arguments.checkpoint:
        separator = Separator.load(arguments.checkpoint, engine="jax")
    with tempfile.TemporaryDirectory() as folder:
        runs = {"whole": _whole(separator, folder), "in tiles": _in_tiles(separator, folder)}
    for seconds in arguments.seconds:
        _compare(separator, runs, seconds, arguments.repeats)


def _whole(separator: Separator, folder: str) -> Callable[..., Any]:
    session, _ = _loaded(export_onnx(separator, f"{folder}/whole.onnx"))
    return lambda mixture_BS, condition_BE: session.run(
        ["estimate"], {"mixture": mixture_BS, "condition": condition_BE}
    )[0]


def _in_tiles(separator: Separator, folder: str) -> Callable[..., Any]:
    session, about = _loaded(export_onnx(separator, f"{folder}/tile.onnx", stream=True))
    streamed = runpy.run_path(str(EXAMPLE))["streamed"]
    return lambda *arrays: streamed(session, about, *arrays)


def _loaded(path: Path) -> tuple[Any, dict[str, Any]]:
    options = onnxruntime.SessionOptions()  # idle threads would take time from the other engine
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    start = time.perf_counter()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    seconds, megabytes = time.perf_counter() - start, path.stat().st_size / 1e6
    print(f"{path.name}: {megabytes:.1f} MB, loaded in {seconds:.1f} s")
    return session, json.loads(path.with_name(f"{path.name}.json").read_text())


def _compare(
    separator: Separator, runs: dict[str, Callable[..., Any]], seconds: float, repeats: int
) -> None:
    model, rng = separator.model, np.random.default_rng(1)
    shape = 1, round(seconds * model.sample_rate_hz)
    mixture_BS = 0.1 * rng.standard_normal(shape, np.float32)
    condition_BE = rng.standard_normal((1, model.condition_features), np.float32)
    condition_BE /= np.linalg.norm(condition_BE)
    ours = "Separator"
    runs = {
        ours: lambda x_BS, y_BE: separator.separate_conditions(x_BS, model.sample_rate_hz, y_BE)[0],
        **runs,
    }
    times: dict[str, list[float]] = {name: [] for name in runs}
    results = {name: run(mixture_BS, condition_BE) for name, run in runs.items()}
    for _ in range(repeats):
        for name, run in runs.items():
            start = time.perf_counter()
            run(mixture_BS, condition_BE)
            times[name].append(time.perf_counter() - start)
    for name, result in results.items():
        median = statistics.median(times[name])
        ratio = statistics.median(np.divide(times[name], times[ours]))
        line = f"{seconds:g} s, {name}: {median:.2f} s, {ratio:.2f} times {ours}"
        print(line if name == ours else f"{line}, {snr_db(results[ours], result):.1f} dB")


if __name__ == "__main__":
    main()
