"""Train the head for the activity of a ResUNet once more: absent queries, and the hard ones.

    python examples/activity_head.py --config configs/small.py --output runs/small

The rest of the network is frozen: the innermost level of every mixture is computed once, and kept.
Two thirds of the mixtures are the config's. The others hold a sound that the network takes for the
one that it is asked for, which is absent in most of them. The output is a folder of weights.
"""

import argparse
import dataclasses
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from audiosep_jax.data import augment
from audiosep_jax.data.mixing import crop_or_pad, decibels, energy
from audiosep_jax.data.pipeline import train_batches
from audiosep_jax.data.sources import build_source
from audiosep_jax.model import make_model
from audiosep_jax.model.resunet import ActivityHead
from audiosep_jax.training import trained
from audiosep_jax.training.conditions import distinct_captions, make_conditions
from audiosep_jax.training.config import from_file, take_overrides
from audiosep_jax.training.losses import active_frames

BATCH, SECONDS = 16, 5
MISS_WEIGHT = 2.5  # of active frames: a closed gate costs more than an open one
MORE_OPEN = 1.5  # added to the logits in the end
CHANGES = {
    "batch_size": f"{BATCH}",
    "data.segment_seconds": f"{SECONDS}",
    "mixing.max_mix_num": "5",
    "augment.absent_probability": "0.5",
    "augment.reverb_probability": "0.15",
    "augment.span_probability": "0.25",
}
# Classes, and those that are taken for them: found on mixtures of the training clips.
CONFUSED = {
    "crying baby": ("rooster", "dog"),
    "helicopter": ("crying baby", "rooster", "chainsaw"),
    "rain": ("sea waves", "dog", "helicopter"),
    "sea waves": ("rain", "rooster", "sneezing"),
    "dog": ("rooster", "crying baby", "sneezing"),
    "crackling fire": ("rain", "sneezing"),
    "clock tick": ("crackling fire", "sneezing", "rooster"),
    "rooster": ("crying baby",),
    "chainsaw": ("helicopter",),
}


def confusing_batches(config, source, conditions):
    """Batches without end, of mixtures with classes that are taken for the one asked for."""
    rng, num_samples = np.random.default_rng(config.seed), SECONDS * source.sample_rate_hz
    places = {}
    for index in range(len(source)):
        places.setdefault(source.captions[index][0], []).append(index)
    known = {name: places.keys() & CONFUSED[name] for name in CONFUSED if name in places}
    pairs = [(asked, heard) for asked in known for heard in sorted(known[asked])]

    def clip(name):
        index = rng.choice(places[name])
        speed, gains_db = augment.draw_clip_changes(config.augment, rng)
        length = round(num_samples * speed)
        audio_S = crop_or_pad(source.load(index), length, rng)
        audio_S = augment.change_timbre(audio_S, num_samples, gains_db)
        level = 0.05 * decibels(rng.uniform(-8, 8)) / np.sqrt(energy(audio_S) + 1e-9)
        return np.float32(level) * audio_S, source.captions[index]

    def row():
        asked, heard = pairs[rng.integers(len(pairs))]
        target_S, captions = clip(asked)
        target_S *= (present := rng.random() < 0.4)
        others = [name for name in known if name not in (asked, heard)]
        names = [str(name) for name in rng.choice(others, rng.integers(1, 3))]
        names += [heard] * (not present or rng.random() < 0.4)
        mixture_S = target_S + sum(clip(name)[0] for name in names)
        gain = np.float32(decibels(rng.uniform(-15, 5)) / max(1, 2 * np.abs(mixture_S).max()))
        return gain * mixture_S, gain * target_S, conditions[rng.choice(captions)]

    while True:
        columns = zip(*(row() for _ in range(BATCH)), strict=True)
        yield dict(zip(("mixture", "target", "condition"), map(np.stack, columns), strict=True))


def levels(found, batches, num_mixtures):
    """Innermost levels (N, T, F, C) of mixtures, their active frames (N, T), and conditions."""
    middle = f"conv_block{len(found.model.encoder_channels) + 1}a"

    @jax.jit
    def compute(mixture_BS, target_BS, condition_BE):
        _, state = make_model(found.model).apply(
            *(found.variables, mixture_BS, condition_BE),
            train=False,
            capture_intermediates=lambda module, _: module.name == middle,
            mutable=["intermediates"],
        )
        x_BTFC = state["intermediates"]["base"][middle]["__call__"][0][0]
        return x_BTFC.astype(jnp.float16), active_frames(target_BS, mixture_BS, found.model)

    parts = []
    for _ in range(0, num_mixtures, BATCH):
        batch = next(batches)
        audio = (batch[name] for name in ("mixture", "target", "condition"))
        parts.append((*map(np.asarray, compute(*audio)), batch["condition"]))
    batches.close()
    return [np.concatenate(rows) for rows in zip(*parts, strict=True)]


def train_head(params, rows, steps):
    """Moving average of the head's parameters, trained with 48 mixtures in each step."""
    optimizer = optax.adamw(optax.cosine_decay_schedule(3e-3, steps), weight_decay=0.01)

    def loss_fn(params, key, x_BTFC, active_BT, condition_BE):
        film, head = params["film"]["activity"], {"params": params["base"]["activity"]}
        shift_BC = condition_BE @ film["kernel"] + film["bias"]
        kept = jax.random.bernoulli(key, 0.9, (len(x_BTFC), 1, 1, x_BTFC.shape[-1])) / 0.9
        logit_BT = ActivityHead().apply(head, x_BTFC.astype(jnp.float32) * kept, shift_BC)
        loss_BT = optax.sigmoid_binary_cross_entropy(logit_BT, active_BT)
        return jnp.mean(loss_BT * jnp.where(active_BT, MISS_WEIGHT, 1))

    @jax.jit
    def step(params, state, mean, *batch):
        loss, gradients = jax.value_and_grad(loss_fn)(params, *batch)
        updates, state = optimizer.update(gradients, state, params)
        params = optax.apply_updates(params, updates)
        return params, state, optax.incremental_update(params, mean, 0.01), loss

    state, mean, rng = optimizer.init(params), params, np.random.default_rng(0)
    for number in range(steps):
        key, chosen = jax.random.key(number), rng.integers(len(rows[0]), size=48)
        batch = (jnp.asarray(x[chosen]) for x in rows)
        params, state, mean, loss = step(params, state, mean, key, *batch)
    print(f"loss {loss:.3f} after {steps} steps")
    return mean


def main(argv=None):
    """Compute the levels, train the head, write the weights."""
    overrides, words = take_overrides(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--config", required=True, help="says what the mixtures are made of")
    add("--checkpoint", default="small", help="weights to begin with")
    add("--output", type=Path, required=True, help="folder of the new weights")
    add("--num_mixtures", type=int, default=3520, help="of the config")
    add("--steps", type=int, default=2400)
    options = parser.parse_args(words)
    config, found = from_file(options.config, CHANGES | overrides), trained.read(options.checkpoint)
    source = build_source(config.data, "train", found.model.sample_rate_hz)
    conditions, _ = make_conditions(config, distinct_captions(source.captions))
    how = source, conditions, config.mixing, config.data, config.augment
    kinds = (
        train_batches(*how, seed=config.seed, batch_size=BATCH, first_step=0),
        confusing_batches(config, source, conditions),
    )
    counts = options.num_mixtures, options.num_mixtures // 2
    parts = [levels(found, *kind) for kind in zip(kinds, counts, strict=True)]
    rows = [np.concatenate(columns) for columns in zip(*parts, strict=True)]
    params = found.variables["params"]
    head = {part: {"activity": params[part]["activity"]} for part in ("base", "film")}
    head = train_head(head, rows, options.steps)
    head["base"]["activity"]["logit"]["bias"] += MORE_OPEN
    params = params | {part: params[part] | head[part] for part in ("base", "film")}
    new = dataclasses.replace(found, variables=found.variables | {"params": params})
    trained.write_folder(options.output, new, dtype="float16")


if __name__ == "__main__":
    main()
