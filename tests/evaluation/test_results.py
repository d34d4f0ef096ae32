"""From rows to a benchmark's number, its interval and its files."""

import csv
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from audiosep_jax.errors import InputError
from audiosep_jax.evaluation.results import aggregate, bootstrap, summary, write_csv, write_json


def rows_of(values, labels, clips=None):
    clips = clips or [f"clip{n}" for n in range(len(values))]
    return [
        {"row": n, "id": f"i{n}", "query": label, "label": label, "clip": clip, "sdri": value}
        for n, (value, label, clip) in enumerate(zip(values, labels, clips, strict=True))
    ]


VALUES, LABELS = [1.0, 2.0, 30.0, 4.0, 50.0], ["a", "a", "a", "b", "b"]


@pytest.mark.parametrize(
    ("aggregation", "expected"),
    [
        ("mean", 87 / 5),
        ("mean of class means", (11 + 27) / 2),
        ("mean of class medians", (2 + 27) / 2),
    ],
)
def test_one_number_of_many(aggregation, expected):
    rows = rows_of(VALUES, LABELS)
    found = summary(rows, aggregation)
    score = found["scores"]["sdri"]
    assert score["mean"] == pytest.approx(expected)
    assert score["low"] < expected < score["high"]
    middles = {"a": 2, "b": 27} if aggregation.endswith("medians") else {"a": 11, "b": 27}
    assert {label: x["sdri"] for label, x in found["classes"].items()} == middles
    assert {label: x["count"] for label, x in found["classes"].items()} == {"a": 3, "b": 2}
    assert summary(rows[::-1], aggregation) == found


def test_rows_without_scores_do_not_count():
    rows = rows_of(VALUES, LABELS)
    lost = {"row": 9, "label": "c", "clip": "x", "reason": "gone"}
    assert summary([lost, *rows], "mean") == summary(rows, "mean")


def test_captions_make_no_classes():
    assert summary(rows_of(VALUES, "abcde"), "mean")["classes"] == {}


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(st.integers(-5, 5), st.integers(0, 4)), min_size=1, max_size=12).filter(
        lambda pairs: any(weight for _, weight in pairs)
    )
)
def test_weights_are_repetitions(pairs):
    values, weights = np.float64([v for v, _ in pairs]), np.array([[w for _, w in pairs]])
    repeated = np.repeat(values, weights[0])
    groups = [np.arange(len(values))]
    for aggregation, middle in (
        ("mean", np.mean),
        ("mean of class means", np.mean),
        ("mean of class medians", np.median),
    ):
        found = aggregate(values, groups, aggregation, weights)
        assert found[0] == pytest.approx(middle(repeated))


def test_interval_is_that_of_the_mean():
    rng = np.random.default_rng(0)
    values = rng.normal(3, 2, 400)
    score = summary(rows_of(values.tolist(), ["a"] * 400), "mean")["scores"]["sdri"]
    half = 1.96 * values.std() / 20
    assert score["low"] == pytest.approx(values.mean() - half, abs=0.04)
    assert score["high"] == pytest.approx(values.mean() + half, abs=0.04)


def test_mixtures_of_one_clip_are_drawn_together():
    clips = ["x", "y", "x", "z", "x"]
    weights = bootstrap(clips, [np.array([0, 1, 2]), np.array([3, 4])], num_draws=50)
    np.testing.assert_array_equal(weights[:, 0], weights[:, 2])
    assert (weights[:, 0] + weights[:, 1] == 2).all()  # two clips in the first class
    assert (weights[:, 3] + weights[:, 4] == 2).all()
    assert len(np.unique(weights, axis=0)) > 5


def test_nothing_is_known_about_the_spread_of_one_clip():
    score = summary(rows_of([1.0, 3.0], "ab", ["x", "x"]), "mean")["scores"]["sdri"]
    assert score == {"mean": 2.0, "low": None, "high": None}


def test_files(tmp_path):
    rows = rows_of([1.23456789, -0.0], "ab")
    rows.append({"row": 5, "id": "k", "query": 'a "loud", dog', "label": "c", "reason": "gone"})
    path = tmp_path / "deep" / "results.csv"
    write_csv(path, rows[::-1])
    with path.open(newline="") as file:
        read = list(csv.DictReader(file))
    assert [row["id"] for row in read] == ["i0", "i1", "k"]
    assert [row["sdri"] for row in read] == ["1.234568", "0.0", ""]
    assert read[2]["query"] == 'a "loud", dog'
    assert [row["reason"] for row in read] == ["", "", "gone"]
    write_json(tmp_path / "results.json", {"title": "Zürich"})
    assert json.loads((tmp_path / "results.json").read_text()) == {"title": "Zürich"}
    with pytest.raises(InputError, match=r"results.csv/x: cannot be written"):
        write_json(path / "x", {})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["deep", "results.json"]
