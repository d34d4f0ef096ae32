"""State dicts to our variables and back.

The ResUNet's tensors have the names and layouts of AudioSep's PyTorch code: each is renamed and
transposed. Those of any other network have their Flax paths, such as `params/block1/kernel`.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from audiosep_jax.errors import InputError

PREFIX = "ss_model."
# Buffers of the original that hold no learnt value: DFT matrices, windows and batch counters.
BUFFERS = ("base.stft.", "base.istft.")
COUNTER = "num_batches_tracked"

Variables = Mapping[str, Any]


def torch_name(path: tuple[str, ...]) -> str:
    """Published name, without prefix, of a leaf such as `("params", "base", "bn0", "scale")`."""
    *modules, leaf = path[1:]
    leaf = {
        "kernel": "weight",
        "scale": "weight",
        "bias": "bias",
        "mean": "running_mean",
        "var": "running_var",
    }[leaf]
    return ".".join([*modules, leaf])


def from_torch_layout(path: tuple[str, ...], weight: np.ndarray) -> np.ndarray:
    """Tensor of the published file in our layout."""
    if path[-1] != "kernel":
        return weight
    if weight.ndim == 2:  # linear (out, in)
        return weight.T
    if _is_upsample(path):  # transposed convolution (in, out, time, frequency)
        return weight.transpose(2, 3, 0, 1)
    return weight.transpose(2, 3, 1, 0)  # convolution (out, in, time, frequency)


def to_torch_layout(path: tuple[str, ...], leaf: np.ndarray) -> np.ndarray:
    """Inverse of `from_torch_layout`."""
    if path[-1] != "kernel":
        return leaf
    if leaf.ndim == 2:
        return leaf.T
    return leaf.transpose(2, 3, 0, 1) if _is_upsample(path) else leaf.transpose(3, 2, 0, 1)


def import_separator(state_dict: Mapping[str, np.ndarray], template: Variables) -> dict[str, Any]:
    """Variables shaped as `template` (a model's variables or their shapes) from a state dict.

    Names may carry the `ss_model.` prefix. Every tensor is used exactly once: InputError names one
    that is missing, left over or of another shape.
    """
    tensors = {name.removeprefix(PREFIX): tensor for name, tensor in state_dict.items()}
    for name in tensors:
        if name in state_dict and PREFIX + name in state_dict:
            raise InputError(f"the state dict has {name} twice, with and without {PREFIX}")
    learnt = {name: tensor for name, tensor in tensors.items() if not _is_buffer(name)}
    return _picked(learnt, template, torch_name, to_torch_layout, from_torch_layout)


def import_variables(state_dict: Mapping[str, np.ndarray], template: Variables) -> dict[str, Any]:
    """Variables shaped as `template` from tensors under their Flax paths, each used once."""
    return _picked(state_dict, template, "/".join, _unchanged, _unchanged)


def export_variables(variables: Variables) -> dict[str, np.ndarray]:
    """Every leaf in float32 under its Flax path."""
    leaves = jax.tree_util.tree_leaves_with_path(dict(variables))
    return {"/".join(_path(key_path)): np.asarray(leaf, np.float32) for key_path, leaf in leaves}


Layout = Callable[[tuple[str, ...], np.ndarray], np.ndarray]


def _picked(
    tensors: Mapping[str, np.ndarray],
    template: Variables,
    name_of: Callable[[tuple[str, ...]], str],
    stored: Layout,
    restored: Layout,
) -> dict[str, Any]:
    """Fill the template; InputError where a tensor is missing, left over or of another shape."""
    unused = set(tensors)

    def pick(key_path: tuple[Any, ...], wanted: jax.ShapeDtypeStruct | np.ndarray) -> np.ndarray:
        path = _path(key_path)
        name = name_of(path)
        if name not in tensors:
            raise InputError(f"the state dict has no {name}")
        unused.discard(name)
        tensor = np.asarray(tensors[name])
        shape = stored(path, np.broadcast_to(0, wanted.shape)).shape
        if tensor.shape != shape:
            raise InputError(f"{name} has shape {tensor.shape}, the model needs {shape}")
        return restored(path, tensor)

    variables = jax.tree_util.tree_map_with_path(pick, dict(template))
    if unused:
        raise InputError(f"the state dict has {min(unused)}, which the model does not")
    return variables


def _unchanged(path: tuple[str, ...], leaf: np.ndarray) -> np.ndarray:
    return leaf


def export_separator(variables: Variables) -> Iterator[tuple[str, np.ndarray]]:
    """(published name without prefix, tensor) of every leaf, in the tree's order."""
    for key_path, leaf in jax.tree_util.tree_leaves_with_path(dict(variables)):
        path = _path(key_path)
        yield torch_name(path), to_torch_layout(path, np.asarray(leaf))


def _path(key_path: tuple[Any, ...]) -> tuple[str, ...]:
    return tuple(entry.key for entry in key_path)


def _is_upsample(path: tuple[str, ...]) -> bool:
    return path[-3].startswith("decoder_block") and path[-2] == "conv1"


def _is_buffer(name: str) -> bool:
    return name.startswith(BUFFERS) or name.endswith(COUNTER)
