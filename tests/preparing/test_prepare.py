"""prepare: the command writes one data set, the same bytes however often it is interrupted."""

import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import prepared_examples as examples
import pytest

from audiosep_jax import prepare
from audiosep_jax.data.prepared import PreparedSource
from audiosep_jax.preparing import task_pool
from audiosep_jax.preparing.writer import read_part

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """(root, data set) of 35 clips in 4 tasks, one of them broken and one too short."""
    root = tmp_path_factory.mktemp("whole") / "clips"
    examples.class_folders(root, num_clips=35)
    (root / "rain" / "003.wav").write_bytes(b"RIFF")
    examples.save(root / "rain" / "005.wav", seconds=0.05)
    assert examples.run(root.parent / "data", "folders", "--root", root) == 0
    return root, root.parent / "data"


def refused(capsys, output, *arguments, **options):
    """The one line, of a command that leaves nothing behind."""
    before = sorted(output.parent.iterdir())
    assert examples.run(output, *arguments, **options) == 2
    assert sorted(output.parent.iterdir()) == before
    err = capsys.readouterr().err
    # What goes before is the progress bar.
    line = err[err.index("error: ") :]
    assert line.count("\n") == 1
    return line


def test_what_is_skipped_is_told_in_the_data_set_and_beside_it(whole):
    report = examples.report(whole[1])
    assert report["splits"] == {"train": {"recordings": 33, "records": 33, "seconds": 16.5}}
    assert report["num_skipped"] == 2
    assert [row["id"] for row in report["skipped"]] == ["rain/003.wav", "rain/005.wav"]
    assert report["skipped"][1]["reason"] == "0.05 s is shorter than min_seconds=0.1"
    metadata = json.loads((whole[1] / "metadata.json").read_text())
    assert {key: metadata[key] for key in report} == report
    assert not whole[1].with_name("data.parts").exists()


def test_a_finished_data_set_is_left_alone(whole, capsys):
    root, data = whole
    before = examples.contents(data)
    assert examples.run(data, "folders", "--root", root) == 0
    assert "finished already" in capsys.readouterr().out
    told = refused(capsys, data, "folders", "--root", root, "--valid_root", root)
    assert "is there already" in told
    assert examples.contents(data) == before


def test_stopped_in_the_middle_goes_on_to_the_same_bytes(whole, tmp_path, monkeypatch, capsys):
    root, data = whole
    write_part, done = task_pool.write_part, []

    def interrupted(recordings, folder, task, settings):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(task)
        return write_part(recordings, folder, task, settings)

    monkeypatch.setattr(task_pool, "write_part", interrupted)
    output = tmp_path / "data"
    assert examples.run(output, "folders", "--root", root) == 130
    assert "same command" in capsys.readouterr().err
    assert not output.exists()
    monkeypatch.undo()
    again = []

    def counted(recordings, folder, task, settings):
        again.append(task)
        return write_part(recordings, folder, task, settings)

    monkeypatch.setattr(task_pool, "write_part", counted)
    assert examples.run(output, "folders", "--root", root) == 0
    assert sorted([*done, *again]) == [0, 1, 2, 3]
    assert examples.contents(output) == examples.contents(data)


def test_shards_join_on_one_disk_and_from_several(whole, tmp_path, capsys):
    root, data = whole
    elsewhere = tmp_path / "elsewhere" / "clips"
    shutil.copytree(root, elsewhere)
    one, other = tmp_path / "one" / "data", tmp_path / "other" / "data"
    assert examples.run(one, "folders", "--root", root, "--shard", "0/2") == 0
    assert "2 of 4 tasks are left" in capsys.readouterr().out
    assert not one.exists()
    early = tmp_path / "one" / "early"
    assert "tasks are not done" in refused(capsys, early, "folders", "--root", root, "--merge")
    assert examples.run(other, "folders", "--root", elsewhere, "--shard", "1/2") == 0
    parts = other.with_name("data.parts")
    assert examples.run(one, "folders", "--root", root, "--merge", parts) == 0
    assert examples.contents(one) == examples.contents(data)
    assert parts.is_dir()  # not ours to remove
    assert examples.run(other, "folders", "--root", elsewhere) == 0
    assert examples.contents(other) == examples.contents(data)


def test_parts_of_another_data_set_are_not_merged(whole, tmp_path, capsys):
    root, _ = whole
    other = tmp_path / "other" / "data"
    arguments = ("folders", "--root", root, "--valid_root", root)
    assert examples.run(other, *arguments, "--shard", "0/2") == 0
    parts = other.with_name("data.parts")
    (tmp_path / "one").mkdir()
    told = refused(capsys, tmp_path / "one" / "data", "folders", "--root", root, "--merge", parts)
    assert "holds no parts of this data set" in told


def test_a_lost_shard_is_made_again(whole, tmp_path):
    root, data = whole
    output = tmp_path / "data"
    assert examples.run(output, "folders", "--root", root, "--shard", "0/2") == 0
    folder = output.with_name("data.parts")
    name = read_part(folder, 2).shards[0][0]
    (folder / name).write_bytes(b"short")
    assert examples.run(output, "folders", "--root", root) == 0
    assert examples.contents(output) == examples.contents(data)


def children(pid):
    return [
        int(child)
        for task in Path(f"/proc/{pid}/task").iterdir()
        for child in (task / "children").read_text().split()
    ]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")
def test_killed_with_its_workers_goes_on_to_the_same_bytes(tmp_path):
    arguments = ["--num_clips", "150"]
    output, folder = tmp_path / "data", tmp_path / "data.parts"
    fixed = ["--sample_rate", str(examples.RATE_HZ), "--min_seconds", "0.1", "--workers", "2"]
    command = [sys.executable, "-m", "audiosep_jax.prepare", "synthetic", *fixed, *arguments]
    process = subprocess.Popen(
        [*command, "--output", str(output)], cwd=ROOT, stderr=subprocess.DEVNULL
    )
    while not list(folder.glob("[0-9]*.json")):
        assert process.poll() is None
        time.sleep(0.001)
    workers = children(process.pid)
    process.kill()
    process.wait()
    assert not output.exists()
    assert len(workers) >= 2
    deadline = time.monotonic() + 30
    while any(Path(f"/proc/{worker}").exists() for worker in workers):
        assert time.monotonic() < deadline, "a worker outlives its parent"
        time.sleep(0.05)
    assert len(list(folder.glob("[0-9]*.json"))) < 17
    assert examples.run(output, "synthetic", *arguments, workers=1) == 0
    undisturbed = tmp_path / "undisturbed"
    assert examples.run(undisturbed, "synthetic", *arguments, workers=1) == 0
    assert examples.contents(output) == examples.contents(undisturbed)
    assert len(PreparedSource(output, "train+valid")) == 165


def test_a_killed_worker_is_one_line(whole, tmp_path, capsys, monkeypatch):
    root, _ = whole
    # Workers are new processes, which read the module again: so they are killed from outside.
    add, killed = task_pool._add, []

    def kill_one(a, b):
        if not killed:
            for child in multiprocessing.active_children():
                child.kill()
                killed.append(child)
        return add(a, b)

    monkeypatch.setattr(task_pool, "_add", kill_one)
    arguments = ("--root", root)
    assert examples.run(tmp_path / "data", "folders", *arguments, workers=2) in (0, 2)
    err = capsys.readouterr().err
    if "error: " in err:
        assert "run the same command again" in err
    assert killed
    monkeypatch.undo()
    assert examples.run(tmp_path / "data", "folders", *arguments) == 0
    assert examples.contents(tmp_path / "data") == examples.contents(whole[1])


def test_a_second_run_beside_the_first_is_refused(whole, tmp_path, capsys):
    output = tmp_path / "data"
    with prepare._at_work(output.with_name("data.parts"), (0, 1)):
        assert "another prepare" in refused(capsys, output, "folders", "--root", whole[0])


def test_a_full_disk_is_one_line(whole, tmp_path, capsys, monkeypatch):
    def full(path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    told = refused(capsys, tmp_path / "data", "folders", "--root", whole[0])
    assert "cannot be written (No space left on device)" in told


def test_files_in_the_wrong_place_are_told_at_once(tmp_path, capsys):
    rows = [{"wav": f"{k}.wav", "caption": "x"} for k in range(30)]
    (tmp_path / "list.json").write_text(json.dumps({"data": rows}))
    told = refused(capsys, tmp_path / "data", "manifest", "--root", tmp_path / "list.json")
    assert "none of" in told
    assert "docs/data.md" in told


def test_nothing_usable_is_refused_and_forgotten(tmp_path, capsys):
    root = tmp_path / "clips"
    examples.save(root / "dog" / "a.wav", peak=0.0)
    told = refused(capsys, tmp_path / "data", "folders", "--root", root)
    assert "all was skipped; first reason: holds nothing but silence" in told
    examples.save(root / "dog" / "a.wav")
    assert examples.run(tmp_path / "data", "folders", "--root", root) == 0


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("esc51", "--root", "."), "esc51"),
        (("esc50",), "--root is missing"),
        (("esc50", "--root", "no"), "--root: no: no such"),
        (("synthetic", "--root", "."), "synthetic clips lie nowhere"),
        (("esc50", "--root", ".", "--valid_root", "."), "splits of its own"),
        (("esc50", "--root", ".", "--valid_folds", "a"), "--valid_folds"),
        (("synthetic", "--shard", "2/2"), "--shard"),
        (("synthetic", "--shard", "0/2", "--merge"), "leave --shard out"),
        (("synthetic", "--num_clips", "0"), "--num_clips"),
        (("synthetic", "--sample_rate", "10"), "--sample_rate"),
        (("synthetic", "--min_seconds", "-1"), "--min_seconds"),
        (("synthetic", "--nonsense"), "--nonsense"),
        (("clotho", "--root", "."), "clotho_captions_development.csv"),
    ],
)
def test_mistakes_are_one_line(tmp_path, capsys, monkeypatch, arguments, told):
    monkeypatch.chdir(tmp_path)
    assert told in refused(capsys, tmp_path / "data", *arguments)


def test_an_output_that_is_something_else_is_refused(tmp_path, capsys):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mine.txt").touch()
    assert "is there already" in refused(capsys, tmp_path / "data", "synthetic", "--num_clips", "9")
    (tmp_path / "file").touch()
    assert "cannot be a folder" in refused(capsys, tmp_path / "file", "synthetic")


def test_help_shows_an_example_without_loading(capsys):
    with pytest.raises(SystemExit) as caught:
        prepare.main(["--help"])
    assert caught.value.code == 0
    shown = capsys.readouterr().out
    assert "python -m audiosep_jax.prepare clotho --root" in shown
    assert all(source in shown for source in prepare.SOURCES)


def test_real_clips(shared, tmp_path):
    root = tmp_path / "few"
    (root / "meta").mkdir(parents=True)
    table = (shared / "data" / "esc10" / "meta" / "esc50.csv").read_text().splitlines()
    (root / "meta" / "esc50.csv").write_text("\n".join([*table[:6], *table[-2:]]) + "\n")
    (root / "audio").symlink_to(shared / "data" / "esc10" / "audio")
    folds = sorted({line.split(",")[1] for line in [*table[1:6], *table[-2:]]})
    assert len(folds) == 2
    output = tmp_path / "data"
    assert examples.run(output, "esc50", "--root", root, "--valid_folds", folds[1]) == 0
    train, valid = PreparedSource(output), PreparedSource(output, "valid")
    assert (len(train), len(valid)) == (5, 2)
    for index, line in enumerate(table[1:6]):
        assert train.name(index) == line.split(",")[0]
        assert train.captions(index) == (line.split(",")[3].replace("_", " "),)
        assert 4.9 < len(train.load(index)) / examples.RATE_HZ < 5.1
