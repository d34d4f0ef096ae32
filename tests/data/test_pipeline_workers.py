"""workers: how many, how far ahead, and that nothing outlives the trainer."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path

import pytest
from tones import batches, tones

from audiosep_jax.data import pipeline
from audiosep_jax.data.sources import DataConfig
from audiosep_jax.errors import InputError
from audiosep_jax.workers import available_cores

pytestmark = pytest.mark.slow

SCRIPT = """
import dataclasses, multiprocessing, signal, sys, time
sys.path[:0] = {paths!r}
from tones import MIXING, SERIAL, conditions_of, tones
from audiosep_jax.data import pipeline

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # what runs behind `&` ignores it
    source, data = tones(4), dataclasses.replace(SERIAL, num_workers=2, num_threads=1)
    stream = pipeline.train_batches(
        source, conditions_of(source), MIXING, data, seed=0, batch_size=2, first_step=0
    )
    next(stream)
    try:
        print(*(child.pid for child in multiprocessing.active_children()), flush=True)
        time.sleep(60)
    except KeyboardInterrupt:
        for _ in range(20):
            next(stream)
        stream.close()
        print("finished its steps", flush=True)
"""


@pytest.mark.parametrize(
    ("threads", "num_workers", "cores", "expected"),
    [
        (-1, -1, 1, (1, 0)),
        (-1, -1, 8, (8, 0)),
        (-1, -1, 16, (8, 2)),
        (-1, -1, 20, (6, 3)),
        (-1, 0, 16, (16, 0)),
        (-1, 4, 16, (4, 4)),
        (-1, 4, 2, (1, 4)),
        (3, -1, 2, (3, 0)),
        (0, -1, 64, (0, 0)),
        (2, 1, 64, (2, 1)),
    ],
)
def test_threads_and_workers_follow_the_cores(threads, num_workers, cores, expected):
    data = DataConfig(num_threads=threads, num_workers=num_workers)
    assert pipeline.threads_and_workers(data, cores) == expected


def test_cores_are_those_that_this_process_may_use():
    assert available_cores() <= int(subprocess.check_output(["nproc"]))


def test_prefetch_is_bounded_in_batches_and_in_bytes():
    data = DataConfig(prefetch_batches=4, prefetch_megabytes=100)
    assert pipeline.num_buffered(data, 2**20) == 4
    assert pipeline.num_buffered(data, 40 * 2**20) == 2
    assert pipeline.num_buffered(data, 400 * 2**20) == 1


def test_too_little_shared_memory_is_said_before_a_bus_error(monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(64 << 20, 0, 64 << 20))
    monkeypatch.setattr(pipeline, "_SHARED_MEMORY", os.path.dirname(__file__))
    data = DataConfig(segment_seconds=1.0, num_threads=1, num_workers=2)
    with pytest.raises(InputError, match=r"64 MB free and worker processes need 96 MB.*shm-size"):
        batches(tones(4, sample_rate_hz=2**20), 1, data=data, batch_size=2)


def start(tmp_path):
    """A trainer with two worker processes: it, and their pids."""
    script = tmp_path / "parent.py"
    paths = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]
    script.write_text(SCRIPT.format(paths=paths))
    parent = subprocess.Popen(
        [sys.executable, script], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    children = [int(pid) for pid in parent.stdout.readline().split()]
    assert len(children) == 2
    assert all(map(is_running, children))
    return parent, children


def is_running(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def wait_until(condition, seconds=30):
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.1)
    return condition()


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at /proc")
def test_a_killed_trainer_leaves_no_process_and_no_shared_memory(tmp_path):
    before = set(Path("/dev/shm").glob("psm_*"))
    parent, _ = start(tmp_path)
    try:
        session = [pid for pid in all_pids() if session_of(pid) == parent.pid]
        time.sleep(0.5)  # the queues fill up
        assert set(Path("/dev/shm").glob("psm_*")) - before
    finally:
        parent.kill()
        parent.wait()
        parent.stdout.close()
    assert len(session) >= 4  # two workers and the one that cleans up after them
    gone = wait_until(lambda: not any(map(is_running, session)))
    for pid in filter(is_running, session):
        os.kill(pid, signal.SIGKILL)
    assert gone
    assert wait_until(lambda: not set(Path("/dev/shm").glob("psm_*")) - before, 10)


def all_pids():
    return [int(path.name) for path in Path("/proc").iterdir() if path.name.isdecimal()]


def session_of(pid):
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return None


def test_ctrl_c_does_not_reach_the_workers(tmp_path):
    parent, children = start(tmp_path)
    try:
        os.killpg(parent.pid, signal.SIGINT)  # as a terminal does
        assert parent.stdout.readline() == "finished its steps\n"
        assert parent.wait(30) == 0
    finally:
        parent.kill()
        parent.wait()
        parent.stdout.close()
    assert wait_until(lambda: not any(map(is_running, children)))


def test_a_schedulers_sigterm_does_not_end_the_workers(tmp_path):
    parent, children = start(tmp_path)
    try:
        for pid in children:
            os.kill(pid, signal.SIGTERM)
        os.kill(parent.pid, signal.SIGINT)
        assert parent.stdout.readline() == "finished its steps\n"
    finally:
        parent.kill()
        parent.wait()
        parent.stdout.close()
