"""workers: cores that a container allows and neighbours leave, and signals while they work."""

import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from audiosep_jax import workers


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ({"cpu.max": "200000 100000\n"}, 2),
        ({"cpu.max": "50000 100000\n"}, 0.5),
        ({"cpu.max": "max 100000\n"}, float("inf")),
        ({"cpu.cfs_quota_us": "300000\n", "cpu.cfs_period_us": "100000\n"}, 3),
        ({"cpu.cfs_quota_us": "-1\n", "cpu.cfs_period_us": "100000\n"}, float("inf")),
        ({}, float("inf")),
    ],
)
def test_quota_of_the_group(tmp_path, limits, expected):
    group = tmp_path / "cgroup" / "pod" / "container"
    group.mkdir(parents=True)
    for name, text in limits.items():
        (group / name).write_text(text)
    names = tmp_path / "self"
    names.write_text("0::/pod/container\n")
    assert workers.container_quota(tmp_path / "cgroup", names) == expected


def test_a_quota_above_the_group_counts_too(tmp_path):
    (tmp_path / "cpu" / "pod" / "container").mkdir(parents=True)
    (tmp_path / "cpu" / "pod" / "cpu.max").write_text("400000 100000")
    names = tmp_path / "self"
    names.write_text("5:memory:/other\n3:cpu:/pod/container\n")
    assert workers.container_quota(tmp_path, names) == 4
    assert workers.container_quota(tmp_path, tmp_path / "missing") == float("inf")


@pytest.mark.parametrize(
    ("bound", "host", "quota", "processes", "expected"),
    [
        (128, 128, float("inf"), 1, 128),
        (128, 128, 8.0, 1, 8),
        (128, 128, float("inf"), 8, 16),
        (16, 128, float("inf"), 8, 16),  # already bound to their shares
        (128, 128, 32.0, 8, 4),
        (2, 2, 0.5, 1, 1),
        (2, 2, float("inf"), 8, 1),
    ],
)
def test_cores_are_shared_with_neighbours(monkeypatch, bound, host, quota, processes, expected):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(bound)), raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: host)
    monkeypatch.setattr(workers, "container_quota", lambda: quota)
    assert workers.available_cores(processes) == expected


def test_a_signal_that_does_not_wake_the_main_thread_is_handled_before_the_work_ends():
    class Stopped(Exception):
        pass

    def stop(*_):
        raise Stopped

    waiting, over = threading.Event(), threading.Event()

    ended = []

    def work(number):
        assert waiting.wait(5)
        time.sleep(0.2)
        signal.pthread_kill(threading.get_ident(), signal.SIGUSR1)
        assert over.wait(5)
        ended.append(number)

    before = signal.signal(signal.SIGUSR1, stop)
    try:
        with ThreadPoolExecutor(1) as pool:
            waiting.set()
            with pytest.raises(Stopped):
                list(workers.finished(pool.submit, work, [0]))
            assert ended == []
            over.set()
        assert ended == [0]
    finally:
        signal.signal(signal.SIGUSR1, before)
