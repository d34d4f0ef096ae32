"""prepared: the records that were written come back, from threads, copies and TFDS alike."""

import concurrent.futures
import json
import pickle

import numpy as np
import prepared_examples as examples
import pytest
import tensorflow_datasets as tfds

from audiosep_jax.audio import files as audio_files
from audiosep_jax.audio.files import AudioError
from audiosep_jax.data import prepared
from audiosep_jax.data.prepared import PreparedSource
from audiosep_jax.errors import InputError


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """(folder of clips, data set made of them with ten clips a shard)."""
    root = tmp_path_factory.mktemp("clips")
    examples.class_folders(root / "train")
    examples.save(root / "valid" / "rain" / "long.wav", seconds=31.0, seed=99)
    place = ["--root", root / "train", "--valid_root", root / "valid"]
    assert examples.run(root / "data", "folders", *place) == 0
    return root / "train", root / "data"


def copy_of(folder, tmp_path):
    copy = tmp_path / "copy"
    copy.mkdir()
    for name, content in examples.contents(folder).items():
        (copy / name).write_bytes(content)
    return copy


def test_records_are_the_files_to_the_bit(folders):
    root, data = folders
    source = PreparedSource(data)
    assert (len(source), source.sample_rate_hz) == (25, examples.RATE_HZ)
    for index in range(len(source)):
        audio_CS, _ = audio_files.read(root / source.name(index))
        np.testing.assert_array_equal(source.load(index), audio_CS[0])
        folder = source.name(index).split("/")[0]
        assert source.captions[index] == (folder.replace("_", " "),)
    assert len({source.name(index) for index in range(25)}) == 25
    assert source.load(3).dtype == np.float32


def test_classes_are_those_of_the_manifest(tmp_path):
    rows = []
    for name, class_name in (("a", "dog"), ("b", ""), ("c", "Dog")):
        examples.save(tmp_path / f"{name}.wav")
        rows.append({"wav": f"{name}.wav", "caption": name, "class": class_name})
    path = tmp_path / "list.json"
    fingerprints = set()
    for part in range(2):
        path.write_text(json.dumps({"data": rows}))
        assert examples.run(tmp_path / f"data{part}", "manifest", "--root", path) == 0
        source = PreparedSource(tmp_path / f"data{part}")
        classes = {source.name(k)[0]: name for k, name in enumerate(source.captions.classes())}
        assert classes == {"a": "dog", "b": ["", "cat"][part], "c": "dog"}
        fingerprints.add(source.fingerprint)
        rows[1]["class"] = "cat"
    assert len(fingerprints) == 2


def test_tfds_reads_the_same(folders):
    _, data = folders
    source = PreparedSource(data)
    theirs = tfds.builder_from_directory(data).as_data_source("train")
    assert len(theirs) == len(source)
    for index in (0, 11, 24):
        row = theirs[index]
        np.testing.assert_array_equal(row["audio"] / np.float32(32768), source.load(index))
        assert row["id"].decode() == source.name(index)
        assert [caption.decode() for caption in row["captions"]] == [*source.captions[index]]
        assert row["start_seconds"] == 0


def test_parts_of_a_long_recording_say_where_they_begin(folders):
    source = PreparedSource(folders[1], "valid")
    assert [source.name(index) for index in range(3)] == [
        "rain/long.wav",
        "rain/long.wav from 10.3332 s",
        "rain/long.wav from 20.6666 s",
    ]
    audio_CS, _ = audio_files.read(folders[0].parent / "valid" / "rain" / "long.wav")
    joined_S = np.concatenate([source.load(index) for index in range(3)])
    np.testing.assert_array_equal(joined_S, audio_CS[0])


def test_pieces_belong_to_one_recording_unless_drawn_by_duration(folders):
    both = PreparedSource(folders[1], "valid+train")
    assert both.recordings.tolist() == [0, *range(3, 29)]
    by_duration = PreparedSource(folders[1], "valid+train", sample_by="duration")
    assert by_duration.recordings.tolist() == list(range(29))
    assert both.fingerprint != by_duration.fingerprint
    whole = [PreparedSource(folders[1], sample_by=kind) for kind in ("recording", "duration")]
    assert whole[0].recordings.tolist() == whole[1].recordings.tolist()
    assert whole[0].fingerprint == whole[1].fingerprint


def test_splits_are_joined_in_order(folders):
    both = PreparedSource(folders[1], "valid+train")
    valid, train = PreparedSource(folders[1], "valid"), PreparedSource(folders[1])
    assert len(both) == 28
    assert both.name(2) == valid.name(2)
    assert both.name(3) == train.name(0)
    np.testing.assert_array_equal(both.load(27), train.load(24))
    assert len({both.fingerprint, valid.fingerprint, train.fingerprint}) == 3


def test_another_rate_is_resampled(folders):
    stored, wanted = PreparedSource(folders[1]), PreparedSource(folders[1], sample_rate_hz=16000)
    assert wanted.sample_rate_hz == 16000
    expected_CS = audio_files.resample(stored.load(4)[None], examples.RATE_HZ, 16000)
    np.testing.assert_array_equal(wanted.load(4), expected_CS[0])


def test_threads_and_copies_read_alike(folders, monkeypatch):
    monkeypatch.setattr(prepared, "_READERS", 1)  # so that readers are closed while in use
    source = PreparedSource(folders[1])
    expected = [source.load(index).sum() for index in range(25)]
    order = np.random.default_rng(0).integers(25, size=300).tolist()
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        sums = list(pool.map(lambda index: source.load(index).sum(), order))
    assert sums == [expected[index] for index in order]
    content = pickle.dumps(source)
    copy = pickle.loads(content)
    assert len(content) < 10_000
    assert (copy.load(7).sum(), copy.fingerprint) == (expected[7], source.fingerprint)
    assert copy.captions[7] == source.captions[7]


def test_an_index_outside_is_refused(folders):
    source = PreparedSource(folders[1])
    for index in (-1, 25):
        for call in (source.load, source.captions.numbers, source.name):
            with pytest.raises(IndexError):
                call(index)


def test_a_damaged_record_is_named_and_the_others_live(folders, tmp_path):
    copy = copy_of(folders[1], tmp_path)
    source = PreparedSource(copy)
    shard = sorted(copy.glob("*train*array_record*"))[0]
    content = bytearray(shard.read_bytes())
    pcm = np.rint(source.load(1) * 32768).astype("<i2").tobytes()
    content[content.find(pcm[500:600])] ^= 0xFF
    shard.write_bytes(content)
    source = PreparedSource(copy)
    with pytest.raises(AudioError, match="damaged") as caught:
        source.load(1)
    assert source.name(1) in str(caught.value)
    assert "\n" not in str(caught.value)
    for index in (0, 2, 24):
        np.testing.assert_array_equal(source.load(index), PreparedSource(folders[1]).load(index))


def refused(folder, *arguments):
    with pytest.raises(InputError) as caught:
        PreparedSource(folder, *arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_is_no_whole_data_set_is_refused(folders, tmp_path):
    assert "audiosep prepare" in refused(tmp_path)
    assert "no split 'test', only train, valid" in refused(folders[1], "test")
    copy = copy_of(folders[1], tmp_path)
    shard = sorted(copy.glob("*train*array_record*"))[-1]
    content = shard.read_bytes()
    shard.write_bytes(content[:-1])
    assert "bytes" in refused(copy)
    shard.unlink()
    assert shard.name in refused(copy)
    shard.write_bytes(content)
    lines = next(copy.glob("*train.records.jsonl"))
    lines.write_bytes(lines.read_bytes().split(b"\n", 1)[1])
    assert "24 lines for 25 records" in refused(copy)
    (copy / "metadata.json").write_text(json.dumps({}))
    assert "was not written by prepare" in refused(copy)
