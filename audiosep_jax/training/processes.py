"""Several processes as one run: they start, agree, share, stop together, and miss who is gone.

The gradients meet in the step itself; all the rest goes over the key-value store of
`jax.distributed`, which lives in process 0 and needs no device.
"""

import contextlib
import ctypes
import dataclasses
import glob
import importlib.util
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Self

import jax
import numpy as np
from jax._src import distributed as jax_distributed  # its client has no public name
from jax.experimental import multihost_utils

from audiosep_jax.errors import InputError

_ROOM = "audiosep_jax"
_FOREVER_MS = 10 * 24 * 3600 * 1000  # the watch ends a wait for somebody who is gone
_BEATS = 6  # signs of life in the time after which their absence counts
_LONGEST_INTERVAL_SECONDS = 5.0
_GOODBYE_SECONDS = 0.3
RESUME = "the same command resumes from the newest checkpoint"


class PeerLost(RuntimeError):
    """Another process is gone or has failed; the message is one line."""


@dataclasses.dataclass(frozen=True)
class Launch:
    """How a process finds the others; what is empty is found out from the cluster."""

    coordinator_address: str = ""  # host:port of process 0
    num_processes: int = 0  # 1: alone, whatever the cluster says
    process_id: int = -1
    heartbeat_seconds: float = 60.0  # a process silent for longer counts as gone
    start_seconds: int = 300  # to wait for the others at the start

    def __post_init__(self) -> None:
        given = [bool(self.coordinator_address), self.num_processes > 0, self.process_id >= 0]
        if any(given) and not all(given) and self.num_processes != 1:
            raise InputError(
                "--coordinator_address, --num_processes and --process_id belong together; "
                "give all three, or none where Slurm, Open MPI, a TPU or Kubernetes tells them"
            )
        if all(given) and self.process_id >= self.num_processes:
            raise InputError(
                f"--process_id={self.process_id} must be below --num_processes={self.num_processes}"
            )
        if min(self.heartbeat_seconds, self.start_seconds) <= 0:
            raise InputError("--heartbeat_seconds and --start_seconds must be above 0")


def start(launch: Launch) -> "Peers":
    """Joins the other processes, before anything touches a device; alone where there are none."""
    if launch.num_processes == 1 or not (launch.coordinator_address or in_cluster(os.environ)):
        return Peers()
    # Otherwise process 0 would be aborted where another is lost, before it can say so.
    jax.config.update("jax_enable_recoverability", True)
    try:
        jax.distributed.initialize(
            launch.coordinator_address or None,
            launch.num_processes or None,
            launch.process_id if launch.process_id >= 0 else None,
            local_device_ids=_all_devices_of_the_node(os.environ),
            initialization_timeout=launch.start_seconds,
            heartbeat_timeout_seconds=int(3 * launch.heartbeat_seconds) + 10,
        )
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(
            f"the processes do not come together ({reason}); check --coordinator_address and "
            "that all of them run, or give --num_processes=1 to train alone"
        ) from error
    # JAX takes SIGTERM for itself; until training does, it shall end the process.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    state = jax_distributed.global_state
    return Peers(state.client, state.process_id, state.num_processes, launch.heartbeat_seconds)


def in_cluster(environment: Mapping[str, str]) -> bool:
    """Whether a launcher that `jax.distributed` knows has started other processes than this."""

    def several(name: str) -> bool:
        return environment.get(name, "").isdecimal() and int(environment[name]) > 1

    if several("OMPI_COMM_WORLD_SIZE") and "OMPI_MCA_orte_hnp_uri" not in environment:
        raise InputError(
            "this Open MPI does not say where process 0 is; give --coordinator_address=HOST:PORT "
            "--num_processes=$OMPI_COMM_WORLD_SIZE --process_id=$OMPI_COMM_WORLD_RANK"
        )
    slurm = several("SLURM_STEP_NUM_TASKS") and "SLURM_PROCID" in environment
    kubernetes = {"KUBERNETES_SERVICE_HOST", "JOB_COMPLETION_INDEX"} <= environment.keys()
    chips = glob.glob("/dev/accel[0-9]*") + glob.glob("/dev/vfio/[0-9]*")
    tpu = bool(chips) and importlib.util.find_spec("libtpu") is not None
    return slurm or several("OMPI_COMM_WORLD_SIZE") or kubernetes or tpu


def _all_devices_of_the_node(environment: Mapping[str, str]) -> list[int] | None:
    """One task on a Slurm node gets all its GPUs, where JAX would give it the first alone."""
    shown = environment.get("CUDA_VISIBLE_DEVICES", "")
    tasks = environment.get("SLURM_STEP_TASKS_PER_NODE", "").partition("(")[0]
    if tasks != "1" or not shown or "JAX_LOCAL_DEVICE_IDS" in environment:
        return None
    return list(range(len(shown.split(","))))


def with_votes(
    body: Callable[[Any, Any], tuple[Any, Any]], axis_name: str
) -> Callable[[Any, Any], tuple[Any, Any]]:
    """A training step that also carries what each process has to tell all the others.

    The batch brings `stop` `(B,)` and `bad_clips` `(B, M)` besides; the metrics get `votes`: `stop`
    of any process and `bad_clips` of all, the same at the same step on every one of them.
    """

    def step(state: Any, batch: Mapping[str, Any]) -> tuple[Any, Any]:
        batch = dict(batch)
        stop = jax.lax.pmax(batch.pop("stop").max(), axis_name)
        bad_clips = jax.lax.all_gather(batch.pop("bad_clips"), axis_name)
        state, metrics = body(state, batch)
        return state, {**metrics, "votes": {"stop": stop, "bad_clips": bad_clips}}

    return step


class Peers:
    """This process among those of a run; where it is alone, every method returns at once."""

    def __init__(
        self, client: Any = None, index: int = 0, count: int = 1, heartbeat_seconds: float = 60.0
    ) -> None:
        self.index, self.count = index, count
        self._client, self._patience = client, heartbeat_seconds
        self._over, self._ending = threading.Event(), threading.Lock()
        self._contact = time.monotonic()
        if client is not None:
            self._interval = min(heartbeat_seconds / _BEATS, _LONGEST_INTERVAL_SECONDS)
            if index:
                _say_why_on_abort(self._over)
            for target in (self._beat, self._guard):
                threading.Thread(target=target, daemon=True, name=f"peers{target.__name__}").start()

    @property
    def is_main(self) -> bool:
        """Whether this is the one process that logs, shows and writes."""
        return self.index == 0

    def agree(self, facts: Mapping[str, Any]) -> None:
        """InputError on every process where they do not all have the same facts."""
        if self._client is None:
            return
        self._client.key_value_set(f"{_ROOM}/facts/{self.index}", json.dumps(dict(facts)))
        self.meet("facts")
        found = self._client.key_value_dir_get(f"{_ROOM}/facts/")
        everyone = {int(key.rpartition("/")[2]): json.loads(value) for key, value in found}
        difference = first_difference([everyone[i] for i in range(self.count)])
        if difference:
            raise InputError(f"the processes differ, so none of them starts: {difference}")

    def meet(self, name: str) -> None:
        """Returns when every process is here, however long that takes; once for each name."""
        if self._client is not None:
            self._client.wait_at_barrier(f"{_ROOM}/{name}", _FOREVER_MS)

    def share(self, tree: Any, template: Any) -> Any:
        """The arrays of process 0, to the bit, as numpy; elsewhere `tree` may be anything."""
        if self._client is None:
            return tree
        shapes, structure = jax.tree.flatten(template)
        sizes = [int(np.prod(x.shape)) * np.dtype(x.dtype).itemsize for x in shapes]
        data = np.zeros(sum(sizes), np.uint8)
        if self.is_main:
            leaves = jax.tree.leaves(jax.device_get(tree))
            data = np.frombuffer(b"".join(np.asarray(x).tobytes() for x in leaves), np.uint8)
        data = np.asarray(multihost_utils.broadcast_one_to_all(data))
        parts = np.split(data, np.cumsum(sizes)[:-1])
        arrays = [
            np.frombuffer(part.tobytes(), x.dtype).reshape(x.shape)
            for part, x in zip(parts, shapes, strict=True)
        ]
        return jax.tree.unflatten(structure, arrays)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._client is None:
            return
        if error is None:
            self.meet("end")
            self._over.set()
            self._leave()
        elif isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_" not in str(error):
            # A collective that broke; whoever broke it may have said why.
            self._over.wait(3 * self._interval)
            reason = str(error).strip().splitlines()[0]
            raise PeerLost(f"the connection to another process broke ({reason}); {RESUME}")
        else:
            self._tell(str(error) or type(error).__name__)

    def _leave(self) -> None:
        """Process 0 goes last: JAX aborts whoever is still there when its store goes."""
        if self.is_main:
            deadline = time.monotonic() + self._patience
            while len(self._read("left")) < self.count - 1 and time.monotonic() < deadline:
                time.sleep(0.05)
            time.sleep(_GOODBYE_SECONDS)
        else:
            self._client.key_value_set(f"{_ROOM}/left/{self.index}", "")
        jax.distributed.shutdown()

    def _tell(self, message: str) -> None:
        """Ends the other processes with this message."""
        with self._ending, contextlib.suppress(jax.errors.JaxRuntimeError):
            self._client.key_value_set(f"{_ROOM}/failed/{self.index}", message)

    def _read(self, what: str) -> dict[int, str]:
        found = self._client.key_value_dir_get(f"{_ROOM}/{what}/")
        return {int(key.rpartition("/")[2]): value for key, value in found}

    def _beat(self) -> None:
        """Gives a sign of life, and reads those of the others."""
        heard: dict[int, tuple[str, float]] = {}
        number = 0
        while not self._over.wait(self._interval):
            number += 1
            try:
                key = f"{_ROOM}/alive/{self.index}"
                self._client.key_value_set(key, str(number), allow_overwrite=True)
                failed = self._read("failed")
                alive = self._read("alive") if self.is_main else {}
            except jax.errors.JaxRuntimeError:
                continue  # the guard counts the time
            now = self._contact = time.monotonic()
            for index, message in failed.items():
                if index != self.index:
                    self._end(f"process {index} stopped: {message}")
            for index, value in alive.items():
                if heard.get(index, ("", 0.0))[0] != value:
                    heard[index] = (value, now)
                elif now - heard[index][1] > self._patience:
                    message = f"process {index} is gone, silent for {self._patience:g} s; {RESUME}"
                    self._tell(message)
                    self._end(message)

    def _guard(self) -> None:
        """Ends the process when process 0 has not answered for too long."""
        while not self._over.wait(self._interval):
            if time.monotonic() - self._contact > self._patience:
                silent = f"process 0 is gone, silent for {self._patience:g} s"
                self._end(silent if self.index else f"{silent}, though this is it; {RESUME}")

    def _end(self, message: str) -> None:
        """Ends this process from a thread of its own: the main one may hang in a collective."""
        with self._ending:
            if not self._over.is_set():
                self._over.set()  # one line is enough
                _end_with(message)


def _end_with(message: str) -> None:
    sys.stdout.flush()
    os.write(2, f"\nerror: {message}\n".encode())
    os._exit(1)


_on_abort: Any = None  # what C calls must not be freed


def _say_why_on_abort(over: threading.Event) -> None:
    """JAX aborts a process, from C, at once when process 0 is gone; a line says what it was."""
    global _on_abort

    def end(number: int) -> None:
        if over.is_set():  # all is written and said
            os._exit(0)
        _end_with(f"JAX aborted this process, most likely as process 0 is gone; {RESUME}")

    _on_abort = ctypes.CFUNCTYPE(None, ctypes.c_int)(end)
    ctypes.CDLL(None).signal(signal.SIGABRT, _on_abort)


def first_difference(facts: list[Mapping[str, Any]]) -> str | None:
    """One line on the first fact that is not the same for all processes, or None."""
    for name in sorted(set().union(*facts)):
        holders: dict[str, list[int]] = {}
        for index, each in enumerate(facts):
            holders.setdefault(repr(each.get(name)), []).append(index)
        if len(holders) > 1:
            told = [f"{value} on process {_numbers(who)}" for value, who in holders.items()]
            return f"{name} is {' and '.join(told)}"
    return None


def _numbers(indices: list[int]) -> str:
    shown = ", ".join(map(str, indices[:4]))
    return shown if len(indices) <= 4 else f"{shown} and {len(indices) - 4} more"
