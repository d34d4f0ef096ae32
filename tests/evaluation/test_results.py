"""Rows on disk, the score of a benchmark with its interval, and the files of results."""

import csv

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from audiosep_jax.errors import InputError
from audiosep_jax.evaluation.protocols import PROTOCOLS
from audiosep_jax.evaluation.results import (
    RowLog,
    Run,
    aggregate,
    bootstrap,
    results_of,
    summary,
    write_csv,
)


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
    with pytest.raises(InputError, match=r"results\.csv"):
        write_csv(path / "x", rows)
    assert [p.name for p in tmp_path.iterdir()] == ["deep"]


def test_silent_mixtures_are_counted_and_left_out():
    rows = rows_of(VALUES, LABELS)
    rows = [{**row, "fingerprint": "f", "snr_db": None} for row in rows]
    silent = {**rows[0], "row": 5, "id": "s", "reason": "x.wav: is silent", "silent": True}
    del silent["sdri"]
    content = results_of(Run(PROTOCOLS["mixtures"], 8000), [*rows, silent])
    assert content["notes"] == [
        "1 of the 6 mixtures listed have a silent target or noise and are left out of the means"
    ]
    assert (content["count"], content["listed"], content["missing"]) == (5, 6, [])
    assert content["silent"] == [{"row": 5, "id": "s", "reason": "x.wav: is silent"}]
    assert content["scores"]["sdri"]["mean"] == pytest.approx(87 / 5)


@pytest.mark.parametrize(
    ("query", "column", "stated"),
    [
        ("", "", ("human speech", None, 1)),  # one note: how many mixtures there are
        ("a voice", "", ("a voice", None, 1)),
        ("", "who", (None, "who", 2)),
    ],
)
def test_the_results_state_the_query(query, column, stated):
    row = {"row": 0, "id": "a", "query": "x", "label": "x", "clip": "a.wav", "fingerprint": ""}
    rows = [{**row, "snr_db": None, "sdri": 1.0}]
    run = Run(PROTOCOLS["voicebank_demand"], 16000, query=query, query_column=column)
    content = results_of(run, rows)
    assert (content["query"], content["query_column"], len(content["notes"])) == stated


# ---------------------------------------------------------------------- rows on disk

ABOUT = {"protocol": "esc50", "checkpoint": "0123"}


def write(folder, numbers, shard=(0, 1), **extra):
    with RowLog(folder, ABOUT, shard) as log:
        for number in numbers:
            log.add({"row": number, "sdri": number / 3} | extra)


def read(folder, about=ABOUT):
    return RowLog(folder, about).read()


def test_rows_come_back_to_the_bit(tmp_path):
    assert read(tmp_path) == {}
    write(tmp_path / "new", [4, 1])
    write(tmp_path / "new", [7])
    assert read(tmp_path / "new") == {n: {"row": n, "sdri": n / 3} for n in (4, 1, 7)}


@pytest.mark.parametrize("cut", range(1, 60))
def test_a_line_cut_off_is_dropped_and_no_other(tmp_path, cut):
    write(tmp_path, [0, 1])
    (path,) = tmp_path.iterdir()
    content = path.read_bytes()
    path.write_bytes(content[:-cut])
    whole = content[:-cut].count(b"\n") - 1  # without the settings
    assert list(read(tmp_path)) == [0, 1][: max(whole, 0)]
    write(tmp_path, [2])
    assert list(read(tmp_path)) == [*[0, 1][: max(whole, 0)], 2]


def test_processes_share_a_folder(tmp_path):
    write(tmp_path, [0, 2], (0, 2))
    write(tmp_path, [1], (1, 2))
    assert sorted(read(tmp_path)) == [0, 1, 2]
    assert len(list(tmp_path.iterdir())) == 2
    RowLog(tmp_path, ABOUT, (1, 2)).discard()  # the other process may be at work
    assert sorted(read(tmp_path)) == [0, 2]
    RowLog(tmp_path, ABOUT | {"checkpoint": "other"}, (1, 2)).discard()
    assert not list(tmp_path.iterdir())
    write(tmp_path, [0, 2], (0, 2))
    RowLog(tmp_path, ABOUT).discard()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_a_score_replaces_a_reason(tmp_path, order):
    for shard in order:
        write(tmp_path, [3], (shard, 2), **({"reason": "gone"} if shard == 0 else {}))
    write(tmp_path, [5], reason="gone")
    found = read(tmp_path)
    assert "reason" not in found[3]
    assert found[5]["reason"] == "gone"


def test_rows_of_another_evaluation_are_refused(tmp_path):
    write(tmp_path, [0])
    message = r"rows of another evaluation \(checkpoint differs\); choose another output folder"
    with pytest.raises(InputError, match=message):
        read(tmp_path, ABOUT | {"checkpoint": "4567"})
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"cannot be (written|created)"):
        write(tmp_path / "file", [0])
