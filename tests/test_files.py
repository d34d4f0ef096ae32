"""Files are written whole or not at all, and read with errors that say where and why."""

import os
import resource

import pytest
from hypothesis import given
from hypothesis import strategies as st

from audiosep_jax import files
from audiosep_jax.errors import InputError


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def fail(path, error):
    """Write to `path`, and fail before the end."""
    with files.replacing(path) as partial:
        partial.mkdir()
        (partial / "x").write_text("half")
        raise error


def test_a_file_takes_its_place_only_when_the_block_succeeds(tmp_path):
    path = tmp_path / "new" / "a.txt"
    with files.replacing(path) as partial:
        partial.write_text("first")
        assert not path.exists()
        assert partial.suffix == ".txt"
    with pytest.raises(ZeroDivisionError):
        fail(path, ZeroDivisionError())
    assert path.read_text() == "first"
    assert names(path.parent) == ["a.txt"]


def test_a_folder_can_be_written_whole(tmp_path):
    with files.replacing(tmp_path / "run") as partial:
        partial.mkdir()
        (partial / "x").write_text("1")
    assert names(tmp_path) == ["run"]
    with pytest.raises(KeyboardInterrupt):
        fail(tmp_path / "other", KeyboardInterrupt())
    assert names(tmp_path) == ["run"]


def test_a_full_disk_is_named_and_leaves_nothing(tmp_path):
    with pytest.raises(InputError, match=r"a\.txt: cannot be written \(No space left on device\)"):
        fail(tmp_path / "a.txt", OSError(28, os.strerror(28)))
    assert names(tmp_path) == []


def test_a_place_that_is_no_folder_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"file: the folder cannot be created \(a file has"):
        files.write_json(tmp_path / "file" / "b.json", {})


@given(value=st.recursive(st.integers() | st.text(), lambda x: st.lists(x, max_size=3)))
def test_json_comes_back(tmp_path_factory, value):
    path = tmp_path_factory.mktemp("json") / "a.json"
    files.write_json(path, {"x": value})
    assert files.read_json_object(path) == {"x": value}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", r"is not JSON \(.*line 1"),
        (b"[1]", "holds a JSON list, not an object"),
        (b"\xff\xfe{\x00", r"a\.json: is not text in UTF-8"),
    ],
)
def test_json_that_is_none_is_refused_with_the_reason(tmp_path, content, message):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        files.read_json_object(path)


def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert files.read_json(path) == {"a": 1}


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_tables_of_spreadsheets_are_read(tmp_path, delimiter):
    text = "File,QUERY\r\n a.wav , rain\r\n   ,\r\nb.wav,dog\r\n".replace(",", delimiter)
    for head, first in (("", 1), ("\r\n,,\r\n".replace(",", delimiter), 3)):
        (tmp_path / "a.csv").write_bytes(b"\xef\xbb\xbf" + (head + text).encode())
        assert files.read_csv(tmp_path / "a.csv", ["file", "query"]) == [
            (first + 1, {"file": "a.wav", "query": "rain"}),
            (first + 3, {"file": "b.wav", "query": "dog"}),
        ]


def test_the_delimiter_may_be_named_and_empty_columns_follow(tmp_path):
    (tmp_path / "a.csv").write_text("sep=;\na,b;c,d;;\n1;2;;\n3;4;;;\n")
    rows = files.read_csv(tmp_path / "a.csv", ["a,b"])
    empty = {"": "", " (2)": ""}
    assert rows == [(3, {"a,b": "1", "c,d": "2", **empty}), (4, {"a,b": "3", "c,d": "4", **empty})]


def test_a_repeated_name_is_numbered_if_it_is_asked_for(tmp_path):
    (tmp_path / "a.csv").write_text("x,noise,x,Noise\n1,2,3,4\n")
    rows = files.read_csv(tmp_path / "a.csv", ["noise", "noise (2)"])
    assert rows == [(2, {"x": "1", "noise": "2", "x (2)": "3", "noise (2)": "4"})]
    with pytest.raises(InputError, match="names the column 'noise' twice"):
        files.read_csv(tmp_path / "a.csv", optional=["noise"])


def test_cells_that_a_row_lacks_are_empty_if_rows_may_be_ragged(tmp_path):
    (tmp_path / "a.csv").write_bytes(b'a,b\r\n1,"x\ny"\r\n\r\n2\r\n3,z,more\r\n')
    assert files.read_csv(tmp_path / "a.csv", ["a"], ragged=True) == [
        (3, {"a": "1", "b": "x\ny"}),
        (5, {"a": "2", "b": ""}),
        (6, {"a": "3", "b": "z"}),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("file,text\n", r"has no column 'query'; its first line names file, text"),
        ("file,query,file\n", "names the column 'file' twice"),
        ("file,query\n\na.wav\n", "line 3 has 1 cells where the header has 2"),
        ("file,query\na.wav,rain,big\n", "line 2 has 3 cells where the header has 2"),
        ('file,query\na.wav,"rain\nb.wav,dog\n', "the row after line 1 is not CSV"),
    ],
)
def test_mistakes_in_tables_are_named_with_their_line(tmp_path, text, message):
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(InputError, match=message):
        files.read_csv(tmp_path / "a.csv", ["file", "query"])


def test_quotes_after_spaces_hold_delimiters(tmp_path):
    """AudioSet's segments are written so."""
    (tmp_path / "a.csv").write_text('# made in 2017\nYid, 0.000, 10.000, "/m/09,/m/05"\n')
    rows = list(files.csv_lines(tmp_path / "a.csv"))
    assert rows[1] == (2, ["Yid", "0.000", "10.000", "/m/09,/m/05"])


def test_written_tables_come_back(tmp_path):
    rows = [["a, b", 'c "d"'], ["x\ny", "1"]]
    files.write_csv(tmp_path / "a.csv", ["one", "two"], rows)
    assert [list(row.values()) for _, row in files.read_csv(tmp_path / "a.csv")] == rows
    files.write_csv(tmp_path / "b.csv", ["name"], [["caf\udce9.wav"]])  # of a file: no UTF-8
    assert files.read_csv(tmp_path / "b.csv") == [(2, {"name": "caf\\udce9.wav"})]


def test_a_log_outlives_a_kill_in_the_middle_of_a_line(tmp_path):
    with files.FinishedLog(tmp_path, "done") as log:
        log.add({"row": 0})
        log.add({"row": 1})
    content = log.path.read_bytes()
    for cut in range(len(content)):
        log.path.write_bytes(content[:cut])
        whole = content[:cut].count(b"\n")
        again = files.FinishedLog(tmp_path, "done")
        assert [record["row"] for record in again.records()] == list(range(whole))
        with again:
            again.add({"row": 7})
        assert [record["row"] for record in again.records()] == [*range(whole), 7]


def test_processes_write_a_log_each_and_read_all(tmp_path):
    for index in range(3):
        with files.FinishedLog(tmp_path, "done", (index, 3)) as log:
            log.add({"row": index})
    assert [record["row"] for record in files.FinishedLog(tmp_path, "done").records()] == [0, 1, 2]


def test_a_log_that_cannot_be_written_raises_once(tmp_path):
    log = files.FinishedLog(tmp_path, "done")
    log.add({"row": 0})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (log.path.stat().st_size, hard))
    try:
        with pytest.raises(InputError, match="cannot be written"):
            log.add({"row": 1})
        log.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [record["row"] for record in log.records()] == [0]


def test_the_cache_is_where_the_variable_says(tmp_path, monkeypatch):
    monkeypatch.setenv(files.CACHE_VARIABLE, str(tmp_path))
    assert files.cache_folder("xla") == tmp_path / "xla"
    monkeypatch.delenv(files.CACHE_VARIABLE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    if os.name == "posix" and os.uname().sysname == "Linux":
        assert files.cache_folder("a", "b") == tmp_path / "user" / "audiosep_jax" / "a" / "b"


def test_what_the_cache_holds_is_made_once(tmp_path):
    made = []

    def make(path):
        made.append(path)
        path.write_text("x")

    for _ in range(2):
        assert files.made_once(tmp_path / "a" / "b", make).read_text() == "x"
    assert len(made) == 1


def test_another_process_may_finish_a_cached_folder_first(tmp_path):
    destination = tmp_path / "folder"

    def make(partial):
        partial.mkdir()
        (partial / "x").touch()
        destination.mkdir()
        (destination / "theirs").touch()

    assert names(files.made_once(destination, make)) == ["theirs"]
    assert names(tmp_path) == ["folder"]
