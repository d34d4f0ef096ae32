"""The head for the target's activity: exact in tiles, and what it does to estimates."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from separator_examples import TINY, shy_variables, unit_rows
from test_tiles import noise, one_pass, snr_db, streamed

from audiosep_jax.model import make_model, make_network
from audiosep_jax.model.audiosep import activity_of, apply_mask, with_activity
from audiosep_jax.model.network import Span

# Pools that are not powers of two, and a level that does not pool.
HEADED = dataclasses.replace(
    TINY,
    encoder_channels=(2, 3, 4),
    time_pools=(3, 2, 1),
    frequency_pools=(2, 1, 2),
    activity="report",
)
GATED = dataclasses.replace(HEADED, activity="gate")
TILE = 12
VARIABLES = shy_variables(HEADED)


def magnitudes(frames):
    return np.abs(noise(2, frames, HEADED.num_bins))


def logits(variables, mag_BTF, condition_BE, config=HEADED):
    apply = jax.jit(functools.partial(make_network(config).apply, train=False))
    return np.asarray(activity_of(apply(variables, mag_BTF, condition_BE)))


@pytest.mark.parametrize("frames", [1, 24, 61])
def test_logits_of_a_stream_equal_one_pass(frames):
    network, mag_BTF, condition_BE = make_network(HEADED), magnitudes(frames), unit_rows(1, 2)
    expected_BT = logits(VARIABLES, mag_BTF, condition_BE)
    delay = network.delay_frames
    behind = np.full((2, delay + TILE, HEADED.num_bins), np.nan, np.float32)
    mag_BTF = np.concatenate([mag_BTF, behind], axis=1)
    shapes = jax.eval_shape(
        functools.partial(network.init, train=False, span=Span(0, frames)),
        *(jax.random.key(0), mag_BTF[:, :TILE], condition_BE),
    )
    stream = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes["stream"])
    step = jax.jit(functools.partial(network.apply, train=False, mutable=["stream"]))
    parts = []
    for first in range(0, frames + delay, TILE):
        tile_BTF, span = mag_BTF[:, first : first + TILE], Span(first, frames)
        variables = {**VARIABLES, "stream": stream}
        mask_BTFC, updated = step(variables, tile_BTF, condition_BE, span=span)
        stream = updated["stream"]
        parts.append(activity_of(mask_BTFC))
    actual_BT = np.concatenate(parts, axis=1)[:, delay : delay + frames]
    np.testing.assert_allclose(actual_BT, expected_BT, rtol=0, atol=1e-4)
    # A frame of the innermost level covers 6, and both queries and all times differ.
    starts_BT = expected_BT[:, ::6]
    np.testing.assert_array_equal(np.repeat(starts_BT, 6, axis=1)[:, :frames], expected_BT)
    assert len(np.unique(starts_BT)) == starts_BT.size


def test_gated_estimates_in_tiles_equal_one_pass(monkeypatch):
    monkeypatch.setattr("test_tiles.tiny_variables", lambda config: VARIABLES)
    audio_CS, condition_NE = 3 * noise(2, 1501), unit_rows(1, 2)
    expected_NCS = one_pass(GATED, audio_CS, condition_NE)
    actual_NCS = streamed(GATED, audio_CS, condition_NE, tile=TILE)[0]
    assert snr_db(actual_NCS, expected_NCS) > 90
    assert snr_db(one_pass(HEADED, audio_CS, condition_NE), expected_NCS) < 40


def test_folded_logits_are_the_same():
    mag_BTF, condition_BE = magnitudes(24), unit_rows(1, 2)
    expected_BT = logits(VARIABLES, mag_BTF, condition_BE)
    folded = dataclasses.replace(HEADED, fold=2)
    actual_BT = logits(VARIABLES, mag_BTF, condition_BE, folded)
    np.testing.assert_allclose(actual_BT, expected_BT, rtol=0, atol=1e-4)


def test_bfloat16_logits_are_near():
    mag_BTF, condition_BE = magnitudes(24), unit_rows(1, 2)
    rough = dataclasses.replace(HEADED, dtype="bfloat16")
    difference_BT = logits(VARIABLES, mag_BTF, condition_BE, rough) - logits(
        VARIABLES, mag_BTF, condition_BE
    )
    assert 0 < np.abs(difference_BT).max() < 0.05 * np.ptp(logits(VARIABLES, mag_BTF, condition_BE))


def test_a_new_head_changes_no_estimate_and_no_other_weight():
    inputs = noise(2, 400), unit_rows(1, 2)
    key = jax.random.key(0)
    plain = dataclasses.replace(HEADED, activity="none")
    old, new = (make_model(x).init(key, *inputs, train=False) for x in (plain, GATED))
    head = new["params"]["base"].pop("activity")
    shift = new["params"]["film"].pop("activity")
    jax.tree.map(np.testing.assert_array_equal, old, new)
    new["params"]["base"]["activity"], new["params"]["film"]["activity"] = head, shift
    assert not head["logit"]["kernel"].any()
    estimates = (
        make_model(x).apply(y, *inputs, train=False) for x, y in ((plain, old), (GATED, new))
    )
    np.testing.assert_array_equal(*estimates)


def test_the_gate_halves_nothing_above_one_half_and_is_linear_below():
    mask_BTFC, spectrum_BTF = noise(1, 3, 5, 3), noise(1, 3, 6) + 1j * noise(1, 3, 6, seed=1)
    # Probabilities 0.1, 0.4 and 0.9.
    logit_BT = np.log(np.array([[1 / 9, 2 / 3, 9]], np.float32))
    mask_BTFC = with_activity(mask_BTFC, logit_BT)
    np.testing.assert_array_equal(activity_of(mask_BTFC), logit_BT)
    plain_BTF = np.asarray(apply_mask(spectrum_BTF, mask_BTFC))
    assert not plain_BTF[..., -1].any()
    gated_BTF = apply_mask(spectrum_BTF, mask_BTFC, gated=True)
    expected_BTF = plain_BTF * np.array([0.2, 0.8, 1])[:, None]
    np.testing.assert_allclose(gated_BTF, expected_BTF, rtol=1e-5)
