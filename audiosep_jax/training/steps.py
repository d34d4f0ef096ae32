"""Pure training and evaluation steps; `parallel` runs them on all devices."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from audiosep_jax.metrics import sdr_improvement, si_sdr, si_sdr_improvement
from audiosep_jax.model import make_model
from audiosep_jax.model.audiosep import AudioSep, with_slots
from audiosep_jax.model.network import ModelConfig
from audiosep_jax.training.adapters import adapted, new_adapters
from audiosep_jax.training.grouping import grouped, remixed, summed, with_rest
from audiosep_jax.training.losses import LossConfig, Outputs, loss_terms, total_loss
from audiosep_jax.training.optim import OptimConfig, learning_rate, make_optimizer

AXIS = "data"
Batch = dict[str, Any]
Metrics = dict[str, jax.Array]
# (params, batch_stats, batch) to (loss, (new batch_stats, metrics))
LossOf = Callable[[Any, Any, Batch], tuple[jax.Array, tuple[Any, Metrics]]]


@flax.struct.dataclass
class TrainState:
    """Everything that a step changes.

    `ema` is the moving average of `params`, or None. `base` are frozen parameters, to which
    `params` are adapters, or None. `skipped_steps` of the `step` steps were not
    finite and changed nothing but these two counters.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: Any
    ema: Any
    skipped_steps: jax.Array
    base: Any = None

    def variables(self) -> dict[str, Any]:
        """Variables to evaluate: the averaged parameters if there are any, and the statistics."""
        params = self.params if self.ema is None else self.ema
        params = params if self.base is None else adapted(self.base, params)
        return {"params": params, "batch_stats": self.batch_stats}


def init_state(model: ModelConfig, optim: OptimConfig, key: jax.Array) -> TrainState:
    """State at step 0, with random weights."""
    audio_BS = jnp.zeros((1, model.window_samples))
    condition_BE = jnp.zeros((1, model.condition_features))
    variables = make_model(model).init(key, audio_BS, condition_BE, train=False)
    return state_from_variables(variables, optim)


def state_from_variables(variables: Mapping[str, Any], optim: OptimConfig) -> TrainState:
    """State at step 0, with given weights and a fresh optimiser."""
    params, base = variables["params"], None
    if optim.adapter_rank:
        params, base = new_adapters(params, optim.adapter_rank), params
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=variables.get("batch_stats", {}),
        opt_state=make_optimizer(optim).init(params),
        ema=jax.tree.map(jnp.array, params) if optim.ema_decay else None,
        skipped_steps=jnp.zeros((), jnp.int32),
        base=base,
    )


def make_train_step(
    model: ModelConfig, optim: OptimConfig, loss: LossConfig, axis_name: str | None = AXIS
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """Make the body of a training step, to run over the mapped `axis_name`, or alone without one.

    Another step is written from the same pieces: see `examples/`.
    """
    network = make_model(model, axis_name)

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        train = state.base is None  # statistics of frozen weights are frozen, too

        def loss_of(params: Any, batch_stats: Any, batch: Batch) -> tuple[jax.Array, Any]:
            params = params if train else adapted(state.base, params)
            given = network, loss, params, batch_stats, batch
            return separation_loss(*given, train=train)

        params = device_varying(state.params, axis_name)
        gradients, batch_stats, metrics = accumulated_gradients(
            loss_of, params, state.batch_stats, batch, optim.accumulate_steps
        )
        gradients, metrics = mean_over_devices((gradients, metrics), axis_name)
        return updated_state(state, optim, gradients, batch_stats, metrics)

    return train_step


def separation_loss(
    network: AudioSep,
    loss: LossConfig,
    params: Any,
    batch_stats: Any,
    batch: Batch,
    *,
    train: bool,
) -> tuple[jax.Array, tuple[Any, Metrics]]:
    """Compute (loss, (new batch statistics, metrics)) of this device's rows.

    The loss and the metrics are means over these rows. The batch statistics are the same on every
    device, because BatchNorm averages over `network.network.axis_name` before it updates them.
    """
    config = network.network.config

    def separated(batch_stats: Any, mixture_BS: Any, condition: Any) -> tuple[Outputs, Any]:
        estimate_BS, updated = network.apply(
            {"params": params, "batch_stats": batch_stats},
            *(mixture_BS, condition),
            train=train,
            mutable=["batch_stats", "intermediates"],
        )
        mask = updated.get("intermediates", {}).get("mask", (None,))
        return Outputs(estimate_BS, *mask), updated.get("batch_stats", {})

    condition = with_slots(params, batch.get("condition"), len(batch["mixture"]))
    outputs, batch_stats = separated(batch_stats, batch["mixture"], condition)
    pairs, rows = grouped(loss, config, outputs, batch)
    terms = loss_terms(loss, config, pairs, rows)
    value = total_loss(loss, terms)
    sdri_B = sdr_improvement(rows["target"], pairs.estimate_BS, rows["mixture"])
    metrics = {**terms, "sdri": sdri_B.mean()}
    remix = getattr(loss, "remix", 0.0)  # a loss of one's own may have none
    if remix and "member" in batch:
        new = remixed(outputs, batch)
        outputs, batch_stats = separated(batch_stats, new["mixture"], new["condition"])
        queries_B2K = jnp.tile(jnp.eye(2), (len(new["target"]), 1, 1))
        pairs, rows = summed(outputs, new, queries_B2K)
        metrics["remix"] = total_loss(loss, loss_terms(loss, config, pairs, rows))
        value += remix * metrics["remix"]
    return value, (batch_stats, metrics | {"loss": value})


def accumulated_gradients(
    loss_of: LossOf, params: Any, batch_stats: Any, batch: Batch, num_parts: int = 1
) -> tuple[Any, Any, Metrics]:
    """Compute (gradients, new batch statistics, metrics) of a batch, in parts one after another.

    Gradients and metrics are the means over the parts. Each part updates the statistics of the part
    before, so `num_parts` parts are not the same as one batch.
    """
    gradient = jax.grad(loss_of, has_aux=True)
    if num_parts == 1:
        gradients, (batch_stats, metrics) = gradient(params, batch_stats, batch)
        return gradients, batch_stats, metrics

    def add(carry: tuple[Any, Any], part: Batch) -> tuple[tuple[Any, Any], Metrics]:
        total, batch_stats = carry
        gradients, (batch_stats, metrics) = gradient(params, batch_stats, part)
        return (jax.tree.map(jnp.add, total, gradients), batch_stats), metrics

    zeros = jax.tree.map(jnp.zeros_like, params)
    parts = jax.tree.map(lambda x: x.reshape(num_parts, -1, *x.shape[1:]), batch)
    (total, batch_stats), metrics = jax.lax.scan(add, (zeros, batch_stats), parts)
    gradients = jax.tree.map(lambda x: x / num_parts, total)
    return gradients, batch_stats, jax.tree.map(jnp.mean, metrics)


def device_varying(params: Any, axis_name: str | None) -> Any:
    """Mark parameters as different on each device, although they are equal, before a gradient.

    JAX sums the gradient with respect to a value that it knows to be equal on all devices
    (shard_map's "varying manual axes") over them in the backward pass, so that the mean that
    follows would change nothing. Marked as varying, each device keeps the gradient of its rows.
    """
    return jax.lax.pcast(params, axis_name, to="varying") if axis_name else params


def mean_over_devices(tree: Any, axis_name: str | None) -> Any:
    """Average over the devices; rows are split evenly, so this is the mean over the whole batch."""
    return jax.lax.pmean(tree, axis_name) if axis_name else tree


def updated_state(
    state: TrainState, optim: OptimConfig, gradients: Any, batch_stats: Any, metrics: Metrics
) -> tuple[TrainState, Metrics]:
    """Take one step of the optimiser, or only count the step if anything in it is not finite.

    Returns the new state, and `metrics` with the norms, the learning rate and `skipped` (0 or 1).
    """
    updates, opt_state = make_optimizer(optim).update(gradients, state.opt_state, state.params)
    gradient_norm = optax.tree.norm(gradients)
    finite = _all_finite((metrics["loss"], gradient_norm, batch_stats))
    updates = jax.tree.map(lambda x: jnp.where(finite, x, 0), updates)
    params = optax.apply_updates(state.params, updates)
    ema = state.ema
    if optim.ema_decay:
        ema = optax.incremental_update(params, ema, 1 - optim.ema_decay)
    new, old = (batch_stats, opt_state, ema), (state.batch_stats, state.opt_state, state.ema)
    batch_stats, opt_state, ema = jax.tree.map(functools.partial(jnp.where, finite), new, old)
    skipped = 1 - finite.astype(jnp.int32)
    metrics = metrics | {
        "gradient_norm": gradient_norm,
        "update_norm": optax.tree.norm(updates),
        "parameter_norm": optax.tree.norm(params),
        "learning_rate": learning_rate(optim, state.step - state.skipped_steps),
        "skipped": skipped,
    }
    skipped_steps = state.skipped_steps + skipped
    state = TrainState(
        state.step + 1, params, batch_stats, opt_state, ema, skipped_steps, state.base
    )
    return state, metrics


def _all_finite(tree: Any) -> jax.Array:
    values = [x.ravel() for x in jax.tree.leaves(tree)]
    # Without the barrier, XLA computes it again within every kernel that uses it.
    return jax.lax.optimization_barrier(jnp.isfinite(jnp.concatenate(values)).all())


def make_eval_step(model: ModelConfig) -> Callable[[Any, Batch], Metrics]:
    """Make the body of an evaluation: from variables and a batch, scores and `estimate` by row.

    A batch without conditions is scored with that slot's estimate which is nearest to the target.
    """
    network = make_model(model)

    def eval_step(variables: Any, batch: Batch) -> Metrics:
        mixture_BS, target_BS = batch["mixture"], batch["target"]
        condition = batch.get("condition")
        if condition is None:
            condition = with_slots(variables["params"], None, len(mixture_BS))
        estimate_BS: Any = network.apply(variables, mixture_BS, condition, train=False)
        if estimate_BS.ndim == 3:
            if estimate_BS.shape[1] == 1:
                estimate_BS = with_rest(estimate_BS, mixture_BS)
            nearest_B = jax.vmap(si_sdr, (None, 1), 1)(target_BS, estimate_BS).argmax(axis=1)
            estimate_BS = jnp.take_along_axis(estimate_BS, nearest_B[:, None, None], 1)[:, 0]
        return {
            "sdri": sdr_improvement(target_BS, estimate_BS, mixture_BS),
            "si_sdr": si_sdr(target_BS, estimate_BS),
            "si_sdri": si_sdr_improvement(target_BS, estimate_BS, mixture_BS),
            "estimate": estimate_BS,
        }

    return eval_step
