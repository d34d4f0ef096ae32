"""Training and evaluation steps: the original's four steps, eight devices against one."""

import dataclasses
import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_towers import GOLDEN, recipe
from separator_examples import (
    SMALLEST,
    TINY,
    cast,
    fast_gradient_convolution,
    published_variables,
    tiny_batch,
    tiny_variables,
    unit_rows,
)

from audiosep_jax import settings
from audiosep_jax.metrics import sdr_improvement
from audiosep_jax.model import convolution, make_model, variable_shapes
from audiosep_jax.model.audiosep import with_slots
from audiosep_jax.model.layers import BatchNorm
from audiosep_jax.model.resunet import ResUNetConfig
from audiosep_jax.training import losses, steps
from audiosep_jax.training import parallel as run
from audiosep_jax.training.losses import LossConfig
from audiosep_jax.training.optim import OptimConfig
from audiosep_jax.weights.names import export_separator
from benchmarks import roofline

PUBLISHED_OPTIM = OptimConfig(warmup="none")
TINY_OPTIM = OptimConfig(warmup="none", decay_steps=1000, clip_norm=1.0, ema_decay=0.9)


def golden_batch(step, dtype):
    batch = {
        "mixture": recipe.waveform(20 + 2 * step, 2, 1, 32000)[:, 0],
        "target": 0.5 * recipe.waveform(21 + 2 * step, 2, 32000),
        "condition": unit_rows(520 + step, 2, 512),
    }
    return cast(batch, dtype)


def golden_run(dtype, num_steps):
    """(metrics of each step, gradient norms of step 0 by published name, last state)."""
    state = steps.state_from_variables(cast(published_variables(), dtype), PUBLISHED_OPTIM)
    body = steps.make_train_step(ResUNetConfig(), PUBLISHED_OPTIM, LossConfig(), None)
    body = jax.jit(body, donate_argnums=0)
    metrics, norms = [], {}
    for step in range(num_steps):
        state, step_metrics = body(state, golden_batch(step, dtype))
        metrics.append(jax.device_get(step_metrics))
        if step == 0:  # the first moment is then a tenth of the gradient
            mu = {"params": state.opt_state[1].mu}
            norms = {name: 10 * np.linalg.norm(m) for name, m in export_separator(mu)}
    return metrics, norms, state


def check_gradient_norms(norms, golden, tolerance, zero):
    names = [name for name in golden.files if name.startswith("gradnorm/")]
    assert len(names) == 186
    for name in names:
        wanted, actual = golden[name], norms[name.removeprefix("gradnorm/")]
        # Biases before a BatchNorm have a gradient that is zero but for rounding.
        assert actual == pytest.approx(wanted, rel=tolerance, abs=zero), name


@pytest.fixture(scope="module")
def float64_run():
    with pytest.MonkeyPatch.context() as patch, jax.enable_x64(True):
        patch.setattr(convolution, "_convolve", fast_gradient_convolution)
        return golden_run(np.float64, 4)


def test_fast_gradient_convolution_is_the_convolution():
    x_BTFC, weight_BTFD = recipe.waveform(1, 2, 7, 5, 3), recipe.waveform(2, 2, 7, 5, 4)
    kernel = recipe.tensor("kernel", (3, 3, 3, 4))
    plain = functools.partial(
        jax.lax.conv_general_dilated,
        window_strides=(1, 1),
        padding="SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )

    def product(convolve, x, kernel):
        return jnp.sum(convolve(x, kernel) * weight_BTFD)

    with jax.enable_x64(True):
        inputs = cast((x_BTFC, kernel), np.float64)
        results = [
            jax.value_and_grad(functools.partial(product, convolve), argnums=(0, 1))(*inputs)
            for convolve in (fast_gradient_convolution, plain)
        ]
    assert_same(*results, 1e-13)


@pytest.mark.slow
@pytest.mark.smoke
def test_golden_losses_float64(float64_run):
    metrics, _, _ = float64_run
    golden = np.load(GOLDEN / "resunet30_training_float64.npz")
    losses = [row["loss"] for row in metrics]
    np.testing.assert_allclose(losses, golden["losses"], rtol=0, atol=1e-9)
    np.testing.assert_array_equal(losses, [row["waveform_l1"] for row in metrics])


@pytest.mark.slow
def test_golden_gradients_float64(float64_run):
    metrics, norms, _ = float64_run
    golden = np.load(GOLDEN / "resunet30_training_float64.npz")
    totals = [row["gradient_norm"] for row in metrics]
    np.testing.assert_allclose(totals, golden["grad_norms"], rtol=1e-7)
    check_gradient_norms(norms, golden, 1e-7, 1e-14)


@pytest.mark.slow
@pytest.mark.smoke
def test_golden_weights_after_four_steps_float64(float64_run):
    _, _, state = float64_run
    golden = np.load(GOLDEN / "resunet30_training_float64.npz")
    names = [name for name in golden.files if name.startswith("after/")]
    assert len(names) == 10
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    after = dict(export_separator(variables))
    for name in names:
        tensor = after[name.removeprefix("after/").removesuffix("[:4,:4]")]
        tensor = tensor[:4, :4] if name.endswith("[:4,:4]") else tensor
        np.testing.assert_allclose(tensor, golden[name], rtol=0, atol=1e-8, err_msg=name)


@pytest.mark.slow
def test_golden_step_float32():
    golden = np.load(GOLDEN / "resunet30_training.npz")
    (metrics,), norms, _ = golden_run(np.float32, 1)
    assert metrics["loss"] == pytest.approx(golden["losses"][0], abs=1e-4)
    assert metrics["gradient_norm"] == pytest.approx(golden["grad_norms"][0], rel=1e-3)
    check_gradient_norms(norms, golden, 1e-3, 1e-6)


# With a head for the activity, so that steps on many devices, in parts and in bfloat16 include it.
HEADED = dataclasses.replace(SMALLEST, activity="report")
LOSSES = LossConfig(spectrum_l1=0.5, activity=0.1)


def assert_same(actual, expected, tolerance):
    for (path, x), y in zip(
        jax.tree_util.tree_leaves_with_path(actual), jax.tree.leaves(expected), strict=True
    ):
        name = jax.tree_util.keystr(path)
        np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance, err_msg=name)


def tiny_state(dtype=np.float32, optim=TINY_OPTIM):
    return steps.state_from_variables(cast(tiny_variables(HEADED), dtype), optim)


def tiny_body(axis_name=steps.AXIS):
    return steps.make_train_step(HEADED, TINY_OPTIM, LOSSES, axis_name)


@functools.cache
def alone():
    return jax.jit(tiny_body(None))


@functools.cache
def parallel_step():
    return run.parallel_train_step(tiny_body())


@functools.cache
def parallel():
    """The pmapped step, on whole batches and placed states."""
    step = parallel_step()
    return lambda state, batch: step(run.place_state(state), run.split_batch(batch))


@functools.cache
def shard_map_step():
    return under_shard_map(tiny_body())


def under_shard_map(body):
    """The step of `config.parallel=shard_map`, on whole batches and placed states.

    shard_map proves that what the body returns is the same on every device.
    """
    step = run.parallel_train_step(body, "shard_map")

    def on_all_devices(state, batch):
        state = run.place_state(state, "shard_map")
        assert all(leaf.is_fully_replicated for leaf in jax.tree.leaves(state))
        return step(state, run.split_batch(batch, "shard_map"))

    return on_all_devices


def train(step, num_steps=4):
    """(state, metrics) after a few batches of 16, in float64."""
    state = tiny_state(np.float64)
    for seed in range(num_steps):
        state, metrics = step(state, cast(tiny_batch(10 * seed, 16), np.float64))
    return jax.device_get((state, metrics))


@functools.cache
def trained_alone():
    return train(alone())


@pytest.mark.slow
@pytest.mark.smoke
@pytest.mark.parametrize("step", [parallel, shard_map_step])
def test_eight_devices_equal_one(step):
    # In float32 Adam blows rounding up where a gradient is zero but for it.
    assert jax.local_device_count() == 8
    with jax.enable_x64(True):
        many, one = train(step()), trained_alone()
    assert_same(many, one, 1e-9)
    moved = (
        many[0].batch_stats["base"]["bn0"]["mean"] - tiny_state().batch_stats["base"]["bn0"]["mean"]
    )
    assert np.abs(moved).max() > 1e-3


@pytest.mark.parametrize("step", [parallel, shard_map_step])
def test_gradient_is_the_mean_over_devices(step):
    # Eight copies of two clips have the gradient of the two clips; Adam alone would hide a factor.
    batch = jax.tree.map(lambda x: np.concatenate([x] * 8), tiny_batch(0, 2))
    with jax.enable_x64(True):
        batch, state = cast(batch, np.float64), tiny_state(np.float64)
        expected, actual = (f(state, batch)[1]["gradient_norm"] for f in (alone(), step()))
    assert float(actual) == pytest.approx(float(expected), rel=1e-9)


def unreplicated(body):
    """Number of leaves of state and metrics that shard_map does not find equal on all devices."""
    with pytest.raises(ValueError, match="could not infer replication") as error:
        under_shard_map(body)(tiny_state(), tiny_batch(0, 16))
    return str(error.value).count("* out_specs is")


# All but the step hang on whether the step was finite; so do three metrics: whether it was
# skipped, and the norms of update and parameters.
WHOLE_STATE, OF_THE_UPDATE = 296, 3


def test_statistics_of_single_devices_are_noticed(monkeypatch):
    monkeypatch.setattr(BatchNorm, "_over_devices", lambda self, x: x[None])
    assert unreplicated(tiny_body()) == WHOLE_STATE + OF_THE_UPDATE


def test_metrics_of_single_devices_are_noticed(monkeypatch):
    def mean_of_gradients(tree, axis_name):
        gradients, metrics = tree
        return jax.lax.pmean(gradients, axis_name), metrics

    monkeypatch.setattr(steps, "mean_over_devices", mean_of_gradients)
    assert len(jax.tree.leaves(tiny_state())) == 1 + WHOLE_STATE
    # The loss, its three terms and SDRi.
    assert unreplicated(tiny_body()) == WHOLE_STATE + 5 + OF_THE_UPDATE


@pytest.mark.slow
def test_operations_are_counted_on_each_device_and_nothing_is_traced_twice():
    traced = []

    def body(state, batch):
        traced.append(batch["mixture"].shape)
        return tiny_body()(state, batch)

    step, state = run.parallel_train_step(body), run.place_state(tiny_state())
    small, large = (run.split_batch(tiny_batch(0, rows)) for rows in (8, 32))
    one_row = run.step_flop(step, state, small, 1)
    assert run.step_flop(step, state, large, 1) == pytest.approx(4 * one_row, rel=0.1)
    assert run.step_flop(step, state, large, 3) == 3 * run.step_flop(step, state, large, 1)
    step(state, small)
    assert len(traced) == 2
    # The roofline leaves out element-wise work, which counts for much in so small a network.
    assert 1 < one_row / roofline.step_flop(HEADED, 1, 100) < 4


def test_old_state_is_given_away():
    with jax.enable_x64(True):
        state = run.place_state(tiny_state(np.float64))
        batch = run.split_batch(cast(tiny_batch(0, 16), np.float64))
        new, _ = parallel_step()(state, batch)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(new))
    assert all(len(leaf.devices()) == 8 for leaf in jax.tree.leaves(new))


def test_fresh_state_can_be_given_away():
    # No buffer may occur in it twice.
    state = tiny_state(optim=PUBLISHED_OPTIM)
    leaves = jax.tree.leaves((state.step, state.opt_state))
    pointers = [leaf.unsafe_buffer_pointer() for leaf in leaves]
    assert len(set(pointers)) == len(pointers)


def test_average_of_weights():
    state = tiny_state()
    start = expected = state.params
    for seed in range(3):
        state, _ = alone()(state, tiny_batch(seed, 4))
        expected = jax.tree.map(lambda e, p: 0.9 * e + 0.1 * p, expected, state.params)
    assert_same(state.ema, expected, 1e-6)
    assert state.variables()["params"] is state.ema
    moved = state.ema["base"]["after_conv"]["kernel"] - start["base"]["after_conv"]["kernel"]
    assert np.abs(moved).max() > 1e-4
    assert int(state.step) == 3


def test_without_an_average_the_weights_are_evaluated():
    state = tiny_state(optim=PUBLISHED_OPTIM)
    assert state.ema is None
    assert state.variables()["params"] is state.params


def test_metrics():
    state, batch = tiny_state(), tiny_batch(0, 4)
    new, metrics = alone()(state, batch)
    apply = functools.partial(make_model(HEADED).apply, train=True, mutable=["batch_stats"])
    estimate_BS, _ = jax.jit(apply)(tiny_variables(HEADED), batch["mixture"], batch["condition"])
    error = np.abs(estimate_BS - batch["target"]).mean()
    assert float(metrics["waveform_l1"]) == pytest.approx(error, rel=1e-5)
    expected = metrics["waveform_l1"] + 0.5 * metrics["spectrum_l1"] + 0.1 * metrics["activity"]
    assert float(metrics["loss"]) == pytest.approx(float(expected), rel=1e-5)
    sdri_B = sdr_improvement(batch["target"], estimate_BS, batch["mixture"])
    assert float(metrics["sdri"]) == pytest.approx(float(sdri_B.mean()), abs=1e-4)
    assert float(metrics["learning_rate"]) == pytest.approx(1e-3)
    assert float(metrics["parameter_norm"]) == pytest.approx(tree_norm(new.params), rel=1e-5)
    moved = jax.tree.map(np.subtract, jax.device_get(new.params), jax.device_get(state.params))
    assert float(metrics["update_norm"]) == pytest.approx(tree_norm(moved), rel=1e-3)


def tree_norm(tree):
    return np.sqrt(sum(np.sum(np.square(x, dtype=np.float64)) for x in jax.tree.leaves(tree)))


# ------------------------------------------------------------------ a loss of one's own


@settings.section
class OwnLossConfig:
    """The published loss, and a term that reads the mixture and the mask."""

    waveform_l1: settings.PositiveOrZero = 1.0
    loud_mask: settings.PositiveOrZero = 0.0


def loud_mask(outputs, batch, model):
    """Mean gain of the mask, weighted by the mixture's energy."""
    gain_B = jax.nn.sigmoid(outputs.mask_BTFC[..., 0]).mean(axis=(1, 2))
    return jnp.mean(gain_B * jnp.mean(batch["mixture"] ** 2, axis=1))


@pytest.mark.slow
def test_a_loss_of_ones_own_is_a_field_and_an_entry_of_the_table(monkeypatch):
    monkeypatch.setitem(losses.TERMS, "loud_mask", loud_mask)
    loss = OwnLossConfig(waveform_l1=0, loud_mask=2.0)
    step = jax.jit(steps.make_train_step(HEADED, TINY_OPTIM, loss, None))
    state, batch = tiny_state(), tiny_batch(0, 16)
    logged = []
    for _ in range(20):
        state, metrics = step(state, batch)
        assert metrics["loss"] == 2 * metrics["loud_mask"]
        assert "waveform_l1" not in metrics
        logged.append(float(metrics["loud_mask"]))
    power = (batch["mixture"] ** 2).mean()
    assert 0 < logged[-1] < 0.98 * logged[0] < power


# ------------------------------------------------------------------ steps that are not finite


def poisoned(batch):
    """One sample of one row is not a number."""
    mixture_BS = batch["mixture"].copy()
    mixture_BS[-1, 50] = np.nan
    return batch | {"mixture": mixture_BS}


def test_a_step_that_is_not_finite_changes_nothing_but_the_count():
    before, metrics = alone()(tiny_state(), tiny_batch(0, 4))
    assert (int(metrics["skipped"]), int(before.skipped_steps)) == (0, 0)
    after, metrics = alone()(before, poisoned(tiny_batch(1, 4)))
    assert np.isnan(metrics["loss"])
    assert (int(metrics["skipped"]), float(metrics["update_norm"])) == (1, 0)
    assert (int(after.step), int(after.skipped_steps)) == (2, 1)
    assert_same(after.replace(step=before.step, skipped_steps=before.skipped_steps), before, 0)
    # The next step is what it would have been, had the bad batch never come.
    resumed, metrics = alone()(after, tiny_batch(2, 4))
    expected, _ = alone()(before, tiny_batch(2, 4))
    assert (int(metrics["skipped"]), int(resumed.skipped_steps)) == (0, 1)
    assert_same(resumed.replace(step=expected.step, skipped_steps=np.int32(0)), expected, 0)


def test_one_device_that_is_not_finite_stops_the_step_on_all():
    with jax.enable_x64(True):
        before = tiny_state(np.float64)
        batch = cast(tiny_batch(0, 16), np.float64)
        after, metrics = jax.device_get(parallel()(before, poisoned(batch)))
    assert metrics["skipped"] == after.skipped_steps == after.step == 1
    assert_same(after.params, before.params, 0)
    assert_same(after.batch_stats, before.batch_stats, 0)


class OneWeight:
    """A network of infinite slope at a weight of 0, and of infinite statistics at one of 1."""

    def __init__(self, model, axis_name):
        self.network = types.SimpleNamespace(config=model)

    def apply(self, variables, mixture_BS, condition_BE, *, train, mutable):
        weight = variables["params"]["weight"]
        return mixture_BS * jnp.sqrt(weight), {
            "batch_stats": {"mean": jnp.where(weight, jnp.inf, 1)}
        }


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_a_finite_loss_is_not_enough(monkeypatch, weight):
    monkeypatch.setattr(steps, "make_model", OneWeight)
    params, batch_stats = {"weight": jnp.float32(weight)}, {"mean": jnp.float32(3)}
    variables = {"params": params, "batch_stats": batch_stats}
    state = steps.state_from_variables(variables, PUBLISHED_OPTIM)
    body = steps.make_train_step(HEADED, PUBLISHED_OPTIM, LossConfig(), None)
    after, metrics = jax.jit(body)(state, tiny_batch(0, 2))
    assert np.isfinite(metrics["loss"])
    assert np.isfinite(metrics["gradient_norm"]) == bool(weight)
    assert int(metrics["skipped"]) == int(after.skipped_steps) == 1
    assert (float(after.params["weight"]), float(after.batch_stats["mean"])) == (weight, 3)


def test_the_rate_counts_updates_and_not_steps():
    state = tiny_state().replace(step=np.int32(503), skipped_steps=np.int32(3))
    _, metrics = alone()(state, tiny_batch(0, 4))
    assert float(metrics["learning_rate"]) == pytest.approx(0.5e-3)  # half of the cosine's way


# ------------------------------------------------------------------ parts, memory, bfloat16


def gradient(state):
    """Gradient of the first step, by a fresh state's moments; valid if it was not clipped."""
    return jax.tree.map(lambda m: m / (1 - TINY_OPTIM.b1), state.opt_state[1].mu)


@pytest.mark.slow
def test_parts_of_a_rematerialised_batch_one_after_another_on_eight_devices():
    optim = dataclasses.replace(TINY_OPTIM, accumulate_steps=2)
    model = dataclasses.replace(HEADED, remat=True)
    step = under_shard_map(steps.make_train_step(model, optim, LOSSES))
    with jax.enable_x64(True):
        state, batch = tiny_state(np.float64), cast(tiny_batch(0, 32), np.float64)
        new, metrics = jax.device_get(step(state, batch))
        # Each device has four rows of 32: the first two are of the first part.
        parts = [
            [x.reshape(8, 2, 2, -1)[:, i].reshape(16, -1) for x in batch.values()] for i in (0, 1)
        ]
        batches = [dict(zip(batch, part, strict=True)) for part in parts]
        first, first_metrics = jax.device_get(alone()(state, batches[0]))
        # The second part's gradient is at the same weights; its statistics follow the first's.
        state = state.replace(batch_stats=first.batch_stats)
        second, second_metrics = jax.device_get(alone()(state, batches[1]))
    mean = jax.tree.map(lambda a, b: (a + b) / 2, gradient(first), gradient(second))
    assert first_metrics["gradient_norm"] < 1 > second_metrics["gradient_norm"]
    assert_same(gradient(new), mean, 1e-9)
    assert_same(new.batch_stats, second.batch_stats, 1e-9)
    expected = (first_metrics["loss"] + second_metrics["loss"]) / 2
    assert metrics["loss"] == pytest.approx(float(expected), rel=1e-9)
    assert int(new.step) == 1


@pytest.mark.slow
def test_remixed_estimates_teach():
    config = dataclasses.replace(LOSSES, remix=0.3)
    several = tiny_batch(0, 2) | {"condition": unit_rows(7, 4).reshape(2, 2, -1)}
    several["member"] = np.array([[1, -1], [1, -1]], np.float32)
    step, plain = (
        jax.jit(steps.make_train_step(HEADED, TINY_OPTIM, x, None)) for x in (config, LOSSES)
    )
    new, metrics = step(tiny_state(), several)
    without, plain_metrics = plain(tiny_state(), several)
    assert metrics["remix"] > 0
    total = plain_metrics["loss"] + 0.3 * metrics["remix"]
    assert metrics["loss"] == pytest.approx(float(total), rel=1e-4)
    changes = jax.tree.map(lambda x, y: jnp.abs(x - y).max(), new.params, without.params)
    assert max(jax.tree.leaves(changes)) > 1e-5


def test_every_block_is_rematerialised():
    counts = {}
    for remat in (False, True):
        model = dataclasses.replace(HEADED, remat=remat)
        body = steps.make_train_step(model, TINY_OPTIM, LOSSES, None)
        text = str(jax.make_jaxpr(body)(tiny_state(), tiny_batch(0, 4)))
        counts[remat] = [text.count(name) for name in ("remat", "conv_general")]
    # Three blocks; the first of the two convolutions of each is computed again.
    assert counts[False][0] == 0
    assert counts[True][0] == 3
    assert counts[True][1] - counts[False][1] == 3


@pytest.mark.parametrize(("dtype", "gigabytes"), [("float32", 1.5), ("bfloat16", 0.8)])
def test_memory_that_the_gradient_of_five_seconds_keeps(dtype, gigabytes):
    model = ResUNetConfig(dtype=dtype)
    shapes = variable_shapes(model)
    batch = {"mixture": np.zeros((1, 160_000), np.float32), "condition": unit_rows(1, 1, 512)}
    batch["target"] = batch["mixture"]

    def backward_pass(params, batch_stats):
        terms = LossConfig(spectrum_l1=0.5)
        loss = functools.partial(steps.separation_loss, make_model(model), terms, train=True)
        return jax.vjp(lambda params: loss(params, batch_stats, batch)[0], params)[1]

    weights = {leaf.shape for leaf in jax.tree.leaves(shapes["params"])}
    kept = jax.tree.leaves(jax.eval_shape(backward_pass, *shapes.values()))
    sizes = [leaf.size * leaf.dtype.itemsize for leaf in kept if leaf.shape not in weights]
    assert 0.1e9 < sum(sizes) < gigabytes * 1e9


def test_training_in_bfloat16_follows_float32():
    model = dataclasses.replace(HEADED, dtype="bfloat16")
    rough = jax.jit(steps.make_train_step(model, TINY_OPTIM, LOSSES, None))
    batch, losses, states = tiny_batch(0, 4), {}, {}
    for name, step in {"rough": rough, "exact": alone()}.items():
        state, losses[name] = tiny_state(), []
        for _ in range(60):
            state, metrics = step(state, batch)
            losses[name].append(float(metrics["loss"]))
        states[name] = state
    # Weights, moments, statistics and average stay float32.
    assert all(x.dtype in (np.float32, np.int32) for x in jax.tree.leaves(states["rough"]))
    difference = np.abs(np.subtract(losses["rough"], losses["exact"])).max()
    assert 0 < difference < 0.05 * (losses["exact"][0] - losses["exact"][-1])


def test_training_learns_a_batch():
    state, batch, losses = tiny_state(), tiny_batch(0, 4), []
    for _ in range(100):
        state, metrics = alone()(state, batch)
        losses.append(float(metrics["loss"]))
    assert losses[-1] < 0.8 * losses[0]


def test_fresh_weights():
    init = jax.jit(steps.init_state, static_argnums=(0, 1))
    state = init(SMALLEST, PUBLISHED_OPTIM, jax.random.key(3))
    base, film = state.params["base"], state.params["film"]
    kernel = np.asarray(film["encoder_block1->conv_block1->beta2"]["kernel"])
    bound = np.sqrt(6 / (6 + 4))  # Glorot and Bengio, 2010
    assert 0.5 * bound < np.abs(kernel).max() <= bound
    assert not np.any(film["encoder_block1->conv_block1->beta2"]["bias"])
    assert not np.any(base["after_conv"]["bias"])
    assert (base["bn0"]["scale"] == 1).all()
    assert (state.batch_stats["base"]["bn0"]["var"] == 1).all()
    assert int(state.step) == 0


def test_evaluation_scores_every_item_alone():
    step = jax.jit(steps.make_eval_step(TINY))
    batch = tiny_batch(4, 3)
    together = step(tiny_variables(), batch)
    assert together["sdri"].shape == together["si_sdr"].shape == (3,)
    for row in range(3):
        alone = step(tiny_variables(), {k: v[row : row + 1] for k, v in batch.items()})
        for name in ("sdri", "si_sdr", "estimate"):
            np.testing.assert_allclose(together[name][row], alone[name][0], rtol=0, atol=1e-4)


def test_evaluation_of_one_slot_takes_what_it_leaves_where_that_is_nearer():
    model = dataclasses.replace(TINY, slots=1)
    variables = steps.init_state(model, OptimConfig(), jax.random.key(0)).variables()
    mixture_BS, slot_BRE = tiny_batch(4, 2)["mixture"], with_slots(variables["params"], None, 2)
    estimate_BS = make_model(model).apply(variables, mixture_BS, slot_BRE, train=False)[:, 0]
    target_BS = jnp.stack([estimate_BS[0], mixture_BS[1] - estimate_BS[1]])
    found = jax.jit(steps.make_eval_step(model))(
        variables, {"mixture": mixture_BS, "target": target_BS}
    )
    np.testing.assert_allclose(found["estimate"], target_BS, atol=1e-5)


def test_rows_are_dealt_in_order():
    batch = {"mixture": np.arange(32).reshape(16, 2), "condition": np.arange(16)}
    split = run.split_batch(batch)
    assert split["mixture"].shape == (8, 2, 2)
    np.testing.assert_array_equal(split["mixture"].reshape(16, 2), batch["mixture"])
    np.testing.assert_array_equal(split["condition"][3], [6, 7])
