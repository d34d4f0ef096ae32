"""The command writes one data set, the same bytes however often it is interrupted."""

import concurrent.futures
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import filelock
import prepared_examples as examples
import pytest

from audiosep_jax.data.prepared import PreparedSource
from audiosep_jax.preparing import command, datasets, shards

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """(root, data set) of 35 clips in 4 shards, one of them broken and one too short."""
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


def test_skipped_recordings_are_reported_in_the_data_set(whole):
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
    message = refused(capsys, data, "folders", "--root", root, "--valid_root", root)
    assert "exists, and was not made" in message
    assert examples.contents(data) == before


def test_stopped_in_the_middle_goes_on_to_the_same_bytes(whole, tmp_path, monkeypatch, capsys):
    root, data = whole
    write_shard, done = shards.write_shard, []

    def interrupted(folder, shard, settings):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(shard.name)
        write_shard(folder, shard, settings)

    monkeypatch.setattr(shards, "write_shard", interrupted)
    output = tmp_path / "data"
    assert examples.run(output, "folders", "--root", root) == 130
    assert "same command" in capsys.readouterr().err
    assert not output.exists()
    monkeypatch.undo()
    again = []

    def counted(folder, shard, settings):
        again.append(shard.name)
        write_shard(folder, shard, settings)

    monkeypatch.setattr(shards, "write_shard", counted)
    assert examples.run(output, "folders", "--root", root) == 0
    assert len({*done, *again}) == len([*done, *again]) == 4
    assert examples.contents(output) == examples.contents(data)


def test_machines_share_the_work_in_one_folder(whole, tmp_path, capsys):
    root, data = whole
    elsewhere = tmp_path / "elsewhere" / "clips"
    shutil.copytree(root, elsewhere)
    output = tmp_path / "data"
    assert examples.run(output, "folders", "--root", root, "--shard", "0/2") == 0
    assert "2 of 4 shards are left" in capsys.readouterr().out
    assert not output.exists()
    assert examples.run(output, "folders", "--root", elsewhere, "--shard", "1/2") == 0
    assert "0 of 4 shards are left" in capsys.readouterr().out
    assert examples.run(output, "folders", "--root", tmp_path / "elsewhere" / "clips") == 0
    assert examples.contents(output) == examples.contents(data)


def test_a_folder_begun_with_other_recordings_is_refused(whole, tmp_path, capsys):
    root, _ = whole
    output = tmp_path / "data"
    assert examples.run(output, "folders", "--root", root, "--shard", "0/2") == 0
    message = refused(capsys, output, "folders", "--root", root, "--valid_root", root)
    assert "was begun with other recordings or settings" in message


def test_a_damaged_shard_is_written_again(whole, tmp_path):
    root, data = whole
    output = tmp_path / "data"
    assert examples.run(output, "folders", "--root", root, "--shard", "0/2") == 0
    folder = output.with_name("data.parts")
    accounts = sorted(folder.glob("*.array_record*.json"))
    assert len(accounts) == 2
    accounts[0].with_suffix("").write_bytes(b"short")
    accounts[1].write_text("{")
    assert examples.run(output, "folders", "--root", root) == 0
    assert examples.contents(output) == examples.contents(data)


def children(pid):
    return [
        int(child)
        for task in Path(f"/proc/{pid}/task").iterdir()
        for child in (task / "children").read_text().split()
    ]


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")
def test_killed_with_its_workers_goes_on_to_the_same_bytes(tmp_path):
    arguments = ["--num_clips", "150"]
    output, folder = tmp_path / "data", tmp_path / "data.parts"
    fixed = ["--sample_rate", str(examples.RATE_HZ), "--min_seconds", "0.1", "--workers", "2"]
    words = [sys.executable, "-m", "audiosep_jax", "prepare", "synthetic", *fixed, *arguments]
    process = subprocess.Popen(
        [*words, "--output", str(output)], cwd=ROOT, stderr=subprocess.DEVNULL
    )
    while not list(folder.glob("*.array_record*.json")):
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
    assert len(list(folder.glob("*.array_record*.json"))) < 17
    assert examples.run(output, "synthetic", *arguments, workers=1) == 0
    undisturbed = tmp_path / "undisturbed"
    assert examples.run(undisturbed, "synthetic", *arguments, workers=1) == 0
    assert examples.contents(output) == examples.contents(undisturbed)
    assert len(PreparedSource(output, "train+valid")) == 165


def test_a_killed_worker_is_one_line(whole, tmp_path, capsys, monkeypatch):
    root, _ = whole
    as_completed = concurrent.futures.as_completed

    def killing(futures):
        """Kill the workers, which are new processes, after the first shard."""
        for future in as_completed(futures):
            for child in multiprocessing.active_children():
                child.kill()
            yield future

    monkeypatch.setattr(concurrent.futures, "as_completed", killing)
    output = tmp_path / "data"
    code = examples.run(output, "folders", "--root", root, workers=2)
    assert code in (0, 2)  # 0 if all shards were finished by then
    assert ("run the same command again" in capsys.readouterr().err) == (code == 2)
    monkeypatch.undo()
    assert examples.run(output, "folders", "--root", root) == 0
    assert examples.contents(output) == examples.contents(whole[1])


def test_a_second_run_beside_the_first_is_refused(whole, tmp_path, capsys):
    output = tmp_path / "data"
    folder = output.with_name("data.parts")
    folder.mkdir()
    with filelock.FileLock(folder / ".lock-0-of-1"):
        assert "another prepare" in refused(capsys, output, "folders", "--root", whole[0])


def test_a_full_disk_is_one_line(whole, tmp_path, capsys, monkeypatch):
    def full(path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    message = refused(capsys, tmp_path / "data", "folders", "--root", whole[0])
    assert "cannot be written (No space left on device)" in message
    monkeypatch.undo()
    monkeypatch.setattr(tempfile, "mkdtemp", lambda **_: full(None))
    message = refused(capsys, tmp_path / "data", "folders", "--root", whole[0])
    assert "No space left on device" in message


def test_files_in_the_wrong_place_are_told_at_once(tmp_path, capsys):
    rows = [{"wav": f"{k}.wav", "caption": "x"} for k in range(30)]
    (tmp_path / "list.json").write_text(json.dumps({"data": rows}))
    message = refused(capsys, tmp_path / "data", "manifest", "--root", tmp_path / "list.json")
    assert "none of" in message
    assert "docs/data.md" in message


def test_nothing_usable_is_refused_and_forgotten(tmp_path, capsys):
    root = tmp_path / "clips"
    examples.save(root / "dog" / "a.wav", peak=0.0)
    message = refused(capsys, tmp_path / "data", "folders", "--root", root)
    assert "no recording is usable; the first reason: is silent" in message
    examples.save(root / "dog" / "a.wav")
    assert examples.run(tmp_path / "data", "folders", "--root", root) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("esc51", "--root", "."), "esc51"),
        (("esc50",), "--root is missing"),
        (("esc50", "--root", "no"), "--root: no: no such"),
        (("synthetic", "--root", "."), "--root cannot be used with synthetic"),
        (("esc50", "--root", ".", "--valid_root", "."), "--valid_root cannot be used with esc50"),
        (("folders", "--root", ".", "--valid_folds", "5"), "--valid_folds cannot be used with"),
        (("esc50", "--root", ".", "--num_clips", "5"), "--num_clips cannot be used with esc50"),
        (("esc50", "--root", ".", "--valid_folds", "a"), "'a' must be some of the folds 1 to 5"),
        (("esc50", "--root", ".", "--valid_folds", "1,2,3,4,5"), "must be some of the folds"),
        (("folders", "--root", ".."), "would become a class of it"),
        (("synthetic", "--shard", "2/2"), "--shard"),
        (("synthetic", "--exclude", "no.csv"), "--exclude: no.csv"),
        (("synthetic", "--num_clips", "0"), "--num_clips"),
        (("synthetic", "--sample_rate", "10"), "--sample_rate"),
        (("synthetic", "--min_seconds", "-1"), "--min_seconds"),
        (("synthetic", "--nonsense"), "--nonsense"),
        (("clotho", "--root", "."), "clotho_captions_development.csv"),
    ],
)
def test_mistakes_are_one_line(tmp_path, capsys, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert message in refused(capsys, tmp_path / "data", *arguments)


def test_an_output_that_is_something_else_is_refused(tmp_path, capsys):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mine.txt").touch()
    assert "exists, and was not made" in refused(
        capsys, tmp_path / "data", "synthetic", "--num_clips", "9"
    )
    (tmp_path / "file").touch()
    for name in ("file", "caf\udce9"):  # the latter is not UTF-8
        assert "cannot be a folder" in refused(capsys, tmp_path / name, "synthetic")


def test_what_a_list_excludes_is_counted(tmp_path, capsys):
    root = examples.class_folders(tmp_path / "clips", num_clips=4)
    for name, count in (("002.wav", 1), ("none.wav", 0)):
        (tmp_path / "list.csv").write_text(f"file\n{name}\n")
        words = ("--root", root, "--exclude", tmp_path / "list.csv")
        assert examples.run(tmp_path / name, "folders", *words) == 0
        told = capsys.readouterr().out
        assert f"excluded {count} recordings that --exclude names" in told
        assert f"{4 - count} records" in told


def test_help_shows_an_example_without_loading(capsys):
    with pytest.raises(SystemExit) as caught:
        command.main(["--help"])
    assert caught.value.code == 0
    shown = capsys.readouterr().out
    assert "audiosep prepare clotho --root" in shown
    assert all(source in shown for source in datasets.DATASETS)


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
        assert train.captions[index] == (line.split(",")[3].replace("_", " "),)
        assert 4.9 < len(train.load(index)) / examples.RATE_HZ < 5.1
