"""Pure training and evaluation steps, and the one place where they are made parallel."""

from collections.abc import Callable, Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from audiosep_jax.errors import InputError
from audiosep_jax.metrics import sdr_improvement, si_sdr
from audiosep_jax.model import make_model
from audiosep_jax.model.network import ModelConfig
from audiosep_jax.training.losses import LossConfig, loss_terms, total_loss
from audiosep_jax.training.optim import OptimConfig, learning_rate, make_optimizer

AXIS = "data"
Batch = dict[str, Any]
Metrics = dict[str, jax.Array]


@flax.struct.dataclass
class TrainState:
    """All that a step changes. `ema` is the moving average of `params`, or None.

    `skipped_steps` of the `step` steps were not finite and changed nothing else.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: Any
    ema: Any
    skipped_steps: jax.Array

    def variables(self) -> dict[str, Any]:
        """What to evaluate: the averaged parameters where there are any."""
        params = self.params if self.ema is None else self.ema
        return {"params": params, "batch_stats": self.batch_stats}


def init_state(model: ModelConfig, optim: OptimConfig, key: jax.Array) -> TrainState:
    """Fresh state at step 0."""
    audio_BS = jnp.zeros((1, model.window_samples))
    condition_BE = jnp.zeros((1, model.condition_features))
    variables = make_model(model).init(key, audio_BS, condition_BE, train=False)
    return state_from_variables(variables, optim)


def state_from_variables(variables: Mapping[str, Any], optim: OptimConfig) -> TrainState:
    """State at step 0 of a fresh optimiser on given weights."""
    params = variables["params"]
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=variables.get("batch_stats", {}),
        opt_state=make_optimizer(optim).init(params),
        ema=jax.tree.map(jnp.array, params) if optim.ema_decay else None,
        skipped_steps=jnp.zeros((), jnp.int32),
    )


def make_train_step(
    model: ModelConfig, optim: OptimConfig, loss: LossConfig, axis_name: str | None = AXIS
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """Body of a training step, to run under `pmap` or `shard_map` over `axis_name`, or alone.

    A step whose loss, gradients or statistics are not finite only counts itself.
    """
    network, optimizer = make_model(model, axis_name), make_optimizer(optim)

    def mean(tree: Any) -> Any:
        return jax.lax.pmean(tree, axis_name) if axis_name else tree

    def vary(tree: Any) -> Any:
        return jax.lax.pcast(tree, axis_name, to="varying") if axis_name else tree

    def loss_fn(params: Any, batch_stats: Any, batch: Batch) -> tuple[jax.Array, tuple[Any, Any]]:
        variables = {"params": params, "batch_stats": batch_stats}
        estimate_BS, updated = network.apply(
            variables, batch["mixture"], batch["condition"], train=True, mutable=["batch_stats"]
        )
        terms = loss_terms(loss, model, estimate_BS, batch["target"])
        sdri_B = sdr_improvement(batch["target"], estimate_BS, batch["mixture"])
        value = total_loss(loss, terms)
        return value, (
            updated.get("batch_stats", {}),
            {"loss": value, **terms, "sdri": sdri_B.mean()},
        )

    def gradients_of(params: Any, batch_stats: Any, batch: Batch) -> tuple[Any, Any, Metrics]:
        gradients, (batch_stats, metrics) = jax.grad(loss_fn, has_aux=True)(
            params, batch_stats, batch
        )
        return gradients, batch_stats, metrics

    def accumulated(params: Any, batch_stats: Any, batch: Batch) -> tuple[Any, Any, Metrics]:
        def add(carry: tuple[Any, Any], part: Batch) -> tuple[tuple[Any, Any], Metrics]:
            total, batch_stats = carry
            gradients, batch_stats, metrics = gradients_of(params, batch_stats, part)
            return (jax.tree.map(jnp.add, total, gradients), batch_stats), metrics

        zeros = jax.tree.map(jnp.zeros_like, params)
        parts = _parts(batch, optim.accumulate_steps)
        (total, batch_stats), metrics = jax.lax.scan(add, (zeros, batch_stats), parts)
        gradients = jax.tree.map(lambda x: x / optim.accumulate_steps, total)
        return gradients, batch_stats, jax.tree.map(jnp.mean, metrics)

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        # Each device's own gradients, so that the mean below is a mean everywhere.
        compute = gradients_of if optim.accumulate_steps == 1 else accumulated
        gradients, batch_stats, metrics = compute(vary(state.params), state.batch_stats, batch)
        gradients, metrics = mean((gradients, metrics))
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        gradient_norm = optax.tree.norm(gradients)
        finite = _all_finite((metrics["loss"], gradient_norm, batch_stats))
        updates = jax.tree.map(lambda x: jnp.where(finite, x, 0), updates)
        params = optax.apply_updates(state.params, updates)
        ema = state.ema
        if optim.ema_decay:
            ema = optax.incremental_update(params, ema, 1 - optim.ema_decay)
        old = (state.batch_stats, state.opt_state, state.ema)
        batch_stats, opt_state, ema = _choose(finite, (batch_stats, opt_state, ema), old)
        skipped = 1 - finite.astype(jnp.int32)
        metrics |= {
            "gradient_norm": gradient_norm,
            "update_norm": optax.tree.norm(updates),
            "parameter_norm": optax.tree.norm(params),
            "learning_rate": learning_rate(optim, state.step - state.skipped_steps),
            "skipped": skipped,
        }
        skipped_steps = state.skipped_steps + skipped
        return (
            TrainState(state.step + 1, params, batch_stats, opt_state, ema, skipped_steps),
            metrics,
        )

    return train_step


def _parts(batch: Batch, num_parts: int) -> Batch:
    """Rows in equal parts: `(B, ...)` to `(parts, B / parts, ...)`."""

    def split(x: jax.Array) -> jax.Array:
        if x.shape[0] % num_parts:
            raise InputError(
                f"optim.accumulate_steps={num_parts} does not divide a device's {x.shape[0]} rows"
            )
        return x.reshape(num_parts, x.shape[0] // num_parts, *x.shape[1:])

    return jax.tree.map(split, batch)


def _all_finite(tree: Any) -> jax.Array:
    values = [x.ravel() for x in jax.tree.leaves(tree)]
    # Behind a barrier, or XLA computes it again within every kernel that asks for it.
    return jax.lax.optimization_barrier(jnp.isfinite(jnp.concatenate(values)).all())


def _choose(condition: jax.Array, new: Any, old: Any) -> Any:
    return jax.tree.map(lambda x, y: jnp.where(condition, x, y), new, old)


def make_eval_step(model: ModelConfig) -> Callable[[Any, Batch], Metrics]:
    """Pure evaluation: variables and a batch to each clip's `sdri`, `si_sdr` and `estimate`."""
    network = make_model(model)

    def eval_step(variables: Any, batch: Batch) -> Metrics:
        mixture_BS, target_BS = batch["mixture"], batch["target"]
        estimate_BS: Any = network.apply(variables, mixture_BS, batch["condition"], train=False)
        return {
            "sdri": sdr_improvement(target_BS, estimate_BS, mixture_BS),
            "si_sdr": si_sdr(target_BS, estimate_BS),
            "estimate": estimate_BS,
        }

    return eval_step


def parallel_train_step(
    body: Callable[[TrainState, Batch], tuple[TrainState, Metrics]],
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """`body` on all devices: state without a device axis in and out, donated; batch split by rows.

    `out_axes=None` is not checked by pmap; a test runs the body under `shard_map`, which checks.
    """
    return jax.pmap(
        body, axis_name=AXIS, in_axes=(None, 0), out_axes=(None, None), donate_argnums=(0,)
    )


def step_flop(step: Any, state: TrainState, batch: Batch, accumulate_steps: int) -> float:
    """Floating-point operations of a parallel step on one device, as XLA counts them; 0 if unknown.

    XLA counts the program that is traced for `step`'s first call, so nothing is compiled for it. It
    counts the body of a loop once: the parts of an accumulated batch are multiplied here.
    """
    costs = step.lower(state, batch).cost_analysis() or {}
    return accumulate_steps * float(costs.get("flops", 0))


def parallel_eval_step(body: Callable[[Any, Batch], Metrics]) -> Callable[[Any, Batch], Metrics]:
    """`body` on all devices; results keep the device axis."""
    return jax.pmap(body, axis_name=AXIS, in_axes=(None, 0), out_axes=0)


def place_state(state: Any) -> Any:
    """`state` copied to every local device, as the pmapped step returns it."""
    mesh = Mesh(np.asarray(jax.local_devices()), (AXIS,))
    return jax.device_put(jax.device_get(state), NamedSharding(mesh, PartitionSpec()))


def split_batch(batch: Batch) -> Batch:
    """Rows of a host's batch dealt to its devices: `(B, ...)` to `(devices, B / devices, ...)`."""
    devices = jax.local_device_count()

    def split(x: np.ndarray) -> np.ndarray:
        if x.shape[0] % devices:
            raise ValueError(f"{x.shape[0]} rows do not divide among {devices} devices")
        return x.reshape(devices, x.shape[0] // devices, *x.shape[1:])

    return jax.tree.map(split, batch)
