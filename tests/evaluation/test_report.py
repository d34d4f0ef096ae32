"""results.md shows the content of results.json, and differences from the benchmark."""

from audiosep_jax.evaluation import report


def content_of(**changes):
    score = {"mean": 9.876, "low": 9.0, "high": 10.5}
    content = {
        "protocol": "esc50",
        "title": "ESC-50",
        "notes": [],
        "count": 2000,
        "aggregation": "mean",
        "scores": {"sdri": score, "si_sdr": {"mean": 8.7654, "low": None, "high": None}},
        "classes": {},
        "missing": [],
        "silent": [],
        "baseline": None,
        "checkpoint": {"source": "runs/mine", "step": 3000, "fingerprint": "abc"},
        "data": {"metadata": "esc50.csv", "fingerprint": "def"},
        "query": None,
        "query_column": "caption",
        "query_kind": "text label",
        "sample_rate_hz": 32000,
        "definition": "SDR = ...",
        "version": "1",
        "command": "audiosep evaluate",
    }
    return content | changes


def rows_of(page):
    """Cells of every line of every table, by their first cell."""
    lines = [line[2:-2].split(" | ") for line in page.splitlines() if line.startswith("|")]
    return {cells[0]: cells[1:] for cells in lines}


def test_this_run_stands_beside_the_published_numbers():
    rows = rows_of(report.markdown(content_of()))
    assert rows["this run"] == ["9.88", "8.77"]
    assert rows["SDRi, dB"] == ["9.88", "9.00 to 10.50"]
    assert rows["SI-SDR, dB"] == ["8.77", "-"]
    page = report.markdown(content_of())
    assert "| AudioSep | 10.04 | 8.81 |" in page
    assert "differs from the published" not in page


def test_what_is_not_the_benchmark_says_so_at_its_numbers():
    page = report.markdown(content_of(notes=["50 mixtures are listed, the benchmark has 2,000"]))
    assert page.index("50 mixtures are listed") < page.index("9.88")
    assert "this run (see the notes above)" in page


def test_own_mixtures_have_nothing_published_beside_them():
    page = report.markdown(content_of(protocol="mixtures", title="own mixtures"))
    assert "AudioSep |" not in page
    assert "published" not in page
    page = report.markdown(content_of(protocol="mixtures", notes=["the baseline mixture"]))
    assert "**Notes:**" in page
    assert "published" not in page


def test_classes_come_best_first_and_of_many_only_the_ends():
    classes = {f"c{n:03d}": {"count": 2, "sdri": float(n), "si_sdr": 0.0} for n in range(100)}
    page = report.markdown(content_of(classes=classes))
    shown = [line.split(" | ")[0].strip("| ") for line in page.splitlines() if "| c0" in line]
    assert shown == [f"c{n:03d}" for n in [*range(99, 69, -1), *range(29, -1, -1)]]
    assert "of 100" in page


def test_missing_mixtures_are_named():
    missing = [{"row": n, "id": f"m{n}", "reason": "a.wav: no\nsuch | file"} for n in range(60)]
    page = report.markdown(content_of(missing=missing))
    assert "Not scored: 60" in page
    assert "a.wav: no such \\| file" in page
    assert "and 10 more" in page
