"""The runner: rows of mixtures, whatever makes the estimates."""

import functools

import numpy as np
from evaluation_examples import RATE_HZ, write_clips

from audiosep_jax.evaluation.lists import Item
from audiosep_jax.evaluation.results import RowLog
from audiosep_jax.evaluation.runner import make_estimator, score_items, scored_row


def test_an_estimate_that_is_not_finite_counts_as_one_that_is_missing(tmp_path, monkeypatch):
    clips = write_clips(tmp_path, 3)
    items = [
        Item(n, f"m{n}", "q", "q", tmp_path / f"clip{n}.wav", None, (tmp_path / "clip2.wav",))
        for n in range(2)
    ]

    def broken(baseline, model, mixture_S, target_S, rate_hz):
        good = np.array_equal(target_S, clips["clip0.wav"])
        return target_S if good else np.full_like(target_S, np.nan)

    monkeypatch.setattr("audiosep_jax.evaluation.baselines.estimate", broken)
    estimator = make_estimator(None, "mixture", items, RATE_HZ)
    with RowLog(tmp_path / "out", {}) as log:
        score_items(items, functools.partial(scored_row, estimator, []), log, {})
    rows = log.read()
    assert rows[0]["sdr"] > 60
    assert rows[1]["reason"] == "m1: its estimate is not finite"
