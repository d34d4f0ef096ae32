"""Pure training and evaluation steps, and the one place where they are made parallel."""

from collections.abc import Callable, Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from audiosep_jax.audiosep import AudioSep
from audiosep_jax.evaluation.metrics import sdr_improvement, si_sdr
from audiosep_jax.losses import LossConfig, loss_terms, total_loss
from audiosep_jax.optim import OptimConfig, learning_rate, make_optimizer
from audiosep_jax.resunet import ModelConfig

AXIS = "data"
Batch = dict[str, Any]
Metrics = dict[str, jax.Array]


@flax.struct.dataclass
class TrainState:
    """All that a step changes. `ema` is the moving average of `params`, or None."""

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: Any
    ema: Any

    def variables(self) -> dict[str, Any]:
        """What to evaluate: the averaged parameters where there are any."""
        params = self.params if self.ema is None else self.ema
        return {"params": params, "batch_stats": self.batch_stats}


def init_state(model: ModelConfig, optim: OptimConfig, key: jax.Array) -> TrainState:
    """Fresh state at step 0."""
    audio_BS = jnp.zeros((1, model.window_samples))
    condition_BE = jnp.zeros((1, model.condition_features))
    variables = AudioSep(model).init(key, audio_BS, condition_BE, train=False)
    return state_from_variables(variables, optim)


def state_from_variables(variables: Mapping[str, Any], optim: OptimConfig) -> TrainState:
    """State at step 0 of a fresh optimiser on given weights."""
    params = variables["params"]
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=variables["batch_stats"],
        opt_state=make_optimizer(optim).init(params),
        ema=jax.tree.map(jnp.array, params) if optim.ema_decay else None,
    )


def make_train_step(
    model: ModelConfig, optim: OptimConfig, loss: LossConfig, axis_name: str | None = AXIS
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """Body of a training step, to run under `pmap` or `shard_map` over `axis_name`, or alone."""
    network, optimizer = AudioSep(model, axis_name), make_optimizer(optim)

    def mean(tree: Any) -> Any:
        return jax.lax.pmean(tree, axis_name) if axis_name else tree

    def loss_fn(params: Any, batch_stats: Any, batch: Batch) -> tuple[jax.Array, tuple[Any, Any]]:
        variables = {"params": params, "batch_stats": batch_stats}
        estimate_BS, updated = network.apply(
            variables, batch["mixture"], batch["condition"], train=True, mutable=["batch_stats"]
        )
        terms = loss_terms(loss, model, estimate_BS, batch["target"])
        sdri_B = sdr_improvement(batch["target"], estimate_BS, batch["mixture"])
        return total_loss(loss, terms), (updated["batch_stats"], terms | {"sdri": sdri_B.mean()})

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        params = state.params
        if axis_name:  # each device's own gradients, so that the mean below is a mean everywhere
            params = jax.lax.pcast(params, axis_name, to="varying")
        (value, (batch_stats, extra)), gradients = jax.value_and_grad(loss_fn, has_aux=True)(
            params, state.batch_stats, batch
        )
        value, extra, gradients = mean((value, extra, gradients))
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        new_params = optax.apply_updates(state.params, updates)
        metrics = {
            "loss": value,
            **extra,
            "gradient_norm": optax.tree.norm(gradients),
            "update_norm": optax.tree.norm(updates),
            "parameter_norm": optax.tree.norm(new_params),
            "learning_rate": learning_rate(optim, state.step),
        }
        ema = state.ema
        if optim.ema_decay:
            ema = optax.incremental_update(new_params, ema, 1 - optim.ema_decay)
        return TrainState(state.step + 1, new_params, batch_stats, opt_state, ema), metrics

    return train_step


def make_eval_step(model: ModelConfig) -> Callable[[Any, Batch], Metrics]:
    """Pure evaluation: variables and a batch to each clip's `sdri`, `si_sdr` and `estimate`."""
    network = AudioSep(model)

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
