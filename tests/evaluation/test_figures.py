"""Figures of an evaluation show what the rows hold."""

import numpy as np
import pytest

from audiosep_jax.evaluation import figures
from audiosep_jax.plots import new_figure


def rows_of(sdri_N, mixture_N=None):
    mixture_N = np.zeros(len(sdri_N)) if mixture_N is None else mixture_N
    return [
        {"row": n, "query": "dog", "sdri": float(x), "sdr": float(x), "mixture_sdr": float(m)}
        for n, (x, m) in enumerate(zip(sdri_N, mixture_N, strict=True))
    ]


@pytest.mark.parametrize(
    ("count", "sizes"), [(1, [1, 0, 0]), (2, [1, 0, 1]), (9, [3, 3, 3]), (100, [10] * 3)]
)
def test_examples_are_the_ends_and_the_middle_none_twice(count, sizes):
    rows = rows_of(np.random.default_rng(0).permutation(count))
    chosen = figures.example_rows(rows)
    assert [len(chosen[kind]) for kind in ("best", "median", "worst")] == sizes
    numbers = [row["row"] for found in chosen.values() for row in found]
    assert len(set(numbers)) == len(numbers)
    if count == 100:
        values = {kind: [row["sdri"] for row in found] for kind, found in chosen.items()}
        assert values["best"] == list(range(99, 89, -1))
        assert values["worst"] == list(range(9, -1, -1))
        assert np.median(values["median"]) == np.median([row["sdri"] for row in rows])


def test_rows_without_scores_are_no_examples():
    rows = [*rows_of([1.0, 2.0, 3.0]), {"row": 3, "reason": "no such file"}]
    assert [row["row"] for found in figures.example_rows(rows).values() for row in found] == [
        2,
        1,
        0,
    ]


def test_snr_figure_only_where_snrs_differ(tmp_path):
    content = {"classes": {"dog": {"count": 3, "sdri": 1.0}}}
    same, other = rows_of([1.0, 2.0, 3.0]), rows_of([1.0, 2.0, 3.0], [-5, 0, 5])
    assert figures.draw(content, same, tmp_path / "a") == ["histogram.png", "by_class.png"]
    drawn = figures.draw(content | {"classes": {}}, other, tmp_path / "b")
    assert drawn == ["histogram.png", "by_snr.png"]
    for name in drawn:
        assert (tmp_path / "b" / name).read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("missing", [0, 2])
def test_figures_of_a_part_say_so(tmp_path, monkeypatch, missing):
    def as_svg(path, *size):
        return new_figure(path.with_suffix(".svg"), *size)

    monkeypatch.setattr(figures, "new_figure", as_svg)
    rows = rows_of(np.arange(11.0), np.arange(11.0))
    classes = {"dog": {"count": 11, "sdri": 5.0}}
    lost = [{"row": 11 + n, "reason": "gone"} for n in range(missing)]
    drawn = figures.draw({"classes": classes}, [*rows, *lost], tmp_path)
    assert drawn == ["histogram.png", "by_class.png", "by_snr.png"]
    for name in drawn:
        text = (tmp_path / name).with_suffix(".svg").read_text()
        assert ("<!-- 11 of 13 mixtures -->" in text) == bool(missing)
