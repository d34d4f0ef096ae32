"""A workdir as train.py leaves it, with a network small enough to compile in a second."""

import contextlib
import dataclasses
import json

import jax
import numpy as np

from audiosep_jax.training.checkpoints import CHECKSUMS, Checkpoints
from audiosep_jax.training.config import default_config, from_mapping
from audiosep_jax.training.steps import init_state

RATE_HZ = 8000


def tiny_config():
    config = default_config()
    config.model.sample_rate_hz = RATE_HZ
    config.model.window_samples = 64
    config.model.hop_samples = 16
    config.model.stem_channels = 3
    config.model.encoder_channels = (4,)
    config.model.time_pools = (2,)
    config.model.frequency_pools = (2,)
    return config


def save_run(workdir, scores=None, config=None, text_fingerprint="hashed-1", words=()):
    """Saves random weights at the steps of `scores` (SDRi in dB, or None); the states by step."""
    values = (config or tiny_config()).to_dict()
    typed = from_mapping(values)
    keep = dataclasses.replace(typed.checkpoint, keep_latest=10)
    about = {"config": values, "text_fingerprint": text_fingerprint, "data_fingerprint": "-"}
    about["words"] = list(words)
    shapes = jax.eval_shape(lambda: init_state(typed.model, typed.optim, jax.random.key(0)))
    states = {step: _random(shapes, step) for step in scores or {10: None}}
    with contextlib.closing(Checkpoints(workdir, keep)) as checkpoints:
        for step, state in states.items():
            checkpoints.save(step, state, about, (scores or {}).get(step))
    return states


def edit_about(workdir, change):
    """Change what the checkpoints say about themselves, and drop the checksum of it."""
    for path in workdir.glob("checkpoints/*/about/metadata"):
        about = json.loads(path.read_text())
        del about[CHECKSUMS]
        change(about)
        path.write_text(json.dumps(about))


def _random(shapes, seed):
    """`init_state` takes seconds to compile. Statistics are positive, as variances have to be."""
    rng = np.random.default_rng(seed)

    def draw(path, x):
        least = 0.5 if jax.tree_util.GetAttrKey("batch_stats") in path else -0.4
        return rng.uniform(least, 1 + least, x.shape).astype(x.dtype)

    return jax.tree_util.tree_map_with_path(draw, shapes)
