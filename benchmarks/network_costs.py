"""Costs of the networks that `study.py networks` trains: size, operations, time, streaming error.

    python benchmarks/network_costs.py

Operations are those that XLA counts in a forward pass, for a second of audio. The time is that of
one pass over 30 s of noise relative to the first row, the median of rounds in turn. Weights are
random and use every layer. The streaming error is the energy of the difference between a stream
and one pass, relative to that pass. The latency is that of a stream in tiles of one time stride.
"""

import argparse
import functools
import statistics
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from networks import random_separator, snr_db
from study import STUDIES, fields_of

from audiosep_jax.model import make_model, make_network, variable_shapes
from audiosep_jax.model.network import ModelConfig
from audiosep_jax.model.tiles import latency_samples
from audiosep_jax.training.config import from_file

SECONDS = 30
ROUNDS = 7


def models() -> dict[str, ModelConfig]:
    """Networks of the study, by the name of their row."""
    corpus = Path("corpus")
    return {
        name: from_file("configs/small.py", fields_of(corpus, overrides.split())).model
        for name, overrides in STUDIES["networks"].items()
    }


def flop_per_second(model: ModelConfig) -> float:
    """Operations of the network for a second of audio, as XLA counts them; nothing is compiled."""
    frames = SECONDS * model.sample_rate_hz // model.hop_samples
    frames -= frames % model.time_stride
    mag_BTF = jax.ShapeDtypeStruct((1, frames, model.num_bins), jnp.float32)
    condition_BE = jax.ShapeDtypeStruct((1, model.condition_features), jnp.float32)
    apply = jax.jit(functools.partial(make_network(model).apply, train=False))
    costs: Any = apply.lower(variable_shapes(model), mag_BTF, condition_BE).cost_analysis()
    return float(costs["flops"]) / (frames * model.hop_samples / model.sample_rate_hz)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.parse_args()
    logging.set_verbosity(logging.ERROR)
    rng, passes, rows = np.random.default_rng(1), {}, {}
    for name, model in models().items():
        separator = random_separator(model)
        audio_CS = 0.1 * rng.standard_normal((1, SECONDS * model.sample_rate_hz), np.float32)
        condition_NE = rng.standard_normal((1, model.condition_features), np.float32) / 10
        run = jax.jit(functools.partial(make_model(model).apply, train=False))
        passes[name] = functools.partial(run, separator.variables, audio_CS, condition_NE)
        whole_S = np.asarray(passes[name]())[0]
        stream = separator.stream(model.sample_rate_hz, condition_NE, 1, 1.0)
        parts = [stream.feed(audio_CS), stream.finish()]
        error_db = -snr_db(whole_S, np.concatenate(parts, axis=-1)[0, 0])
        count = sum(x.size for x in jax.tree.leaves(separator.variables["params"]))
        latency_ms = 1000 * latency_samples(model, model.time_stride) / model.sample_rate_hz
        cells = [f"{count / 1e6:.2f} M", f"{flop_per_second(model) / 1e6:.0f} M"]
        rows[name] = [*cells, f"{latency_ms:.0f} ms", f"{error_db:.0f} dB"]
    times = _seconds(passes)
    print("| | parameters | operations | latency | streaming error | time |")
    print("|---|---|---|---|---|---|")
    for name, cells in rows.items():
        ratio = times[name] / next(iter(times.values()))
        print(f"| {name} | {' | '.join(cells)} | {ratio:.2f} |")


def _seconds(passes: dict[str, Any]) -> dict[str, float]:
    """Median time of each pass, measured in turn."""
    seconds: dict[str, list[float]] = {name: [] for name in passes}
    for _ in range(ROUNDS):
        for name, run in passes.items():
            start = time.perf_counter()
            run().block_until_ready()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(times) for name, times in seconds.items()}


if __name__ == "__main__":
    main()
