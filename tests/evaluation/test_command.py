"""The command with a tiny network, against a slow reference."""

import csv
import importlib.util
import json
import subprocess
import sys

import jax
import numpy as np
import pytest
from evaluation_examples import (
    CLASSES,
    RATE_HZ,
    pairs_list,
    slow_sdr,
    slow_si_sdr,
    write_clips,
    write_list,
)
from tiny_run import save_run, tiny_config

from audiosep_jax.audio import files as audio_files
from audiosep_jax.errors import InputError
from audiosep_jax.evaluation import figures, runner
from audiosep_jax.evaluation.command import main
from audiosep_jax.evaluation.compare import main as compare_main
from audiosep_jax.evaluation.protocols import BASELINES, PROTOCOLS
from audiosep_jax.evaluation.results import RowLog
from audiosep_jax.separation.separator import Separator

pytestmark = pytest.mark.slow

COUNT = 13


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A checkpoint, clips and lists: own pairs, and the same two clips by ESC-50's list."""
    folder = tmp_path_factory.mktemp("evaluate")
    config = tiny_config()
    config.num_steps = 10  # which is the step that is saved: the run has ended
    save_run(folder / "run", config=config)
    write_clips(folder / "audio", COUNT + 1)
    pairs_list(folder / "pairs.csv", COUNT)
    rows = [(n, CLASSES[n % 3], f"clip{n}.wav", f"clip{n + 1}.wav") for n in range(COUNT)]
    write_list(folder / "esc50.csv", ("idx", "caption", "src_wav", "noise_wav"), rows)
    return folder


def run(
    place, output, *extra, protocol="mixtures", metadata="pairs.csv", audio="audio", figures=False
):
    words = ["--protocol", protocol, "--metadata", str(place / metadata)]
    words += ["--audio", str(place / audio), "--output", str(output), "--num_threads", "2"]
    words += [] if figures else ["--no_figures"]
    if {"--baseline", "--estimates"} & {*extra}:
        words += ["--sample_rate_hz", str(RATE_HZ)]  # which else is the checkpoint's
    else:
        words += ["--checkpoint", str(place / "run")]
    return main([*words, *map(str, extra)])


def results(output):
    return json.loads((output / "results.json").read_text())


def table(output):
    with (output / "results.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def scored(place):
    output = place / "scored"
    assert run(place, output) == 0
    return output


def slow_rows(place):
    """Expected scores of each mixture, separated alone and scored by the definitions."""
    separator = Separator.load(place / "run")
    expected = []
    with (place / "pairs.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            target_S, noise_S = (
                audio_files.read(place / "audio" / row[name])[0][0] for name in ("target", "noise")
            )
            gain = 1.0
            if row["snr"]:
                gain = np.sqrt(np.mean(target_S**2) / np.mean(noise_S**2))
                gain *= 10 ** (-float(row["snr"]) / 20)
            mixture_S = (target_S + np.float32(gain) * noise_S).astype(np.float32)
            peak = np.abs(mixture_S).max()
            if peak > 1 and row["snr"]:
                target_S, mixture_S = (x * np.float32(0.9 / peak) for x in (target_S, mixture_S))
            estimate_S = separator.separate(mixture_S, RATE_HZ, row["query"])
            scores = {"sdr": slow_sdr(target_S, estimate_S)}
            scores["sdri"] = scores["sdr"] - slow_sdr(target_S, mixture_S)
            scores["si_sdr"] = slow_si_sdr(target_S, estimate_S)
            expected.append(scores)
    return expected


def test_scores_are_those_of_the_definitions(place, scored):
    expected = slow_rows(place)
    found = table(scored)
    for row, scores in zip(found, expected, strict=True):
        for name, value in scores.items():
            assert float(row[name]) == pytest.approx(value, abs=1e-4), (row["id"], name)
    content = results(scored)
    for name in ("sdr", "sdri", "si_sdr"):
        mean = np.mean([scores[name] for scores in expected])
        assert content["scores"][name]["mean"] == pytest.approx(mean, abs=1e-4)
        by_class = np.mean([scores[name] for scores in expected[1::3]])
        assert content["classes"]["rain"][name] == pytest.approx(by_class, abs=1e-4)
    assert (content["count"], content["notes"], content["is_benchmark"]) == (COUNT, [], False)
    assert content["checkpoint"]["step"] == 10


def mean(output, name="sdri"):
    return results(output)["scores"][name]["mean"]


@pytest.mark.parametrize("change", ["devices", "order", "shards"])
def test_results_do_not_depend_on_how_they_are_computed(
    place, scored, tmp_path, change, monkeypatch
):
    if change == "shards":
        assert run(place, tmp_path, "--shard", "1/2") == 0
        assert not (tmp_path / "results.json").exists()
        assert run(place, tmp_path, "--shard", "0/2") == 0
    elif change == "devices":  # of which a CPU otherwise uses one
        monkeypatch.setattr(runner, "devices_to_use", lambda: jax.local_devices()[:2])
        assert run(place, tmp_path) == 0
    else:
        header, *lines = (place / "pairs.csv").read_text().splitlines()
        (place / "turned.csv").write_text("\n".join([header, *lines[::-1]]) + "\n")
        assert run(place, tmp_path, metadata="turned.csv") == 0
    by_id = {row["id"]: row for row in table(tmp_path)}
    for row in table(scored):
        for name in ("sdr", "sdri", "si_sdr", "si_sdri"):
            assert float(by_id[row["id"]][name]) == pytest.approx(float(row[name]), abs=1e-5)
    assert mean(tmp_path) == pytest.approx(mean(scored), abs=1e-5)
    if change != "order":
        assert results(tmp_path)["data"] == results(scored)["data"]


class Killed(BaseException):
    """Not caught by the command, as a signal is not."""


@pytest.mark.parametrize("after", [0, 11])
def test_killed_and_started_again(place, scored, tmp_path, after, monkeypatch):
    """Ends with the very bytes of a run that nobody stopped."""
    left = [after]
    add = RowLog.add

    def kill(self, row):
        if "row" in row:
            left[0] -= 1
            if left[0] < 0:
                with self.path.open("a") as file:
                    file.write('{"row": 99, "sd')  # and half a line is on disk
                raise Killed
        add(self, row)

    output = tmp_path / "out"
    monkeypatch.setattr(RowLog, "add", kill)
    with pytest.raises(Killed):
        run(place, output)
    assert not (output / "results.json").exists()
    monkeypatch.undo()
    assert run(place, output) == 0
    for name in ("results.json", "results.csv"):
        # The folder of the results is all in which the two runs differ.
        content = (output / name).read_text().replace(str(output), str(scored))
        assert content == (scored / name).read_text()
    lines = (output / "results.partial.jsonl").read_text().splitlines()[1:]
    assert sorted(json.loads(line)["row"] for line in lines) == list(range(COUNT))
    before = {path: path.stat().st_mtime_ns for path in output.glob("*.jsonl")}
    assert run(place, output) == 0
    assert before == {path: path.stat().st_mtime_ns for path in output.glob("*.jsonl")}


def test_another_evaluation_needs_another_folder(place, tmp_path, capsys):
    assert run(place, tmp_path, "--baseline", "mixture") == 0
    assert run(place, tmp_path, "--baseline", "silence") == 2
    assert "baseline differs); choose another output folder" in capsys.readouterr().err
    assert run(place, tmp_path, "--baseline", "silence", "--overwrite") == 0
    assert results(tmp_path)["baseline"] == "silence"


def test_changed_sounds_are_not_taken_for_those_scored(place, tmp_path, capsys):
    write_clips(tmp_path / "audio", COUNT + 1)
    options = ("--baseline", "mixture"), {"audio": tmp_path / "audio"}
    output = tmp_path / "out"
    assert run(place, output, *options[0], **options[1]) == 0
    before = (output / "results.json").read_bytes()
    clip_CS, _ = audio_files.read(tmp_path / "audio" / "clip3.wav")
    audio_files.write(tmp_path / "audio" / "clip3.wav", clip_CS[:, ::-1], RATE_HZ)
    assert run(place, output, *options[0], **options[1]) == 2
    assert (
        "has changed since it was scored; choose another output folder" in capsys.readouterr().err
    )
    assert (output / "results.json").read_bytes() == before
    assert run(place, output, *options[0], "--overwrite", **options[1]) == 0
    assert results(output)["data"]["fingerprint"] not in before.decode()


def test_overwriting_leaves_no_results_of_before(place, tmp_path):
    audio = tmp_path / "audio"
    write_clips(audio, COUNT + 1)
    assert run(place, tmp_path / "out", "--baseline", "mixture", audio=audio) == 0
    (audio / "clip5.wav").write_bytes((audio / "clip5.wav").read_bytes()[:-400])
    again = ("--baseline", "silence", "--overwrite")
    assert run(place, tmp_path / "out", *again, audio=audio) == 2
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["results.partial.jsonl"]


def test_a_list_may_word_its_query_in_several_columns(place, tmp_path):
    rows = [("clip0.wav", "clip1.wav", "a dog", "it barks"), ("clip2.wav", "clip3.wav", "x", "y")]
    write_list(place / "study.csv", ("target", "noise", "label", "caption"), rows)
    for column, queries in (("label", ["a dog", "x"]), ("caption", ["it barks", "y"])):
        words = ("--baseline", "mixture", "--query_column", column)
        assert run(place, tmp_path / column, *words, metadata="study.csv") == 0
        assert [row["query"] for row in table(tmp_path / column)] == queries
        assert results(tmp_path / column)["query_column"] == column


def test_baselines(place, scored, tmp_path):
    assert run(place, tmp_path / "mixture", "--baseline", "mixture") == 0
    assert run(place, tmp_path / "silence", "--baseline", "silence") == 0
    assert run(place, tmp_path / "irm", "--baseline", "irm") == 0
    assert run(place, tmp_path / "icm", "--baseline", "icm") == 0
    assert mean(tmp_path / "mixture") == 0
    assert mean(tmp_path / "mixture", "sdr") == pytest.approx(mean(scored, "mixture_sdr"), abs=1e-3)
    assert mean(tmp_path / "silence", "sdr") == 0
    assert mean(tmp_path / "silence", "si_sdr") == pytest.approx(0, abs=1e-4)
    assert 2 < mean(tmp_path / "irm") < mean(tmp_path / "icm") < 60
    wrong = tmp_path / "wrong"
    assert run(place, wrong, "--baseline", "random_query", "--checkpoint", place / "run") == 0
    for right, row in zip(table(scored), table(wrong), strict=True):
        assert row["query"] != right["query"]
        assert row["sdri"] != right["sdri"]


def test_a_part_of_a_benchmark_says_so(place, tmp_path, capsys):
    assert run(place, tmp_path, protocol="esc50", metadata="esc50.csv") == 0
    content = results(tmp_path)
    assert not content["is_benchmark"]
    told = capsys.readouterr().out
    for note in (
        "13 mixtures are listed, the benchmark has 2,000",
        "mixed again at 0 dB; the SNR of the published mixtures is not known",
        "the model works at 8000 Hz and is converted to 32000",
    ):
        assert note in content["notes"]
        assert f"note: {note}" in told
    assert (content["sample_rate_hz"], content["query_column"]) == (32000, "caption")


def other_system(place, tmp_path, change):
    """(options of the rendered mixtures, folder of `change(mixture)` for each of them)."""
    folder, estimates = tmp_path / "rendered", tmp_path / "estimates"
    words = ["--protocol", "mixtures", "--metadata", str(place / "pairs.csv")]
    words += ["--audio", str(place / "audio"), "--sample_rate_hz", str(RATE_HZ)]
    assert main(["render", *words, "--output", str(folder)]) == 0
    for path in folder.glob("mixture-*.wav"):
        audio_files.write(estimates / path.name, change(audio_files.read(path)[0]), RATE_HZ)
    return {"metadata": folder / "mixtures.csv", "audio": folder}, estimates


def test_estimates_of_another_system(place, tmp_path, capsys):
    rendered, estimates = other_system(place, tmp_path, lambda mixture_CS: mixture_CS / 4)
    options = ("--baseline", "mixture"), ("--estimates", estimates)
    outputs = tmp_path / "mixture", tmp_path / "quarter"
    for words, output in zip(options, outputs, strict=True):
        assert run(place, output, *words, **rendered) == 0
    assert f"note: the estimates were read from {estimates}" in capsys.readouterr().out
    for row in table(outputs[1]):
        target_S, mixture_S = (
            audio_files.read(tmp_path / "rendered" / f"{kind}-{row['id']}.wav")[0][0]
            for kind in ("segment", "mixture")
        )
        assert float(row["sdr"]) == pytest.approx(slow_sdr(target_S, mixture_S / 4), abs=1e-4)
        assert float(row["si_sdri"]) == pytest.approx(0, abs=1e-4)
        assert "query_gap" not in row
    words = (*map(str, outputs), "--output", str(tmp_path / "both"), "--no_figures")
    assert compare_main(words) == 0
    difference = json.loads((tmp_path / "both" / "comparison.json").read_text())
    assert difference["count"] == COUNT
    # The list says which queries are wrong; the system's answers to them lie in a folder.
    assert all(line["wrong_query"] not in ("", line["query"]) for line in read_list(rendered))
    for path in estimates.glob("*.wav"):
        silence_CS = np.zeros_like(audio_files.read(path)[0])
        audio_files.write(estimates / "wrong_query" / path.name, silence_CS, RATE_HZ)
    assert run(place, tmp_path / "gap", "--estimates", estimates, **rendered) == 0
    for row in table(tmp_path / "gap"):
        assert float(row["sdri_wrong_query"]) == pytest.approx(-float(row["mixture_sdr"]), abs=1e-4)


def read_list(rendered):
    with rendered["metadata"].open(newline="") as file:
        return list(csv.DictReader(file))


def test_estimates_that_cannot_be_used_are_named(place, tmp_path, capsys):
    rendered, estimates = other_system(place, tmp_path, lambda mixture_CS: mixture_CS)
    audio_CS = audio_files.read(estimates / "mixture-m1.wav")[0]
    (estimates / "mixture-m0.wav").unlink()
    audio_files.write(estimates / "mixture-m1.wav", audio_CS[:, :-2], RATE_HZ)
    audio_files.write(estimates / "mixture-m2.wav", audio_CS, 2 * RATE_HZ)
    audio_files.write(estimates / "mixture-m3.wav", audio_CS[:, :-1], RATE_HZ)  # rounding
    assert run(place, tmp_path / "out", "--estimates", estimates, **rendered) == 2
    told = capsys.readouterr().err
    assert "3 of 13 mixtures cannot be used" in told
    assert "mixture-m0.wav: no such file" in told
    assert "mixture-m1.wav: has 1598 samples, its mixture has 1600" in told
    assert "mixture-m2.wav: has 16000 Hz, but is scored at 8000 Hz" in told
    words = ("--estimates", estimates, "--checkpoint", place / "run")
    assert run(place, tmp_path / "out", *words, **rendered) == 2
    assert "--estimates cannot be used with --checkpoint" in capsys.readouterr().err


def test_rendered_mixtures_score_as_those_mixed(place, tmp_path):
    options = ["--protocol", "esc50", "--metadata", str(place / "esc50.csv")]
    options += ["--audio", str(place / "audio"), "--sample_rate_hz", "8000"]
    assert main(["render", *options, "--output", str(tmp_path / "rendered")]) == 0
    mixed, read = tmp_path / "mixed", tmp_path / "read"
    for audio, output in (("audio", mixed), (tmp_path / "rendered", read)):
        options = {"protocol": "esc50", "metadata": "esc50.csv", "audio": audio}
        assert run(place, output, "--baseline", "irm", **options) == 0
    assert results(mixed)["scores"] == results(read)["scores"]
    assert "mixed again at 0 dB" in "".join(results(mixed)["notes"])
    assert "mixed again" not in "".join(results(read)["notes"])


def test_missing_files_are_named_and_told(place, tmp_path, capsys):
    audio = tmp_path / "audio"
    clips = write_clips(audio, COUNT + 1)
    (audio / "clip5.wav").unlink()
    assert run(place, tmp_path / "out", "--baseline", "mixture", audio=audio) == 2
    told = capsys.readouterr().err
    assert "1 of 14 files cannot be used" in told
    assert "clip5.wav: no such file. --allow_missing scores the others" in told
    assert not (tmp_path / "out").exists()
    words = ["render", "--protocol", "mixtures", "--metadata", str(place / "pairs.csv")]
    assert main([*words, "--audio", str(audio), "--output", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err.endswith("clip5.wav: no such file\n")
    # A file that is there but truncated is found while it is read.
    audio_files.write(audio / "clip5.wav", clips["clip5.wav"][None], RATE_HZ)
    content = (audio / "clip9.wav").read_bytes()
    (audio / "clip9.wav").write_bytes(content[:-400])
    assert run(place, tmp_path / "out", "--baseline", "mixture", audio=audio) == 2
    assert "2 of 13 mixtures cannot be used" in (told := capsys.readouterr().err)
    assert "clip9.wav: is truncated" in told
    assert not (tmp_path / "out" / "results.json").exists()
    allowed = ("--baseline", "mixture", "--allow_missing")
    assert run(place, tmp_path / "out", *allowed, audio=audio) == 0
    note = "2 of the 13 mixtures listed cannot be used"
    assert f"note: {note}" in capsys.readouterr().out
    found = results(tmp_path / "out")
    assert (found["count"], found["listed"], found["notes"][0]) == (11, 13, note)
    assert [row["id"] for row in found["missing"]] == ["m8", "m9"]
    assert [bool(row["reason"]) for row in table(tmp_path / "out")].count(True) == 2
    # Mended, it counts.
    (audio / "clip9.wav").write_bytes(content)
    assert run(place, tmp_path / "out", "--baseline", "mixture", audio=audio) == 0
    assert results(tmp_path / "out")["count"] == 13
    assert note not in results(tmp_path / "out")["notes"]
    for path in audio.iterdir():
        path.write_text("no sound")
    assert run(place, tmp_path / "none", *allowed, audio=audio) == 2
    assert "none of the 13 mixtures can be used, such as: " in capsys.readouterr().err


SILENT_CASES = {
    "silent target": ("silent.wav", "clip1.wav", ""),
    "silent target at an SNR": ("silent.wav", "clip1.wav", "0"),
    "silent noise": ("clip0.wav", "silent.wav", ""),
    "silent noise at an SNR": ("clip0.wav", "silent.wav", "0"),
    "target of 1e-6": ("faint.wav", "clip1.wav", ""),
    "noise of 1e-6": ("clip0.wav", "faint.wav", ""),
}


@pytest.mark.parametrize("case", SILENT_CASES)
def test_silent_sounds_are_counted_and_left_out_of_the_means(place, tmp_path, capsys, case):
    target, noise, snr = SILENT_CASES[case]
    audio = tmp_path / "audio"
    clips = write_clips(audio, 3)
    audio_files.write(audio / "silent.wav", 0 * clips["clip0.wav"][None], RATE_HZ)
    faint_S = np.float32(1e-6) * clips["clip2.wav"]
    audio_files.write(audio / "faint.wav", faint_S[None], RATE_HZ, subtype="FLOAT")
    rows = [("dog", "clip0.wav", "clip1.wav", ""), ("rain", target, noise, snr)]
    header = ("query", "target", "noise", "snr")
    write_list(tmp_path / "both.csv", header, rows)
    write_list(tmp_path / "one.csv", header, rows[:1])
    for name in ("both", "one"):
        words = ("--baseline", "mixture")
        assert (
            run(place, tmp_path / name, *words, metadata=tmp_path / f"{name}.csv", audio=audio) == 0
        )
    content = results(tmp_path / "both")
    note = "1 of the 2 mixtures listed have a silent target or noise and are left out of the means"
    assert note in content["notes"]
    assert f"note: {note}" in capsys.readouterr().out
    assert content["scores"] == results(tmp_path / "one")["scores"]
    assert (content["count"], content["listed"], content["missing"]) == (1, 2, [])
    assert "silent" in content["silent"][0]["reason"]
    assert "## Silent, left out of the means: 1" in (tmp_path / "both" / "results.md").read_text()
    assert [row["silent"] for row in table(tmp_path / "both")] == ["", "True"]
    # Nothing is computed again, and two such results can be compared.
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "both").glob("*.jsonl")}
    words = ("--baseline", "mixture")
    assert run(place, tmp_path / "both", *words, metadata=tmp_path / "both.csv", audio=audio) == 0
    assert before == {path: path.stat().st_mtime_ns for path in before}
    folders = [str(tmp_path / "both"), str(tmp_path / "one")]
    assert compare_main([*folders, "--output", str(tmp_path / "c"), "--no_figures"]) == 0


def test_rendered_mixtures_that_are_silent_or_equal_their_target_are_left_out(place, tmp_path):
    audio = tmp_path / "audio"
    clips = write_clips(audio, 2)
    audio_files.write(
        audio / "same.wav", clips["clip0.wav"][None], RATE_HZ, subtype="PCM_16"
    )  # but for the rounding to 16 bits
    audio_files.write(audio / "silent.wav", 0 * clips["clip0.wav"][None], RATE_HZ)
    pairs = [("clip0.wav", "same.wav"), ("clip0.wav", "silent.wav"), ("clip1.wav", "clip0.wav")]
    write_list(tmp_path / "list.csv", ("query", "target", "mixture"), [("x", *x) for x in pairs])
    words = ("--baseline", "mixture")
    assert run(place, tmp_path / "out", *words, metadata=tmp_path / "list.csv", audio=audio) == 0
    content = results(tmp_path / "out")
    assert [x["row"] for x in content["silent"]] == [0, 1]
    assert content["count"] == 1


def test_a_wrong_query_is_scored_beside_the_right_one(place, scored, tmp_path):
    """The gap is that to an evaluation with the baseline random_query."""
    wrong = tmp_path / "wrong"
    assert run(place, wrong, "--baseline", "random_query", "--checkpoint", place / "run") == 0
    for right, other in zip(table(scored), table(wrong), strict=True):
        assert float(right["sdri_wrong_query"]) == pytest.approx(float(other["sdri"]), abs=1e-4)
        gap = float(right["sdri"]) - float(other["sdri"])
        assert float(right["query_gap"]) == pytest.approx(gap, abs=1e-4)
    assert run(place, tmp_path / "none", "--no_wrong_query") == 0
    assert "query_gap" not in results(tmp_path / "none")["scores"]
    assert mean(tmp_path / "none") == pytest.approx(mean(scored), abs=1e-5)


def test_a_list_of_one_query_has_no_wrong_one(place, tmp_path, capsys):
    assert run(place, tmp_path, "--query", "rain") == 0
    assert "note: no score of a wrong query: the list has no query for" in capsys.readouterr().out
    assert "query_gap" not in results(tmp_path)["scores"]


def test_make_pairs_writes_a_list_that_can_be_scored(tmp_path, capsys):
    for name in ("dog", "rain"):
        write_clips(tmp_path / "clips" / name, 2)
    words = ["--audio", str(tmp_path / "clips"), "--num_pairs", "5", "--snrs_db", "-5", "5"]
    assert main(["pairs", "--output", str(tmp_path / "pairs.csv"), *words]) == 0
    words = ["--protocol", "mixtures", "--metadata", str(tmp_path / "pairs.csv")]
    words += ["--audio", str(tmp_path / "clips"), "--sample_rate_hz", "8000"]
    assert main([*words, "--baseline", "mixture", "--output", str(tmp_path / "out")]) == 0
    found = [float(row["sdr"]) for row in table(tmp_path / "out")]
    np.testing.assert_allclose(found, [-5, 5, -5, 5, -5], atol=1e-4)
    words = ["--audio", str(tmp_path / "clips"), "--output", str(tmp_path / "pairs.csv")]
    before = (tmp_path / "pairs.csv").read_bytes()
    assert main(["pairs", *words]) == 2
    assert "pairs.csv: exists; remove it or choose another name" in capsys.readouterr().err
    assert (tmp_path / "pairs.csv").read_bytes() == before


WHOLE = ["--audio", ".", "--protocol", "esc50", "--metadata", "x", "--output", "x"]
PAIRS = ["--audio", ".", "--output", "x"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--protocol", "esc51"], "invalid choice: 'esc51'"),
        ([], "required: --protocol, --audio, --output"),
        (["--audio", "nowhere"], "nowhere: no such folder"),
        (WHOLE[:-2], "required: --output"),
        ([*WHOLE[:4], *WHOLE[6:], "--baseline", "mixture"], "--metadata is needed: the CSV"),
        (WHOLE, "--checkpoint is needed"),
        ([*WHOLE, "--num_threads", "0"], "--num_threads: 0 is not in 1..inf"),
        ([*WHOLE, "--sample_rate_hz", "9"], "--sample_rate_hz: 9 is not in 100..768000"),
        ([*WHOLE, "--snr_db", "nan"], "--snr_db: nan is not in -200..200"),
        (["pairs", *PAIRS, "--snrs_db", "0", "inf"], "--snrs_db: inf is not in -200..200"),
        (["pairs", *PAIRS, "--seed", "-1"], "--seed: -1 is not in 0..inf"),
        (["pairs", *PAIRS, "--audio", "nowhere"], "nowhere: no such file or folder"),
        (["watch", "nowhere", *WHOLE], "nowhere: no such folder"),
        (["watch", ".", *WHOLE, "--poll_seconds", "0"], "--poll_seconds: 0 is not in"),
        (["render", *WHOLE, "--allow_missing"], "unrecognized arguments: --allow_missing"),
        (["--output", "none://x"], "--output: none://x: cannot be used (Protocol not known"),
        (["--shard", "2/2"], "--shard: 2/2 must be i/n"),
        (["compare", "a", "b"], "unknown verb 'compare'; known: score, watch, render, pairs"),
    ],
)
def test_mistakes_are_told_at_once(words, message, capsys):
    assert main(words) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: ")
    assert message in told
    assert told.count("\n") == 1


@pytest.mark.parametrize("verb", ["score", "render", "pairs", "watch"])
def test_help_answers_without_loading_jax(verb):
    code = (
        "import sys; from audiosep_jax.evaluation.command import main\n"
        f"try: main(['{verb}', '--help'])\n"
        "finally: assert not {'jax', 'numpy', 'soundfile'} & set(sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    assert "audiosep evaluate" in found.stdout
    if verb == "score":  # the tables
        assert all(name in found.stdout for name in (*PROTOCOLS, *BASELINES))


def test_page_and_figures_show_the_results(place, scored, monkeypatch):
    monkeypatch.setattr(figures, "NUM_EXAMPLES", 1)
    output = place / "scored"
    before = (output / "results.json").read_bytes()
    assert run(place, output, figures=True) == 0  # all is scored: nothing is computed but pictures
    content = results(output)
    page = (output / "results.md").read_text()
    assert f"| SDRi, dB | {content['scores']['sdri']['mean']:.2f} |" in page
    pictures = [line[2:].split("](")[0] for line in page.splitlines() if line.startswith("![")]
    assert {"histogram.png", "by_class.png", "by_snr.png", "examples/best-01.png"} <= set(pictures)
    assert len(pictures) == 3 + 3
    assert all((output / name).read_bytes().startswith(b"\x89PNG") for name in pictures)
    assert json.loads(before)["scores"] == content["scores"]


def test_a_watched_run_is_scored_by_checkpoint(place):
    output = place / "watched"
    words = ["--protocol", "mixtures", "--metadata", str(place / "pairs.csv"), "--no_figures"]
    words += ["--audio", str(place / "audio"), "--output", str(output)]
    names = sorted(path.name for path in (place / "run" / "checkpoints").iterdir())
    assert main(["watch", str(place / "run"), *words, "--poll_seconds", "0.01"]) == 0
    assert sorted(path.name for path in output.iterdir()) == names
    found = json.loads((output / names[-1] / "results.json").read_text())
    assert found["scores"] == results(place / "scored")["scores"]
    other = ["watch", str(place / "run"), *words, "--query", "rain"]
    assert main(other) == 2
    assert main([*other, "--overwrite"]) == 0
    assert main(["watch", str(place / "none"), *words]) == 2


def test_a_damaged_checkpoint_is_no_obstacle_for_those_behind_it(place, tmp_path, capsys):
    config = tiny_config()
    config.num_steps = 20
    save_run(tmp_path / "run", scores={10: 1.0, 20: 2.0}, config=config)
    for path in (tmp_path / "run" / "checkpoints" / "00000010" / "model").rglob("d/*"):
        path.write_bytes(b"")
    words = ["--protocol", "mixtures", "--metadata", str(place / "pairs.csv"), "--no_figures"]
    words += ["--audio", str(place / "audio"), "--output", str(tmp_path / "out")]
    for _ in range(2):
        assert main(["watch", str(tmp_path / "run"), *words]) == 2
        told = capsys.readouterr().err
        assert "skipped: --checkpoint" in told
        assert "run: not scored, cannot be read: 00000010" in told
        assert [path.name for path in (tmp_path / "out").iterdir()] == ["00000020"]


def test_options_and_columns_without_effect_are_named(place, tmp_path, capsys):
    rows = [("dog", "clip0.wav", "clip1.wav", "10"), ("rain", "clip2.wav", "clip3.wav", "10")]
    header = ("query", "target", "noise", "SNR_dB")
    write_list(tmp_path / "list.csv", header, rows)
    words = ("--baseline", "mixture")
    assert run(place, tmp_path / "out", *words, metadata=tmp_path / "list.csv") == 0
    assert "note: columns of the list that are not used: SNR_dB" in capsys.readouterr().out
    write_list(tmp_path / "list.csv", ("query", "target", "mixture"), [row[:3] for row in rows])
    words = ("--baseline", "mixture", "--snr_db", "5")
    assert run(place, tmp_path / "other", *words, metadata=tmp_path / "list.csv") == 2
    assert "--snr_db cannot be used: no mixture of the list has" in capsys.readouterr().err
    (tmp_path / "file").touch()
    assert run(place, tmp_path / "file", "--baseline", "mixture") == 2
    assert "file is not a writable folder" in capsys.readouterr().err


def test_a_figure_that_cannot_be_written_is_an_error(place, tmp_path, capsys, monkeypatch):
    """Unlike matplotlib that is not installed, which is a note."""

    def full(path, *size):
        raise InputError(f"{path}: cannot be written (No space left on device)")

    monkeypatch.setattr(figures, "new_figure", full)
    assert run(place, tmp_path, "--baseline", "mixture", figures=True) == 2
    assert "histogram.png: cannot be written (No space" in capsys.readouterr().err
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert run(place, tmp_path, "--baseline", "mixture", figures=True) == 0
    assert "note: no figures, which need matplotlib" in capsys.readouterr().out
    assert (tmp_path / "results.md").is_file()


def test_the_command_is_the_same_for_all_processes(place, tmp_path):
    words = ("--shard", "0/2"), ("--shard=1/2", "--overwrite")
    assert [run(place, tmp_path, *extra) for extra in words] == [0, 0]
    expected = f"audiosep evaluate --protocol mixtures --metadata {place}/pairs.csv --audio "
    expected += f"{place}/audio --output {tmp_path} --num_threads 2 --no_figures --checkpoint "
    assert results(tmp_path)["command"] == expected + f"{place}/run"


@pytest.mark.usefixtures("speech_packages")
def test_speech_scores_are_added(place):
    output = place / "speech"
    assert run(place, output, "--baseline", "mixture", "--speech") == 0
    found = results(output)["scores"]
    assert 1 <= found["pesq"]["mean"] <= 4.65
    assert -10 <= found["segmental_snr"]["mean"] <= 35
    # Rows without these scores are not theirs.
    assert run(place, output, "--baseline", "mixture") == 2
