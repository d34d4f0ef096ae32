"""Bins among the channels: the same function of the same weights."""

import dataclasses

import jax
import numpy as np
import pytest
from separator_examples import TINY, tiny_batch, tiny_variables
from test_tiles import noise, one_pass, snr_db, streamed, unit_rows

from audiosep_jax.errors import InputError
from audiosep_jax.model import make_model


def gradients(config):
    """Result, new statistics and gradients of a training pass, in float64."""
    batch, variables = tiny_batch(0, 2, 400), tiny_variables(TINY)
    batch, variables = jax.tree.map(lambda x: np.asarray(x, np.float64), (batch, variables))

    def loss(params):
        state = {"params": params, "batch_stats": variables["batch_stats"]}
        inputs = batch["mixture"], batch["condition"]
        result = make_model(config).apply(state, *inputs, train=True, mutable=["batch_stats"])
        return (result[0] * batch["target"]).sum(), result

    return jax.device_get(jax.jit(jax.grad(loss, has_aux=True))(variables["params"]))


def test_results_statistics_and_gradients_are_those_without_folding():
    """The pools are 2 and 4: the levels have 8, 4 and 1 bins in their channels."""
    with jax.enable_x64(True):
        expected, actual = gradients(TINY), gradients(dataclasses.replace(TINY, fold=8))
    largest = max(abs(x).max() for x in jax.tree.leaves(expected[0]))
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        # A bias in front of a BatchNorm has no gradient: what is computed is rounding.
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12 * largest)


def test_a_stream_of_folded_arrays_equals_one_pass():
    config = dataclasses.replace(TINY, fold=2)
    audio_CS, condition_NE = noise(1, 1501), unit_rows(2, 1)
    expected_NCS = one_pass(TINY, audio_CS, condition_NE)
    assert snr_db(streamed(config, audio_CS, condition_NE)[0], expected_NCS) > 100


@pytest.mark.parametrize("fold", [3, 4, 16])
def test_groups_that_no_pooling_divides_are_refused(fold):
    with pytest.raises(InputError, match=rf"fold={fold} .*frequency_pools=\(2, 4\)"):
        dataclasses.replace(TINY, fold=fold)
