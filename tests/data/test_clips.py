"""clips: every layout gives clips with captions, and says what is wrong with it."""

import json
from pathlib import Path

import pytest

from audiosep_jax.data.clips import (
    NUM_ENROLMENTS,
    Clip,
    class_folder_clips,
    esc50_clips,
    manifest_clips,
    speaker_clips,
)
from audiosep_jax.encoders.encoder import query_of
from audiosep_jax.errors import InputError


def refused(call, *arguments):
    with pytest.raises(InputError) as caught:
        call(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


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
        {"wav": "~/c.wav", "caption": "wind"},
    ]
    assert list(manifest_clips(manifest(tmp_path, {"data": rows}))) == [
        Clip(tmp_path / "sub" / "a.wav", ("A dog",)),
        Clip(elsewhere, ("rain", "it rains")),
        Clip(Path.home() / "c.wav", ("wind",)),
    ]


def test_manifest_says_what_sounds_in_a_recording(tmp_path):
    rows = [
        {
            "wav": "a.wav",
            "sources": ["a dog", ["rain", "rainfall"]],
            "caption": "a dog in the rain",
        },
        {"wav": "b.wav", "caption": ["a dog", "a bark"]},
    ]
    captions = manifest_clips(manifest(tmp_path, {"data": rows})).captions
    texts = [[[captions.texts[n] for n in own] for own in captions.sounds(k)] for k in (0, 1)]
    assert texts == [[["a dog"], ["rain", "rainfall"]], [["a dog", "a bark"]]]


def test_manifest_has_pictures_beside_captions_or_alone(tmp_path):
    for name in ("dog.jpg", "rain.mp4"):
        (tmp_path / name).write_bytes(b"picture")
    rows = [
        {"wav": "a.wav", "caption": "a dog", "image": ["dog.jpg", str(tmp_path / "rain.mp4")]},
        {"wav": "b.wav", "image": "dog.jpg"},
        {"wav": "b.wav", "caption": ["a bark"], "image": "dog.jpg"},
        {"wav": "c.wav", "caption": "rain", "image": ""},
    ]
    dog, rain = ("image", str(tmp_path / "dog.jpg")), ("image", str(tmp_path / "rain.mp4"))
    clips = manifest_clips(manifest(tmp_path, {"data": rows}))
    assert [[query_of(caption) for caption in clip.captions] for clip in clips] == [
        [("text", "a dog"), dog, rain],
        [dog, ("text", "a bark")],
        [("text", "rain")],
    ]
    first = clips[1].captions[0]
    (tmp_path / "dog.jpg").write_bytes(b"another picture")
    assert manifest_clips(manifest(tmp_path, {"data": rows}))[1].captions[0] != first


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ({"caption": "x"}, '"wav"'),
        ({"wav": "", "caption": "x"}, '"wav"'),
        ({"wav": 3, "caption": "x"}, '"wav" is 3'),
        ({"wav": "a.wav"}, '"caption"'),
        ({"wav": "a.wav", "caption": None}, '"caption"'),
        ({"wav": "a.wav", "caption": []}, '"caption"'),
        ({"wav": "a.wav", "caption": "  "}, "empty caption"),
        ({"wav": "a.wav", "caption": ["x", ""]}, "empty caption"),
        ({"wav": "a.wav", "caption": ["x", 3]}, "caption is 3, not text"),
        ({"wav": "a.wav", "caption": 7}, "caption is 7, not text"),
        ({"wav": "a.wav", "sources": []}, 'no "sources"'),
        ({"wav": "a.wav", "sources": ["x", []]}, "empty caption"),
        ({"wav": "a.wav", "sources": ["x", ["y", 3]]}, "caption is 3, not text"),
        ({"wav": "a.wav", "caption": "x", "image": "no.jpg"}, "no.jpg: No such file"),
        ({"wav": "a.wav", "caption": "x", "image": 7}, '"image" is 7, not the path'),
        ({"wav": "a.wav", "caption": "x", "image": [" "]}, '"image" is " ", not the path'),
        ({"wav": "a.wav", "image": []}, 'no "caption"'),
        ({"wav": "a.wav", "sources": ["x"], "image": "x.jpg"}, '"image" and "sources"'),
        ({"audio": "a.wav", "text": "x"}, "its fields are audio, text"),
        ({"wav": "a.wav", "caption": "x", "class": 7}, '"class" is 7, not the name'),
        ("a.wav", '"wav"'),
    ],
)
def test_manifest_names_the_bad_row(tmp_path, row, complaint):
    rows = [{"wav": "a.wav", "caption": "x"}, row]
    message = refused(manifest_clips, manifest(tmp_path, {"data": rows}))
    assert "row 2 (data[1])" in message
    assert complaint in message


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("{", "is not JSON"),
        ("", "is empty"),
        ("[" * 100_000, "is not JSON (maximum recursion depth"),
        ("\xff", "is not JSON"),
        ('{"data": [{"wav": "a", "caption": "x"},\n{"wav"]}', "line 2"),
        ('{"data": [{"wav": "a", "caption": "x"}]', "is not JSON"),
        ('{"data": [{"wav": "a", "caption": "x"}]} more', "is not JSON"),
        ([], "has no fields"),
        ({"date": [], "n": 1}, "has fields date, n, but no list 'data'"),
        ({"data": []}, 'list "data" of the manifest is empty'),
        ({"data": 3}, "no list 'data'"),
    ],
)
def test_what_is_no_manifest_is_refused(tmp_path, content, complaint):
    message = refused(manifest_clips, manifest(tmp_path, content))
    assert "manifest.json" in message
    assert complaint in message


def test_missing_manifest_is_refused(tmp_path):
    assert "missing.json" in refused(manifest_clips, tmp_path / "missing.json")
    message = refused(manifest_clips, tmp_path)
    assert message == f"{tmp_path}: cannot be read (Is a directory)"


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
    assert list(esc50_clips(root, [1])) == first
    assert list(esc50_clips(root, [2, 1])) == [*first, Clip(audio / "2-a.wav", ("dog",))]


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
        ("filename,fold,target\na.wav,1,0\n", "has no column 'category'"),
        (TABLE + "x.wav,,0,dog\n", "line 5 has no 'fold'"),
        (TABLE + "x.wav,one,0,dog\n", "line 5 has fold 'one'"),
        (TABLE + "x.wav\n", "line 5 has 1 cells where the header has 4"),
        (TABLE.replace("1,", "3,"), "no clip in folds 1"),
        ("", "is empty"),
    ],
)
def test_esc50_names_what_is_wrong(tmp_path, table, complaint):
    assert complaint in refused(esc50_clips, esc50(tmp_path, table), (1,))


def test_esc50_without_its_parts_is_refused(tmp_path):
    assert "not laid out as ESC-50" in refused(esc50_clips, tmp_path / "no", (1,))
    (tmp_path / "audio").mkdir()
    assert "esc50.csv" in refused(esc50_clips, tmp_path, (1,))


def test_class_folders(tmp_path):
    for name in ("b_big-dog/2.wav", "b_big-dog/1.flac", "a/x.OGG", "b_big-dog/n.txt", ".c/y.wav"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "loose.wav").touch()
    assert list(class_folder_clips(tmp_path)) == [
        Clip(tmp_path / "a" / "x.OGG", ("a",)),
        Clip(tmp_path / "b_big-dog" / "1.flac", ("b big dog",)),
        Clip(tmp_path / "b_big-dog" / "2.wav", ("b big dog",)),
    ]


def test_class_folders_without_a_clip_or_a_name_are_refused(tmp_path):
    assert "no such folder" in refused(class_folder_clips, tmp_path / "no")
    (tmp_path / "_-").mkdir()
    assert "no folder with recordings" in refused(class_folder_clips, tmp_path)
    (tmp_path / "_-" / "a.wav").touch()
    assert "no caption" in refused(class_folder_clips, tmp_path)


def test_manifest_rows_of_one_file_are_one_clip(tmp_path):
    rows = [
        {"wav": "a.wav", "caption": "rain"},
        {"wav": "b.wav", "caption": "dog"},
        {"wav": "./a.wav", "caption": ["it rains", "rain"]},
    ]
    assert list(manifest_clips(manifest(tmp_path, {"data": rows}))) == [
        Clip(tmp_path / "a.wav", ("rain", "it rains")),
        Clip(tmp_path / "b.wav", ("dog",)),
    ]


def test_manifest_rows_may_have_a_class(tmp_path):
    rows = [
        {"wav": "a.wav", "caption": "woof", "class": "dog"},
        {"wav": "b.wav", "caption": ["it barks"], "class": "Dog"},
        {"wav": "c.wav", "caption": "rain", "class": None},
        {"wav": "d.wav", "caption": "bell"},
    ]
    captions = manifest_clips(manifest(tmp_path, {"data": rows})).captions
    assert list(captions.classes()) == ["dog", "dog", "", ""]
    assert captions.without(captions.keys(0)).tolist() == [2, 3]
    assert list(captions.texts) == ["woof", "it barks", "rain", "bell"]


def test_a_manifest_from_a_spreadsheet_on_windows_is_read(tmp_path):
    (tmp_path / "real\\name.wav").touch()
    rows = [{"wav": "sub\\a.wav", "caption": "rain"}, {"wav": "real\\name.wav", "caption": "dog"}]
    path = tmp_path / "manifest.json"
    path.write_text("\ufeff" + json.dumps({"version": {"a": [1]}, "data": rows, "n": 2}, indent=1))
    assert [clip.path for clip in manifest_clips(path)] == [
        tmp_path / "sub" / "a.wav",
        tmp_path / "real\\name.wav",
    ]


def test_a_large_manifest_is_read_piece_by_piece(tmp_path):
    rows = [
        {"wav": f"{k}.wav", "caption": f"sound {k % 700} " + "é" * (k % 50)} for k in range(40_000)
    ]
    clips = manifest_clips(manifest(tmp_path, {"data": rows}))
    assert len(clips) == 40_000
    for k in (0, 12_345, 39_999):
        assert clips[k] == Clip(tmp_path / rows[k]["wav"], (rows[k]["caption"],))


@pytest.mark.parametrize(("delimiter", "start"), [(";", ""), ("\t", "\ufeff"), (",", "\ufeff")])
def test_esc50_tables_of_spreadsheets_are_read(tmp_path, delimiter, start):
    table = TABLE.replace("filename,fold", "Filename,FOLD").replace(",", delimiter)
    root = esc50(tmp_path, start + table + "   \n\n")
    assert [clip.path.name for clip in esc50_clips(root, [1])] == ["1-a.wav", "1-b.wav"]


def test_class_folders_are_read_at_any_depth_and_the_rest_is_named(tmp_path):
    names = ("dog/a.m4a", "dog/take 2/deep/b.wav", "dog/notes.txt", "cat/c.webm", "loose.wav")
    for name in (*names, "dog/.hidden.wav", ".git/x.wav"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "dog" / "linked").symlink_to(tmp_path / "cat")
    clips = class_folder_clips(tmp_path)
    assert [(str(clip.path.relative_to(tmp_path)), clip.captions) for clip in clips] == [
        ("cat/c.webm", ("cat",)),
        ("dog/a.m4a", ("dog",)),
        ("dog/take 2/deep/b.wav", ("dog",)),
    ]
    left_out = {str(tmp_path / name) for name in ("loose.wav", "dog/notes.txt", "dog/linked")}
    assert set(clips.left_out) == left_out


# -------------------------------------------------------------------------------- speakers


def test_a_speakers_other_recordings_ask_for_a_recording(tmp_path):
    names = [f"alice/{k}/{k}.flac" for k in range(12)] + ["bob/a.ogg", "bob/b.wav", "bob/c.wav"]
    for name in names:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"sound")
    clips = speaker_clips(tmp_path)
    enrolments = {}
    for clip, speaker in zip(clips, clips.captions.classes(), strict=True):
        files = [query_of(caption)[1] for caption in clip.captions]
        enrolments[str(clip.path)] = files
        assert len(set(files)) == (NUM_ENROLMENTS if speaker == "alice" else 2)
        assert str(clip.path) not in files
        assert {Path(file).relative_to(tmp_path).parts[0] for file in files} == {speaker}
    assert set(enrolments) == {str(tmp_path / name) for name in names}
    assert {file for files in enrolments.values() for file in files} == set(enrolments)
    assert len({tuple(sorted(files)) for files in enrolments.values()}) == len(names)


def test_a_speaker_with_one_recording_is_refused(tmp_path):
    (tmp_path / "alice").mkdir()
    (tmp_path / "alice" / "a.flac").write_bytes(b"sound")
    assert "a.flac: is the only file of its speaker" in refused(speaker_clips, tmp_path)
