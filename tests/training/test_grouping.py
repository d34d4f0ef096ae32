"""Sums of estimates: the references, the assignment of least loss, and what can be learnt of it."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from golden_towers import recipe
from separator_examples import TINY

from audiosep_jax.errors import InputError
from audiosep_jax.model.audiosep import activity_of
from audiosep_jax.training.grouping import grouped, remixed, sums
from audiosep_jax.training.losses import LossConfig, Outputs, loss_terms, total_loss

FRAMES = 3


def case(rows, num_queries, num_slots, num_samples=60):
    """Outputs and batch of random sounds and masks; in each row the last caption is unused.

    If there are three, the second belongs to the rest of the mixture.
    """
    count = num_queries + num_slots
    estimate_BKS = recipe.waveform(1, rows * count, num_samples).reshape(rows, count, -1)
    rng = np.random.Generator(np.random.PCG64(2))
    mask_BTFC = rng.standard_normal((rows * count, FRAMES, TINY.num_bins, 3), np.float32)
    member_BK = np.ones((rows, num_queries), np.float32)
    member_BK[:, 1:][:, -1:] = 0
    member_BK[:, 1:-1] = -1
    batch = {
        "mixture": recipe.waveform(3, rows, num_samples),
        "target": recipe.waveform(4, rows, num_samples),
        "member": member_BK,
    }
    return Outputs(jnp.asarray(estimate_BKS), jnp.asarray(mask_BTFC)), batch


def with_slots(count):
    return dataclasses.replace(TINY, slots=count)


def test_allowed_sums():
    np.testing.assert_array_equal(sums(0, 2, "one_each"), [np.eye(2), np.eye(2)[::-1]])
    np.testing.assert_array_equal(sums(1, 1, "one_each"), [[[0], [1]]])
    np.testing.assert_array_equal(sums(0, 1, "one_each"), [np.eye(2), np.eye(2)[::-1]])
    all_sums = sums(0, 3, "any")
    assert all_sums.shape == (8, 2, 3)
    assert (all_sums.sum(axis=1) == 1).all()  # each estimate belongs to one reference
    assert len({x.tobytes() for x in all_sums}) == 8
    with pytest.raises(InputError, match="there are 3 slots and 0 queries"):
        sums(0, 3, "one_each")


def test_estimates_of_captions_are_added_up_to_the_target_and_to_the_rest():
    outputs, batch = case(rows=2, num_queries=4, num_slots=0)
    batch["member"] = np.array([[1, 1, -1, 0], [1, 0, -1, -1]], np.float32)
    (pair, row), estimate_BKS = grouped(LossConfig(), TINY, outputs, batch), outputs.estimate_BS
    masks = outputs.mask_BTFC.reshape(2, 4, FRAMES, TINY.num_bins, 3)
    sums = [(0, [0, 1]), (0, [2]), (1, [0]), (1, [2, 3])]
    for number, (mixture, own) in enumerate(sums):
        expected_S = estimate_BKS[mixture, jnp.array(own)].sum(0)
        np.testing.assert_allclose(pair.estimate_BS[number], expected_S, atol=1e-6)
        mask_TFC = pair.mask_BTFC[number]
        expected_T = activity_of(masks[mixture])[jnp.array(own)].max(0)
        np.testing.assert_array_equal(activity_of(mask_TFC[None])[0], expected_T)
    np.testing.assert_array_equal(row["target"][::2], batch["target"])
    rest = batch["mixture"] - batch["target"]
    np.testing.assert_array_equal(row["target"][1::2], rest)
    np.testing.assert_array_equal(row["mixture"][1::2], batch["mixture"])


def test_estimates_of_different_mixtures_are_remixed():
    outputs, batch = case(rows=4, num_queries=3, num_slots=0)
    batch["member"] = np.array([[1, 0, -1], [1, -1, 0], [1, 1, 0], [1, 0, -1]], np.float32)
    batch["condition"] = np.arange(36, dtype=np.float32).reshape(4, 3, 3)
    new = remixed(outputs, batch)
    estimate_BKS, conditions = np.asarray(outputs.estimate_BS), batch["condition"]
    for row, rest, other, other_rest in ((0, 2, 3, 2), (1, 1, 0, 2)):
        other_S, own_S = estimate_BKS[other, other_rest], estimate_BKS[row, rest]
        other_S = other_S * np.linalg.norm(own_S) / np.linalg.norm(other_S)
        np.testing.assert_array_equal(new["target"][row], estimate_BKS[row, 0])
        np.testing.assert_allclose(new["mixture"][row], estimate_BKS[row, 0] + other_S, atol=1e-5)
        asked = conditions[row, 0], conditions[other, other_rest]
        np.testing.assert_array_equal(new["condition"][row], asked)
    assert not new["mixture"][2:].any()  # nothing is asked for of a rest
    slope = jax.grad(lambda x: remixed(outputs._replace(estimate_BS=x), batch)["mixture"].sum())
    assert not slope(outputs.estimate_BS).any()


def test_halves_of_mixtures_are_no_solution_of_the_remixing():
    outputs, batch = case(rows=2, num_queries=2, num_slots=0)
    batch["member"] = np.array([[1, -1], [1, -1]], np.float32)
    batch["condition"] = np.zeros((2, 2, 3), np.float32)
    halves = outputs._replace(estimate_BS=jnp.stack([batch["mixture"] / 2] * 2, axis=1))
    new = remixed(halves, batch)
    error_BS = new["mixture"] / 2 - new["target"]
    assert (jnp.square(error_BS).mean(1) > 0.1 * jnp.square(new["target"]).mean(1)).all()
    with pytest.raises(InputError, match="at least two mixtures"):
        remixed(halves, {name: rows[:1] for name, rows in batch.items()})


def test_rows_of_one_estimate_stay_as_they_are():
    outputs, batch = case(rows=2, num_queries=1, num_slots=0)
    outputs = outputs._replace(estimate_BS=outputs.estimate_BS[:, 0])
    same_outputs, same_batch = grouped(LossConfig(), TINY, outputs, batch)
    assert same_outputs is outputs
    assert same_batch is batch


def loss_of_sums(outputs, batch, row, choice):
    """Mean absolute error of a row whose slots go to the references of `choice`."""
    named, estimates = int(batch["member"].shape[1]), np.asarray(outputs.estimate_BS[row])
    target = batch["target"][row]
    references = [target, batch["mixture"][row] - target]
    parts = [np.zeros_like(target), np.zeros_like(target)]
    for part, side in enumerate((1, -1)):
        parts[part] = parts[part] + (batch["member"][row] == side) @ estimates[:named]
    for estimate, reference in zip(estimates[named:], choice, strict=True):
        parts[reference] = parts[reference] + estimate
    return np.mean([np.abs(p - r).mean() for p, r in zip(parts, references, strict=True)])


@pytest.mark.parametrize(
    ("assign", "num_queries", "num_slots", "choices"),
    [
        ("any", 2, 3, list(itertools.product(range(2), repeat=3))),
        ("one_each", 0, 2, [(0, 1), (1, 0)]),
    ],
)
def test_each_row_takes_the_assignment_of_least_loss(assign, num_queries, num_slots, choices):
    outputs, batch = case(4, num_queries, num_slots)
    config, model = LossConfig(assign=assign), with_slots(num_slots)

    def loss(estimate_BKS):
        rows = grouped(config, model, outputs._replace(estimate_BS=estimate_BKS), batch)
        return total_loss(config, loss_terms(config, model, *rows))

    costs = [[loss_of_sums(outputs, batch, row, c) for c in choices] for row in range(4)]
    value, gradient = jax.jit(jax.value_and_grad(loss))(outputs.estimate_BS)
    assert value == pytest.approx(np.min(costs, axis=1).mean(), rel=1e-5)
    assert len(set(np.argmin(costs, axis=1))) > 1  # rows choose on their own
    # The gradient is that of the chosen sums: half of the two references' mean, of B rows.
    row, best = 0, choices[int(np.argmin(costs[0]))]
    target = batch["target"][row]
    references = [target, batch["mixture"][row] - target]
    estimates = np.asarray(outputs.estimate_BS[row])
    total = (batch["member"][row] == [1, -1][best[-1]]) @ estimates[:num_queries]
    total = total + sum(
        e for e, c in zip(estimates[num_queries:], best, strict=True) if c == best[-1]
    )
    sign = np.sign(total - references[best[-1]])
    np.testing.assert_allclose(gradient[row, -1] * 2 * 4 * len(sign), sign, atol=1e-5)


def test_one_slot_leaves_the_other_reference():
    outputs, batch = case(2, 0, 1)
    estimate_BS = np.asarray(outputs.estimate_BS[:, 0])
    rest_BS = batch["mixture"] - estimate_BS
    batch["target"] = np.stack([estimate_BS[0] + 0.01, rest_BS[1] + 0.02])
    config, model = LossConfig(assign="one_each"), with_slots(1)
    pairs, rows = grouped(config, model, outputs, batch)
    expected = [estimate_BS[0], rest_BS[0], rest_BS[1], estimate_BS[1]]
    np.testing.assert_allclose(pairs.estimate_BS, expected, atol=1e-6)
    loss = total_loss(config, loss_terms(config, model, pairs, rows))
    assert loss == pytest.approx(0.015, rel=1e-3)


def test_order_of_slots_does_not_matter():
    outputs, batch = case(3, 0, 2)
    config, model = LossConfig(assign="one_each", thresholded_snr=0.1), with_slots(2)
    swapped = outputs._replace(estimate_BS=outputs.estimate_BS[:, ::-1])
    losses = [
        total_loss(config, loss_terms(config, model, *grouped(config, model, x, batch)))
        for x in (outputs, swapped)
    ]
    assert losses[0] == pytest.approx(float(losses[1]), rel=1e-6)


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
        return total_loss(config, loss_terms(config, TINY, *grouped(config, TINY, outputs, batch)))

    def step(carry, _):
        updates, moments = optimizer.update(jax.grad(loss)(carry[0]), carry[1])
        return (carry[0] + updates, moments), None

    start = jnp.zeros_like(tones)
    (found, _), _ = jax.lax.scan(step, (start, optimizer.init(start)), None, 600)
    return np.abs(found - tones).max()


def test_sums_over_all_pairs_identify_the_sounds_and_single_captions_do_not():
    assert learnt(num_queries=2) < 1e-3
    assert learnt(num_queries=1) > 0.3
