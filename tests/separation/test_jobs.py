"""Jobs of files, folders and lists; shares; and what the ledger believes."""

import json
import os
from pathlib import Path, PurePosixPath

import pytest

from audiosep_jax.audio.headers import check_file
from audiosep_jax.errors import InputError
from audiosep_jax.separation.jobs import Ledger, all_parts, plan, share, state_of
from audiosep_jax.separation.queries import Part, Query

RAIN, DOG = Query((Part("text", "rain"),)), Query((Part("text", "dog"),))


def tree(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


def places(jobs):
    return [(job.name, str(job.folder / job.stem)) for job in jobs]


def csv_of(folder, *lines, newline="\n", encoding="utf-8"):
    path = folder / "list.csv"
    path.write_bytes(newline.join(lines).encode(encoding))
    return path


def test_one_recording(tmp_path):
    (job,) = plan(tmp_path / "a.b.wav", tmp_path / "out", [RAIN, DOG])
    assert (job.stem, job.folder, job.queries) == ("a.b", PurePosixPath(), (RAIN, DOG))
    with pytest.raises(InputError, match="--text, --embedding or --audio_query is needed"):
        plan(tmp_path / "a.wav", tmp_path / "out", [])


def test_a_folder_keeps_its_folders_and_leaves_out_what_is_none(tmp_path):
    names = [
        "b.wav",
        "x/a.FLAC",
        "x/y/a.mp4",
        "notes.txt",
        ".hidden.wav",
        ".git/a.wav",
        "out/b.wav",
    ]
    tree(tmp_path, *names)
    jobs = plan(tmp_path, tmp_path / "out", [RAIN])
    assert places(jobs) == [("b.wav", "b"), ("x/a.FLAC", "x/a"), ("x/y/a.mp4", "x/y/a")]
    assert [job.recording for job in jobs] == [tmp_path / job.name for job in jobs]


def test_recordings_of_one_name_stay_apart(tmp_path):
    tree(tmp_path, "a.wav", "a.flac", "A.ogg", "b.wav", "x/a.wav")
    found = [place for _, place in places(plan(tmp_path, tmp_path / "o", [RAIN]))]
    assert found == ["A.ogg", "a.flac", "a.wav", "b", "x/a"]


def test_a_folder_that_cannot_be(tmp_path):
    tree(tmp_path, "notes.txt")
    with pytest.raises(InputError, match="holds no recordings"):
        plan(tmp_path, tmp_path / "out", [RAIN])
    tree(tmp_path, "a.wav")
    with pytest.raises(InputError, match="is the input folder"):
        plan(tmp_path, tmp_path / "x" / "..", [RAIN])


def test_a_folder_that_cannot_be_opened_is_told_as_a_file_would_be(tmp_path, monkeypatch):
    tree(tmp_path, "a.wav", "shut/b.wav")
    opened = os.scandir

    def scandir(path):
        if str(path).endswith("shut"):
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path)

    monkeypatch.setattr(os, "scandir", scandir)
    jobs = plan(tmp_path, tmp_path / "out", [RAIN])
    assert places(jobs) == [("a.wav", "a"), ("shut", "shut")]
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(InputError, match=r"shut: cannot be opened \(Permission denied\)"):
        check_file(jobs[1].recording)
    with pytest.raises(InputError, match=r"shut: cannot be opened \(Permission denied\)"):
        plan(tmp_path / "shut", tmp_path / "out", [RAIN])


def test_long_names_are_cut_and_stay_apart(tmp_path):
    tree(tmp_path, *(f"{'ä' * 50}{number}.wav" for number in range(3)))
    found = [place for _, place in places(plan(tmp_path, tmp_path / "o", [RAIN]))]
    assert found == ["ä" * 41, "ä" * 41 + " (2)", "ä" * 41 + " (3)"]


def test_links_are_not_followed_round_in_circles(tmp_path):
    tree(tmp_path, "x/a.wav")
    (tmp_path / "x/again").symlink_to(tmp_path)
    assert places(plan(tmp_path, tmp_path / "o", [RAIN])) == [("x/a.wav", "x/a")]


def test_rows_of_one_file_are_one_job(tmp_path):
    lines = ["file,query,output", "a.wav,rain,", "x/b.wav,dog,sub/d.wav", 'a.wav,"dog, far",', ""]
    for options in ({}, {"newline": "\r\n"}, {"encoding": "utf-8-sig"}):
        first, second = plan(csv_of(tmp_path, *lines, **options), tmp_path / "out", [])
        assert [part.value for part in first.parts] == ["rain", "dog, far"]
        assert (first.recording, first.outputs) == (tmp_path / "a.wav", (None, None))
        assert second.outputs == (PurePosixPath("sub/d"),)
        assert places([first, second]) == [("a.wav", "a"), ("x/b.wav", "x/b")]
    assert [part.value for part in all_parts([first, second, first])] == ["rain", "dog, far", "dog"]


def test_a_list_of_files_alone_takes_the_queries_of_the_options(tmp_path):
    (job,) = plan(csv_of(tmp_path, "file", "a.wav"), tmp_path / "out", [RAIN, DOG])
    assert job.queries == (RAIN, DOG)


def test_listed_files_elsewhere_give_results_inside(tmp_path):
    lines = ["file,query", "/data/a.wav,rain", "../a.wav,rain", "../../x/a.wav,rain", ".,x", "..,x"]
    jobs = plan(csv_of(tmp_path, *lines), tmp_path / "out", [])
    assert [job.recording for job in jobs[:2]] == [Path("/data/a.wav"), tmp_path / "../a.wav"]
    assert [place for _, place in places(jobs)] == ["a.wav", "a.wav (2)", "a.wav (3)", "_", "_ (2)"]


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ([], "its first line must be file,query"),
        (["name,query", "a,b"], "its first line must be file,query"),
        (["file,file", "a,b"], "its first line must be file,query"),
        (["file,query"], "lists no files"),
        (["file,query,loud", "a,b,c"], "column 'loud'"),
        (["file,query", "a.wav"], "line 2: has 1 cells where the header has 2"),
        (["file,query", "a.wav,b,c"], "line 2: has 3 cells"),
        (["file,query", "a.wav,rain", ",rain"], "line 3: has no file"),
        (["file,query", "a.wav, "], "line 2: has no query"),
        (["file,query", 'a.wav,"rain'], "no CSV of text"),
        (["file,query", "a.wav," + "x" * 5000], "line 2: holds more than 4096"),
        (["file,query", "a.wav," + "x" * 200_000], "no CSV of text"),
        (["file,query,output", "a.wav,rain,../x.wav"], "line 2: output '../x.wav' must be"),
        (["file,query,output", "a.wav,rain,/etc/x.wav"], "line 2: output '/etc/x.wav' must be"),
        (["file,query", "a\0.wav,rain"], "list.csv"),
    ],
)
def test_a_list_that_is_wrong(tmp_path, lines, words):
    with pytest.raises(InputError) as caught:
        plan(csv_of(tmp_path, *lines), tmp_path / "out", [])
    assert words in str(caught.value)


def test_a_list_that_is_no_text(tmp_path):
    (tmp_path / "list.csv").write_bytes(b"RIFF\xff\xfe\0\0")
    with pytest.raises(InputError, match="is no CSV of text in UTF-8"):
        plan(tmp_path / "list.csv", tmp_path, [])
    with pytest.raises(InputError, match="cannot be opened"):
        plan(tmp_path / "none.csv", tmp_path, [])


def test_queries_come_from_one_place(tmp_path):
    with pytest.raises(InputError, match="has a column query"):
        plan(csv_of(tmp_path, "file,query", "a,b"), tmp_path, [RAIN])
    with pytest.raises(InputError, match="has no column query"):
        plan(csv_of(tmp_path, "file", "a"), tmp_path, [])
    with pytest.raises(InputError, match="names one result"):
        plan(csv_of(tmp_path, "file,output", "a,b"), tmp_path, [RAIN, DOG])


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_shares_cover_everything_once(count):
    items = list(range(5))
    shares = [share(items, index, count) for index in range(count)]
    assert sorted(x for part in shares for x in part) == items
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_the_ledger_believes_what_is_there_and_whole(tmp_path):
    (tmp_path / "a.wav").write_bytes(b"1234")
    record = {"key": "k", "files": {"a.wav": state_of(tmp_path / "a.wav")}}
    Ledger(tmp_path, 0, 2).add(record)
    Ledger(tmp_path, 1, 2).add({"key": "gone", "files": {"b.wav": [4, 0]}})
    assert (tmp_path / "separated.0-of-2.jsonl").read_text() == json.dumps(record) + "\n"
    assert Ledger(tmp_path).finished() == {"k": record}
    _, written_ns = state_of(tmp_path / "a.wav")
    for content, time_ns in ((b"123", written_ns), (b"4321", written_ns + 1)):
        (tmp_path / "a.wav").write_bytes(content)
        os.utime(tmp_path / "a.wav", ns=(time_ns, time_ns))
        assert Ledger(tmp_path).finished() == {}


def test_half_a_line_loses_only_itself(tmp_path):
    (tmp_path / "separated.jsonl").write_bytes(b'{"key": "a", "files": {}}\n[1]\n\xff\n{"key": "b')
    Ledger(tmp_path).add({"key": "c", "files": {}})
    assert sorted(Ledger(tmp_path).finished()) == ["a", "c"]
