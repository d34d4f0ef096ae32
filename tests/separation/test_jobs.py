"""Jobs of recordings, folders and lists; names of results; and what a log says is finished."""

import os
from pathlib import Path, PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from audiosep_jax.audio.decoding import open_decoder
from audiosep_jax.errors import InputError
from audiosep_jax.files import FinishedLog
from audiosep_jax.remote import state
from audiosep_jax.separation.jobs import (
    checked_name,
    distinct,
    finished_records,
    output_names,
    plan,
)
from audiosep_jax.separation.queries import Part

RAIN, DOG = (Part("text", "rain"),), (Part("text", "dog"),)


def tree(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


def places(jobs):
    return [(job.name, str(job.folder / job.stem)) for job in jobs]


def values(job):
    return [part.value for query in job.queries for part in query]


def csv_of(folder, *lines, newline="\n", encoding="utf-8"):
    path = folder / "list.csv"
    path.write_bytes(newline.join(lines).encode(encoding))
    return path


def test_one_recording(tmp_path):
    (job,) = plan([tmp_path / "a.b.wav"], tmp_path / "out", [RAIN, DOG])
    assert (job.stem, job.folder, job.queries) == ("a.b", PurePosixPath(), (RAIN, DOG))
    with pytest.raises(InputError, match=r"--text, .*--image.*: one of them is needed"):
        plan([tmp_path / "a.wav"], tmp_path / "out", [])


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
    jobs = plan([tmp_path], tmp_path / "out", [RAIN])
    assert places(jobs) == [("b.wav", "b"), ("x/a.FLAC", "x/a"), ("x/y/a.mp4", "x/y/a")]
    assert [job.recording for job in jobs] == [tmp_path / job.name for job in jobs]


def test_recordings_of_one_name_stay_apart(tmp_path):
    tree(tmp_path, "a.wav", "a.flac", "A.ogg", "b.wav", "x/a.wav")
    found = [place for _, place in places(plan([tmp_path], tmp_path / "o", [RAIN]))]
    assert found == ["A.ogg", "a.flac", "a.wav", "b", "x/a"]


def test_files_that_are_no_recordings_are_told(tmp_path, capsys):
    tree(tmp_path, "a.wav", "b.m4b", "x/notes.txt", "x/c.mid", ".hidden.txt")
    assert [place for _, place in places(plan([tmp_path], tmp_path / "o", [RAIN]))] == ["a", "b"]
    told = f"{tmp_path}: left out are files of other kinds: 2, such as {tmp_path}/x/c.mid\n"
    assert capsys.readouterr().err == told


def test_a_folder_that_cannot_be(tmp_path):
    tree(tmp_path, "notes.txt")
    with pytest.raises(InputError, match=r"holds no recordings; files of other kinds: 1, such as"):
        plan([tmp_path], tmp_path / "out", [RAIN])
    tree(tmp_path, "a.wav")
    with pytest.raises(InputError, match="is the input folder"):
        plan([tmp_path], tmp_path / "x" / "..", [RAIN])


def test_a_folder_that_cannot_be_opened_is_told_as_a_file_would_be(tmp_path, monkeypatch):
    tree(tmp_path, "a.wav", "shut/b.wav")
    opened = os.scandir

    def scandir(path):
        if str(path).endswith("shut"):
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path)

    monkeypatch.setattr(os, "scandir", scandir)
    jobs = plan([tmp_path], tmp_path / "out", [RAIN])
    assert places(jobs) == [("a.wav", "a"), ("shut", "shut")]
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(InputError, match=r"shut: cannot be opened \(Permission denied\)"):
        open_decoder(jobs[1].recording)
    with pytest.raises(InputError, match=r"shut: cannot be opened \(Permission denied\)"):
        plan([tmp_path / "shut"], tmp_path / "out", [RAIN])


def test_long_names_are_cut_and_stay_apart(tmp_path):
    tree(tmp_path, *(f"{'ä' * 50}{number}.wav" for number in range(3)))
    found = [place for _, place in places(plan([tmp_path], tmp_path / "o", [RAIN]))]
    assert found == ["ä" * 41, "ä" * 41 + " (2)", "ä" * 41 + " (3)"]


def test_links_are_not_followed_round_in_circles(tmp_path):
    tree(tmp_path, "x/a.wav")
    (tmp_path / "x/again").symlink_to(tmp_path)
    assert places(plan([tmp_path], tmp_path / "o", [RAIN])) == [("x/a.wav", "x/a")]


def test_rows_of_one_file_are_one_job(tmp_path):
    lines = ["file,query,output", "a.wav,rain,", "x/b.wav,dog,sub/d.wav", 'a.wav,"dog, far",', ""]
    for options in ({}, {"newline": "\r\n"}, {"encoding": "utf-8-sig"}):
        first, second = plan([csv_of(tmp_path, *lines, **options)], tmp_path / "out", [])
        assert values(first) == ["rain", "dog, far"]
        assert (first.recording, first.outputs) == (tmp_path / "a.wav", (None, None))
        assert second.outputs == (PurePosixPath("sub/d"),)
        assert places([first, second]) == [("a.wav", "a"), ("x/b.wav", "x/b")]


def test_a_row_asks_with_a_sentence_or_a_picture(tmp_path):
    lines = ["file,query,image", "a.wav,rain,", "b.wav,,pictures/dog.jpg"]
    first, second = plan([csv_of(tmp_path, *lines)], tmp_path / "out", [])
    assert first.queries == (RAIN,)
    assert second.queries == ((Part("image", str(tmp_path / "pictures/dog.jpg")),),)
    (job,) = plan([csv_of(tmp_path, "file,image", "a.wav,/dog.jpg")], tmp_path / "out", [])
    assert job.queries == ((Part("image", "/dog.jpg"),),)


def test_a_list_of_files_alone_takes_the_queries_of_the_options(tmp_path):
    (job,) = plan([csv_of(tmp_path, "file", "a.wav")], tmp_path / "out", [RAIN, DOG])
    assert job.queries == (RAIN, DOG)


def test_listed_files_elsewhere_give_results_inside(tmp_path):
    lines = ["file,query", "/data/a.wav,rain", "../a.wav,rain", "../../x/a.wav,rain", ".,x", "..,x"]
    jobs = plan([csv_of(tmp_path, *lines)], tmp_path / "out", [])
    assert [job.recording for job in jobs[:2]] == [Path("/data/a.wav"), tmp_path / "../a.wav"]
    assert [place for _, place in places(jobs)] == ["a.wav", "a.wav (2)", "a.wav (3)", "_", "_ (2)"]


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ([], "is empty; its first line must name the columns"),
        (["name,query", "a,b"], "has no column 'file'"),
        (["file,file", "a,b"], "names the column 'file' twice"),
        (["file,query"], "lists no files"),
        (["file,query,loud", "a,b,c"], "column 'loud'"),
        (["file,query", "a.wav"], "line 2 has 1 cells where the header has 2"),
        (["file,query", "a.wav,b,c"], "line 2 has 3 cells"),
        (["file,query", "a.wav,rain", ",rain"], "line 3: has no file"),
        (["file,query", "a.wav, "], "line 2: has no query"),
        (["file,query,image", "a.wav,rain,dog.jpg"], "line 2: has a query and an image"),
        (["file,query", 'a.wav,"rain'], "is not CSV"),
        (["file,query", "a.wav," + "x" * 200_000], "is not CSV"),
        (["file,query,output", "a.wav,rain,../x.wav"], "line 2: output '../x.wav' must be"),
        (["file,query,output", "a.wav,rain,/etc/x.wav"], "line 2: output '/etc/x.wav' must be"),
        (["file,query", "a\0.wav,rain"], "list.csv"),
    ],
)
def test_a_list_that_is_wrong(tmp_path, lines, words):
    with pytest.raises(InputError) as caught:
        plan([csv_of(tmp_path, *lines)], tmp_path / "out", [])
    assert words in str(caught.value)


def test_a_list_that_is_no_text(tmp_path):
    (tmp_path / "list.csv").write_bytes(b"RIFF\xff\xfe\0\0")
    with pytest.raises(InputError, match="is not text in UTF-8"):
        plan([tmp_path / "list.csv"], tmp_path, [])
    with pytest.raises(InputError, match="cannot be read"):
        plan([tmp_path / "none.csv"], tmp_path, [])


def test_queries_come_from_one_place(tmp_path):
    with pytest.raises(InputError, match="has a column of queries"):
        plan([csv_of(tmp_path, "file,query", "a,b")], tmp_path, [RAIN])
    with pytest.raises(InputError, match="has no column query"):
        plan([csv_of(tmp_path, "file", "a")], tmp_path, [])
    with pytest.raises(InputError, match="names one result"):
        plan([csv_of(tmp_path, "file,output", "a,b")], tmp_path, [RAIN, DOG])


def test_a_log_is_believed_as_far_as_results_are_there_and_whole(tmp_path):
    (tmp_path / "a.wav").write_bytes(b"1234")
    record = {"key": "k", "files": {"a.wav": state(tmp_path / "a.wav")}}
    with FinishedLog(tmp_path, "separated", (0, 2)) as first:
        first.add(record)
    with FinishedLog(tmp_path, "separated", (1, 2)) as second:
        second.add({"key": "gone", "files": {"b.wav": [4, 0]}})
    log = FinishedLog(tmp_path, "separated")
    assert finished_records(log, tmp_path) == {"k": record}
    _, written_ns = state(tmp_path / "a.wav")
    for content, time_ns in ((b"123", written_ns), (b"4321", written_ns + 1)):
        (tmp_path / "a.wav").write_bytes(content)
        os.utime(tmp_path / "a.wav", ns=(time_ns, time_ns))
        assert finished_records(log, tmp_path) == {}


def test_half_a_line_loses_only_itself(tmp_path):
    (tmp_path / "separated.jsonl").write_bytes(b'{"key": "a", "files": {}}\n[1]\n\xff\n{"key": "b')
    with FinishedLog(tmp_path, "separated") as log:
        log.add({"key": "c", "files": {}})
        assert sorted(finished_records(log, tmp_path)) == ["a", "c"]


# ---------------------------------------------------------------------- names of results


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("../../etc/passwd", ".._.._etc_passwd"),
        ("/root/x", "_root_x"),
        ("..", "_"),
        ("犬が吠える 🐶", "犬が吠える 🐶"),
        ("C:\\con|rain?", "C__con_rain_"),
        ("  rain,\n\ton   a roof. ", "rain, on a roof"),
        ("x" * 500, "x" * 60),
        ("\x1b[31mred\u202e\x7f", "_[31mred__"),
    ],
)
def test_a_query_becomes_a_file_name(text, name):
    assert output_names("in", [text]) == [f"in - {name}"]


@given(st.text(max_size=300), st.lists(st.text(max_size=80), min_size=1, max_size=4))
def test_any_text_stays_in_its_folder(stem, queries):
    stem = Path(stem.encode(errors="ignore").decode().replace("\0", "")).stem
    names = output_names(stem, queries)
    assert len({name.casefold() for name in names}) == len(queries)
    for name in names:
        assert Path(name).name == name
        assert len(os.fsencode(name)) < 225


def test_names_that_are_taken_get_a_number():
    assert distinct(["a", "A", "a (2)", "b"]) == ["a", "A (2)", "a (2) (2)", "b"]


@pytest.mark.parametrize(
    ("name", "path"), [("dog", "dog"), ("x/dog.wav", "x/dog"), ("x\\dog.v2", "x/dog.v2")]
)
def test_a_name_that_a_list_gives(name, path):
    assert checked_name(name, "list.csv: line 2") == PurePosixPath(path)


@pytest.mark.parametrize(
    "name",
    [
        "../x",
        "a/../../x",
        "/etc/x",
        "C:\\x",
        "..\\x",
        "x/",
        ".",
        "a\nb",
        "a:b",
        "x.",
        "y" * 300,
        "x /y",
    ],
)
def test_a_name_that_leads_elsewhere(name):
    with pytest.raises(InputError, match=r"list\.csv: line 2: output "):
        checked_name(name, "list.csv: line 2")


# ---------------------------------------------------------------------- several inputs


def test_several_inputs_are_one_work(tmp_path):
    tree(tmp_path, "x/take.wav", "y/take.wav", "y/b/other.mp3", "z.mkv", "z.mp4")
    sources = [tmp_path / name for name in ("x/take.wav", "y", "z.mkv", "z.mp4", "x/take.wav")]
    jobs = plan(sources, tmp_path / "out", [RAIN])
    assert [str(job.folder / job.stem) for job in jobs] == [
        "take.wav",
        "b/other",
        "take.wav (2)",
        "z.mkv",
        "z.mp4",
    ]
    assert [job.recording for job in jobs[:2]] == [sources[0], tmp_path / "y/b/other.mp3"]
    assert jobs[1].name == str(tmp_path / "y/b/other.mp3")


def test_several_inputs_that_are_wrong(tmp_path):
    tree(tmp_path, "a.wav")
    sources = [tmp_path / "a.wav", tmp_path / "none.wav"]
    with pytest.raises(InputError, match=r"none\.wav: no such file or folder"):
        plan(sources, tmp_path / "out", [RAIN])
    with pytest.raises(InputError, match="a list must be the only input"):
        plan([tmp_path / "a.wav", csv_of(tmp_path, "file", "a.wav")], tmp_path / "out", [RAIN])


def test_a_list_from_a_spreadsheet_on_windows(tmp_path):
    tree(tmp_path, "x/a.wav")
    lines = ["File;Query", "x\\a.wav;rain", ";"]
    (job,) = plan([csv_of(tmp_path, *lines, newline="\r\n", encoding="utf-8-sig")], tmp_path, [])
    assert job.recording.is_file()
    assert (str(job.folder / job.stem), values(job)) == ("x/a", ["rain"])
