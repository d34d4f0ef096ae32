"""Low-rank adapters: small trained updates of frozen weights.

A kernel W becomes W + A B, where W has the shape (inputs, outputs), with the taps of a convolution
among its inputs, A has (inputs, rank) and B has (rank, outputs) (Hu et al., "LoRA", 2021). B begins
at zero. The sum replaces W when weights are read, so that nothing else knows of adapters.
"""

import dataclasses
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
import safetensors

from audiosep_jax.errors import InputError
from audiosep_jax.weights.torch_files import read_state_dict, write_safetensors

if TYPE_CHECKING:
    from audiosep_jax.training.trained import Trained

FILE = "adapter.safetensors"  # in a workdir


def new_adapters(params: Any, rank: int) -> Any:
    """Adapters `{"a": (inputs, rank), "b": (rank, outputs)}` in the place of each kernel."""
    flat, adapters = flax.traverse_util.flatten_dict(params), {}
    keys = jax.random.split(jax.random.key(0), len(flat))
    for key, (path, leaf) in zip(keys, sorted(flat.items()), strict=True):
        if path[-1] == "kernel":
            inputs, outputs = leaf.size // leaf.shape[-1], leaf.shape[-1]
            adapters[*path, "a"] = jax.random.normal(key, (inputs, rank)) / np.sqrt(inputs)
            adapters[*path, "b"] = jnp.zeros((rank, outputs))
    return flax.traverse_util.unflatten_dict(adapters)


def adapted(params: Any, adapters: Any) -> Any:
    """Parameters with the adapters added to their kernels; those without an adapter are shared."""
    flat, parts = (flax.traverse_util.flatten_dict(tree) for tree in (params, adapters))
    for path in {path[:-1] for path in parts}:
        update = parts[*path, "a"] @ parts[*path, "b"]
        flat[path] = flat[path] + update.reshape(flat[path].shape)
    return flax.traverse_util.unflatten_dict(flat)


def write_adapters(path: Path, params: Any, adapters: Any, words: tuple[str, ...]) -> None:
    """Write adapters in float16, with the hash of the frozen parameters and the captions' words."""
    flat = flax.traverse_util.flatten_dict(jax.device_get(adapters), sep="/")
    about = {"weights": _fingerprint(params), "words": " ".join(words)}
    write_safetensors(path, {name: x.astype(np.float16) for name, x in flat.items()}, about)


def with_adapter(found: "Trained", path: Path) -> "Trained":
    """Add an adapter, a file or that of a workdir, to the weights that it was trained on.

    Raises:
        InputError: there is no adapter, or it was trained on other weights.
    """
    path = path / FILE if path.is_dir() else path
    state_dict = read_state_dict(path)
    with safetensors.safe_open(path, "np") as file:
        about = file.metadata() or {}
    params = found.variables["params"]
    if about.get("weights") != _fingerprint(params):
        raise InputError(f"{path}: is no adapter of these weights; give those it was trained on")
    flat = {name: x.astype(np.float32) for name, x in state_dict.items()}
    params = adapted(jax.device_get(params), flax.traverse_util.unflatten_dict(flat, sep="/"))
    words = tuple(sorted({*found.words, *about["words"].split()})) if found.words else ()
    return dataclasses.replace(found, variables={**found.variables, "params": params}, words=words)


def _fingerprint(params: Any) -> str:
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(jax.device_get(params)):
        digest.update(np.ascontiguousarray(leaf, np.float32).data)
    return digest.hexdigest()[:16]
