"""AdamW with AMSGrad as PyTorch computes it, and learning-rate schedules."""

from typing import Annotated, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from pydantic import Field

from audiosep_jax.errors import InputError
from audiosep_jax.settings import Count, CountOrZero, Positive, PositiveOrZero, section, setting

STAIRCASE = (0.001, 0.01, 0.1)  # AudioSep's warm-up: a factor for each stretch of warmup_steps

Decay = Annotated[float, Field(ge=0, lt=1)]


@section
class OptimConfig:
    """The paper's optimiser. `clip_norm`, `ema_decay` and `decay_steps` are off at 0.

    Each device takes its rows of a batch in `accumulate_steps` equal parts, one after another, and
    averages their gradients. BatchNorm sees one part at a time (on all devices), and updates its
    statistics after each, so the training differs from that with the whole batch at once.
    """

    learning_rate: Positive = 1e-3
    b1: Decay = 0.9
    b2: Decay = 0.999
    epsilon: PositiveOrZero = 1e-8
    weight_decay: PositiveOrZero = 0.0
    amsgrad: bool = True
    warmup: Literal["staircase", "linear", "none"] = "staircase"
    warmup_steps: CountOrZero = 10_000  # of each stair, or of the whole linear ramp
    decay_steps: CountOrZero = 0  # step at which a cosine has brought the rate to 0
    clip_norm: PositiveOrZero = 0.0
    ema_decay: Decay = 0.0
    accumulate_steps: Count = 1
    # Train adapters of this rank on the frozen weights of `init_from`; 0: train all weights.
    adapter_rank: CountOrZero = 0
    # Steps that may be skipped because they were not finite, before training stops.
    max_skipped_steps: CountOrZero = setting(default=0, resumable=True)

    def __post_init__(self) -> None:
        if self.adapter_rank and self.ema_decay:
            raise InputError(
                f"optim.adapter_rank={self.adapter_rank} and optim.ema_decay={self.ema_decay} "
                "exclude each other; adapters are not averaged"
            )


class AmsgradState(NamedTuple):
    """Moments and the largest raw second moment so far."""

    num_updates: jax.Array
    mu: optax.Updates
    nu: optax.Updates
    nu_max: optax.Updates


def scale_by_amsgrad(b1: float, b2: float, epsilon: float) -> optax.GradientTransformation:
    """AMSGrad in PyTorch's order: the maximum is taken over raw second moments, then corrected.

    optax corrects first and takes the maximum after (optax issue 1389), which is another optimiser.
    """

    def init(params: optax.Params) -> AmsgradState:
        # Three trees: a donated buffer may not occur twice.
        mu, nu, nu_max = (jax.tree.map(jnp.zeros_like, params) for _ in range(3))
        return AmsgradState(jnp.zeros((), jnp.int32), mu, nu, nu_max)

    def update(
        updates: optax.Updates, state: AmsgradState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, AmsgradState]:
        del params
        count = state.num_updates + 1
        mu = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, state.mu, updates)
        nu = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * g * g, state.nu, updates)
        nu_max = jax.tree.map(jnp.maximum, state.nu_max, nu)

        def step(m: jax.Array, v: jax.Array) -> jax.Array:
            # expm1 keeps float32 exact where 1 - b2**count would cancel.
            correct_m = -jnp.expm1(count.astype(m.dtype) * jnp.log(jnp.asarray(b1, m.dtype)))
            correct_v = -jnp.expm1(count.astype(v.dtype) * jnp.log(jnp.asarray(b2, v.dtype)))
            return m / correct_m / (jnp.sqrt(v / correct_v) + epsilon)

        return jax.tree.map(step, mu, nu_max), AmsgradState(count, mu, nu, nu_max)

    return optax.GradientTransformation(init, update)


def learning_rate(config: OptimConfig, step: jax.Array | int) -> jax.Array:
    """Rate of update `step`, counted from 0."""
    step = jnp.asarray(step)
    rate = jnp.asarray(config.learning_rate)
    if config.warmup == "staircase" and config.warmup_steps:
        factors = jnp.asarray([*STAIRCASE, 1.0])
        rate *= factors[jnp.minimum(step // config.warmup_steps, len(STAIRCASE))]
    if config.warmup == "linear" and config.warmup_steps:
        rate *= jnp.minimum((step + 1) / config.warmup_steps, 1.0)
    if config.decay_steps:
        rate *= 0.5 + 0.5 * jnp.cos(jnp.pi * jnp.minimum(step / config.decay_steps, 1.0))
    return rate


def make_optimizer(config: OptimConfig) -> optax.GradientTransformation:
    """Clipping, AMSGrad or Adam, decoupled weight decay, schedule."""
    adam = scale_by_amsgrad if config.amsgrad else optax.scale_by_adam
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity(),
        adam(config.b1, config.b2, config.epsilon),
        optax.add_decayed_weights(config.weight_decay) if config.weight_decay else optax.identity(),
        optax.scale_by_learning_rate(lambda count: learning_rate(config, count)),
    )
