"""Rows on disk: none is lost, none of another evaluation is taken."""

import pytest

from audiosep_jax.errors import InputError
from audiosep_jax.evaluation.rows import RowsFile, discard, file_name, read_all

ABOUT = {"protocol": "esc50", "checkpoint": "0123"}


def write(folder, numbers, shard=(0, 1), **extra):
    with RowsFile(folder / file_name(shard), ABOUT) as rows:
        for number in numbers:
            rows.add({"row": number, "sdri": number / 3} | extra)


def test_rows_come_back_to_the_bit(tmp_path):
    assert read_all(tmp_path, ABOUT) == {}
    write(tmp_path / "new", [4, 1])
    write(tmp_path / "new", [7])
    assert read_all(tmp_path / "new", ABOUT) == {n: {"row": n, "sdri": n / 3} for n in (4, 1, 7)}


@pytest.mark.parametrize("cut", range(1, 60))
def test_a_line_cut_off_is_dropped_and_no_other(tmp_path, cut):
    write(tmp_path, [0, 1])
    path = tmp_path / file_name((0, 1))
    content = path.read_bytes()
    path.write_bytes(content[:-cut])
    whole = content[:-cut].count(b"\n") - 1  # without the head
    assert list(read_all(tmp_path, ABOUT)) == [0, 1][: max(whole, 0)]
    write(tmp_path, [2])
    assert list(read_all(tmp_path, ABOUT)) == [*[0, 1][: max(whole, 0)], 2]


def test_processes_share_a_folder(tmp_path):
    write(tmp_path, [0, 2], (0, 2))
    write(tmp_path, [1], (1, 2))
    assert sorted(read_all(tmp_path, ABOUT)) == [0, 1, 2]
    assert len(list(tmp_path.iterdir())) == 2
    discard(tmp_path, ABOUT, (1, 2))  # of the other, which may be at work, nothing
    assert sorted(read_all(tmp_path, ABOUT)) == [0, 2]
    discard(tmp_path, ABOUT | {"checkpoint": "other"}, (1, 2))
    assert not list(tmp_path.iterdir())
    write(tmp_path, [0, 2], (0, 2))
    discard(tmp_path, ABOUT, (0, 1))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_a_score_counts_before_a_reason(tmp_path, order):
    for shard in order:
        write(tmp_path, [3], (shard, 2), **({"reason": "gone"} if shard == 0 else {}))
    write(tmp_path, [5], reason="gone")
    found = read_all(tmp_path, ABOUT)
    assert "reason" not in found[3]
    assert found[5]["reason"] == "gone"


def test_rows_of_another_evaluation_are_refused(tmp_path):
    write(tmp_path, [0])
    message = r"rows of another evaluation \(checkpoint differs\); choose another --output, or"
    with pytest.raises(InputError, match=message):
        read_all(tmp_path, ABOUT | {"checkpoint": "4567"})
    (tmp_path / file_name((0, 1))).write_text("no json\n")
    with pytest.raises(InputError, match="cannot be read as rows"):
        read_all(tmp_path, ABOUT)
    with pytest.raises(InputError, match="cannot be written"):
        RowsFile(tmp_path / file_name((0, 1)) / "x.jsonl", ABOUT)
