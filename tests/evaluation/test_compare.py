"""Paired differences, by closed forms, and the command that writes them."""

import json
import re

import numpy as np
import pytest

from audiosep_jax import files
from audiosep_jax.errors import InputError
from audiosep_jax.evaluation import results
from audiosep_jax.evaluation.compare import compare, main, read_evaluation

COUNT = 200


def save(folder, sdri_N, *, fingerprint="f", labels=None, aggregation="mean", missing=()):
    rows = [
        {
            **{"row": n, "id": f"m{n}", "query": "dog", "label": labels[n] if labels else "dog"},
            **{"clip": f"clip{n}", "snr_db": 0.0, "num_samples": 8},
            **{
                "fingerprint": f"{fingerprint}{n}",
                "sdri": float(value),
                "si_sdr": 2 * float(value),
            },
        }
        for n, value in enumerate(sdri_N)
    ]
    content = {
        **{"protocol": "mixtures", "title": "own mixtures", "aggregation": aggregation},
        **{"checkpoint": {"source": folder.name, "fingerprint": "x"}, "baseline": None},
        **{"query": None, "query_column": "query", "query_kind": "text label", "notes": []},
        **{"missing": list(missing), "command": "evaluate", "sample_rate_hz": 8000},
        **results.summary(rows, aggregation),
    }
    files.write_json(folder / results.JSON_NAME, content)
    results.write_csv(folder / results.CSV_NAME, rows)
    return folder


@pytest.fixture
def pair(tmp_path):
    """A second run that gains 0.5 dB with a spread of 0.1, on scores that spread by 5 dB."""
    rng = np.random.default_rng(0)
    base_N = rng.normal(5, 5, COUNT)
    gain_N = rng.normal(0.5, 0.1, COUNT)
    return save(tmp_path / "a", base_N), save(tmp_path / "b", base_N + gain_N), gain_N


def test_a_small_gain_shows_in_pairs_though_not_in_means(pair):
    a, b, gain_N = pair
    content = compare([read_evaluation(a), read_evaluation(b)])
    score = content["scores"]["sdri"]["b"]
    assert score["difference"] == pytest.approx(gain_N.mean(), abs=1e-5)
    # The interval of a mean of N independent differences.
    half = 1.96 * gain_N.std() / np.sqrt(COUNT)
    assert score["low"] == pytest.approx(gain_N.mean() - half, abs=0.004)
    assert score["high"] == pytest.approx(gain_N.mean() + half, abs=0.004)
    assert score["better"] == 1.0
    assert content["scores"]["si_sdr"]["b"]["difference"] == pytest.approx(
        2 * gain_N.mean(), abs=1e-5
    )
    own = json.loads((a / "results.json").read_text())["scores"]["sdri"]
    assert own["high"] - own["low"] > 10 * (score["high"] - score["low"])
    assert content["spread"]["range_db"] == pytest.approx(gain_N.mean(), abs=1e-5)
    assert content["spread"]["deviation_db"] == pytest.approx(gain_N.mean() / 2, abs=1e-5)


def test_classes_are_aggregated_as_in_the_benchmark(tmp_path):
    # Medians: 2 and 10; of the other run 3 and 10. The median of differences would be -1 and 0.
    labels = ["x"] * 3 + ["y"]
    options = {"labels": labels, "aggregation": "mean of class medians"}
    a = save(tmp_path / "a", [1, 2, 9, 10], **options)
    b = save(tmp_path / "b", [0, 8, 3, 10], **options)
    score = compare([read_evaluation(a), read_evaluation(b)])["scores"]["sdri"]
    assert score["a"]["mean"] == 6
    assert score["b"]["mean"] == 6.5
    assert score["b"]["difference"] == 0.5


def test_other_mixtures_are_refused(tmp_path, pair):
    a, b, _ = pair
    other = save(tmp_path / "other", np.zeros(COUNT), fingerprint="g")
    short = save(tmp_path / "short", np.zeros(COUNT - 1))
    gaps = save(tmp_path / "gaps", np.zeros(COUNT), missing=[{"row": 1}])
    for folder, told in (
        (other, "not those of a"),
        (short, "not those of a"),
        (gaps, "not scored"),
    ):
        with pytest.raises(InputError, match=told):
            compare([read_evaluation(x) for x in (a, folder)])
    with pytest.raises(InputError, match="at least two results"):
        compare([read_evaluation(a)])
    with pytest.raises(InputError, match="--names"):
        compare([read_evaluation(a, "x"), read_evaluation(b, "x")])
    with pytest.raises(InputError, match="holds no results"):
        read_evaluation(tmp_path)
    table = (b / "results.csv").read_text()
    for cell in ("loud", ""):
        (b / "results.csv").write_text(re.sub(r",8,[-0-9.]+", f",8,{cell}", table, count=1))
        with pytest.raises(InputError, match=r"results\.csv: line 2: a score is missing or no"):
            read_evaluation(b)
    (b / "results.json").write_text("{}")
    with pytest.raises(InputError, match="holds no results"):
        read_evaluation(b)


def test_the_command_writes_what_it_says(tmp_path, pair, capsys):
    a, b, gain_N = pair
    output = tmp_path / "out"
    assert main([str(a), str(b), "--names", "old", "$new$_{", "--output", str(output)]) == 0
    written = [str(output / f"comparison.{suffix}") for suffix in ("json", "md", "png")]
    assert capsys.readouterr().out.splitlines() == written
    page = (output / "comparison.md").read_text()
    assert f"{gain_N.mean():+.2f}" in page
    assert "| $new$_{ |" in page
    assert "100%" in page
    assert (output / "comparison.png").read_bytes().startswith(b"\x89PNG")


def test_mistakes_are_one_line(tmp_path, pair, capsys):
    a, b, _ = pair
    output = tmp_path / "out"
    for words in (
        [str(a), str(tmp_path / "none"), "--output", str(output)],
        [str(a), str(b), "--names", "x", "--output", str(output)],
        [str(a), str(b), "--output", str(a / "results.json")],
        [str(a), str(b)],
    ):
        assert main(words) == 2
        told = capsys.readouterr().err
        assert told.startswith("error: ")
        assert told.count("\n") == 1
    assert not output.exists()
