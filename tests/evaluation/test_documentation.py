"""Every command and script of docs/evaluation.md runs as it is printed."""

import csv
import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
from evaluation_examples import write_clips, write_librimix, write_list
from tiny_run import save_run, tiny_config

from audiosep_jax.__main__ import main
from audiosep_jax.evaluation import figures

pytestmark = pytest.mark.slow

PAGE = Path(__file__).parents[2] / "docs" / "evaluation.md"
CLASSES = ("dog", "rain", "crying_baby")
QUERIES = (*CLASSES, "wind", "a train", "birds")
SOUNDS = (
    *("speech_female_austen", "speech_male_chivalry", "speech_male_mystery"),
    *("music_celesta_orchestra", "music_vibraphone_jazz", "trumpet_solo"),
)


def commands():
    """Words of the indented commands, in the order of the page."""
    text = PAGE.read_text().replace("\\\n", "  ")
    return [shlex.split(line) for line in re.findall(r"^ {4}(audiosep .*)$", text, re.MULTILINE)]


def write_esc50(folder):
    """A folder with the layout of ESC-50, and AudioSep's list of its pairs."""
    names = sorted(write_clips(folder / "audio", 6))
    columns = ("filename", "fold", "category")
    rows = [(name, 4, CLASSES[n % 3]) for n, name in enumerate(names)]
    write_list(folder / "meta" / "esc50.csv", columns, rows)
    pairs = [(n, CLASSES[n % 3], names[n], names[n + 1]) for n in range(5)]
    columns = ("idx", "caption", "src_wav", "noise_wav")
    return write_list(folder / "meta" / "audiosep_pairs.csv", columns, pairs)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with everything that the commands of the page name."""
    folder = tmp_path_factory.mktemp("page")
    config = tiny_config()
    config.num_steps = 10  # the step that is saved: the run has ended
    for name in ("clap", "clip", "esc50"):
        save_run(folder / "runs" / name, config=config)
    write_librimix(folder)
    pairs = write_esc50(folder / "ESC-50")
    write_esc50(folder / "esc10")
    (folder / "esc50_eval.csv").write_bytes(pairs.read_bytes())
    write_clips(folder / "evaluation" / "data" / "esc50", 6)
    write_clips(folder, 6)
    rows = [(f"clip{n}.wav", query, f"clip{(n + 1) % 6}.wav") for n, query in enumerate(QUERIES)]
    write_list(folder / "mine.csv", ("target", "query", "noise"), rows)
    for number, name in enumerate(write_clips(folder / "recordings", len(SOUNDS), 40_000)):
        (folder / "recordings" / name).rename(folder / "recordings" / f"{SOUNDS[number]}.ogg")
    return folder


def test_every_command_runs(place, monkeypatch):
    monkeypatch.chdir(place)
    monkeypatch.setattr(figures, "draw_examples", lambda *_: [])  # which another test draws
    script = re.search(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)[1]
    exec(compile(script, str(PAGE), "exec"), {})
    with Path("sounds.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(SOUNDS) * len(CLASSES) * 3
    for name in ("sounds.csv", "noises.csv"):
        words = ["--protocol", "mixtures", "--metadata", name, "--audio", ".", "--no_figures"]
        words += [
            "--sample_rate_hz",
            "8000",
            "--baseline",
            "mixture",
            "--output",
            f"mixture/{name}",
        ]
        assert main(["evaluate", *words]) == 0
    found = commands()
    assert len(found) >= 12
    for program, *words in found:
        if "--estimates" in words:
            shutil.copytree("mine", "estimates")
        assert (program, main(words)) == ("audiosep", 0), words
    for output in ("esc50", "clap", "clip", "mine", "fold4", "pairs", "sounds", "libri2mix"):
        content = json.loads(Path("results", output, "results.json").read_text())
        assert content["scores"]["sdri"]["mean"] is not None
        assert "query_gap" in content["scores"]
    assert Path("results/clap-clip/comparison.png").is_file()
    assert Path("results/clap-steps/00000010/results.json").is_file()
