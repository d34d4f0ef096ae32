"""Engines: which one runs the network, and OpenVINO, the fastest one on CPUs.

JAX runs every network on every device. OpenVINO runs networks that have an ONNX graph on CPUs. Its
results equal those of JAX to rounding.
"""

import contextlib
import functools
import hashlib
import importlib.util
import itertools
import os
import sys
import threading
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from audiosep_jax import files
from audiosep_jax.errors import InputError
from audiosep_jax.model import kind_of
from audiosep_jax.model.network import ModelConfig, Span
from audiosep_jax.model.onnx_graph import NEXT
from audiosep_jax.separation import EngineName

MAX_CACHE_BYTES = 2 << 30  # of compiled graphs; the least recently used are removed
PRECISIONS = {"float32": "f32", "bfloat16": "bf16"}  # by `model.dtype`, as OpenVINO calls them
INSTALL = "pip install 'audiosep-jax[cpu]'"


def choose(engine: EngineName, model: ModelConfig) -> Literal["jax", "openvino"]:
    """Return the engine that `auto` stands for here, or the given one.

    Raises:
        InputError: OpenVINO was asked for and cannot run this network here.
    """
    if engine not in ("auto", "jax", "openvino"):
        raise InputError(f"engine={engine!r} must be auto, jax or openvino")
    if engine == "jax":
        return engine
    reason = _obstacle(model)
    if reason is None:
        return "openvino"
    if engine == "auto":
        return "jax"
    raise InputError(f"the engine openvino {reason}")


def _obstacle(model: ModelConfig) -> str | None:
    """Say why OpenVINO cannot run a network in this process; None if it can."""
    platform = jax.local_devices()[0].platform
    if platform != "cpu":
        return f"runs on CPUs, and this process computes on {platform}: choose jax"
    if kind_of(model.network).write_graph is None:
        return f"needs an ONNX graph, and the network {model.network} has none: choose jax"
    if any(importlib.util.find_spec(name) is None for name in ("onnx", "openvino")):
        return f"is not installed: {INSTALL}"
    return None


def check_bfloat16(engine: str) -> None:
    """Raise InputError if the processor has no arithmetic in bfloat16, or the engine not for it."""
    if jax.local_devices()[0].platform != "cpu":
        return
    if engine != "openvino":
        raise InputError(f"bfloat16 on a CPU needs the engine openvino: {INSTALL}")
    if "BF16" not in openvino_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise InputError("this processor has no bfloat16 arithmetic: choose float32")


def import_openvino() -> Any:
    """Import OpenVINO without its model converter, whose import reports to a server."""
    blocked = "openvino.tools.ovc"
    if "openvino" in sys.modules:
        return sys.modules["openvino"]
    sys.modules[blocked] = None  # type: ignore[assignment] # makes its import fail, which is allowed
    try:
        import openvino
    finally:
        del sys.modules[blocked]
    return openvino


@functools.cache
def openvino_core() -> Any:
    """OpenVINO's device manager, one for the life of the process.

    Each manager gives its thread a stack for signal handlers, and restores the stack that was there
    before when it is deleted. That could be one of another manager which is deleted already, and
    the next signal would crash the process.
    """
    return import_openvino().Core()


class OpenVINO:
    """Runs a network's ONNX graphs on the CPU, in the precision `model.dtype`.

    A graph is written and compiled when it is first needed. Compiled graphs are kept in the cache
    folder. Threads may share an engine: it computes one input at a time, on all cores.

    Args:
        fingerprint: that of the separator with this model and these variables.
    """

    def __init__(self, model: ModelConfig, variables: Any, fingerprint: str) -> None:
        self._model, self._variables, self._fingerprint = model, variables, fingerprint
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle what the engine is made of; its graphs are compiled where it is used."""
        return OpenVINO, (self._model, self._variables, self._fingerprint)

    @functools.cached_property
    def state_shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        """As in `Engine`."""
        with self._lock:
            ports = self._tile.get_compiled_model().inputs
        sizes = {port.node.friendly_name: list(port.partial_shape)[1:] for port in ports}
        return {
            name: jax.ShapeDtypeStruct((1, *(size.get_length() for size in own)), np.float32)
            for name, own in sizes.items()
            if name not in ("magnitude", "condition", "first", "total")
        }

    def whole(self, mag_BTF: Any, condition_BE: Any) -> np.ndarray:
        """As in `Engine`."""
        with self._lock:
            inputs = {"magnitude": mag_BTF, "condition": condition_BE}
            return _run(self._whole, inputs, ["mask"])[0]

    def tile(
        self, mag_BTF: Any, condition_BE: Any, span: Span, state: Any
    ) -> tuple[np.ndarray, Any]:
        """As in `Engine`."""
        inputs = {"magnitude": mag_BTF, "condition": condition_BE, **state}
        inputs |= {name: np.array([x], np.int64) for name, x in span._asdict().items()}
        with self._lock:
            mask_BTFC, *carried = _run(self._tile, inputs, ["mask", *(NEXT + x for x in state)])
        return mask_BTFC, dict(zip(state, carried, strict=True))

    @functools.cached_property
    def _whole(self) -> Any:
        return self._compiled(stream=False)

    @functools.cached_property
    def _tile(self) -> Any:
        return self._compiled(stream=True)

    def _compiled(self, stream: bool) -> Any:
        """Request of a compiled graph, from the cache folder or newly written."""
        openvino, core = import_openvino(), openvino_core()
        precision = PRECISIONS[self._model.dtype]
        options = {"INFERENCE_PRECISION_HINT": precision, "PERFORMANCE_HINT": "LATENCY"}
        device = core.get_property("CPU", "FULL_DEVICE_NAME")
        about = (self._fingerprint, stream, precision, device, openvino.get_version())
        name = hashlib.sha256(repr(about).encode()).hexdigest()[:32]
        path = files.cache_folder("openvino", f"{name}.blob")
        if path.is_file():
            with contextlib.suppress(RuntimeError, OSError):  # damaged: it is replaced
                os.utime(path)  # the least recently used are removed
                stored = openvino.tensor_from_file(path)
                return core.import_model(stored, "CPU", options).create_infer_request()
        write_graph = kind_of(self._model.network).write_graph
        assert write_graph is not None
        graph = write_graph(self._model, self._variables, stream=stream).SerializeToString()
        compiled = core.compile_model(core.read_model(graph), "CPU", options)
        with contextlib.suppress(InputError):  # a folder that cannot be written: no cache
            _store(path, compiled.export_model())
        return compiled.create_infer_request()


def _store(path: Path, content: Any) -> None:
    """Write a compiled graph, and remove those that were not used for longest."""
    with files.replacing(path) as partial:
        partial.write_bytes(content if isinstance(content, bytes) else content.getvalue())
    newest = sorted(path.parent.glob("*.blob"), key=lambda x: x.stat().st_mtime, reverse=True)
    sizes = itertools.accumulate(x.stat().st_size for x in newest)
    for old, size in zip(newest, sizes, strict=True):
        if size > MAX_CACHE_BYTES and old != path:
            files.remove(old)


def _run(request: Any, inputs: dict[str, Any], names: list[str]) -> list[np.ndarray]:
    """Results by name, which the next call leaves alone."""
    arrays = {name: np.ascontiguousarray(x) for name, x in inputs.items()}
    results = request.infer(arrays, share_inputs=True)
    return [results[name] for name in names]
