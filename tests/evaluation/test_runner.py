"""The runner's batches: clips of many lengths share shapes, and each equals the clip alone."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from evaluation_examples import RATE_HZ, write_clips
from separator_examples import SMALLEST, tiny_variables, unit_rows

from audiosep_jax.evaluation.lists import Item
from audiosep_jax.evaluation.results import RowLog
from audiosep_jax.evaluation.runner import (
    RARE,
    Estimator,
    make_estimator,
    padded,
    padded_frames,
    plan,
    score_items,
    separate_padded,
)
from audiosep_jax.model import make_model

LENGTHS = (17, 257)


def test_an_estimate_that_is_not_finite_counts_as_one_that_is_missing(tmp_path):
    clips = write_clips(tmp_path, 3)
    items = [
        Item(n, f"m{n}", "q", "q", tmp_path / f"clip{n}.wav", None, (tmp_path / "clip2.wav",))
        for n in range(2)
    ]

    def broken(variables, batch):
        good = jnp.mean(batch["target"] ** 2) < 1.5 * np.mean(clips["clip0.wav"] ** 2)
        return jnp.where(good, batch["target"], jnp.nan)

    estimator = make_estimator(None, "mixture", ["q"], RATE_HZ)
    estimator = dataclasses.replace(estimator, body=broken)
    with RowLog(tmp_path / "out", {}) as log:
        score_items(items, estimator, log, {}, batch_size=10**6)
    rows = log.read()
    assert rows[0]["sdr"] > 60
    assert rows[1]["reason"] == "m1: its estimate is not finite"


def test_each_is_separated_as_by_itself():
    rng = np.random.default_rng(0)
    clips = [rng.standard_normal(n).astype(np.float32) for n in LENGTHS]
    condition_BE = unit_rows(1, len(LENGTHS))
    frames = max(padded_frames(SMALLEST, n) for n in LENGTHS)
    rows = [padded(SMALLEST, clip_S, frames) for clip_S in clips]
    batch = {key: np.stack([row[key] for row in rows]) for key in rows[0]}
    batch["condition"] = condition_BE
    found_BS = jax.jit(lambda v, x: separate_padded(SMALLEST, v, x))(
        tiny_variables(SMALLEST), batch
    )
    half = SMALLEST.window_samples // 2
    network = jax.jit(lambda v, x, c: make_model(SMALLEST).apply(v, x, c, train=False))
    for clip_S, condition_E, found_S in zip(clips, condition_BE, found_BS, strict=True):
        alone = network(tiny_variables(SMALLEST), clip_S[None], condition_E[None])[0]
        np.testing.assert_allclose(
            found_S[half : half + len(clip_S)], alone, rtol=0, atol=2e-6 * np.abs(alone).max()
        )


@pytest.mark.parametrize("shared", [True, False])
def test_rare_lengths_share_few_shapes(shared):
    common, rare = 500, [1000 + n for n in range(60)]
    lengths = dict(enumerate([*rare, *[common] * RARE, 1000]))
    items = [Item(n, str(n), "q", "q", None, None) for n in lengths]
    estimator = Estimator(None, {}, RATE_HZ, RATE_HZ, {}, SMALLEST if shared else None)
    batches = plan(items, lengths, 4, estimator)
    assert sorted(item.row for batch in batches for item in batch.items) == list(lengths)
    found = [[lengths[item.row] for item in batch.items] for batch in batches]
    for batch, num_samples in zip(batches, found, strict=True):
        if batch.frames is None:
            assert len(set(num_samples)) == 1
        else:
            assert {padded_frames(SMALLEST, n) for n in num_samples} == {batch.frames}
        assert (batch.frames is None) == (not shared or num_samples[0] == common)
    longest = [max(num_samples) for num_samples in found]
    assert longest == sorted(longest, reverse=True)
    shapes = {batch.frames or x[0] for batch, x in zip(batches, found, strict=True)}
    assert len(shapes) == len({padded_frames(SMALLEST, n) for n in rare}) + 1 if shared else 61
