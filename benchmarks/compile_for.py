"""Compile the training step and the inference step for TPUs that are not there, and count.

    pip install libtpu
    python benchmarks/compile_for.py --topology v5e:2x2 --batch_size 12 --dtype bfloat16
    python benchmarks/compile_for.py --topology v4:4x4x4 --batch_size 12 --dtype bfloat16 --remat

`libtpu` contains the compiler of every TPU. No TPU is needed: XLA reports what it compiled. A
topology is a generation and the grid of its chips: `v5e` and `v6e` have two axes, `v4`, `v5p` and
`tpu7x` three. ResUNet30 takes about ten minutes of CPU time for the training step.

All numbers are those of one device. FLOP and traffic are XLA's cost analysis of the optimised
program. Traffic is what all instructions read and write; XLA counts an instruction's arrays in
the chip's fast memory, too. The bound is the longer one of arithmetic at the device's peak and
traffic at its full bandwidth (`audiosep_jax/training/devices.py`).
"""

import argparse
import collections
import math
import os
import re
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from train_step import read_config, segment_samples

from audiosep_jax.model import make_model
from audiosep_jax.training.config import Config
from audiosep_jax.training.devices import (
    device_bandwidth,
    device_memory,
    device_peak_flops,
)
from audiosep_jax.training.steps import AXIS, init_state, make_train_step

WHOLE, ROWS = PartitionSpec(), PartitionSpec(AXIS)
COLLECTIVE = re.compile(
    r" = (?P<result>.*?) (?P<name>all-reduce|all-gather|all-to-all|reduce-scatter|"
    r"collective-permute)(-start)?\("
)
ARRAY = re.compile(r"\b(pred|[a-z]+(?P<bits>\d+)[a-z0-9]*)\[(?P<shape>[\d,]*)\]")


class Counts(NamedTuple):
    """Costs of a compiled program on one device; `collectives` are (number, bytes) by name."""

    flop: float
    traffic_bytes: float
    argument_bytes: int
    temporary_bytes: int
    peak_bytes: int
    collectives: dict[str, tuple[int, int]]


def count(compiled: Any) -> Counts:
    """Read XLA's analyses of a program."""
    costs, memory = compiled.cost_analysis(), compiled.memory_analysis()
    return Counts(
        costs["flops"],
        costs["bytes accessed"],
        memory.argument_size_in_bytes,
        memory.temp_size_in_bytes,
        memory.peak_memory_in_bytes,
        count_collectives(compiled.as_text()),
    )


def count_collectives(program: str) -> dict[str, tuple[int, int]]:
    """Count the collectives in the text of an optimised program, and the bytes of their results.

    A loop's body counts once.
    """
    found: dict[str, tuple[int, int]] = collections.defaultdict(lambda: (0, 0))
    for match in COLLECTIVE.finditer(program):
        number, size = found[match["name"]]
        found[match["name"]] = number + 1, size + sum(array_bytes(match["result"]))
    return dict(found)


def array_bytes(shape: str) -> Iterator[int]:
    """Sizes of the arrays in HLO's text of a shape, such as `(f32[8,2]{1,0}, bf16[3]{0})`."""
    for match in ARRAY.finditer(shape):
        sizes = [int(size) for size in match["shape"].split(",") if size]
        yield math.prod(sizes) * max(int(match["bits"] or 8) // 8, 1)


# ---------------------------------------------------------------------- what is compiled


def topology_devices(topology: str) -> list[Any]:
    """Devices of a topology, as `jax.devices()` would list them there."""
    os.environ["TPU_SKIP_MDS_QUERY"] = "1"  # no metadata server is asked what this machine is
    os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"  # several compilers may run side by side
    options = {"chip_config_name": "megacore"} if topology.startswith("v4:") else {}
    return topologies.get_topology_desc(topology, platform="tpu", **options).devices


def lowered_steps(config: Config, devices: Sequence[Any]) -> Iterator[tuple[str, Any]]:
    """Lower inference and the training step on `config.batch_size` clips a device, by name."""
    mesh = Mesh(np.asarray(devices), (AXIS,))

    def place(tree: Any, spec: PartitionSpec) -> Any:
        sharding = NamedSharding(mesh, spec)
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree
        )

    def infer(variables: Any, batch: dict[str, jax.Array]) -> Any:
        network = make_model(config.model)
        return network.apply(variables, batch["mixture"], batch["condition"], train=False)

    rows = len(devices) * config.batch_size
    audio_BS = jax.ShapeDtypeStruct((rows, segment_samples(config)), jnp.float32)
    condition_BE = jax.ShapeDtypeStruct((rows, config.model.condition_features), jnp.float32)
    batch = {"mixture": audio_BS, "target": audio_BS, "condition": condition_BE}
    batch = place(batch, ROWS)
    state = jax.eval_shape(lambda: init_state(config.model, config.optim, jax.random.key(0)))
    state = place(state, WHOLE)
    inference = jax.shard_map(infer, mesh=mesh, in_specs=(WHOLE, ROWS), out_specs=ROWS)
    yield "inference", jax.jit(inference).lower(state.variables(), batch)
    train = make_train_step(config.model, config.optim, config.loss)
    training = jax.shard_map(train, mesh=mesh, in_specs=(WHOLE, ROWS), out_specs=WHOLE)
    yield "training", jax.jit(training, donate_argnums=0).lower(state, batch)


# ---------------------------------------------------------------------- report


def report(counts: Counts, kind: str, dtype: Any, clips: int) -> None:
    """Print the costs, and the bound in clips per second of one device."""
    peak, bandwidth, memory = (
        device_peak_flops(kind, dtype),
        device_bandwidth(kind),
        device_memory(kind),
    )
    if peak is None or bandwidth is None or memory is None:
        raise SystemExit(f"error: {kind} is unknown: add it to audiosep_jax/training/devices.py")
    computing, moving = counts.flop / peak, counts.traffic_bytes / bandwidth
    limit = "arithmetic" if computing > moving else "traffic"
    share = counts.peak_bytes / memory
    print(f"  arithmetic   {counts.flop / 1e12:8.2f} TFLOP {1e3 * computing:8.1f} ms at the peak")
    print(f"  traffic      {counts.traffic_bytes / 1e9:8.2f} GB    {1e3 * moving:8.1f} ms at best")
    print(f"  arguments    {counts.argument_bytes / 1e9:8.2f} GB")
    print(f"  temporary    {counts.temporary_bytes / 1e9:8.2f} GB")
    print(f"  peak memory  {counts.peak_bytes / 1e9:8.2f} GB    {share:8.0%} of the device's")
    for name, (number, size) in sorted(counts.collectives.items()):
        print(f"  {name:<12} {size / 1e6:8.2f} MB    {number:8} of them")
    print(f"  bound        {clips / max(computing, moving):8.1f} clips/s a device, by {limit}")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--topology", default="v5e:2x2", help="default: v5e:2x2")
    parser.add_argument("--config", type=Path, default=Path("configs/clap.py"))
    parser.add_argument("--batch_size", type=int, default=12, help="clips a device (default: 12)")
    parser.add_argument("--seconds", type=float, help="of a clip (default: the config's)")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"])
    parser.add_argument("--remat", action="store_true", help="compute blocks again for gradients")
    parser.add_argument("--hlo", type=Path, help="folder for the text of the optimised programs")
    parser.set_defaults(accumulate=None, data="fixed", root=None)  # what read_config also takes
    return parser.parse_args()


def main() -> None:
    arguments = parse()
    jax.config.update("jax_platforms", "cpu")
    config = read_config(arguments)
    devices = topology_devices(arguments.topology)
    kind = devices[0].device_kind
    clips = f"{config.batch_size} clips of {config.data.segment_seconds:g} s a device"
    print(f"{len(devices)} x {kind}: {config.name}, {clips}, {config.model.dtype}")
    for name, lowered in lowered_steps(config, devices):
        started = time.perf_counter()
        try:
            compiled = lowered.compile()
        except jax.errors.JaxRuntimeError as error:
            print(f"{name}: does not fit\n  {str(error).partition('. ')[0]}")
            continue
        print(f"{name}, compiled in {time.perf_counter() - started:.0f} s:")
        report(count(compiled), kind, config.model.dtype, config.batch_size)
        if arguments.hlo:
            arguments.hlo.mkdir(parents=True, exist_ok=True)
            (arguments.hlo / f"{name}.txt").write_text(compiled.as_text())


if __name__ == "__main__":
    main()
