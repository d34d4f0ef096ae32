"""Scores of a fixed set: the same in any batch size, in the order of the mixtures."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from separator_examples import TINY, tiny_batch, tiny_variables, unit_rows

from audiosep_jax.metrics import separation_scores
from audiosep_jax.training.config import Config
from audiosep_jax.training.parallel import parallel_eval_step
from audiosep_jax.training.steps import make_eval_step
from audiosep_jax.training.validation import validate, write_example


def stand_in(variables, batch):
    """An evaluation step whose results tell which mixture, target and condition they came from."""
    assert batch["mixture"].shape[0] == jax.local_device_count()
    return {
        "sdri": variables * batch["mixture"][..., 0] + batch["condition"][..., 0],
        "si_sdr": batch["target"][..., 0],
        "estimate": -batch["mixture"],
    }


def numbered(total):
    n = np.arange(total, dtype=np.float32)
    columns = {"mixture": n, "target": 100 + n, "condition": n / 1024, "wrong": n / 512}
    return {name: np.stack([column, column], axis=1) for name, column in columns.items()}


@settings(deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 45))
def test_filling_up_the_last_batch_changes_nothing(total, batch_size, num_estimates):
    mixtures = numbered(total)
    scores, estimates_NS = validate(stand_in, 2, mixtures, batch_size, num_estimates=num_estimates)
    n = np.arange(total)
    np.testing.assert_array_equal(scores["sdri"], 2 * n + n / 1024)
    np.testing.assert_array_equal(scores["si_sdr"], 100 + n)
    np.testing.assert_array_equal(estimates_NS, -mixtures["mixture"][:num_estimates])


def test_other_conditions_can_be_scored():
    scores, _ = validate(stand_in, 0, numbered(5), 8, condition="wrong")
    np.testing.assert_array_equal(scores["sdri"], np.arange(5) / 512)


@pytest.mark.parametrize(("batch_size", "rows"), [(20, 20), (2**31 - 1, 27)])
def test_batches_have_one_shape_no_larger_than_the_set(batch_size, rows):
    shapes = set()

    def note(variables, batch):
        shapes.add(batch["mixture"].shape)
        return stand_in(variables, batch)

    validate(note, 0, numbered(27), batch_size)
    devices = jax.local_device_count()
    assert shapes == {(devices, rows // devices, 2)}


@pytest.mark.parametrize("batch_size", [1, 16])
def test_network_scores_equal_those_of_single_mixtures(batch_size):
    mixtures = tiny_batch(3, 11) | {"other": unit_rows(99, 11)}
    body = make_eval_step(TINY)
    scores, estimates_NS = validate(
        parallel_eval_step(body), tiny_variables(), mixtures, batch_size, num_estimates=9
    )
    one = jax.jit(body)
    for row in (0, 7, 8, 10):
        single = one(tiny_variables(), {k: v[row : row + 1] for k, v in mixtures.items()})
        assert scores["sdri"][row] == pytest.approx(float(single["sdri"][0]), abs=1e-4)
        assert scores["si_sdr"][row] == pytest.approx(float(single["si_sdr"][0]), abs=1e-4)
        if row < 9:
            # Training reports what an evaluation would.
            clips = (mixtures["target"][row], estimates_NS[row], mixtures["mixture"][row])
            reported = separation_scores(*clips)
            for name in ("sdri", "si_sdr"):
                assert scores[name][row] == pytest.approx(reported[name], abs=1e-4)
            np.testing.assert_allclose(estimates_NS[row], single["estimate"][0], rtol=0, atol=1e-6)
    assert estimates_NS.shape == (9, 100)


@pytest.mark.parametrize("kind", ["voice", "image"])
def test_the_command_of_the_example_asks_by_a_file(tmp_path, capsys, kind):
    silence_BS = np.zeros((1, 100), np.float32)
    mixtures = {"mixture": silence_BS, "target": silence_BS, "caption": [f"{kind}:a b/c.d#1-2"]}
    write_example(Config(), {"sdri": np.zeros(1)}, mixtures, tmp_path)
    assert f"mixture.wav --{kind} 'a b/c.d' --checkpoint {tmp_path}" in capsys.readouterr().out
