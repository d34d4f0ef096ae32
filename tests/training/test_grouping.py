"""Sums of the estimates of several queries, and what can be learnt from them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from golden_towers import recipe
from separator_examples import TINY

from audiosep_jax.model.audiosep import activity_of
from audiosep_jax.training.losses import LossConfig, Outputs, grouped, loss_terms, total_loss

FRAMES = 3


def case(rows, num_queries, num_samples=60):
    """Outputs and batch of random sounds and masks; in each row the last query is unused."""
    estimate_BKS = recipe.waveform(1, rows * num_queries, num_samples)
    estimate_BKS = estimate_BKS.reshape(rows, num_queries, -1)
    rng = np.random.Generator(np.random.PCG64(2))
    mask_BTFC = rng.standard_normal((rows * num_queries, FRAMES, TINY.num_bins, 3), np.float32)
    member_BK = np.ones((rows, num_queries), np.float32)
    member_BK[:, 1:][:, -1:] = 0
    batch = {
        "mixture": recipe.waveform(3, rows, num_samples),
        "target": recipe.waveform(4, rows, num_samples),
        "member": member_BK,
    }
    return Outputs(jnp.asarray(estimate_BKS), jnp.asarray(mask_BTFC)), batch


def test_estimates_of_captions_are_added_up_to_the_target():
    outputs, batch = case(rows=2, num_queries=3)
    sums = grouped(outputs, batch)
    np.testing.assert_allclose(sums.estimate_BS, outputs.estimate_BS[:, :2].sum(1), atol=1e-6)
    masks = outputs.mask_BTFC.reshape(2, 3, FRAMES, TINY.num_bins, 3)
    np.testing.assert_array_equal(activity_of(sums.mask_BTFC), activity_of(masks)[:, :2].max(1))


def test_rows_of_one_estimate_stay_as_they_are():
    outputs, batch = case(rows=2, num_queries=1)
    del batch["member"]
    assert grouped(outputs, batch) is outputs


def learnt(num_queries):
    """Estimates (3, S) that fit recordings of two of three tones, asked for by `num_queries`."""
    tones = np.sin(np.arange(64) * np.array([[0.3], [0.7], [1.1]])).astype(np.float32)
    pairs = np.array([(0, 1), (0, 2), (1, 2), (1, 0), (2, 0), (2, 1)])
    batch = {"mixture": tones[pairs].sum(1), "target": tones[pairs].sum(1)}
    batch["member"] = np.ones((6, num_queries), np.float32)
    mask_BTFC = jnp.zeros((6 * num_queries, 1, 1, 3))
    config, optimizer = LossConfig(), optax.adam(optax.cosine_decay_schedule(0.1, 600))

    def loss(tones_KS):
        outputs = Outputs(tones_KS[pairs[:, :num_queries]], mask_BTFC)
        return total_loss(config, loss_terms(config, TINY, grouped(outputs, batch), batch))

    def step(carry, _):
        updates, moments = optimizer.update(jax.grad(loss)(carry[0]), carry[1])
        return (carry[0] + updates, moments), None

    start = jnp.zeros_like(tones)
    (found, _), _ = jax.lax.scan(step, (start, optimizer.init(start)), None, 600)
    return np.abs(found - tones).max()


def test_sums_over_all_pairs_identify_the_sounds_and_single_captions_do_not():
    assert learnt(num_queries=2) < 1e-3
    assert learnt(num_queries=1) > 0.3
