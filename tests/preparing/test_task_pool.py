"""task_pool: the same parts from one process or two, and what they took."""

import os

import numpy as np
import prepared_examples as examples
import pytest

from audiosep_jax.errors import InputError
from audiosep_jax.preparing import task_pool
from audiosep_jax.preparing.plan import make_plan
from audiosep_jax.preparing.recordings import Recording
from audiosep_jax.preparing.writer import Settings, read_part

SETTINGS = Settings("folders", examples.RATE_HZ, 0.1)


def plan_in(folder, clips, count=25):
    paths = [examples.save(clips / f"{k}.wav", seconds=0.2, seed=k) for k in range(count)]
    folder.mkdir()
    recordings = [Recording(path.name, "train", ("a",), (str(path),)) for path in paths]
    return make_plan(recordings, folder, SETTINGS)


def test_processes_and_one_process_write_the_same_parts(tmp_path):
    plans = [plan_in(tmp_path / name, tmp_path / "clips") for name in ("a", "b")]
    np.ones(1 << 28)  # 2 GB that are not a worker's
    own_megabytes = task_pool.peak_kilobytes() // 1024
    for plan, num_workers in zip(plans, (1, 2), strict=True):
        told = []
        spent = task_pool.run_tasks(plan, range(3), SETTINGS, num_workers, told.append)
        assert sorted(told) == [5, 10, 10]
        assert spent.num_recordings == 25
        assert spent.core_seconds > 0
        if num_workers == 1:  # in this process
            assert own_megabytes <= spent.peak_megabytes < own_megabytes + 500
        else:
            assert 20 < spent.peak_megabytes < 2000
    for task in range(3):
        assert read_part(tmp_path / "a", task) == read_part(tmp_path / "b", task) is not None


def test_a_task_that_fails_in_a_process_is_one_error(tmp_path):
    plan = plan_in(tmp_path / "a", tmp_path / "clips")
    plan.path.write_bytes(plan.path.read_bytes()[: plan.begins[1]])  # tasks 1 and 2 are gone
    with pytest.raises(ValueError, match="Expecting value"):
        task_pool.run_tasks(plan, range(3), SETTINGS, 1, lambda count: None)
    assert read_part(tmp_path / "a", 0).num_recordings == 10
    os.rename(tmp_path / "a", tmp_path / "b")
    with pytest.raises((InputError, OSError)):
        task_pool.run_tasks(plan, range(1), SETTINGS, 1, lambda count: None)


def test_cores_are_those_that_may_be_used():
    if hasattr(os, "sched_setaffinity"):
        before = os.sched_getaffinity(0)
        try:
            os.sched_setaffinity(0, {min(before)})
            assert task_pool.num_cores() == 1
        finally:
            os.sched_setaffinity(0, before)
        assert task_pool.num_cores() == len(before)
