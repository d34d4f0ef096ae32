"""Recordings that the lists of benchmarks name are left out of training, and no others."""

import json

import pytest

from audiosep_jax.preparing import datasets
from audiosep_jax.preparing.exclusion import excluding
from audiosep_jax.preparing.recordings import Recording, Skipped

VIDEO, OTHER = "abcdefghijk", "-bcdefghij_"


def excluded(folder, recordings, content, name="list.csv"):
    """Ids of the recordings for training that a list with this content leaves out."""
    (folder / name).write_text(content, encoding="utf-8")
    items = [*recordings, Recording(VIDEO, "test", ("x",)), Skipped("row 3", "train", "bad")]
    found = list(excluding(items, [folder / name]))
    assert [item.id for item in found] == [item.id for item in items]
    assert found[-2:] == items[-2:]
    return [item.id for item in found[:-2] if isinstance(item, Skipped)]


@pytest.mark.parametrize(
    ("content", "ids"),
    [
        (f"file,caption\nY{VIDEO}.wav,x\ndog.wav,x\n", [VIDEO, f"{VIDEO}_30", "dog.wav"]),
        (f"{VIDEO}_30\n", [VIDEO, f"{VIDEO}_30"]),
        (f"Y{VIDEO}_30.flac\n", [VIDEO, f"{VIDEO}_30"]),
        (f"{VIDEO}_000031\n", [VIDEO]),
        (f"https://www.youtube.com/watch?v={VIDEO}&t=30s\n", [VIDEO, f"{VIDEO}_30"]),
        ("C:\\clips\\dog.WAV\n", ["dog.wav"]),
        ("a/b/dog\r\n", ["dog.wav"]),
        ("idx;file\n0;take_001_of_2.wav\n", ["take_001_of_2.wav"]),
        ("idx,file\n64760,x.wav\n", []),
        ("fname,labels\n64760,x\n", ["64760"]),
        ("take, one.wav\n", ["take, one.wav"]),
        ("other\n", []),
        ("", []),
    ],
)
def test_every_spelling_of_a_name_excludes_it(tmp_path, content, ids):
    names = [VIDEO, f"{VIDEO}_30", "dog.wav", f"x{VIDEO[1:]}", "take_001_of_2.wav"]
    names += ["take_001_of_3.wav", "64760", "take, one.wav"]
    recordings = [Recording(name, "train", ("x",), (f"/a/{name}",)) for name in names]
    assert excluded(tmp_path, recordings, content) == ids


def test_a_list_may_be_json(tmp_path):
    """As WavCaps' own blacklists, and as a manifest."""
    recordings = [Recording(f"AudioSet_SL/Y{VIDEO}", "train", ("x",), (f"/a/Y{VIDEO}",))]
    recordings += [Recording("FreeSound/123", "train", ("x",), ("/a/123",))]
    for content in (
        {"AudioSet": [f"Y{VIDEO}.wav"], "FreeSound": [123]},
        {"data": [{"wav": f"x/{VIDEO}.flac"}, {"wav": "123.wav"}]},
    ):
        found = excluded(tmp_path, recordings, json.dumps(content), "list.json")
        assert found == [f"AudioSet_SL/Y{VIDEO}", "FreeSound/123"]


def test_clips_of_videos_are_known_by_the_names_of_their_files(tmp_path):
    (tmp_path / "vggsound.csv").write_text(f"{VIDEO},30,dog,train\n{OTHER},1,cat,train\n")
    joined = f"{VIDEO}_30000_40000+++zzzzzzzzzzz_000001"
    for content, ids in (
        (f"file_id,s0_wav\n{joined},data/s0_wav/{joined}.wav\n", [f"{VIDEO}_000030"]),
        (f"{OTHER}\n", [f"{OTHER}_000001"]),
        (f"Y{OTHER}_7.wav\n", [f"{OTHER}_000001"]),
    ):
        recordings = list(datasets.vggsound(tmp_path))
        assert excluded(tmp_path, recordings, content) == ids


def test_the_lists_of_audioseps_benchmarks_name_their_clips(shared, tmp_path):
    (tmp_path / "train.csv").write_text(
        "audiocap_id,youtube_id,start_time,caption\n7,7fmOlUlwoNg,30,x\n8,zzzzzzzzzzz,30,x\n"
    )
    for name in ("val", "test"):
        (tmp_path / f"{name}.csv").write_text("audiocap_id,youtube_id,start_time,caption\n")
    videos = {"videos": {"accordion": ["1mCi6eWXVbg", "zzzzzzzzzzz"]}}
    (tmp_path / "MUSIC_solo_videos.json").write_text(json.dumps(videos))
    (tmp_path / "vggsound.csv").write_text("-JUBdOr8Hes,30,x,train\n37Vxf0Wz-3o,1,x,train\n")
    found = {
        source: [
            item.id
            for item in excluding(
                datasets.DATASETS[source].read(tmp_path),
                [shared / "data" / "audiosep_eval" / f"{source}_eval.csv"],
            )
            if isinstance(item, Skipped)
        ]
        for source in ("audiocaps", "music", "vggsound")
    }
    assert found == {
        "audiocaps": ["7fmOlUlwoNg_30"],
        "music": ["1mCi6eWXVbg"],
        "vggsound": ["-JUBdOr8Hes_000030", "37Vxf0Wz-3o_000001"],
    }
