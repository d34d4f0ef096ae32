"""--cluster: the work of a command on two workers of a Dask scheduler, one of which is killed."""

import functools
import os
import signal
import socket
import sys
import time
from collections import Counter

import distributed
import numpy as np
import prepared_examples
import pytest
import soundfile
from evaluation_examples import RATE_HZ, pairs_list, write_clips
from tiny_run import save_run

from audiosep_jax import workers
from audiosep_jax.audio import files as audio_files
from audiosep_jax.errors import InputError
from audiosep_jax.evaluation import command as evaluate
from audiosep_jax.preparing import command as prepare
from audiosep_jax.separation import command as separate


@pytest.fixture(scope="module")
def address():
    """Scheduler with two workers on loopback. A worker that is killed starts again."""
    options = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": ":0"}
    with distributed.LocalCluster(host="127.0.0.1", **options) as found:
        yield found.scheduler_address


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty current folder, which is not that of the workers."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.slow
def test_separate_gives_the_same_as_one_process(here, address, capfd):
    save_run(here / "run")
    (here / "in").mkdir()
    for number in range(4):
        audio_S = 0.1 * np.random.default_rng(number).standard_normal(500 + number)
        soundfile.write(here / "in" / f"{number}.wav", audio_S, 8000)
    (here / "in" / "bad.wav").write_bytes(b"")
    found = []
    for extra in ([], ["--cluster", address]):
        arguments = ["in", "--text", "rain", "--checkpoint", "run", "--residual", *extra]
        assert separate.main([*arguments, "--json", "found.json", "--overwrite"]) == 1
        written = contents(here / "separated")
        assert len(written.pop("separated.jsonl").splitlines()) == 4 * (1 + bool(extra))
        out, err = capfd.readouterr()
        lines = sorted(out.splitlines()), sorted(err.splitlines())
        found.append((written, lines, (here / "found.json").read_text()))
        for name in written:
            (here / "separated" / name).unlink()
    assert len(found[0][0]) == 8
    assert found[0] == found[1]


def test_prepare_gives_the_same_as_one_process(here, address):
    for number in range(30):
        path = here / "clips" / ("dog", "rain")[number % 2] / f"{number}.wav"
        prepared_examples.save(path, seconds=12.5, seed=number)
    arguments = ["folders", "--root", "clips", "--sample_rate", "8000", "--output"]
    assert prepare.main([*arguments, "one", "--workers", "1"]) == 0
    assert prepare.main([*arguments, "many", "--cluster", address]) == 0
    assert len(list((here / "many").glob("*.array_record*"))) == 3
    assert contents(here / "many") == contents(here / "one")


@pytest.mark.parametrize("protocol", ["mixtures", "absence"])
def test_evaluate_gives_the_same_as_one_process(here, address, protocol, capfd):
    save_run(here / "run")
    write_clips(here, 10, num_samples=1600)
    silence_CS = np.zeros((1, 1600), np.float32)
    audio_files.write(here / "clip9.wav", silence_CS, RATE_HZ)
    pairs_list(here / "list.csv", 9)
    arguments = ["--protocol", protocol, "--metadata", "list.csv", "--audio", ".", "--checkpoint"]
    arguments += ["run", "--no_figures", "--seconds", "0.1", "--output"]
    found = []
    for extra in ([], ["--cluster", address, "--overwrite"]):
        assert evaluate.main([*arguments, "out", *extra]) == 0
        written = contents(here / "out")
        rows = sorted(written.pop("results.partial.jsonl").splitlines())
        found.append((written, rows, capfd.readouterr().out))
    assert len(found[0][1]) == 10
    assert found[0] == found[1]


def blocked_once(folder, number):
    """Number of the task. The fourth waits for ever when it is done for the first time."""
    with (folder / "begun").open("a") as file:
        file.write(f"{number}\n")
    pid = folder / "pid"
    if number == 4 and not pid.exists():
        time.sleep(0.2)  # until earlier results of this worker have arrived
        pid.write_text(str(os.getpid()))
        time.sleep(60)
    time.sleep(0.02)
    return number


def test_a_killed_worker_costs_its_unfinished_task_alone(tmp_path, address):
    left, results = True, []
    with workers.cluster(address) as submit:
        work = functools.partial(blocked_once, tmp_path)
        for number, result in workers.finished(submit, work, range(40)):
            results.append((number, result))
            if left and (tmp_path / "pid").exists():
                left = os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)
    assert sorted(results) == [(number, number) for number in range(40)]
    begun = Counter((tmp_path / "begun").read_text().split())
    assert begun.pop("4") == 2
    assert set(begun.values()) == {1}


def test_a_cluster_that_cannot_be_used_is_one_line(here, address, monkeypatch):
    monkeypatch.setattr(workers, "CONNECT_SECONDS", 0.5)
    with socket.socket() as silent:  # as a server that expects another protocol
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        for wrong in (f"tcp://127.0.0.1:{silent.getsockname()[1]}", "nowhere", "http://a:80"):
            with pytest.raises(InputError, match=f"^{wrong}: no Dask scheduler answers"):
                workers.cluster(wrong).__enter__()
    (here / "gone").mkdir()
    monkeypatch.chdir("gone")
    with workers.cluster(address) as submit:
        (here / "gone").rmdir()
        with pytest.raises(workers.WorkerError, match=r"cannot open .*/gone .*must see the same"):
            submit(abs, -1).result()
        monkeypatch.setattr(workers, "_versions", lambda: f"jax {os.getpid()}")
        with pytest.raises(workers.WorkerError, match=r"has python .*, jax .*, not jax \d+; "):
            submit(abs, -1).result()
    monkeypatch.chdir(here)
    with pytest.raises(InputError, match=r": tcp://.* has jax \d+, not jax \d+$"):
        workers.cluster(address).__enter__()
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(InputError, match=r"pip install 'audiosep-jax\[cluster\]'"):
        workers.cluster(address).__enter__()
