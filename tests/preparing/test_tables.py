"""tables: rows with their line numbers, whatever the file looks like."""

import pytest

from audiosep_jax.errors import InputError
from audiosep_jax.preparing import tables


def table(tmp_path, content):
    (tmp_path / "t.csv").write_bytes(content)
    return tmp_path / "t.csv"


def test_rows_by_column_with_their_lines(tmp_path):
    path = table(tmp_path, b'\xef\xbb\xbfa,b\r\n1,"x\ny"\r\n\r\n2\r\n3,z,more\r\n')
    assert list(tables.rows(path, ("a",))) == [
        (3, {"a": "1", "b": "x\ny"}),
        (5, {"a": "2", "b": ""}),
        (6, {"a": "3", "b": "z"}),
    ]


@pytest.mark.parametrize(
    ("content", "told"),
    [(b"", "no column 'a'"), (b"b\n1\n", "no column 'a'"), (b"a\n\xff\n", "no CSV file in UTF-8")],
)
def test_what_is_no_table_is_refused(tmp_path, content, told):
    with pytest.raises(InputError, match=told):
        list(tables.rows(table(tmp_path, content), ("a",)))
    with pytest.raises(InputError, match="cannot be read"):
        list(tables.lines(tmp_path / "none.csv"))


def test_spaces_behind_commas(tmp_path):
    path = table(tmp_path, b'a, 1.0, "x,y"\n')
    assert list(tables.lines(path, skip_spaces=True)) == [(1, ["a", "1.0", "x,y"])]
    assert list(tables.lines(path)) == [(1, ["a", " 1.0", ' "x', 'y"'])]


def test_json_is_read_or_refused(tmp_path):
    (tmp_path / "a.json").write_text('{"a": [1]}')
    assert tables.read_json(tmp_path / "a.json") == {"a": [1]}
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(InputError, match="is not JSON"):
        tables.read_json(tmp_path / "a.json")
    with pytest.raises(InputError, match="cannot be read"):
        tables.read_json(tmp_path / "b.json")


def test_folders_that_are_there_or_the_one_that_should_be(tmp_path):
    (tmp_path / "b").mkdir()
    a, b = tmp_path / "a", tmp_path / "b"
    assert tables.existing([a, b, b], a) == [b]
    assert tables.existing([a], a) == [a]
    assert tables.places([a, b], ("x", "y")) == (f"{a}/x", f"{b}/x", f"{a}/y", f"{b}/y")
