"""Write a training step by hand, from the pure functions that train.py is made of.

    python examples/training_step.py

Trains a small network on synthetic sounds for ten steps and prints the loss of each.
"""

import functools

import jax
import jax.numpy as jnp
import optax

from audiosep_jax.data.augment import AugmentConfig
from audiosep_jax.data.mixing import MixingConfig
from audiosep_jax.data.pipeline import train_batches
from audiosep_jax.data.sources import DataConfig, build_source
from audiosep_jax.encoders.hashed import HashedEncoder
from audiosep_jax.metrics import si_sdr
from audiosep_jax.model import make_model
from audiosep_jax.model.resunet import ResUNetConfig

CONFIG = ResUNetConfig(
    sample_rate_hz=8000,
    window_samples=128,
    hop_samples=32,
    stem_channels=8,
    encoder_channels=(16,),
    time_pools=(2,),
    frequency_pools=(4,),
)


def loss_fn(params, batch_stats, batch):
    """Loss, here the negative SI-SDR improvement in dB, and the new statistics of BatchNorm."""
    estimate_BS, updated = make_model(CONFIG).apply(
        {"params": params, "batch_stats": batch_stats},
        batch["mixture"],
        batch["condition"],
        train=True,
        mutable=["batch_stats"],
    )
    improvement_B = si_sdr(batch["target"], estimate_BS) - si_sdr(batch["target"], batch["mixture"])
    return -jnp.mean(improvement_B), updated["batch_stats"]


@functools.partial(jax.jit, static_argnums=0)
def train_step(optimizer, params, batch_stats, opt_state, batch):
    """One step of gradient descent."""
    (loss, batch_stats), gradients = jax.value_and_grad(loss_fn, has_aux=True)(
        params, batch_stats, batch
    )
    updates, opt_state = optimizer.update(gradients, opt_state, params)
    return optax.apply_updates(params, updates), batch_stats, opt_state, loss


def main(num_steps: int = 10) -> list[float]:
    """Train for `num_steps` and return the losses."""
    data = DataConfig(source="synthetic", num_synthetic_clips=64, segment_seconds=0.5)
    source = build_source(data, "train", CONFIG.sample_rate_hz)
    captions = sorted(source.captions.texts)
    conditions = dict(zip(captions, HashedEncoder()(captions), strict=True))
    batches = train_batches(
        *(source, conditions, MixingConfig(), data, AugmentConfig()),
        seed=0,
        batch_size=8,
        first_step=0,
    )
    zeros = (jnp.zeros((1, CONFIG.window_samples)), jnp.zeros((1, CONFIG.condition_features)))
    variables = make_model(CONFIG).init(jax.random.key(0), *zeros, train=False)
    params, batch_stats = variables["params"], variables["batch_stats"]
    optimizer = optax.adam(3e-3)
    opt_state, losses = optimizer.init(params), []
    for step in range(num_steps):
        batch = {name: rows for name, rows in next(batches).items() if name != "bad_clips"}
        params, batch_stats, opt_state, loss = train_step(
            optimizer, params, batch_stats, opt_state, batch
        )
        losses.append(float(loss))
        print(f"step {step + 1}: loss {losses[-1]:.2f} dB")
    batches.close()
    return losses


if __name__ == "__main__":
    main()
