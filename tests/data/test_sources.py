"""sources: every layout gives clips with captions, and says what is wrong with it."""

import concurrent.futures
import dataclasses
import json
import pickle

import numpy as np
import pytest
import soundfile

from audiosep_jax.audio import files as audio_files
from audiosep_jax.audio.files import AudioError
from audiosep_jax.data.data_config import DataConfig
from audiosep_jax.data.sources import (
    Clip,
    FileSource,
    build_source,
    class_folder_clips,
    esc50_clips,
    manifest_clips,
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
    return FileSource([Clip(path, (f"noise {path.stem}",)) for path in paths], RATE_HZ, **options)


def refused(call, *arguments):
    with pytest.raises(InputError) as caught:
        call(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ------------------------------------------------------------------------------ FileSource


def test_clips_are_mono_at_the_sources_rate(tmp_path):
    path = save_noise(tmp_path / "a.wav", seconds=1.2345, rate_hz=44100, num_channels=2)
    audio_CS, rate_hz = audio_files.read(path)
    audio_S = FileSource([Clip(path, ("noise",))], RATE_HZ).load(0)
    expected_CS = audio_files.resample(audio_CS.mean(axis=0, keepdims=True), rate_hz, RATE_HZ)
    np.testing.assert_array_equal(audio_S, expected_CS[0])
    assert audio_S.dtype == np.float32


def test_source_names_and_describes_its_clips(tmp_path):
    source = source_of(tmp_path)
    assert len(source) == 4
    assert source.name(2) == str(tmp_path / "2.wav")
    assert source.captions(2) == ("noise 2",)


def test_unusable_clips_are_named(tmp_path):
    short = save_noise(tmp_path / "short.wav", seconds=0.5)
    missing = tmp_path / "missing.wav"
    source = FileSource([Clip(short, ("x",)), Clip(missing, ("x",))], RATE_HZ, min_seconds=0.75)
    with pytest.raises(AudioError, match=r"short\.wav: 0\.5 s is shorter than min_seconds=0\.75"):
        source.load(0)
    with pytest.raises(AudioError, match=r"missing\.wav: no such file"):
        source.load(1)
    assert len(FileSource(source.clips, RATE_HZ, min_seconds=0.5).load(0)) == RATE_HZ // 2


def count_reads(monkeypatch):
    read, paths = audio_files.read, []

    def counting(path):
        paths.append(path)
        return read(path)

    monkeypatch.setattr(audio_files, "read", counting)
    return paths


def test_cache_drops_the_clip_used_longest_ago(tmp_path, monkeypatch):
    source = source_of(tmp_path)
    source.cache_megabytes = 2.5 * source.load(0).nbytes / 2**20  # room for two clips
    read = count_reads(monkeypatch)
    for index in (1, 0, 2, 0, 1):  # 2 drives out 1
        source.load(index)
    assert [path.stem for path in read] == ["1", "2", "1"]


def test_without_cache_every_load_decodes(tmp_path, monkeypatch):
    source = source_of(tmp_path, cache_megabytes=0)
    read = count_reads(monkeypatch)
    np.testing.assert_array_equal(source.load(3), source.load(3))
    assert len(read) == 2


def test_a_loaded_clip_cannot_be_spoilt_for_others(tmp_path):
    with pytest.raises(ValueError, match="read-only"):
        source_of(tmp_path).load(0)[:] = 0


def test_threads_share_the_cache(tmp_path):
    source = source_of(tmp_path)
    source.cache_megabytes = 2.5 * source.load(0).nbytes / 2**20
    expected = [source.load(index).sum() for index in range(4)]
    order = np.random.default_rng(0).integers(4, size=400).tolist()
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        sums = list(pool.map(lambda index: source.load(index).sum(), order))
    assert sums == [expected[index] for index in order]
    assert source._cached_bytes == sum(audio_S.nbytes for audio_S in source._cached.values())


def test_a_pickled_source_gives_the_same_clips_and_no_cache(tmp_path):
    source = source_of(tmp_path)
    loaded_S = source.load(1)
    content = pickle.dumps(source)
    assert len(content) < 2000 < loaded_S.nbytes
    np.testing.assert_array_equal(pickle.loads(content).load(1), loaded_S)


# -------------------------------------------------------------------------------- manifest


def manifest(tmp_path, content):
    path = tmp_path / "manifest.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_manifest_paths_are_relative_to_it(tmp_path):
    elsewhere = tmp_path / "elsewhere" / "b.wav"
    rows = [
        {"wav": "sub/a.wav", "caption": "A dog"},
        {"wav": str(elsewhere), "caption": ["rain", "it rains"]},
    ]
    assert manifest_clips(manifest(tmp_path, {"data": rows})) == [
        Clip(tmp_path / "sub" / "a.wav", ("A dog",)),
        Clip(elsewhere, ("rain", "it rains")),
    ]


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ({"caption": "x"}, '"wav"'),
        ({"wav": "", "caption": "x"}, '"wav"'),
        ({"wav": 3, "caption": "x"}, '"wav"'),
        ({"wav": "a.wav"}, '"caption"'),
        ({"wav": "a.wav", "caption": None}, '"caption"'),
        ({"wav": "a.wav", "caption": []}, '"caption"'),
        ({"wav": "a.wav", "caption": "  "}, "empty caption"),
        ({"wav": "a.wav", "caption": ["x", ""]}, "empty caption"),
        ({"wav": "a.wav", "caption": ["x", 3]}, "empty caption"),
        ("a.wav", '"wav"'),
    ],
)
def test_manifest_names_the_bad_row(tmp_path, row, complaint):
    rows = [{"wav": "a.wav", "caption": "x"}, row]
    message = refused(manifest_clips, manifest(tmp_path, {"data": rows}))
    assert "row 2 (data[1])" in message
    assert complaint in message


@pytest.mark.parametrize("content", ["{", "", "\xff", [], {"date": []}, {"data": []}, {"data": 3}])
def test_what_is_no_manifest_is_refused(tmp_path, content):
    assert "manifest" in refused(manifest_clips, manifest(tmp_path, content))


def test_missing_manifest_is_refused(tmp_path):
    assert "missing.json" in refused(manifest_clips, tmp_path / "missing.json")
    assert "manifest cannot be read" in refused(manifest_clips, tmp_path)


# -------------------------------------------------------------------------- ESC-50, folders


def esc50(tmp_path, table):
    (tmp_path / "audio").mkdir(parents=True)
    (tmp_path / "meta").mkdir()
    (tmp_path / "meta" / "esc50.csv").write_text(table)
    return tmp_path


TABLE = """filename,fold,target,category
1-a.wav,1,0,dog
1-b.wav,1,1,chirping_birds
2-a.wav,2,0,dog
"""


def test_esc50_folds(tmp_path):
    root = esc50(tmp_path, TABLE)
    audio = root / "audio"
    first = [Clip(audio / "1-a.wav", ("dog",)), Clip(audio / "1-b.wav", ("chirping birds",))]
    assert esc50_clips(root, [1]) == first
    assert esc50_clips(root, [2, 1]) == [*first, Clip(audio / "2-a.wav", ("dog",))]


def test_esc50_on_the_real_folder(shared):
    root = shared / "data" / "esc10"
    train, valid = esc50_clips(root, (1, 2, 3)), esc50_clips(root, (4,))
    assert (len(train), len(valid)) == (240, 80)
    assert {caption for clip in valid for caption in clip.captions} >= {"dog", "chainsaw"}
    assert not {clip.path for clip in train} & {clip.path for clip in valid}
    assert all(clip.path.is_file() and clip.path.name.startswith("4-") for clip in valid)


@pytest.mark.parametrize(
    ("table", "complaint"),
    [
        ("filename,fold,target\na.wav,1,0\n", "line 2 has no 'category'"),
        (TABLE + "x.wav,,0,dog\n", "line 5 has no 'fold'"),
        (TABLE + "x.wav,one,0,dog\n", "line 5 has fold 'one'"),
        (TABLE + "x.wav\n", "line 5 has no 'fold'"),
        (TABLE.replace("1,", "3,"), "no clip in folds 1"),
        ("", "no clip in folds 1"),
    ],
)
def test_esc50_names_what_is_wrong(tmp_path, table, complaint):
    assert complaint in refused(esc50_clips, esc50(tmp_path, table), (1,))


def test_esc50_without_its_parts_is_refused(tmp_path):
    assert "--config.data.root=DIR" in refused(esc50_clips, tmp_path / "no", (1,))
    (tmp_path / "audio").mkdir()
    assert "esc50.csv" in refused(esc50_clips, tmp_path, (1,))


def test_class_folders(tmp_path):
    for name in ("b_big-dog/2.wav", "b_big-dog/1.flac", "a/x.OGG", "b_big-dog/n.txt", ".c/y.wav"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "loose.wav").touch()
    assert class_folder_clips(tmp_path) == [
        Clip(tmp_path / "a" / "x.OGG", ("a",)),
        Clip(tmp_path / "b_big-dog" / "1.flac", ("b big dog",)),
        Clip(tmp_path / "b_big-dog" / "2.wav", ("b big dog",)),
    ]


def test_class_folders_without_a_clip_or_a_name_are_refused(tmp_path):
    assert "--config.data.root=DIR" in refused(class_folder_clips, tmp_path / "no")
    (tmp_path / "_-").mkdir()
    assert "no audio file" in refused(class_folder_clips, tmp_path)
    (tmp_path / "_-" / "a.wav").touch()
    assert "no caption" in refused(class_folder_clips, tmp_path)


# ------------------------------------------------------------------------------ build_source


def test_build_source_of_each_layout(tmp_path):
    root = esc50(tmp_path / "esc50", TABLE)
    for name in ("1-a.wav", "1-b.wav", "2-a.wav"):
        save_noise(root / "audio" / name)
    save_noise(tmp_path / "folders" / "bell" / "a.wav", rate_hz=16000)
    rows = {"data": [{"wav": "folders/bell/a.wav", "caption": "ding"}]}
    path = manifest(tmp_path, rows)
    esc50_config = DataConfig(source="esc50", root=str(root), train_folds=(1,), valid_folds=(2,))
    folders = DataConfig(source="folders", root=str(root), valid_root=str(tmp_path / "folders"))
    listed = DataConfig(source="manifest", root=str(path), min_seconds=2)

    assert len(build_source(esc50_config, "train", RATE_HZ)) == 2
    assert build_source(esc50_config, "valid", RATE_HZ).name(0).endswith("2-a.wav")
    assert build_source(folders, "train", RATE_HZ).captions(0) == ("audio",)
    assert build_source(folders, "valid", RATE_HZ).captions(0) == ("bell",)
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
    assert both.captions(5) == ("bell",)
    assert len(build_source(config, "valid", RATE_HZ)) == 1
    own = dataclasses.replace(config, valid_root="")
    assert "valid_root=DIR" in refused(build_source, own, "valid", RATE_HZ)


def test_synthetic_validation_is_held_out():
    config = DataConfig(source="synthetic", num_synthetic_clips=30)
    train, valid = build_source(config, "train", RATE_HZ), build_source(config, "valid", RATE_HZ)
    assert len(train) == len(valid) == 30
    assert train.sample_rate_hz == RATE_HZ
    for index in range(12):
        assert train.captions(index) == valid.captions(index)
        assert not np.array_equal(train.load(index), valid.load(index))


@pytest.mark.parametrize("source", ["manifest", "esc50", "folders"])
def test_a_missing_data_set_says_which_option_to_give(tmp_path, source):
    for root in ("", str(tmp_path / "missing")):
        config = DataConfig(source=source, root=root, valid_root=root)
        message = refused(build_source, config, "train", RATE_HZ)
        assert "--config.data.root=DIR" in message
        assert root in message
    if source != "esc50":
        assert "valid_root=DIR" in refused(build_source, config, "valid", RATE_HZ)
