"""Steps on all devices of all processes, by `pmap` or by `shard_map`.

Both run the same body on every device and give the same numbers. `pmap` takes the arrays of one
process: batches `(devices, rows, ...)` and a state on the local devices. With several processes it
converts each array of the state to a global one and back in every step, which takes tens of
milliseconds of Python. `shard_map` takes global arrays: batches whose rows are distributed over all
devices, and a state that is replicated on all of them.

`how` is `config.parallel`. `jax.device_get` reads the state of either.
"""

from collections.abc import Callable
from typing import Any, Literal

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from audiosep_jax.training.steps import AXIS, Batch, Metrics, TrainState

Parallel = Literal["pmap", "shard_map"]
TrainStep = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]
EvalStep = Callable[[Any, Batch], Metrics]
_WHOLE, _ROWS = PartitionSpec(), PartitionSpec(AXIS)


def parallel_train_step(body: TrainStep, how: Parallel = "pmap") -> TrainStep:
    """Run `body` on all devices; the old state is donated, the metrics have no device axis.

    pmap does not check that the results of `body` are equal on all devices. shard_map does.
    """
    if how == "shard_map":
        return jax.jit(_mapped(body, _WHOLE), donate_argnums=0)
    return jax.pmap(body, axis_name=AXIS, in_axes=(None, 0), out_axes=None, donate_argnums=0)


def parallel_eval_step(body: EvalStep, how: Parallel = "pmap") -> EvalStep:
    """Run `body` on all devices; `local_rows` reads the results."""
    if how == "shard_map":
        return jax.jit(_mapped(body, _ROWS))
    return jax.pmap(body, axis_name=AXIS, in_axes=(None, 0), out_axes=0)


def place_state(state: Any, how: Parallel = "pmap") -> Any:
    """Copy a state, equal in all processes, to every device of the mesh, as a step returns it."""
    sharding = NamedSharding(_mesh(how), _WHOLE)
    host = jax.device_get(state)
    if how == "pmap":
        return jax.device_put(host, sharding)

    def replicated(x: np.ndarray) -> jax.Array:  # device_put would compare it between processes
        return jax.make_array_from_callback(np.shape(x), sharding, lambda _: x)

    return jax.tree.map(replicated, host)


def split_batch(batch: Batch, how: Parallel = "pmap") -> Batch:
    """Distribute the rows `(B, ...)` of this process's batch over its devices, in order."""
    devices = jax.local_device_count()
    sharding = NamedSharding(_mesh(how), _ROWS)

    def place(rows: np.ndarray) -> jax.Array:
        if how == "shard_map":
            return jax.make_array_from_process_local_data(sharding, np.asarray(rows))
        return jax.device_put(rows.reshape(devices, -1, *rows.shape[1:]), sharding)

    return {name: place(rows) for name, rows in batch.items()}


def local_rows(result: jax.Array, how: Parallel = "pmap") -> np.ndarray:
    """Rows `(B, ...)` of a result that belong to this process's batch, on the host."""
    if how == "shard_map":
        shards = sorted(result.addressable_shards, key=lambda shard: shard.index[0].start or 0)
        return np.concatenate([np.asarray(shard.data) for shard in shards])
    host = np.asarray(result)
    return host.reshape(-1, *host.shape[2:])


def step_flop(step: Any, state: TrainState, batch: Batch, accumulate_steps: int) -> float:
    """Floating-point operations of a parallel step on one device, as XLA counts them; 0 if unknown.

    Nothing is compiled for it. XLA counts the body of the loop over the parts of a batch once.
    """
    costs = step.lower(state, batch).cost_analysis() or {}
    return accumulate_steps * float(costs.get("flops", 0))


def _mesh(how: Parallel) -> Mesh:
    devices = jax.devices() if how == "shard_map" else jax.local_devices()
    return Mesh(np.asarray(devices), (AXIS,))


def _mapped(body: Callable[..., Any], out_specs: Any) -> Callable[..., Any]:
    return jax.shard_map(
        body, mesh=_mesh("shard_map"), in_specs=(_WHOLE, _ROWS), out_specs=out_specs
    )
