"""Files for editors: labels in three formats with the same times, and all parts in one file."""

import csv
import json
import os
import re
import shutil
import subprocess

import numpy as np
import pytest
import soundfile
from tiny_run import RATE_HZ, save_run

from audiosep_jax.audio import files as audio_files
from audiosep_jax.errors import InputError
from audiosep_jax.separation import command
from audiosep_jax.separation.editors import write_labels, write_stems

QUERIES = ["rain\t& <hail>", "wind"]
SPANS = [[(0.1, 2.5), (3725.25, 3726.0)], [(0.1, 0.4), (59.9996, 60.0)]]
ROWS = [
    (0.1, 0.4, "wind"),
    (0.1, 2.5, "rain & <hail>"),
    (59.9996, 60.0, "wind"),
    (3725.25, 3726.0, "rain & <hail>"),
]
needs_ffmpeg = pytest.mark.skipif(
    shutil.which("ffmpeg") is None and os.environ.get("CI") != "true",
    reason="ffmpeg is not installed",
)


def rows_of(path):
    """Start, end and text of each label, read as the format's users do."""
    if path.suffix == ".csv":
        with path.open(newline="") as file:
            return [(float(x["start"]), float(x["end"]), x["query"]) for x in csv.DictReader(file)]
    text = path.read_text()
    if path.suffix == ".txt":
        cells = [line.split("\t") for line in text.splitlines()]
        return [(float(start), float(end), label) for start, end, label in cells]
    clock = r"(\d\d):([0-5]\d):([0-5]\d\.\d{3})"
    head, *cues = text.split("\n\n")
    assert head.strip() == "WEBVTT"
    found = []
    for cue in filter(str.strip, cues):
        times, label = cue.rstrip("\n").split("\n")
        numbers = [float(x) for x in re.fullmatch(f"{clock} --> {clock}", times).groups()]
        start, end = (3600 * h + 60 * m + s for h, m, s in (numbers[:3], numbers[3:]))
        found.append((start, end, re.sub("&lt;|&gt;|&amp;", unescaped, label)))
    return found


def unescaped(match):
    return {"&lt;": "<", "&gt;": ">", "&amp;": "&"}[match[0]]


@pytest.mark.parametrize("suffix", ["txt", "vtt", "csv"])
def test_labels_are_in_order_and_at_their_times(tmp_path, suffix):
    path = tmp_path / f"labels.{suffix}"
    write_labels(path, QUERIES, SPANS)
    rows = rows_of(path)
    assert [label for *_, label in rows] == [label for *_, label in ROWS]
    times, expected = ([x[:2] for x in some] for some in (rows, ROWS))
    np.testing.assert_allclose(times, expected, rtol=0, atol=0.001)
    assert (suffix != "vtt") == ("<hail>" in path.read_text())  # a tag in WebVTT
    write_labels(path, ["rain"], [[]])
    assert rows_of(path) == []


@needs_ffmpeg
def test_the_command_writes_both_beside_its_results(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    save_run(tmp_path / "run")
    audio_S = np.random.default_rng(0).uniform(-0.3, 0.3, RATE_HZ)
    soundfile.write("a.wav", audio_S, RATE_HZ, subtype="PCM_16")
    options = [
        "--residual",
        "--stems",
        "--json",
        "found.json",
        "--labels",
        "txt",
        "--labels",
        "vtt",
    ]
    asked = ["a.wav", "--text", "rain", "--text", "wind", "--checkpoint", "run"]
    assert command.main([*asked, *options]) == 0
    parts = [f"separated/a - {x}.wav" for x in ("rain", "wind", "residual")]
    written = [*parts, "separated/a.txt", "separated/a.vtt", "separated/a.mka"]
    assert capfd.readouterr().out.splitlines() == written

    (found,) = json.loads((tmp_path / "found.json").read_text())
    expected = sorted((*span, x["query"]) for x in found["results"] for span in x["active"])
    assert expected
    assert rows_of(tmp_path / "separated/a.txt") == expected
    assert rows_of(tmp_path / "separated/a.vtt") == expected

    probe = ["ffprobe", "-v", "error", "-show_entries", "stream_tags=title", "-of", "json"]
    told = subprocess.run([*probe, written[-1]], capture_output=True, check=True).stdout
    titles = [stream["tags"]["title"] for stream in json.loads(told)["streams"]]
    assert titles == ["rain", "wind", "residual"]
    for track, part in enumerate(parts):
        one = ["-map", f"0:a:{track}", "-c", "copy", "-y", "one.wav"]
        subprocess.run(["ffmpeg", "-v", "error", "-i", written[-1], *one], check=True)
        np.testing.assert_array_equal(audio_files.read("one.wav")[0], audio_files.read(part)[0])

    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "a.txt").write_text("mine")
    assert command.main([*asked, "--labels", "txt", "--output", "new"]) == 2
    assert "new/a.txt: exists already" in capfd.readouterr().err
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.txt"]


@needs_ffmpeg
def test_what_ffmpeg_refuses_leaves_nothing(tmp_path, monkeypatch):
    (tmp_path / "a.wav").write_bytes(b"no sound")
    with pytest.raises(InputError, match=r"x.mka: ffmpeg cannot write it \(.*a.wav"):
        write_stems(tmp_path / "x.mka", [tmp_path / "a.wav"], ["a"])
    assert [path.name for path in tmp_path.iterdir()] == ["a.wav"]
    monkeypatch.setenv("PATH", "")
    with pytest.raises(InputError, match="needs ffmpeg"):
        write_stems(tmp_path / "x.mka", [tmp_path / "a.wav"], ["a"])
