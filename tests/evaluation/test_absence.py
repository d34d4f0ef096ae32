"""Absent sounds: recordings of any length, measures in closed form, and the command."""

import dataclasses
import json

import numpy as np
import pytest
from evaluation_examples import RATE_HZ, write_clips, write_list
from separator_examples import TINY, shy_variables

from audiosep_jax.audio import files as audio_files
from audiosep_jax.data.mixing import energy
from audiosep_jax.encoders.encoder import TextConfig
from audiosep_jax.errors import InputError
from audiosep_jax.evaluation import absence, lists, mixtures
from audiosep_jax.evaluation.baselines import random_queries, sounds_of
from audiosep_jax.evaluation.command import main
from audiosep_jax.evaluation.protocols import PROTOCOLS
from audiosep_jax.evaluation.runner import make_estimator
from audiosep_jax.separation.separator import Separator

QUERIES = ("dog", "rain", "bells", "wind", "a train", "birds")
LENGTHS = (0.2, 0.9)


@pytest.fixture
def place(tmp_path):
    """Six clips of 0.2 s, and a list of each with the next one."""
    write_clips(tmp_path, 6)
    rows = [
        (f"m{n}", QUERIES[n], f"clip{n}.wav", f"clip{(n + 1) % 6}.wav", QUERIES[(n + 1) % 6], "0")
        for n in range(6)
    ]
    header = ("id", "query", "target", "noise", "noise_query", "snr")
    write_list(tmp_path / "list.csv", header, rows)
    return tmp_path


def items_of(place):
    protocol = PROTOCOLS["absence"]
    rows = lists.read_list(protocol, place / "list.csv", place)
    items = lists.items_of(protocol, rows, place, place)
    pairs = zip(items, random_queries(items), strict=True)
    return [dataclasses.replace(item, wrong_query=query) for item, query in pairs]


def test_longer_recordings_hold_the_target_once_and_the_wrong_query_never(place):
    items = items_of(place)
    found = absence.recordings(items, LENGTHS)
    assert found == absence.recordings(items, LENGTHS)
    assert [x.label for x in found] == ["0.2 s"] * 6 + ["0.9 s"] * 6
    assert [x.row for x in found] == list(range(12))
    sounds = sounds_of(items)
    places = set()
    for item, made in ((x, mixtures.load(x, RATE_HZ)) for x in found):
        others = (*item.before, *item.after)
        assert len(others) == (0 if item.label == "0.2 s" else 4)
        assert not any(sounds[x.row] & {item.query, item.wrong_query} for x in others)
        own = mixtures.load(items[item.row % 6], RATE_HZ)
        first = 1600 * len(item.before)
        np.testing.assert_array_equal(made.mixture_S[first : first + 1600], own.mixture_S)
        np.testing.assert_array_equal(made.target_S[first : first + 1600], own.target_S)
        assert np.count_nonzero(made.target_S) == np.count_nonzero(own.target_S)
        powers = [energy(x) for x in np.split(made.mixture_S, 1 + len(others))]
        np.testing.assert_allclose(powers, energy(own.mixture_S), rtol=1e-5)
        places.add(len(item.before))
    assert len(places) > 2  # the target is not always at the start


def test_lists_that_cannot_be_made_longer_are_refused(place):
    items = items_of(place)
    with pytest.raises(InputError, match="no wrong queries"):
        absence.recordings([dataclasses.replace(x, wrong_query="") for x in items], LENGTHS)
    with pytest.raises(InputError, match="every mixture has a sound that m0 is asked for"):
        absence.recordings(items[:1], LENGTHS)


def test_area_under_the_curve():
    present_N, absent_N = np.array([0.9, 0.5, 0.4]), np.array([0.5, 0.1, 0.4])
    # 0.9 is above all, 0.5 above two and equal to one, 0.4 above one and equal to one.
    once = np.ones((1, 3), int)
    assert absence.auroc(present_N, absent_N, once) == pytest.approx((3 + 2.5 + 1.5) / 9)
    assert absence.auroc(absent_N, present_N, once) == pytest.approx(1 - 7 / 9)
    # Drawing the first twice and the last never is the same as a list of these.
    drawn = absence.auroc(present_N, absent_N, np.array([[2, 1, 0]]))
    again = absence.auroc(present_N[[0, 0, 1]], absent_N[[0, 0, 1]], once)
    assert drawn == pytest.approx(again)


def test_measures_of_each_length():
    rows = [
        {"label": f"{n // 4} s", "clip": str(n), "presence": n / 8, "presence_absent": 0.3}
        | {"missed": float(n % 4 == 0), "false_alarm": 0.0, "false_energy_db": -10.0 * n}
        for n in range(8)
    ]
    scores = absence.summary([*rows, {"label": "1 s", "reason": "silent"}], "mean")["scores"]
    assert {name: x["mean"] for name, x in scores.items()} == {
        "AUROC of presence, 0 s": 0.25,
        "share of missed targets, 0 s": 0.25,
        "share of false alarms, 0 s": 0.0,
        "median of false energy, dB, 0 s": -15.0,
        "AUROC of presence, 1 s": 1.0,
        "share of missed targets, 1 s": 0.25,
        "share of false alarms, 1 s": 0.0,
        "median of false energy, dB, 1 s": -55.0,
    }
    assert scores["median of false energy, dB, 1 s"]["low"] < -60


def test_a_separator_is_scored_as_it_separates_files(place):
    model = dataclasses.replace(TINY, activity="gate", condition_features=512)
    variables = shy_variables(model, scale=300, bias=1.0)
    separator = Separator(model, variables, TextConfig(encoder="hashed"), None, 0)
    (item,) = absence.recordings(items_of(place), LENGTHS[1:])[:1]
    queries = [item.query, item.wrong_query]
    row = absence.scored_row(make_estimator(separator, "", [item], model.sample_rate_hz), item)
    made = mixtures.load(item, model.sample_rate_hz)
    audio_files.write(place / "in.wav", made.mixture_S[None], model.sample_rate_hz)
    condition_NE = separator.embed_text(queries)
    told = separator.separate_file(
        place / "in.wav", [place / "a.wav", place / "b.wav"], condition_NE
    )
    np.testing.assert_allclose(
        [row["presence"], row["presence_absent"], 10 ** (row["false_energy_db"] / 10)],
        [*told.presence_N, told.share_N[1]],
        rtol=1e-4,
    )
    assert [row["missed"], row["false_alarm"]] == [not told.spans[0], bool(told.spans[1])]


def test_files_of_another_system(place, capsys):
    """Its estimates of present sounds are perfect, and those of absent ones 20 dB below."""
    how = ["--protocol", "absence", "--metadata", str(place / "list.csv"), "--audio", str(place)]
    how += ["--seconds", "0.2", "0.9", "--sample_rate_hz", str(RATE_HZ)]
    assert main(["render", *how, "--output", str(place / "mixed")]) == 0
    paths = sorted((place / "mixed").glob("mixture-*.wav"))
    assert len(paths) == 12
    for path in paths:
        target_CS, _ = audio_files.read(path.with_name(path.name.replace("mixture", "segment")))
        mixture_CS, _ = audio_files.read(path)
        audio_files.write(place / "own" / path.name, target_CS, RATE_HZ)
        wrong = place / "own" / "wrong_query" / path.name
        audio_files.write(wrong, 0.1 * mixture_CS, RATE_HZ)
    out = ["--estimates", str(place / "own"), "--output", str(place / "out")]
    assert main([*how, *out]) == 0
    content = json.loads((place / "out" / "results.json").read_text())
    for length in ("0.2 s", "0.9 s"):
        found = {name: x["mean"] for name, x in content["scores"].items() if length in name}
        assert found == {
            f"AUROC of presence, {length}": 1.0,
            f"share of missed targets, {length}": 0.0,
            f"share of false alarms, {length}": 0.0,
            f"median of false energy, dB, {length}": pytest.approx(-20, abs=1e-3),
        }
    assert "AUROC of presence, 0.9 s" in capsys.readouterr().out
