"""Several processes as one run, on the services of `jax.distributed`.

JAX finds the other processes, watches their heartbeats and ends those that are left when one of
them dies, and chooses the step after which all stop when one of them receives SIGTERM.
"""

import contextlib
import glob
import importlib.util
import json
import os
import re
import signal
import sys
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from types import FrameType
from typing import Any, NoReturn, Self

import jax
import numpy as np
from jax.experimental import multihost_utils

from audiosep_jax.errors import InputError

STOPPED = 75  # exit code; EX_TEMPFAIL of sysexits.h: try again
RESUME = "the same command resumes from the newest checkpoint"


class RunFailed(RuntimeError):
    """Something outside the config ended the run: a full disk, a process that is gone.

    The message is one line; the same command resumes.
    """


@contextlib.contextmanager
def connected(
    coordinator_address: str = "",
    num_processes: int = 0,
    process_id: int = -1,
    heartbeat_seconds: int = 60,
    start_seconds: int = 300,
) -> Iterator[None]:
    """Connect to the other processes, if there are any; use it before anything touches a device.

    The first three arguments are taken from the cluster (Slurm, Open MPI, TPU, Kubernetes) unless
    they are given. With `num_processes=1` this process is alone, even in a cluster.

    Raises:
        InputError: the processes cannot connect.
        RunFailed: another process broke the connection.
    """
    given = coordinator_address or num_processes > 0 or process_id >= 0
    if num_processes == 1 or not (given or in_cluster(os.environ)):
        yield
        return
    try:
        jax.distributed.initialize(
            coordinator_address or None,
            num_processes or None,
            process_id if process_id >= 0 else None,
            local_device_ids=local_devices(os.environ),
            initialization_timeout=start_seconds,
            heartbeat_timeout_seconds=heartbeat_seconds,
        )
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(
            f"the processes cannot connect ({reason}); check --coordinator_address, "
            "--num_processes and --process_id and that all of them run, or give --num_processes=1"
        ) from error
    try:
        yield
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        # A collective that broke raises either of them; the message starts with XLA's status.
        reason = str(error).strip().partition("\n")[0]
        if not re.match(r"[A-Z_]+: ", reason) or reason.startswith("RESOURCE_EXHAUSTED"):
            raise
        raise RunFailed(f"the connection to another process broke ({reason}); {RESUME}") from error
    jax.distributed.shutdown()


def leave(code: int) -> NoReturn:
    """End this process after an error, without waiting for processes that did not fail.

    JAX ends those as soon as it misses this one.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    if not jax.distributed.is_initialized():
        sys.exit(code)
    # JAX aborts a process whose shutdown times out, so wait for it in another thread.
    farewell = threading.Thread(target=jax.distributed.shutdown, daemon=True)
    farewell.start()
    farewell.join(timeout=5)
    os._exit(code)


def in_cluster(environment: Mapping[str, str]) -> bool:
    """Return whether a launcher that `jax.distributed` knows has started several processes."""

    def several(name: str) -> bool:
        return environment.get(name, "").isdecimal() and int(environment[name]) > 1

    if several("OMPI_COMM_WORLD_SIZE") and "OMPI_MCA_orte_hnp_uri" not in environment:
        raise InputError(
            "Open MPI 5 does not provide the address of process 0: give "
            "--coordinator_address=HOST:PORT --num_processes=$OMPI_COMM_WORLD_SIZE "
            "--process_id=$OMPI_COMM_WORLD_RANK"
        )
    slurm = several("SLURM_STEP_NUM_TASKS") and "SLURM_PROCID" in environment
    kubernetes = {"KUBERNETES_SERVICE_HOST", "JOB_COMPLETION_INDEX"} <= environment.keys()
    chips = glob.glob("/dev/accel[0-9]*") + glob.glob("/dev/vfio/[0-9]*")
    tpu = bool(chips) and importlib.util.find_spec("libtpu") is not None
    return slurm or several("OMPI_COMM_WORLD_SIZE") or kubernetes or tpu


def local_devices(environment: Mapping[str, str]) -> list[int] | None:
    """GPUs for this process, or None for JAX's choice: the one that has its number on the node.

    JAX's choice leaves GPUs idle if there is one process a node, and does not exist if the launcher
    shows each process its own GPU only.
    """
    shown = environment.get("CUDA_VISIBLE_DEVICES", "")
    count = len(shown.split(",")) if shown else len(glob.glob("/dev/nvidia[0-9]*"))
    on_node = environment.get("SLURM_STEP_TASKS_PER_NODE", "").partition("(")[0]
    on_node = on_node or environment.get("OMPI_COMM_WORLD_LOCAL_SIZE", "")
    if not on_node or "JAX_LOCAL_DEVICE_IDS" in environment:
        return None
    return list(range(count)) if count and (on_node == "1" or count == 1) else None


# ------------------------------------------------------------------ agreement


def is_main() -> bool:
    """Return whether this process is the one that logs and writes."""
    return jax.process_index() == 0


def gather(value: Any) -> list[Any]:
    """Return the JSON value of every process, in their order. All processes must call it."""
    if jax.process_count() == 1:
        return [value]
    data = np.frombuffer(json.dumps(value).encode(), np.uint8)
    longest = int(multihost_utils.process_allgather(np.array(len(data))).max())
    rows = multihost_utils.process_allgather(np.pad(data, (0, longest - len(data))))
    return [json.loads(bytes(row).rstrip(b"\0")) for row in rows]


def broadcast(tree: Any, template: Any) -> Any:
    """Return the arrays of process 0; `template` holds their shapes, `tree` counts there only."""
    if jax.process_count() == 1:
        return tree
    if not is_main():
        tree = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), template)
    return multihost_utils.broadcast_one_to_all(tree)


@contextlib.contextmanager
def failing_together() -> Iterator[None]:
    """Raise an error of the block in all processes, also where only process 0 does the work."""
    try:
        yield
    except (InputError, RunFailed) as error:
        gather([isinstance(error, RunFailed), str(error)])
        raise
    for report in gather(None):
        if report:
            failed, message = report
            raise RunFailed(message) if failed else InputError(message)


def check_equal(facts: Mapping[str, Any]) -> None:
    """Raise InputError in every process if one of `facts` is not the same in all of them."""
    devices = Counter(device.process_index for device in jax.devices())
    everyone = [{"the number of devices": devices[i]} for i in range(jax.process_count())]
    if len(set(devices.values())) == 1:  # else nothing can be gathered
        everyone = gather(dict(facts))
    for index, others in enumerate(everyone):
        for name in sorted(everyone[0].keys() | others.keys()):
            first, other = everyone[0].get(name), others.get(name)
            if first != other:
                raise InputError(
                    "the processes differ, so none of them starts: "
                    f"{name} is {first!r} in process 0 and {other!r} in process {index}"
                )


# ------------------------------------------------------------------ stopping


class StopSignals:
    """While entered, SIGINT and SIGTERM ask for a stop after a step; a second Ctrl-C interrupts.

    Before `save_from_now_on` there is nothing to save, and a single process ends at once.

    JAX receives SIGTERM where there are several processes: it spreads the request and chooses the
    step. There SIGINT is passed on as SIGTERM.
    """

    def __enter__(self) -> Self:
        self._requested = self._saves = False
        self._several = jax.process_count() > 1
        numbers = [signal.SIGINT] if self._several else [signal.SIGINT, signal.SIGTERM]
        self._previous = {number: signal.signal(number, self._receive) for number in numbers}
        return self

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if not (self._saves or self._several):
            print("stopped before the first step; start it again", file=sys.stderr, flush=True)
            leave(STOPPED)
        if not self._requested:
            print("\nstopping after this step, and saving ...", file=sys.stderr, flush=True)
            self.request()
        elif number == signal.SIGINT:
            raise KeyboardInterrupt

    def save_from_now_on(self) -> None:
        """Tell that the first step begins."""
        self._saves = True

    def request(self) -> None:
        """Ask for a stop, in all processes."""
        self._requested = True
        if self._several:
            os.kill(os.getpid(), signal.SIGTERM)

    def reached(self, step: int) -> bool:
        """Return whether to stop after `step`. Every process must ask after each step."""
        if self._several:
            return multihost_utils.reached_preemption_sync_point(step)
        return self._requested

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
