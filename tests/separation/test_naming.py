"""File names of results: whatever the query, a name inside its folder."""

import os
from pathlib import Path, PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from audiosep_jax.errors import InputError
from audiosep_jax.separation.naming import check_inside, checked_name, distinct, output_names


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


def test_a_link_that_leads_out(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/link").symlink_to(tmp_path)
    check_inside(tmp_path / "out", tmp_path / "out/new/x.wav")
    with pytest.raises(InputError, match="a link leads out"):
        check_inside(tmp_path / "out", tmp_path / "out/link/x.wav")
