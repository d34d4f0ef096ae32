"""Processes of one run: how they find each other, what they compare, and how they stop."""

import os
import signal

import jax
import numpy as np
import pytest

import train
from audiosep_jax.errors import InputError
from audiosep_jax.training import processes
from audiosep_jax.training.processes import StopSignals, in_cluster


def test_the_first_difference_is_named_with_its_process(monkeypatch):
    def found(*facts):
        monkeypatch.setattr(processes, "gather", lambda mine: list(facts))
        with pytest.raises(InputError) as caught:
            processes.check_equal({})
        return str(caught.value).removeprefix("the processes differ, so none of them starts: ")

    same = {"seed": 0, "the data": "a"}
    assert found(same, same, {"seed": 0, "the data": "b"}) == (
        "the data is 'a' in process 0 and 'b' in process 2"
    )
    assert found(same, {"seed": 0}) == "the data is 'a' in process 0 and None in process 1"


def test_a_process_alone_exchanges_nothing():
    with processes.connected():
        assert processes.is_main()
        processes.check_equal({"seed": 1})
        assert processes.gather({"a": 1}) == [{"a": 1}]
        tree = {"a": np.ones(2)}
        assert processes.broadcast(tree, None) is tree


def test_an_error_of_the_config_or_the_run_leaves_the_block_as_it_was():
    for kind in (InputError, processes.RunFailed):
        with pytest.raises(kind, match="no such file"), processes.failing_together():
            raise kind("no such file")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_asks_for_a_stop_and_a_second_ctrl_c_interrupts(number, capsys):
    before = signal.getsignal(number)
    with StopSignals() as stop:
        with pytest.raises(SystemExit) as ended:  # there is nothing to save yet
            os.kill(os.getpid(), number)
        assert ended.value.code == train.STOPPED
        assert capsys.readouterr().err == "stopped before the first step; start it again\n"
        stop.save_from_now_on()
        assert not stop.reached(1)
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), signal.SIGTERM)  # schedulers send it more than once
        assert stop.reached(2)
        assert capsys.readouterr().err.count("stopping after this step") == 1
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(number) == before


@pytest.mark.parametrize("kind", [ValueError, jax.errors.JaxRuntimeError])
def test_a_broken_collective_is_one_line_and_other_errors_stay(monkeypatch, kind):
    monkeypatch.setattr(jax.distributed, "initialize", lambda *_, **__: None)
    monkeypatch.setattr(jax.distributed, "shutdown", lambda: None)
    broke = r"^the connection to another process broke \(UNKNOWN: reset by peer\); the same command"
    with pytest.raises(processes.RunFailed, match=broke), processes.connected("localhost:1", 2, 0):
        raise kind("UNKNOWN: reset by peer\nmore")
    for message in ("RESOURCE_EXHAUSTED: out of memory", "shapes differ"):
        with pytest.raises(kind, match=message), processes.connected("localhost:1", 2, 0):
            raise kind(message)


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, False),
        ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "8", "SLURM_PROCID": "0"}, False),  # no srun
        ({"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}, False),
        ({"SLURM_STEP_NUM_TASKS": "8", "SLURM_PROCID": "3"}, True),
        ({"OMPI_COMM_WORLD_SIZE": "2", "OMPI_MCA_orte_hnp_uri": "1.0;tcp://10.0.0.1:1"}, True),
        ({"OMPI_COMM_WORLD_SIZE": "1"}, False),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, False),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "0"}, True),
    ],
)
def test_clusters_are_known_by_what_their_launchers_set(environment, expected):
    assert in_cluster(environment) is expected


def test_an_open_mpi_without_the_address_of_process_0_is_not_taken_for_one_process():
    with pytest.raises(InputError, match="--coordinator_address=HOST:PORT"):
        in_cluster({"OMPI_COMM_WORLD_SIZE": "2"})


SLURM, MPI = "SLURM_STEP_TASKS_PER_NODE", "OMPI_COMM_WORLD_LOCAL_SIZE"


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({SLURM: "1(x4)", "CUDA_VISIBLE_DEVICES": "0,1,2"}, [0, 1, 2]),
        ({SLURM: "8(x4)", "CUDA_VISIBLE_DEVICES": "0,1"}, None),
        ({SLURM: "8(x4)", "CUDA_VISIBLE_DEVICES": "3"}, [0]),  # --gpus-per-task=1
        ({SLURM: "1"}, [0, 1, 2, 3]),
        ({MPI: "1"}, [0, 1, 2, 3]),
        ({MPI: "1", "CUDA_VISIBLE_DEVICES": "GPU-a,GPU-b"}, [0, 1]),
        ({MPI: "4"}, None),
        ({MPI: "1", "JAX_LOCAL_DEVICE_IDS": "2"}, None),
        ({}, None),
    ],
)
def test_a_process_takes_all_gpus_of_its_node_or_the_only_one_it_sees(
    environment, expected, monkeypatch
):
    gpus = [f"/dev/nvidia{i}" for i in range(4)]
    monkeypatch.setattr(processes.glob, "glob", lambda pattern: gpus)
    assert processes.local_devices(environment) == expected


def test_without_gpus_the_devices_are_left_to_jax(monkeypatch):
    monkeypatch.setattr(processes.glob, "glob", lambda pattern: [])
    assert processes.local_devices({SLURM: "1"}) is None


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"process_id": 0}, "coordinator_address should be defined"),
        ({"coordinator_address": "a:1"}, "Number of processes must be defined"),
        ({"coordinator_address": "a:1", "num_processes": 2, "process_id": 2}, "process_id=2"),
    ],
)
def test_options_that_do_not_go_together_are_refused(given, message, monkeypatch):
    # JAX refuses to connect once a test of this process has used a device.
    monkeypatch.setattr("jax._src.xla_bridge.backends_are_initialized", lambda: False)
    with (
        pytest.raises(InputError, match=rf"cannot connect \(.*{message}.*--num_processes"),
        processes.connected(**given),
    ):
        pass
