"""Processes as threads that share one store: what they agree on, what they tell, who is missed."""

import threading
import time

import jax
import numpy as np
import pytest

from audiosep_jax.errors import InputError
from audiosep_jax.training import processes
from audiosep_jax.training.processes import Launch, Peers, first_difference, in_cluster, with_votes


class Store:
    """The part of JAX's key-value store that is used, for `count` processes."""

    def __init__(self, count):
        self.values, self.lock, self.count = {}, threading.Lock(), count
        self.barriers = {}
        self.answers = True

    def key_value_set(self, key, value, allow_overwrite=False):
        if not self.answers:
            raise jax.errors.JaxRuntimeError("UNAVAILABLE")
        with self.lock:
            assert allow_overwrite or key not in self.values
            self.values[key] = value

    def key_value_dir_get(self, folder):
        with self.lock:
            return [(key, value) for key, value in self.values.items() if key.startswith(folder)]

    def wait_at_barrier(self, name, timeout_ms):
        with self.lock:
            barrier = self.barriers.setdefault(name, threading.Barrier(self.count))
        barrier.wait(10)


@pytest.fixture
def ended(monkeypatch):
    """With what message each process of a test ends, in the order in which they do."""
    messages = []
    monkeypatch.setattr(processes, "_end_with", messages.append)
    monkeypatch.setattr(processes, "_say_why_on_abort", lambda over: None)
    return messages


def together(peers, action):
    """What `action` returns or raises for each, all of them at once."""
    results = {}

    def run(each):
        try:
            results[each.index] = action(each)
        except InputError as error:
            results[each.index] = error

    threads = [threading.Thread(target=run, args=(each,)) for each in peers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    return [results[each.index] for each in peers]


@pytest.fixture
def make_peers(ended):
    """Makes processes that share a store; their threads end before `ended` does."""
    made = []

    def make(count, store=None, **patience):
        store = store or Store(count)
        peers = [Peers(store, index, count, **patience) for index in range(count)]
        made.extend(peers)
        return peers

    yield make
    for peer in made:
        peer._over.set()
    for thread in threading.enumerate():
        if thread.name.startswith("peers"):
            thread.join(5)


@pytest.fixture
def wait_until():
    def wait(condition):
        deadline = time.monotonic() + 20
        while not condition():
            assert time.monotonic() < deadline
            time.sleep(0.01)

    return wait


def test_the_same_facts_are_agreed_on_and_others_are_named_to_all(make_peers):
    assert together(make_peers(3), lambda each: each.agree({"seed": 1, "x": (1, 2)})) == [None] * 3
    facts = [{"seed": 0, "the data": "a"}, {"seed": 1, "the data": "b"}, {"seed": 0}]
    errors = together(make_peers(3), lambda each: each.agree(facts[each.index]))
    assert {str(error) for error in errors} == {
        "the processes differ, so none of them starts: seed is 0 on process 0, 2 and 1 on process 1"
    }


def test_the_first_difference_names_few_processes():
    assert first_difference([{"a": 1}, {"a": 1}]) is None
    assert first_difference([{"a": 1}, {}]) == "a is 1 on process 0 and None on process 1"
    many = [{"a": "x"}] * 7 + [{"a": "y"}]
    assert first_difference(many) == (
        "a is 'x' on process 0, 1, 2, 3 and 3 more and 'y' on process 7"
    )


def test_what_one_process_fails_of_ends_the_others(make_peers, ended, wait_until):
    peers = make_peers(2, heartbeat_seconds=0.6)
    with pytest.raises(InputError), peers[1]:
        raise InputError("folds.csv: no such file")
    wait_until(lambda: ended)
    assert ended[0] == "process 1 stopped: folds.csv: no such file"


def test_a_silent_process_is_missed_by_name(make_peers, ended, wait_until):
    peers = make_peers(3, heartbeat_seconds=0.6)
    wait_until(lambda: len(peers[0]._read("alive")) == 3)
    assert not ended
    peers[2]._over.set()  # it says nothing more
    wait_until(lambda: len(ended) >= 2)
    assert ended[0] == f"process 2 is gone, silent for 0.6 s; {processes.RESUME}"
    assert ended[1] == f"process 0 stopped: {ended[0]}"


def test_a_store_that_does_not_answer_is_missed(make_peers, ended, wait_until):
    store = Store(2)
    make_peers(2, store, heartbeat_seconds=0.6)
    store.answers = False
    wait_until(lambda: len(ended) == 2)
    assert any(message.startswith("process 0 is gone, silent for 0.6 s") for message in ended)


def test_a_broken_collective_is_a_lost_peer_and_too_little_memory_is_not(make_peers):
    (peer, _) = make_peers(2, heartbeat_seconds=0.6)
    with pytest.raises(processes.PeerLost, match=r"broke \(UNKNOWN: reset by peer\); the same"):
        peer.__exit__(*error_info("UNKNOWN: reset by peer\nmore"))
    peer.__exit__(*error_info("RESOURCE_EXHAUSTED: out of memory"))
    assert "out of memory" in peer._read("failed")[0]


def error_info(message):
    error = jax.errors.JaxRuntimeError(message)
    return type(error), error, None


def test_alone_every_method_returns_at_once():
    with Peers() as peers:
        assert peers.is_main
        peers.agree({"seed": 1})
        peers.meet("x")
        tree = {"a": np.ones(2)}
        assert peers.share(tree, None) is tree


def test_votes_reach_every_device_and_leave_the_step_alone():
    def body(state, batch):
        assert set(batch) == {"x"}
        return state + jax.lax.psum(batch["x"].sum(), "data"), {"loss": state}

    step = jax.pmap(
        with_votes(body, "data"), axis_name="data", in_axes=(None, 0), out_axes=(None, None)
    )
    stop = np.zeros((8, 2), bool)
    stop[5] = True
    bad_clips = np.arange(8 * 2 * 3).reshape(8, 2, 3)
    for votes in (stop, np.zeros((8, 2), bool)):
        batch = {"x": np.ones((8, 2)), "stop": votes, "bad_clips": bad_clips}
        state, metrics = step(1.0, batch)
        assert (float(state), float(metrics["loss"])) == (17.0, 1.0)
        assert bool(metrics["votes"]["stop"]) == votes.any()
        np.testing.assert_array_equal(metrics["votes"]["bad_clips"], bad_clips)


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


def test_an_open_mpi_that_does_not_say_where_process_0_is_is_not_taken_for_one_process():
    with pytest.raises(InputError, match="--coordinator_address=HOST:PORT"):
        in_cluster({"OMPI_COMM_WORLD_SIZE": "2"})


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"SLURM_STEP_TASKS_PER_NODE": "1(x4)", "CUDA_VISIBLE_DEVICES": "0,1,2"}, [0, 1, 2]),
        ({"SLURM_STEP_TASKS_PER_NODE": "8(x4)", "CUDA_VISIBLE_DEVICES": "0,1"}, None),
        ({"SLURM_STEP_TASKS_PER_NODE": "1"}, None),
        ({}, None),
    ],
)
def test_one_task_on_a_node_takes_all_its_gpus(environment, expected):
    assert processes._all_devices_of_the_node(environment) == expected


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"coordinator_address": "a:1"}, "belong together"),
        ({"num_processes": 2, "process_id": 0}, "belong together"),
        (
            {"coordinator_address": "a:1", "num_processes": 2, "process_id": 2},
            "--process_id=2 must be below --num_processes=2",
        ),
        ({"heartbeat_seconds": 0.0}, "above 0"),
    ],
)
def test_flags_that_do_not_go_together_are_refused(given, message):
    with pytest.raises(InputError, match=message):
        Launch(**given)
