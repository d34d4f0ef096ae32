"""sources: every layout gives clips with captions, and says what is wrong with it."""

import concurrent.futures
import dataclasses
import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
from tones import Tones, tones

from audiosep_jax.audio import files as audio_files
from audiosep_jax.audio.files import AudioError
from audiosep_jax.data import sources
from audiosep_jax.data.clips import Clips
from audiosep_jax.data.pipeline import proportions
from audiosep_jax.data.sources import (
    DataConfig,
    FileSource,
    WeightedSources,
    build_source,
    num_segment_samples,
)
from audiosep_jax.errors import InputError

RATE_HZ = 8000


def save_noise(path, seconds=1.0, rate_hz=RATE_HZ, num_channels=1, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (round(seconds * rate_hz), num_channels)
    audio_SC = 0.1 * np.random.default_rng(seed).standard_normal(shape)
    soundfile.write(path, audio_SC, rate_hz, subtype="FLOAT" if path.suffix == ".wav" else None)
    return path


def source_of(tmp_path, num_clips=4, **options):
    paths = [save_noise(tmp_path / f"{k}.wav", seed=k) for k in range(num_clips)]
    return FileSource(
        Clips({str(path): (f"noise {path.stem}",) for path in paths}), RATE_HZ, **options
    )


def refused(call, *arguments):
    with pytest.raises(InputError) as caught:
        call(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ------------------------------------------------------------------------------ FileSource


def test_clips_are_mono_at_the_sources_rate(tmp_path):
    path = save_noise(tmp_path / "a.wav", seconds=1.2345, rate_hz=44100, num_channels=2)
    audio_CS, rate_hz = audio_files.read(path)
    audio_S = FileSource(Clips({str(path): ("noise",)}), RATE_HZ).load(0)
    expected_CS = audio_files.resample(audio_CS.mean(axis=0, keepdims=True), rate_hz, RATE_HZ)
    np.testing.assert_array_equal(audio_S, expected_CS[0])
    assert audio_S.dtype == np.float32


def test_source_names_and_describes_its_clips(tmp_path):
    source = source_of(tmp_path)
    assert len(source) == 4
    assert source.name(2) == str(tmp_path / "2.wav")
    assert source.captions[2] == ("noise 2",)


def test_unusable_clips_are_named(tmp_path):
    short = save_noise(tmp_path / "short.wav", seconds=0.5)
    missing = tmp_path / "missing.wav"
    source = FileSource(
        Clips({str(short): ("x",), str(missing): ("x",)}), RATE_HZ, min_seconds=0.75
    )
    with pytest.raises(AudioError, match=r"short\.wav: 0\.5 s is shorter than min_seconds=0\.75"):
        source.load(0)
    with pytest.raises(AudioError, match=r"missing\.wav: no such file"):
        source.load(1)
    assert len(FileSource(source.clips, RATE_HZ, min_seconds=0.5).load(0)) == RATE_HZ // 2


def count_reads(monkeypatch):
    paths = []

    class Counting(audio_files.AudioReader):
        def __init__(self, path):
            paths.append(Path(path))
            super().__init__(path)

    monkeypatch.setattr(sources, "AudioReader", Counting)
    return paths


def test_cache_drops_the_clip_used_longest_ago(tmp_path, monkeypatch):
    num_bytes = source_of(tmp_path).load(0).nbytes
    source = source_of(tmp_path, cache_megabytes=2.5 * num_bytes / 2**20)  # two clips fit in
    read = count_reads(monkeypatch)
    for index in (0, 1, 0, 2, 0, 1):  # 2 takes the place of 1
        source.load(index)
    assert [path.stem for path in read] == ["0", "1", "2", "1"]


def test_without_cache_every_load_decodes(tmp_path, monkeypatch):
    source = source_of(tmp_path, cache_megabytes=0)
    read = count_reads(monkeypatch)
    np.testing.assert_array_equal(source.load(3), source.load(3))
    assert len(read) == 2


def test_a_loaded_clip_cannot_be_spoilt_for_others(tmp_path):
    with pytest.raises(ValueError, match="read-only"):
        source_of(tmp_path).load(0)[:] = 0


def test_threads_share_the_cache(tmp_path):
    num_bytes = source_of(tmp_path).load(0).nbytes
    source = source_of(tmp_path, cache_megabytes=2.5 * num_bytes / 2**20)
    expected = [source.load(index).sum() for index in range(4)]
    order = np.random.default_rng(0).integers(4, size=400).tolist()
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        sums = list(pool.map(lambda index: source.load(index).sum(), order))
    assert sums == [expected[index] for index in order]


def test_a_pickled_source_gives_the_same_clips_and_no_cache(tmp_path):
    source = source_of(tmp_path)
    loaded_S = source.load(1)
    content = pickle.dumps(source)
    assert len(content) < 2000 < loaded_S.nbytes
    np.testing.assert_array_equal(pickle.loads(content).load(1), loaded_S)


# ------------------------------------------------------------------------- long recordings


@pytest.mark.parametrize(
    ("suffix", "rate_hz"),
    [("wav", 22050), ("flac", 22050), ("ogg", 22050), ("mp3", 22050), ("ogg", RATE_HZ)],
)
def test_crops_of_long_files_are_those_of_the_whole(tmp_path, suffix, rate_hz):
    path = save_noise(
        tmp_path / f"a.{suffix}", seconds=40, rate_hz=rate_hz, num_channels=rate_hz // 8000
    )
    long = FileSource(Clips({str(path): ("noise",)}), RATE_HZ)
    whole_S = np.concatenate(list(audio_files.mono_blocks(path, RATE_HZ)))
    audio_S = long.load(0)
    assert len(audio_S) == len(whole_S)
    for begin in (0, 1, 12_345, 200_000, len(whole_S) - 8000, len(whole_S) - 10):
        crop_S = audio_S[begin : begin + 8000]
        np.testing.assert_allclose(crop_S, whole_S[begin : begin + 8000], atol=2e-6)


def test_the_end_of_an_ogg_file_is_found(tmp_path):
    path = save_noise(tmp_path / "a.ogg", seconds=35)
    whole_CS, _ = audio_files.read(path)
    for back in (10, 300, 100_000):
        with audio_files.AudioReader(path) as recording:
            recording.seek(recording.num_samples - back)
            np.testing.assert_allclose(recording.read(back), whole_CS[:, -back:], atol=1e-6)


def test_a_crop_of_a_long_file_decodes_little_more_than_it(tmp_path, monkeypatch):
    path = save_noise(tmp_path / "a.wav", seconds=100)
    audio_S, decoded = FileSource(Clips({str(path): ("noise",)}), 16000).load(0), []
    read = audio_files.AudioReader.read
    monkeypatch.setattr(
        audio_files.AudioReader,
        "read",
        lambda self, count: decoded.append(count) or read(self, count),
    )
    assert len(audio_S[800_000:816_000]) == 16_000
    assert sum(decoded) < 3 * RATE_HZ


def test_a_damaged_stretch_makes_the_crop_unusable(tmp_path):
    path = save_noise(tmp_path / "a.flac", seconds=60)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    audio_S = FileSource(Clips({str(path): ("noise",)}), RATE_HZ).load(0)
    with pytest.raises(AudioError, match=r"a\.flac"):
        audio_S[50 * RATE_HZ : 51 * RATE_HZ]


def test_an_unusable_file_is_opened_once(tmp_path, monkeypatch):
    source = FileSource(Clips({str(tmp_path / "missing.wav"): ("x",)}), RATE_HZ)
    read = count_reads(monkeypatch)
    for _ in range(3):
        with pytest.raises(AudioError, match=r"missing\.wav: no such file"):
            source.load(0)
    assert len(read) == 1


# ------------------------------------------------------------------------------- sample_by


def long_and_short(tmp_path, **options):
    """One recording of 40 s and one of 10 s."""
    paths = [
        save_noise(tmp_path / f"{k}.wav", seconds=seconds) for k, seconds in enumerate((40, 10))
    ]
    return FileSource(
        Clips({str(path): (f"noise {path.stem}",) for path in paths}), RATE_HZ, **options
    )


def test_by_duration_a_recording_counts_as_its_pieces_of_15_seconds(tmp_path):
    whole, pieces = long_and_short(tmp_path), long_and_short(tmp_path, sample_by="duration")
    assert (len(whole), len(pieces)) == (2, 4)
    assert [pieces.captions[k] for k in range(4)] == [("noise 0",)] * 3 + [("noise 1",)]
    assert pieces.name(1) == f"{tmp_path / '0.wav'} piece 2 of 3"
    joined_S = np.concatenate([pieces.load(k)[:] for k in range(3)])
    np.testing.assert_array_equal(joined_S, whole.load(0)[:])
    np.testing.assert_array_equal(pieces.load(3), whole.load(1))
    assert whole.fingerprint != pieces.fingerprint
    assert pickle.loads(pickle.dumps(pieces)).name(3) == str(tmp_path / "1.wav")


def test_by_duration_short_recordings_are_what_they_were(tmp_path):
    one, other = source_of(tmp_path), source_of(tmp_path, sample_by="duration")
    assert one.fingerprint == other.fingerprint
    assert other.pieces is None


# ------------------------------------------------------------------------------ build_source


def test_build_source_of_each_layout(tmp_path):
    root = tmp_path / "esc50"
    for name in ("1-a.wav", "1-b.wav", "2-a.wav"):
        save_noise(root / "audio" / name)
    (root / "meta").mkdir()
    table = "filename,fold,category\n1-a.wav,1,dog\n1-b.wav,1,chirping_birds\n2-a.wav,2,dog\n"
    (root / "meta" / "esc50.csv").write_text(table)
    save_noise(tmp_path / "folders" / "bell" / "a.wav", rate_hz=16000)
    rows = {"data": [{"wav": "folders/bell/a.wav", "caption": "ding"}]}
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps(rows))
    esc50_config = DataConfig(source="esc50", root=str(root), train_folds=(1,), valid_folds=(2,))
    folders = DataConfig(source="folders", root=str(root), valid_root=str(tmp_path / "folders"))
    listed = DataConfig(source="manifest", root=str(path), min_seconds=2)

    assert len(build_source(esc50_config, "train", RATE_HZ)) == 2
    assert build_source(esc50_config, "valid", RATE_HZ).name(0).endswith("2-a.wav")
    assert build_source(folders, "train", RATE_HZ).captions[0] == ("audio",)
    assert build_source(folders, "valid", RATE_HZ).captions[0] == ("bell",)
    assert len(build_source(folders, "valid", RATE_HZ).load(0)) == RATE_HZ
    with pytest.raises(AudioError, match="min_seconds=2"):
        build_source(listed, "train", RATE_HZ).load(0)


def test_build_source_of_several_data_sets(tmp_path):
    save_noise(tmp_path / "folders" / "bell" / "a.wav")
    config = DataConfig(
        source="folders",
        roots=("", str(tmp_path / "folders")),
        sources=("synthetic", "folders"),
        weights=(1.0, 3.0),
        num_synthetic_clips=5,
        valid_root=str(tmp_path / "folders"),
    )
    both = build_source(config, "train", RATE_HZ)
    assert len(both) == 6
    assert both.weights == (1.0, 3.0)
    assert both.captions[5] == ("bell",)
    assert len(build_source(config, "valid", RATE_HZ)) == 1
    own = dataclasses.replace(config, valid_root="")
    assert "set data.valid_root" in refused(build_source, own, "valid", RATE_HZ)


def test_a_speaker_is_never_mixed_with_himself(tmp_path):
    for k in range(24):  # of each speaker, more than the enrolments of two clips together
        for speaker in ("alice", "bob"):
            save_noise(tmp_path / "here" / speaker / f"{k}.wav", seconds=0.01)
    shutil.copytree(tmp_path / "here", tmp_path / "there")
    config = DataConfig(source="speakers", root=str(tmp_path / "here"))
    source = build_source(config, "train", RATE_HZ)
    moved = build_source(
        dataclasses.replace(config, root=str(tmp_path / "there")), "train", RATE_HZ
    )
    assert source.fingerprint == moved.fingerprint
    speakers = list(source.captions.classes())
    for index, speaker in enumerate(speakers):
        others = source.captions.without(source.captions.excluded(index))
        assert {speakers[other] for other in others} == {"alice", "bob"} - {speaker}
        assert len(others) == 24


def test_clips_that_cannot_be_told_apart_are_not_mixed(tmp_path):
    for name in ("bell", "chime", "dog"):
        save_noise(tmp_path / "folders" / name / "a.wav")
    rows = [
        {"wav": f"folders/{name}/a.wav", "caption": f"caption {k}", "class": name}
        for k, name in enumerate(("bell", "dog"))
    ]
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps({"data": rows}))
    config = DataConfig(
        roots=(str(tmp_path / "folders"), str(path)),
        sources=("folders", "manifest"),
        alike=(("chime", "bell", "gong"),),
    )
    captions = build_source(config, "train", RATE_HZ).captions
    assert captions.without(captions.excluded(0)).tolist() == [2, 4]  # the two dogs
    assert captions.without(captions.excluded(4)).tolist() == [0, 1, 3]
    alone = dataclasses.replace(config, roots=(), sources=(), root=str(path))
    source = build_source(alone, "train", RATE_HZ)
    rows[1]["class"] = "bell"
    path.write_text(json.dumps({"data": rows}))
    assert build_source(alone, "train", RATE_HZ).fingerprint != source.fingerprint


def test_synthetic_validation_is_held_out():
    config = DataConfig(source="synthetic", num_synthetic_clips=30)
    train, valid = build_source(config, "train", RATE_HZ), build_source(config, "valid", RATE_HZ)
    assert len(train) == len(valid) == 30
    assert train.sample_rate_hz == RATE_HZ
    for index in range(12):
        assert train.captions[index] == valid.captions[index]
        assert not np.array_equal(train.load(index), valid.load(index))


@pytest.mark.parametrize("source", ["manifest", "esc50", "folders"])
def test_a_missing_data_set_says_which_option_to_give(tmp_path, source):
    for root in ("", str(tmp_path / "missing")):
        config = DataConfig(source=source, root=root, valid_root=root)
        message = refused(build_source, config, "train", RATE_HZ)
        assert "set data.root" in message
        assert root in message
    if source != "esc50":
        assert "set data.valid_root" in refused(build_source, config, "valid", RATE_HZ)


# ------------------------------------------------------------------------ several data sets


def test_clips_are_those_of_the_sources_one_after_another():
    parts = tones(3), Tones((("x", "y"),)), tones(2)
    joined = pickle.loads(pickle.dumps(WeightedSources(parts)))
    there = [(part, place) for part in parts for place in range(len(part))]
    assert len(joined) == len(there) == 6
    for index, (part, place) in enumerate(there):
        assert joined.captions[index] == part.captions[place]
        assert joined.name(index) == part.name(place)
        np.testing.assert_array_equal(joined.load(index), part.load(place))
    for index in (-1, 6):
        with pytest.raises(IndexError, match="of 6"):
            joined.load(index)


def test_weights_are_shares_and_by_default_the_numbers_of_clips():
    assert proportions(WeightedSources([tones(4), tones(12)]).weights) == (100, 300)
    assert proportions(WeightedSources([tones(4), tones(12)], (0.7, 0.2)).weights) == (350, 100)
    with pytest.raises(InputError, match="no clips"):
        WeightedSources([tones(4), tones(0)])


class Named(Tones):
    """A source with a fingerprint of its own, whose names cost much."""

    fingerprint = "my own"

    def name(self, index):
        raise AssertionError


def test_fingerprint_is_made_of_the_sources_own():
    named, other = Named((("x",),)), tones(3)
    first = WeightedSources([named, other]).fingerprint
    assert first == WeightedSources([named, tones(3)]).fingerprint
    assert first != WeightedSources([other, named]).fingerprint
    assert first != WeightedSources([named, tones(4)]).fingerprint


# --------------------------------------------------------------------------------- config


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("source", "esc-50"),
        ("train_folds", ()),
        ("valid_folds", ("5",)),
        ("num_synthetic_clips", 10**8),
        ("segment_seconds", 0),
        ("segment_seconds", float("nan")),
        ("min_seconds", -1.0),
        ("max_bad_share", 1.5),
        ("max_bad_share", "5%"),
        ("cache_megabytes", -1),
        ("num_threads", -2),
        ("num_threads", 1.5),
        ("num_workers", True),
        ("prefetch_batches", 0),
        ("prefetch_megabytes", 0),
        ("sources", ("manifest",)),
        ("weights", (1.0, 2.0)),
    ],
)
def test_config_refuses_by_name(name, value):
    with pytest.raises(InputError, match=rf"^{name}(\[0\])?="):
        DataConfig(**{name: value})


def test_config_keeps_validation_held_out():
    with pytest.raises(InputError, match=r"^valid_folds=\(4, 5\) and train_folds share fold 4$"):
        DataConfig(source="esc50", train_folds=(1, 4), valid_folds=(4, 5))
    with pytest.raises(InputError, match=r"^valid_folds=\(4, 5\) and train_folds share fold 4$"):
        DataConfig(roots=("a",), sources=("esc50",), train_folds=(1, 4), valid_folds=(4, 5))


def test_several_data_sets():
    config = DataConfig(source="folders", roots=("a", "b"), weights=(1.0, 2.0))
    assert config.kinds == ("folders", "folders")
    with pytest.raises(InputError, match=r"^weights\[1\]=0\.0 must be greater than 0$"):
        DataConfig(roots=("a", "b"), weights=(1.0, 0.0))
    with pytest.raises(
        InputError, match=r"^sources\[0\]='esc' must be 'synthetic', .* or 'prepared'$"
    ):
        DataConfig(roots=("a", "b"), sources=("esc", "folders"))
    with pytest.raises(InputError, match=r"^root='a' and roots=\('b', 'c'\) are both given"):
        DataConfig(root="a", roots=("b", "c"))
    with pytest.raises(InputError, match=r"^source='synthetic' does not read root='a'; change so"):
        DataConfig(source="synthetic", root="a")


def test_segments_have_a_sample_at_least():
    assert num_segment_samples(DataConfig(segment_seconds=0.01), 10) == 1
    assert num_segment_samples(DataConfig(segment_seconds=2.5), 32000) == 80000
