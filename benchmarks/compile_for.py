"""Compile inference and the training step for TPUs or GPUs that are not there, and count.

    pip install libtpu                     (TPUs: v4, v5e, v5p, v6e)
    python benchmarks/compile_for.py --topology v5e:2x2 --batch_size 12 --dtype bfloat16 --fold 4
    python benchmarks/compile_for.py --topology v4:4x4x4 --batch_size 24 --dtype bfloat16 --remat
    pip install 'jax[cuda12]'              (GPUs of one machine: a100, h100, h200)
    python benchmarks/compile_for.py --topology h100:8 --batch_size 12 --dtype bfloat16

`libtpu` contains the compiler of every TPU, JAX's CUDA plugin that of GPUs. A topology is a kind of
chip and how many: a grid for TPUs, of two axes for `v5e` and `v6e` and of three for `v4` and `v5p`.
ResUNet30's training step takes ten minutes of CPU time for a TPU, and one minute for a GPU.

All numbers are those of one device. FLOP and traffic are XLA's cost analysis of the optimised
program. Traffic is what all instructions read and write, with the padding that a TPU's layouts
add, and with what stays in a TPU's fast memory. For a GPU without the GPU, XLA analyses no costs
and cuDNN's scratch memory is unknown: FLOP are then `roofline.py`'s, and traffic is the size of
the operands and results of the program's instructions. The bound is the longer one of arithmetic
at the device's peak and traffic at its full bandwidth (`audiosep_jax/training/devices.py`).
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
from roofline import block_costs, network_flop
from train_step import read_config, segment_samples

from audiosep_jax.model import make_model
from audiosep_jax.training.config import Config
from audiosep_jax.training.devices import device_bandwidth, device_memory, device_peak_flops
from audiosep_jax.training.steps import AXIS, init_state, make_train_step

WHOLE, ROWS = PartitionSpec(), PartitionSpec(AXIS)
INSTRUCTION = re.compile(
    r"^ +(?:ROOT )?%(?P<name>\S+) = (?P<result>.*?) (?P<opcode>[a-z][a-z-]*)\((?P<operands>.*?)\)",
    re.MULTILINE,
)
COLLECTIVE = re.compile(
    r"(all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute)(-start)?"
)
ARRAY = re.compile(r"\b(pred|[a-z]+(?P<bits>\d+)[a-z0-9]*)\[(?P<shape>[\d,]*)\]")
# Instructions that move nothing, or whose first half has been counted.
FREE = re.compile(r"parameter|constant|tuple|get-tuple-element|bitcast|.*-done")


class Counts(NamedTuple):
    """Costs of a compiled program on one device; `collectives` are (number, bytes) by name."""

    flop: float
    traffic_bytes: float
    argument_bytes: int
    temporary_bytes: int
    peak_bytes: int
    collectives: dict[str, tuple[int, int]]


def count(compiled: Any, expected_flop: float) -> Counts:
    """Read XLA's analyses; without any of costs, take `expected_flop` and count the traffic."""
    costs, memory, program = (
        compiled.cost_analysis(),
        compiled.memory_analysis(),
        compiled.as_text(),
    )
    return Counts(
        costs["flops"] if costs else expected_flop,
        costs["bytes accessed"] if costs else count_traffic(program),
        memory.argument_size_in_bytes,
        memory.temp_size_in_bytes,
        memory.peak_memory_in_bytes or memory.argument_size_in_bytes + memory.temp_size_in_bytes,
        count_collectives(program),
    )


def count_traffic(program: str) -> int:
    """Add up the sizes of operands and results in the text of an optimised program.

    The inside of fusions moves nothing, and that of loops is left out.
    """
    total, sizes = 0, {}
    for match in INSTRUCTION.finditer(program, program.index("\nENTRY ")):
        sizes[match["name"]] = array_bytes(match["result"])
        if not FREE.fullmatch(match["opcode"]):
            operands = re.findall(r"%([\w.-]+)", match["operands"])
            total += sizes[match["name"]] + sum(sizes[name] for name in operands)
    return total


def count_collectives(program: str) -> dict[str, tuple[int, int]]:
    """Count collectives in the text of an optimised program, and the bytes of their results.

    A loop's body counts once, and so does a collective that is spread over several fusions.
    """
    found: dict[str, tuple[int, int]] = collections.defaultdict(lambda: (0, 0))
    chains = set()
    for line in program.splitlines():
        match, chain = INSTRUCTION.match(line), re.search(r'chain_id="\d+"', line)
        kind = match and COLLECTIVE.fullmatch(match["opcode"])
        if not match or not kind or (chain and chain[0] in chains):
            continue
        if chain:
            chains.add(chain[0])
        number, size = found[kind[1]]
        found[kind[1]] = number + 1, size + array_bytes(match["result"])
    return dict(found)


def array_bytes(shape: str) -> int:
    """Bytes of all arrays in HLO's text of a shape, such as `(f32[8,2]{1,0}, bf16[3]{0})`."""
    total = 0
    for match in ARRAY.finditer(shape):
        sizes = [int(size) for size in match["shape"].split(",") if size]
        total += math.prod(sizes) * max(int(match["bits"] or 8) // 8, 1)
    return total


# ---------------------------------------------------------------------- what is compiled


def topology_devices(topology: str) -> Sequence[Any]:
    """Devices of a topology, as `jax.devices()` would list them there."""
    name, _, grid = topology.partition(":")
    if name in GPUS:
        os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
        options = {"topology": f"1x1x{grid}", "target_config": gpu_target(**GPUS[name])}
        return topologies.get_topology_desc("", platform="cuda", **options).devices
    os.environ["TPU_SKIP_MDS_QUERY"] = "1"  # no metadata server is asked what this machine is
    os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"  # several compilers may run side by side
    options = {"chip_config_name": "megacore"} if name == "v4" else {}
    return topologies.get_topology_desc(topology, platform="tpu", **options).devices


_HOPPER = {"capability": 9, "cores": 132, "lanes": 128, "shared": 233472, "l2": 52428800}
GPUS: dict[str, dict[str, Any]] = {
    "a100": {
        **{"kind": "NVIDIA A100-SXM4-80GB", "capability": 8, "cores": 108},
        **{"lanes": 64, "shared": 167936, "l2": 41943040, "clock": 1.41},
    },
    "h100": _HOPPER | {"kind": "NVIDIA H100 80GB HBM3", "clock": 1.98},
    "h200": _HOPPER | {"kind": "NVIDIA H200", "clock": 1.98},
}


def gpu_target(
    kind: str, capability: int, cores: int, lanes: int, shared: int, l2: int, clock: float
) -> str:
    """Describe a GPU to XLA, as a `GpuTargetConfigProto` in text."""
    return f"""
        gpu_device_info {{
          threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
          block_dim_limit_x: {2**31 - 1} block_dim_limit_y: 65535 block_dim_limit_z: 65535
          registers_per_core_limit: 65536 registers_per_block_limit: 65536
          shared_memory_per_block: 49152 shared_memory_per_block_optin: {shared - 1024}
          shared_memory_per_core: {shared} l2_cache_size: {l2}
          core_count: {cores} fpus_per_core: {lanes} clock_rate_ghz: {clock}
          memory_bandwidth: {device_bandwidth(kind):.0f} device_memory_size: {device_memory(kind)}
          cuda_compute_capability {{ major: {capability} }}
        }}
        platform_name: "CUDA" device_description_str: "{kind}"
        dnn_version_info {{ major: 9 minor: 7 }} runtime_version {{ major: 12 minor: 8 }}
    """


def lowered_steps(config: Config, devices: Sequence[Any]) -> Iterator[tuple[str, Any, float]]:
    """Lower inference and the training step on `config.batch_size` clips a device.

    Yields names, lowered programs, and the FLOP that `roofline.py` expects of one device.
    """
    mesh = Mesh(np.asarray(devices), (AXIS,))

    def place(tree: Any, spec: PartitionSpec) -> Any:
        sharding = NamedSharding(mesh, spec)
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree
        )

    def infer(variables: Any, batch: dict[str, jax.Array]) -> Any:
        network = make_model(config.model)
        return network.apply(variables, batch["mixture"], batch["condition"], train=False)

    model: Any = config.model
    samples, rows = segment_samples(config), config.batch_size
    audio_BS = jax.ShapeDtypeStruct((len(devices) * rows, samples), jnp.float32)
    condition_BE = jax.ShapeDtypeStruct(
        (len(devices) * rows, model.condition_features), jnp.float32
    )
    batch = {"mixture": audio_BS, "target": audio_BS, "condition": condition_BE}
    batch = place(batch, ROWS)
    state = jax.eval_shape(lambda: init_state(model, config.optim, jax.random.key(0)))
    state = place(state, WHOLE)
    inference = jax.shard_map(infer, mesh=mesh, in_specs=(WHOLE, ROWS), out_specs=ROWS)
    flop = float(rows * sum(network_flop(model, samples).values()))
    yield "inference", jax.jit(inference).lower(state.variables(), batch), flop
    train = make_train_step(model, config.optim, config.loss)
    training = jax.shard_map(train, mesh=mesh, in_specs=(WHOLE, ROWS), out_specs=WHOLE)
    flop = sum(cost.flop for cost in block_costs(model, rows, samples))
    yield "training", jax.jit(training, donate_argnums=0).lower(state, batch), flop


# ---------------------------------------------------------------------- report


def report(counts: Counts, kind: str, dtype: Any, clips: int) -> None:
    """Print the costs, and the bound in clips per second of one device."""
    peak, bandwidth = device_peak_flops(kind, dtype), device_bandwidth(kind)
    memory = device_memory(kind)
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
    parser.add_argument("--fold", type=int, help="bins in the channels; 4 suits TPUs")
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
    print(f"{len(devices)} x {kind}: {config.name}, {clips}, {config.model.dtype}", flush=True)
    for name, lowered, flop in lowered_steps(config, devices):
        started = time.perf_counter()
        try:
            compiled = lowered.compile()
        except jax.errors.JaxRuntimeError as error:
            print(f"{name}: does not fit\n  {str(error).partition('. ')[0]}")
            continue
        print(f"{name}, compiled in {time.perf_counter() - started:.0f} s:")
        report(count(compiled, flop), kind, config.model.dtype, config.batch_size)
        if arguments.hlo:
            arguments.hlo.mkdir(parents=True, exist_ok=True)
            (arguments.hlo / f"{name}.txt").write_text(compiled.as_text())


if __name__ == "__main__":
    main()
