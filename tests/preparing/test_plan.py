"""plan: the same tasks for the same recordings, wherever their files lie."""

import numpy as np
import pytest

from audiosep_jax.errors import InputError
from audiosep_jax.preparing.plan import make_plan, tasks_of
from audiosep_jax.preparing.recordings import Recording, Skipped
from audiosep_jax.preparing.writer import Settings

SETTINGS = Settings("esc50", 8000, 1.0)


def items(count, root="/a", seconds=(0.0, 10.0)):
    return [
        Recording(f"{k}", ("train", "valid")[k % 3 == 0], ("c",), (f"{root}/{k}.wav",), seconds)
        for k in range(count)
    ]


def tasks(plan):
    return [tasks_of(plan.path, begin) for begin in plan.begins]


def folder(tmp_path, name):
    (tmp_path / name).mkdir()
    return tmp_path / name


def test_tasks_hold_every_recording_once_in_order_and_one_split_each(tmp_path):
    listed = items(100)
    made = tasks(make_plan(listed, tmp_path, SETTINGS))
    for split in ("train", "valid"):
        rows = [row for task in made for row in task if row.split == split]
        assert rows == [row for row in listed if row.split == split]
    assert all(len({row.split for row in task}) == 1 for task in made)
    assert [len(task) for task in made] == [10] * 9 + [6, 4]


def test_large_sets_have_tasks_of_a_shards_size(tmp_path):
    plan = make_plan(items(40_000), tmp_path, SETTINGS)
    seconds = 10 * np.array(plan.sizes[:-2])
    assert (2 * 8000 * seconds < 200 * 2**20).all()
    assert (seconds >= 10_000).all()


def test_fingerprint_knows_content_and_settings_but_no_place(tmp_path):
    def fingerprint(name, listed, settings=SETTINGS):
        return make_plan(listed, folder(tmp_path, name), settings).fingerprint

    first = fingerprint("a", items(30))
    assert fingerprint("b", items(30, root="/elsewhere")) == first
    changed = [
        fingerprint("c", items(31)),
        fingerprint("d", items(30, seconds=(0.0, 9.0))),
        fingerprint("e", items(30), Settings("esc50", 16000, 1.0)),
        fingerprint("f", [*items(30), Skipped("x", "train", "wrong")]),
    ]
    assert len({first, *changed}) == 5


def test_what_is_listed_twice_is_left_out_once(tmp_path):
    again = Recording("1", "train", ("other",))
    elsewhere = Recording("1", "valid", ("c",))
    plan = make_plan([*items(5), again, elsewhere], tmp_path, SETTINGS)
    assert plan.skipped == (Skipped("1", "train", "listed twice"),)
    assert sum(plan.sizes) == 6


def test_a_folder_of_another_plan_is_refused_and_kept(tmp_path):
    plan = make_plan(items(30), tmp_path, SETTINGS)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(InputError, match="other recordings or settings"):
        make_plan(items(29), tmp_path, SETTINGS)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert make_plan(items(30), tmp_path, SETTINGS) == plan
    (tmp_path / "plan.json").write_text("{")
    with pytest.raises(InputError, match="damaged"):
        make_plan(items(30), tmp_path, SETTINGS)
