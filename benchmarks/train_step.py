"""The training step's speed beside its roofline, block by block.

    python benchmarks/train_step.py --batch_size 96 --dtype bfloat16 --steps 200
    python benchmarks/train_step.py --batch_size 96 --dtype bfloat16 --data tfds --root prepared
    python benchmarks/train_step.py --config configs/demo.py --steps 20            (a CPU)

Runs the config's own step on all devices of this machine, with a fixed batch or with the input
pipeline (`--data`), and prints clips/s, model FLOP/s and their fraction of the device's peak,
memory, and the time that was spent waiting for data. Then times the gradient of every block by
itself beside its roofline: the longer one of its arithmetic at the peak and its memory traffic at
the full bandwidth (`roofline.py` states what is counted). On a CPU or an unknown device, both are
measured first, with a matmul of 4096 x 4096 and a copy.
"""

import argparse
import functools
import importlib.util
import statistics
import time
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from inference import Part, matmul, times_in_turns
from networks import block_modules
from roofline import BlockCost, block_costs, step_flop

from audiosep_jax.data.pipeline import train_batches
from audiosep_jax.data.sources import build_source
from audiosep_jax.model.resunet import FiLM, ResUNetConfig
from audiosep_jax.training.config import Config, from_mapping
from audiosep_jax.training.devices import device_bandwidth, device_peak_flops
from audiosep_jax.training.parallel import parallel_train_step, place_state, split_batch
from audiosep_jax.training.steps import init_state, make_train_step

PROBE_SIZE = 4096
COPY_BYTES = 2**28
BLOCK_REPEATS = 5
Batches = Iterator[dict[str, np.ndarray]]


# ---------------------------------------------------------------------- what is run


def read_config(arguments: argparse.Namespace) -> Config:
    """Read the config file and apply the options to it."""
    spec = importlib.util.spec_from_file_location("config", arguments.config)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    values = module.get_config()
    changes = {
        "batch_size": arguments.batch_size,
        "model.dtype": arguments.dtype,
        "model.remat": arguments.remat or None,
        "model.fold": arguments.fold,
        "optim.accumulate_steps": arguments.accumulate,
        "data.segment_seconds": arguments.seconds,
        "data.source": None if arguments.data == "fixed" else arguments.data,
        "data.root": arguments.root,
    }
    values.update_from_flattened_dict({k: v for k, v in changes.items() if v is not None})
    return from_mapping(values.to_dict())


def segment_samples(config: Config) -> int:
    return round(config.data.segment_seconds * config.model.sample_rate_hz)


def fixed_batches(config: Config) -> Batches:
    """Yield one batch of noise again and again, for which a step never waits."""
    shape = (config.batch_size, segment_samples(config))
    mixture_BS, target_BS = (0.1 * noise(*shape, seed=seed) for seed in (0, 1))
    condition_BE = noise(config.batch_size, config.model.condition_features) / 20
    while True:
        yield {"mixture": mixture_BS, "target": target_BS, "condition": condition_BE}


def pipeline_batches(config: Config) -> Batches:
    """Yield the batches of the config's pipeline, with random embeddings of the captions."""
    source = build_source(config.data, "train", config.model.sample_rate_hz)
    captions = sorted(set(source.captions.texts))
    rows = noise(len(captions), config.model.condition_features) / 20
    conditions = dict(zip(captions, rows, strict=True))
    batches: Generator[dict[str, np.ndarray], None, None] = train_batches(
        source,
        conditions,
        config.mixing,
        config.data,
        seed=config.seed,
        batch_size=config.batch_size,
        first_step=0,
    )
    for batch in batches:
        del batch["bad_clips"]
        yield batch


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def compiled_step(config: Config, batch: dict[str, Any]) -> tuple[Any, Any, float]:
    """Compile the step; return it, its first state, and the seconds of compilation."""
    options = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
    init = jax.jit(init_state, static_argnums=(0, 1), compiler_options=options)
    state = place_state(init(config.model, config.optim, jax.random.key(0)))
    body = make_train_step(config.model, config.optim, config.loss)
    started = time.perf_counter()
    lowered: Any = parallel_train_step(body)
    step = lowered.lower(state, split_batch(batch)).compile()
    return step, state, time.perf_counter() - started


def timed_steps(
    step: Any, state: Any, batches: Batches, warmup: int, num_steps: int
) -> tuple[float, float, float]:
    """Return seconds for a step, the share of them spent waiting for data, and the last loss.

    Metrics are read one step late, as in training, so that the host runs ahead of the device.
    """
    waited, pending, started = 0.0, None, 0.0
    for number in range(warmup + num_steps):
        if number == warmup:
            jax.block_until_ready(state)
            waited, started = 0.0, time.perf_counter()
        asked = time.perf_counter()
        batch = next(batches)
        waited += time.perf_counter() - asked
        state, metrics = step(state, split_batch(batch))
        if pending is not None:
            float(pending)
        pending = metrics["loss"]
    jax.block_until_ready(state)
    seconds = time.perf_counter() - started
    assert pending is not None
    return seconds / num_steps, waited / seconds, float(pending)


# ---------------------------------------------------------------------- blocks by themselves


def block_seconds(
    config: ResUNetConfig, variables: Any, batch_size: int, num_samples: int
) -> dict[str, float]:
    """Time forward and backward of each block; blocks run one by one, which saves memory."""
    condition_BE = jnp.asarray(noise(batch_size, config.condition_features) / 20)
    film = jax.jit(FiLM(config).apply)
    shifts: Any = film({"params": variables["params"]["film"]}, condition_BE)
    found: dict[str, float] = {}
    for name, module, inputs in block_modules(config, batch_size, num_samples):
        own = {shift: x for shift, x in shifts.items() if shift.startswith(f"{name}->")}
        here = {kind: tree["base"][name] for kind, tree in variables.items()}
        run = jax.jit(functools.partial(_gradient, module))
        times = times_in_turns({name: (run, (here, tuple(inputs), own))}, BLOCK_REPEATS)
        found[name] = statistics.median(times[name])
    return found


def _gradient(module: Any, variables: Any, inputs: Any, shifts: Any) -> Any:
    """Compute the result, and the gradients for which the result itself is the cotangent."""

    def forward(params: Any, inputs: Any, shifts: Any) -> Any:
        both = {**variables, "params": params}
        return module.apply(both, *inputs, shifts, train=True, mutable=["batch_stats"])

    result, pull, updated = jax.vjp(forward, variables["params"], inputs, shifts, has_aux=True)
    return result, pull(result), updated


# ---------------------------------------------------------------------- the device


def probe(dtype: str) -> tuple[float, float]:
    """Measure the FLOP/s of a matmul and the bytes/s of a copy, best of three."""
    x = jnp.zeros(COPY_BYTES // 4, jnp.float32)
    copy: Part = (jax.jit(lambda x: x + 1), (x,))
    seconds = times_in_turns({"matmul": matmul(PROBE_SIZE, dtype), "copy": copy}, 3)
    return 2 * PROBE_SIZE**3 / min(seconds["matmul"]), 2 * COPY_BYTES / min(seconds["copy"])


def limits(arguments: argparse.Namespace, dtype: Any) -> tuple[float, float]:
    """Return the peak in FLOP/s and the bandwidth in bytes/s of a device, and print them."""
    kind = jax.devices()[0].device_kind
    peak = 1e12 * arguments.peak_tflops or device_peak_flops(kind, dtype)
    bandwidth = 1e9 * arguments.bandwidth_gbs or device_bandwidth(kind)
    told = "by its maker's figures, or as given"
    if peak is None or bandwidth is None:
        # The devices of a CPU are the same cores: what one matmul reaches is for all of them.
        measured = [limit / jax.device_count() for limit in probe(dtype)]
        peak, bandwidth = peak or measured[0], bandwidth or measured[1]
        told = f"a matmul's of {PROBE_SIZE} and a copy's, measured"
    print(
        f"{jax.device_count()} x {kind}, jax {jax.__version__}, {dtype}; each "
        f"{peak / 1e12:.4g} TFLOP/s and {bandwidth / 1e9:.4g} GB/s ({told})"
    )
    return peak, bandwidth


def memory_lines(step: Any) -> Iterator[str]:
    analysis = step.memory_analysis()
    if analysis is not None:
        sizes = analysis.argument_size_in_bytes, analysis.temp_size_in_bytes
        held, working = (size / 2**30 for size in sizes)
        yield f"compiled step: {held:.2f} GiB of arguments, {working:.2f} GiB more while it runs"
    stats = jax.local_devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in stats:
        limit = stats.get("bytes_limit", 0) / 2**30
        yield f"device: {stats['peak_bytes_in_use'] / 2**30:.2f} GiB at most, of {limit:.2f}"


# ---------------------------------------------------------------------- report


def report_blocks(
    costs: list[BlockCost], seconds: dict[str, float], peak: float, bandwidth: float
) -> None:
    """Print the time of each block beside its roofline; some rows are not timed alone."""
    print(
        "\nblock             TFLOP      GB  roofline, ms  measured, ms  bound by    of its roofline"
    )
    for cost in costs:
        least = cost.seconds(peak, bandwidth)
        measured = seconds.get(cost.name)
        told = f"{1e3 * measured:12.2f}" if measured else f"{'-':>12}"
        ratio = f"{least / measured:16.0%}" if measured else ""
        work = f"{cost.flop / 1e12:6.3f} {cost.bytes / 1e9:7.2f}  {1e3 * least:12.2f}"
        print(f"{cost.name:<16} {work}  {told}  {cost.bound(peak, bandwidth):<10}{ratio}")
    busy = [c for c in costs if c.name in seconds and c.bound(peak, bandwidth) == "arithmetic"]
    if busy:
        rate = sum(cost.flop for cost in busy) / sum(seconds[cost.name] for cost in busy)
        print(
            f"blocks bound by arithmetic: {rate / 1e12:.4g} TFLOP/s, {rate / peak:.1%} of the peak"
        )
    if seconds:
        print(f"sum of the blocks by themselves: {1e3 * sum(seconds.values()):.1f} ms")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0],
        epilog="example: python benchmarks/train_step.py --batch_size 96 --dtype bfloat16",
    )
    parser.add_argument("--config", type=Path, default=Path("configs/clap.py"))
    parser.add_argument("--batch_size", type=int, help="over all devices (default: the config's)")
    parser.add_argument("--seconds", type=float, help="of a clip (default: the config's)")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"])
    parser.add_argument("--remat", action="store_true", help="compute blocks again for gradients")
    parser.add_argument("--fold", type=int, help="bins in the channels; 4 suits TPUs")
    parser.add_argument("--accumulate", type=int, help="parts of a batch, one after another")
    parser.add_argument("--steps", type=int, default=20, help="that are timed (default: 20)")
    parser.add_argument("--warmup", type=int, default=3, help="that are not (default: 3)")
    parser.add_argument(
        "--data", default="fixed", help="a data.source, or fixed: one batch of noise"
    )
    parser.add_argument("--root", help="of that source")
    parser.add_argument(
        "--peak_tflops", type=float, default=0.0, help="of a device (default: known)"
    )
    parser.add_argument("--bandwidth_gbs", type=float, default=0.0, help="of a device, in GB/s")
    parser.add_argument("--no_blocks", action="store_true", help="do not time single blocks")
    return parser.parse_args()


def main() -> None:
    arguments = parse()
    config = read_config(arguments)
    num_samples, model = segment_samples(config), cast(ResUNetConfig, config.model)
    rows = config.batch_size // jax.device_count()
    batches = fixed_batches(config) if arguments.data == "fixed" else pipeline_batches(config)
    peak, bandwidth = limits(arguments, model.dtype)
    step, state, compiling = compiled_step(config, next(batches))
    variables = jax.device_get({"params": state.params, "batch_stats": state.batch_stats})
    seconds, waiting, loss = timed_steps(step, state, batches, arguments.warmup, arguments.steps)
    del state
    costs = block_costs(model, rows, num_samples)
    least = sum(cost.seconds(peak, bandwidth) for cost in costs)
    rate = step_flop(model, rows, num_samples) / seconds
    print(f"{config.name}: batch of {config.batch_size} x {config.data.segment_seconds:g} s")
    print(
        f"step: {1e3 * seconds:.1f} ms, {config.batch_size / seconds:.4g} clips/s, loss {loss:.4f}"
    )
    print(f"each device: {rate / 1e12:.4g} model TFLOP/s, {rate / peak:.1%} of the peak")
    print(f"roofline: {1e3 * least:.1f} ms, {least / seconds:.1%} of it reached")
    print(f"waiting for data ({arguments.data}): {waiting:.2%} of the time")
    print(f"compilation: {compiling:.1f} s")
    print("\n".join(memory_lines(step)))
    alone = {} if arguments.no_blocks else block_seconds(model, variables, rows, num_samples)
    report_blocks(costs, alone, peak, bandwidth)


if __name__ == "__main__":
    main()
