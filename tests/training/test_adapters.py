"""Adapters: nothing changes at first, only they are trained, and a file brings them back."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax.traverse_util import flatten_dict
from separator_examples import SMALLEST, tiny_batch, tiny_variables
from tiny_run import save_run

import train
from audiosep_jax.errors import InputError
from audiosep_jax.model import make_model
from audiosep_jax.separation.separator import Separator
from audiosep_jax.training import adapters, trained
from audiosep_jax.training.config import from_mapping
from audiosep_jax.training.losses import LossConfig
from audiosep_jax.training.optim import OptimConfig
from audiosep_jax.training.steps import make_train_step, state_from_variables

UNREAD = "decoder_block1->beta2"  # the network does not use this layer of AudioSep's
OPTIM = OptimConfig(adapter_rank=2, warmup="none")


@pytest.fixture(scope="module")
def stepped():
    """(state, state after a step, metrics of the step, batch)."""
    state = state_from_variables(tiny_variables(SMALLEST), OPTIM)
    batch = tiny_batch(1, 2)
    step = jax.jit(make_train_step(SMALLEST, OPTIM, LossConfig(), None))
    return state, *step(state, batch), batch


def test_new_adapters_change_no_bit(stepped):
    state = stepped[0]
    jax.tree.map(np.testing.assert_array_equal, state.variables(), tiny_variables(SMALLEST))


def test_an_adapter_is_a_product_on_the_flattened_kernel():
    rng = np.random.default_rng(0)
    kernel, a, b = (rng.standard_normal(shape) for shape in ((3, 3, 4, 5), (36, 2), (2, 5)))
    params = {"conv": {"kernel": kernel, "bias": np.ones(5)}}
    found = adapters.adapted(params, {"conv": {"kernel": {"a": a, "b": b}}})
    expected = kernel + np.einsum("hwir,ro->hwio", a.reshape(3, 3, 4, 2), b)
    np.testing.assert_allclose(found["conv"]["kernel"], expected, atol=1e-12)
    assert found["conv"]["bias"] is params["conv"]["bias"]


def test_only_the_adapters_are_trained(stepped):
    before, after, metrics, batch = stepped
    for name in ("base", "batch_stats"):
        jax.tree.map(np.testing.assert_array_equal, vars(before)[name], vars(after)[name])
    assert jax.tree.structure(after.opt_state[1].mu) == jax.tree.structure(after.params)

    def loss(params):
        variables = {"params": params, "batch_stats": before.batch_stats}
        inputs = batch["mixture"], batch["condition"]
        estimate_BS = make_model(SMALLEST).apply(variables, *inputs, train=False)
        return jnp.mean(jnp.abs(estimate_BS - batch["target"]))

    gradients = flatten_dict(jax.jit(jax.grad(loss))(before.base))
    parts = flatten_dict(before.params)
    norms = [  # that of A is zero while B is
        np.linalg.norm(a.T @ gradients[path[:-1]].reshape(len(a), -1))
        for path, a in parts.items()
        if path[-1] == "a"
    ]
    assert len(norms) == len(parts) / 2 > 9
    assert float(metrics["gradient_norm"]) == pytest.approx(np.linalg.norm(norms), rel=1e-4)


@pytest.fixture(scope="module")
def taught(tmp_path_factory):
    """(folder of the frozen run, workdir of the adapter)."""
    folder = tmp_path_factory.mktemp("taught")
    values = tiny.get_config()
    save_run(folder / "base", config=values, words=("rain",))
    values.init_from = str(folder / "base")
    values.optim.ema_decay, values.optim.adapter_rank = 0.0, 1
    values.num_steps = 2
    train.train(from_mapping(values.to_dict()), folder / "run")
    return folder / "base", folder / "run"


@pytest.mark.slow
def test_an_adapter_file_gives_what_was_trained(taught):
    base, run = taught
    frozen, whole = Separator.load(base), Separator.load(run)
    small = Separator.load(base, adapter=run)
    for path, expected in flatten_dict(whole.variables).items():
        found, old = (flatten_dict(x.variables)[path] for x in (small, frozen))
        update = np.abs(expected - old).max()
        assert (update > 0) == (path[-1] == "kernel" and path[-2] != UNREAD), path
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-3 * update + 1e-7)
    assert {"rain", "siren"} <= {*small.words}
    assert (run / adapters.FILE).stat().st_size < 25_000


@pytest.mark.slow
def test_an_adapter_of_other_weights_is_refused(taught):
    base, run = taught
    found = trained.read(base)
    params = jax.tree.map(lambda x: x + 1, found.variables["params"])
    other = dataclasses.replace(found, variables=found.variables | {"params": params})
    with pytest.raises(InputError, match=r"adapter\.safetensors: is no adapter of these weights"):
        adapters.with_adapter(other, run)
    with pytest.raises(InputError, match="no such file"):
        adapters.with_adapter(found, base)


@pytest.mark.parametrize(
    ("change", "words"),
    [({"ema_decay": 0.5}, "exclude each other"), ({}, "optim.adapter_rank needs init_from")],
)
def test_what_adapters_cannot_do(change, words):
    values = tiny.get_config().to_dict()
    values["optim"] |= {"ema_decay": 0.0, "adapter_rank": 1} | change
    with pytest.raises(InputError, match=words):
        from_mapping(values)
