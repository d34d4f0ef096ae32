"""prepared_writer: shards of a bounded size, equal bytes everywhere, nothing half-written."""

import os
import subprocess
import sys

import numpy as np
import prepared_examples as examples
import pytest
from array_record.python import array_record_module

from audiosep_jax.audio.files import AudioError
from audiosep_jax.errors import InputError
from audiosep_jax.preparing import writer
from audiosep_jax.preparing.recordings import Recording
from audiosep_jax.preparing.writer import (
    Part,
    Settings,
    features,
    link,
    part_files,
    read_part,
    write_part,
)

SETTINGS = Settings("folders", examples.RATE_HZ, 0.1)


def clips(tmp_path, count=6, seconds=0.5):
    paths = [
        examples.save(tmp_path / "clips" / f"{k}.wav", seconds=seconds, seed=k)
        for k in range(count)
    ]
    return [Recording(path.name, "train", ("a", "ü"), (str(path),)) for path in paths]


def stored(path):
    """(audio_S, id) of the records of a shard, as TFDS decodes them."""
    reader = array_record_module.ArrayRecordReader(str(path))
    rows = [features().deserialize_example_np(record) for record in reader.read_all()]
    return [(row["audio"], row["id"].decode()) for row in rows]


def test_a_full_shard_is_followed_by_another(tmp_path, monkeypatch):
    recordings = clips(tmp_path)
    one = write_part(recordings, tmp_path, 0, SETTINGS)
    assert [shard[1] for shard in one.shards] == [6]
    monkeypatch.setattr(writer, "SHARD_BYTES", 16_000)  # two records of a bit over 8 kB
    part = write_part(recordings, tmp_path, 7, SETTINGS)
    assert [shard[:2] for shard in part.shards] == [
        (f"000007-{number:03d}.array_record", 2) for number in range(3)
    ]
    whole = stored(tmp_path / one.shards[0][0])
    pieces = [row for name, *_ in part.shards for row in stored(tmp_path / name)]
    for (a_S, a), (b_S, b) in zip(whole, pieces, strict=True):
        assert a == b
        np.testing.assert_array_equal(a_S, b_S)


def test_a_part_is_read_as_it_was_written(tmp_path):
    recordings = clips(tmp_path)
    (tmp_path / "clips" / "2.wav").unlink()
    part = write_part(recordings, tmp_path, 3, SETTINGS)
    assert part.skipped == (("2.wav", "no such file: 2.wav"),)
    assert (part.split, part.num_recordings, part.num_samples) == ("train", 5, 5 * 4000)
    assert read_part(tmp_path, 3) == part
    assert read_part(tmp_path, 4) is None
    files = part_files(tmp_path, 3, part)
    assert files[-1].name == "000003.json"
    assert {path.name for path in files} == {
        path.name for path in tmp_path.iterdir() if path.is_file()
    }
    lines = files[1].read_text(encoding="utf-8").splitlines()
    assert lines[0] == '{"id": "0.wav", "start_seconds": 0.0, "captions": ["a", "ü"]}'
    assert len(lines) == 5
    files[-1].write_text("{")
    with pytest.raises(InputError, match="is damaged"):
        read_part(tmp_path, 3)


def test_a_part_without_a_record_has_no_shard(tmp_path):
    part = write_part([Recording("x", "train", ("a",), ("/none",))], tmp_path, 0, SETTINGS)
    assert isinstance(part, Part)
    assert (part.shards, part.num_recordings) == ((), 0)
    assert not list(tmp_path.glob("*.array_record"))


def test_every_process_writes_the_same_bytes(tmp_path):
    """Whatever the addresses and hashes of its strings, on which protobuf's order hangs."""
    here = write_part(clips(tmp_path, count=1), tmp_path, 0, SETTINGS)
    program = (
        "import sys; from pathlib import Path\n"
        "from audiosep_jax.preparing.writer import Settings, write_part\n"
        "from audiosep_jax.preparing.recordings import Recording\n"
        "r = Recording('0.wav', 'train', ('a', '\\u00fc'), (sys.argv[1],))\n"
        f"print(write_part([r], Path(sys.argv[2]), 0, Settings('folders', {examples.RATE_HZ}, 0.1))"
        ".shards[0][3])"
    )
    place = [str(tmp_path / "clips" / "0.wav"), str(tmp_path)]
    found = {
        subprocess.run(
            [sys.executable, "-c", program, *place],
            env={**os.environ, "PYTHONHASHSEED": str(seed)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for seed in (1, 2)
    }
    assert found == {here.shards[0][3]}


def test_a_failure_leaves_no_file(tmp_path, monkeypatch):
    recordings = clips(tmp_path)

    def broken(*arguments):
        yield 0.0, np.zeros(10, np.int16)
        raise RuntimeError("disk on fire\nand more")

    monkeypatch.setattr(writer.recordings_lib, "records", broken)
    with pytest.raises(InputError, match="cannot be written") as caught:
        write_part(recordings, tmp_path, 0, SETTINGS)
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["clips"]


def test_a_recording_that_fails_gives_no_record_at_all(tmp_path):
    """`records` raises before it gives the first one, which is what keeps shards whole."""
    path = examples.save(tmp_path / "long.wav", seconds=40.0)
    path.write_bytes(path.read_bytes()[:-2])
    recording = Recording("long.wav", "train", ("a",), (str(path),))
    with pytest.raises(AudioError, match="truncated"):
        next(writer.recordings_lib.records(recording, examples.RATE_HZ, 1.0, tmp_path))
    assert write_part([recording], tmp_path, 0, SETTINGS).shards == ()


def test_link_copies_where_there_are_no_links(tmp_path, monkeypatch):
    (tmp_path / "a").write_bytes(b"x")
    link(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").samefile(tmp_path / "a")

    def none(*arguments):
        raise PermissionError

    monkeypatch.setattr(os, "link", none)
    link(tmp_path / "a", tmp_path / "c")
    assert (tmp_path / "c").read_bytes() == b"x"
    assert not (tmp_path / "c").samefile(tmp_path / "a")
