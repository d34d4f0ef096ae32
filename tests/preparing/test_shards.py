"""Shards hold every recording once, in equal bytes everywhere, and nothing half-written."""

import json
import os
import subprocess
import sys

import numpy as np
import prepared_examples as examples
import pytest
import tensorflow_datasets as tfds
from array_record.python import array_record_module

from audiosep_jax import workers
from audiosep_jax.audio.files import AudioError
from audiosep_jax.data.prepared import PreparedSource
from audiosep_jax.errors import InputError
from audiosep_jax.preparing import recordings as recordings_lib
from audiosep_jax.preparing import shards
from audiosep_jax.preparing.plan import Settings, make_plan, recordings_of
from audiosep_jax.preparing.recordings import Recording, Skipped
from audiosep_jax.preparing.shards import read_account, write_shard

SETTINGS = Settings("folders", examples.RATE_HZ, 0.1)


def listed(count, root="/a", seconds=(0.0, 10.0)):
    return [
        Recording(f"{k}", ("train", "valid")[k % 3 == 0], ("c",), (f"{root}/{k}.wav",), seconds)
        for k in range(count)
    ]


def clips(tmp_path, count=6, seconds=0.5):
    paths = [
        examples.save(tmp_path / "clips" / f"{k}.wav", seconds=seconds, seed=k)
        for k in range(count)
    ]
    return [Recording(path.name, "train", ("a", "ü"), (str(path),)) for path in paths]


def folder(tmp_path, name="parts"):
    (tmp_path / name).mkdir()
    return tmp_path / name


def written(recordings, parts):
    """(account, plan) of recordings that fit into one shard."""
    plan = make_plan(recordings, parts, SETTINGS)
    write_shard(parts, plan.shards[0], SETTINGS)
    return read_account(parts, plan.shards[0]), plan


def stored(path):
    """(audio_S, id) of the records of a shard, as TFDS decodes them."""
    reader = array_record_module.ArrayRecordReader(str(path))
    rows = [shards.features().deserialize_example_np(record) for record in reader.read_all()]
    return [(row["audio"], row["id"].decode()) for row in rows]


def test_shards_hold_every_recording_once_in_order_and_one_split_each(tmp_path):
    recordings = listed(100)
    plan = make_plan(recordings, tmp_path, SETTINGS)
    for split in ("train", "valid"):
        rows = [
            row for shard in plan.shards if shard.split == split for row in recordings_of(shard)
        ]
        assert [row.id for row in rows] == [row.id for row in recordings if row.split == split]
    assert [shard.num_recordings for shard in plan.shards] == [10] * 6 + [6] + [10] * 3 + [4]
    assert plan.shards[6].name == "folders-train.array_record-00006-of-00007"
    assert plan.shards[10].name == "folders-valid.array_record-00003-of-00004"


def test_shards_of_large_sets_have_a_limited_size(tmp_path):
    plan = make_plan(listed(40_000), tmp_path, SETTINGS)
    counts = np.array([shard.num_recordings for shard in plan.shards])
    assert (2 * 8000 * 10 * counts < 200 * 2**20).all()
    assert np.sort(counts)[2] >= 1000
    assert counts.sum() == 40_000


def test_fingerprint_covers_content_and_settings_but_no_place(tmp_path):
    def fingerprint(name, items, settings=SETTINGS):
        return make_plan(items, folder(tmp_path, name), settings).fingerprint

    first = fingerprint("a", listed(30))
    assert fingerprint("b", listed(30, root="/elsewhere")) == first
    changed = [
        fingerprint("c", listed(31)),
        fingerprint("d", listed(30, seconds=(0.0, 9.0))),
        fingerprint("e", listed(30), Settings("folders", 16000, 1.0)),
        fingerprint("f", [*listed(30), Skipped("x", "train", "wrong")]),
    ]
    assert len({first, *changed}) == 5


def test_a_recording_listed_twice_is_prepared_once(tmp_path):
    again = Recording("1", "train", ("other",))
    elsewhere = Recording("1", "valid", ("c",))
    plan = make_plan([*listed(5), again, elsewhere], tmp_path, SETTINGS)
    assert plan.skipped == (Skipped("1", "train", "listed twice"),)
    assert sum(shard.num_recordings for shard in plan.shards) == 6


def test_names_and_captions_that_are_no_text_are_prepared(tmp_path):
    """As of files whose names are not UTF-8, and of JSON with half a surrogate pair."""
    path = examples.save(tmp_path / "a.wav")
    odd = [Recording(name, "train", (name,), (str(path),)) for name in ("caf\udce9", "caf\udce8")]
    account, _ = written(odd, folder(tmp_path))
    rows = [json.loads(line) for line in account.lines.splitlines()]
    assert [row["id"] for row in rows] == ["caf\\udce9", "caf\\udce8"]
    assert rows[0]["captions"] == ["caf\\udce9"]


def test_a_folder_of_another_plan_is_refused(tmp_path):
    plan = make_plan(listed(30), tmp_path, SETTINGS)
    with pytest.raises(InputError, match="other recordings or settings"):
        make_plan(listed(29), tmp_path, SETTINGS)
    assert make_plan(listed(30), tmp_path, SETTINGS).fingerprint == plan.fingerprint
    (tmp_path / "plan.json").write_text("{")
    with pytest.raises(InputError, match="is not JSON"):
        make_plan(listed(30), tmp_path, SETTINGS)


def test_an_account_says_what_a_shard_holds(tmp_path):
    recordings = clips(tmp_path)
    (tmp_path / "clips" / "2.wav").unlink()
    account, plan = written(recordings, folder(tmp_path))
    assert account.skipped == [["2.wav", "no such file: 2.wav"]]
    counts = (account.num_recordings, account.num_records, account.num_samples)
    assert counts == (5, 5, 5 * 4000)
    lines = account.lines.splitlines()
    assert lines[0] == '{"id": "0.wav", "start_seconds": 0.0, "captions": ["a", "ü"]}'
    assert len(lines) == 5
    rows = stored(plan.folder / plan.shards[0].name)
    assert [name for _, name in rows] == ["0.wav", "1.wav", "3.wav", "4.wav", "5.wav"]
    (plan.folder / plan.shards[0].name).write_bytes(b"")
    assert read_account(plan.folder, plan.shards[0]) is None


def test_shards_and_splits_without_a_record_are_no_obstacle(tmp_path):
    """TFDS and training read a data set whose second shard and whose test split are empty."""
    recordings = clips(tmp_path, count=25)
    for path in (tmp_path / "clips").glob("1?.wav"):
        path.unlink()
    missing = Recording("x", "test", ("a",), ("/none",))
    plan = make_plan([*recordings, missing], folder(tmp_path), SETTINGS)
    shards.write_shards(plan, plan.shards, SETTINGS, 1, lambda count: None)
    report = shards.finish(plan, SETTINGS, tmp_path / "data")
    assert report["splits"]["test"]["records"] == 0
    source = PreparedSource(tmp_path / "data", "train")
    names = [f"{k}.wav" for k in (*range(10), *range(20, 25))]
    assert [source.name(index) for index in range(len(source))] == names
    theirs = tfds.builder_from_directory(tmp_path / "data").as_data_source()
    assert list(theirs) == ["train"]
    assert [row["id"].decode() for row in theirs["train"]] == names


def test_every_process_writes_the_same_bytes(tmp_path):
    """Protobuf's order of fields depends on addresses in memory and hashes of strings."""
    recordings = clips(tmp_path, count=1)
    account, _ = written(recordings, folder(tmp_path))
    program = (
        "import sys; from pathlib import Path\n"
        "from audiosep_jax.preparing import plan as plans, shards\n"
        "from audiosep_jax.preparing.recordings import Recording\n"
        "r = Recording('0.wav', 'train', ('a', '\\u00fc'), (sys.argv[1],))\n"
        f"settings = plans.Settings('folders', {examples.RATE_HZ}, 0.1)\n"
        "parts = Path(sys.argv[2]); parts.mkdir()\n"
        "plan = plans.make_plan([r], parts, settings)\n"
        "shards.write_shard(parts, plan.shards[0], settings)\n"
        "print(shards.read_account(parts, plan.shards[0]).sha256)"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", program, tmp_path / "clips" / "0.wav", tmp_path / f"p{seed}"],
            env={**os.environ, "PYTHONHASHSEED": str(seed)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for seed in (1, 2)
    }
    assert found == {account.sha256}


def test_a_failure_leaves_no_file(tmp_path, monkeypatch):
    plan = make_plan(clips(tmp_path), folder(tmp_path), SETTINGS)

    def broken(*arguments):
        yield 0.0, np.zeros(10, np.int16)
        raise RuntimeError("disk on fire\nand more")

    monkeypatch.setattr(recordings_lib, "records", broken)
    with pytest.raises(InputError, match="cannot be written") as caught:
        write_shard(plan.folder, plan.shards[0], SETTINGS)
    assert "\n" not in str(caught.value)
    names = [path.name for path in plan.folder.iterdir() if not path.name.startswith(".lists")]
    assert names == ["plan.json"]


def test_a_recording_that_fails_gives_no_record_at_all(tmp_path):
    """`records` raises before it yields the first record, so that shards stay whole."""
    path = examples.save(tmp_path / "long.wav", seconds=40.0)
    path.write_bytes(path.read_bytes()[:-2])
    recording = Recording("long.wav", "train", ("a",), (str(path),))
    with pytest.raises(AudioError, match="truncated"):
        next(recordings_lib.records(recording, examples.RATE_HZ, 1.0, tmp_path))
    account, plan = written([recording], folder(tmp_path))
    assert account.num_records == 0
    with pytest.raises(InputError, match=r"no recording is usable.*truncated"):
        shards.finish(plan, SETTINGS, tmp_path / "data")


def test_processes_and_one_process_write_the_same_shards(tmp_path):
    recordings = clips(tmp_path, count=25, seconds=0.2)
    bytes_of = []
    for name, num_workers in (("a", 1), ("b", 2)):
        plan, done = make_plan(recordings, folder(tmp_path, name), SETTINGS), []
        shards.write_shards(plan, plan.shards, SETTINGS, num_workers, done.append)
        assert sorted(done) == [5, 10, 10]
        bytes_of.append([(plan.folder / shard.name).read_bytes() for shard in plan.shards])
    assert bytes_of[0] == bytes_of[1]


def test_available_cores_are_those_that_may_be_used():
    if hasattr(os, "sched_setaffinity"):
        before = os.sched_getaffinity(0)
        try:
            os.sched_setaffinity(0, {min(before)})
            assert workers.available_cores() == 1
        finally:
            os.sched_setaffinity(0, before)
        assert workers.available_cores() == len(before)
