"""The runner: rows of mixtures, whatever makes the estimates."""

import functools
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
from evaluation_examples import RATE_HZ, write_clips

from audiosep_jax.evaluation import runner
from audiosep_jax.evaluation.lists import Item
from audiosep_jax.evaluation.mixtures import Mixture
from audiosep_jax.evaluation.results import RowLog
from audiosep_jax.evaluation.runner import Estimator, make_estimator, score_items, scored_row
from audiosep_jax.model.resunet import ResUNetConfig


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


@pytest.mark.smoke  # it can fail on Python 3.12 and later only
def test_threads_that_begin_together_share_the_separators_of_the_devices(tmp_path, monkeypatch):
    stream = SimpleNamespace(feed=lambda x_CS: x_CS[None], activity_NT=np.ones((1, 1)))
    stream.finish = lambda: np.zeros((1, 1, 0))
    separator = SimpleNamespace(on_device=lambda device: separator, stream=lambda *_, **__: stream)
    found = []

    def slowly():  # so that all threads ask before the first has an answer
        found.append(1)
        time.sleep(0.2)
        return [None]

    monkeypatch.setattr(runner, "devices_to_use", slowly)
    item = Item(0, "m", "q", "q", tmp_path / "a.wav", None, ())
    estimator = Estimator(RATE_HZ, "", ResUNetConfig(), separator, {"q": np.zeros(3)})
    made = Mixture(np.zeros(8), np.ones(8), "")
    with ThreadPoolExecutor(4) as pool:
        answers = [pool.submit(estimator, item, made) for _ in range(8)]
        for answer in answers:
            assert answer.result(timeout=60)[0].shape == (1, 8)
    assert len(found) == 1
