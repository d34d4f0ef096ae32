"""Names, layouts and sizes of stored weights, and the way to our variables and back.

The ResUNet's tensors have the names and layouts of AudioSep's PyTorch code: each is renamed and
transposed. Those of any other network have their Flax paths, such as `params/block1/kernel`.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import ml_dtypes
import numpy as np

from audiosep_jax.errors import InputError
from audiosep_jax.model import variable_shapes
from audiosep_jax.model.audiosep import SLOTS
from audiosep_jax.model.network import ModelConfig
from audiosep_jax.model.resunet import ResUNetConfig
from audiosep_jax.model.stft import hann_window

PREFIX = "ss_model."
# The separator's names in a Lightning checkpoint, which also holds `query_encoder.*`.
PREFIXES = (PREFIX, "base.", "film.")
# Buffers of the original, which hold no learnt values: DFT matrices, windows and batch counters.
BUFFERS = ("base.stft.", "base.istft.")
COUNTER = "num_batches_tracked"
# Rate and hop by window: of the published model, and of the 16 kHz variant of DCASE 2024.
RATE_AND_HOP = {2048: (32000, 320), 1024: (16000, 160)}
# Sizes beyond these are refused before anything of that size is allocated.
MAX_WINDOW_SAMPLES, MAX_LEVELS = 1 << 16, 16
MAX_STEPS = 99_999_999  # the folder of a checkpoint has a name of eight digits
_LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
    SLOTS: SLOTS,
}
# The second norm of a decoder block is stored, but no forward pass uses it.
_UNUSED_NORM = re.compile(r"base\.decoder_block\d+\.bn2\.")

Variables = Mapping[str, Any]
StateDict = Mapping[str, np.ndarray]
Path = tuple[str, ...]
Layout = Callable[[Path, np.ndarray], np.ndarray]


# ---------------------------------------------------------------------------- any network


def stored_state_dict(model: ModelConfig, variables: Variables, step: int) -> dict[str, np.ndarray]:
    """Return everything that a network has learnt, in float32, under its stored names."""
    if model.network == "resunet":
        return learnt_state_dict(variables, step)
    return export_variables(variables)


def stored_prefixes(model: ModelConfig) -> tuple[str, ...]:
    """Return the beginnings of the names of `stored_state_dict`."""
    return PREFIXES if model.network == "resunet" else tuple(variable_shapes(model))


def stored_variables(model: ModelConfig, state_dict: StateDict) -> dict[str, Any]:
    """Make the variables of a network from its state dict; InputError if it is another's."""
    convert = import_separator if model.network == "resunet" else import_variables
    return convert(float32_state_dict(state_dict), variable_shapes(model))


def export_variables(variables: Variables) -> dict[str, np.ndarray]:
    """Return every leaf in float32 under its Flax path."""
    return {"/".join(path): np.asarray(leaf, np.float32) for path, leaf in _leaves(variables)}


def import_variables(state_dict: StateDict, template: Variables) -> dict[str, Any]:
    """Make variables shaped as `template` from tensors under their Flax paths."""
    return _fill(template, state_dict, "/".join, _unchanged, _unchanged)


def float32_state_dict(state_dict: StateDict) -> dict[str, np.ndarray]:
    """Return the learnt tensors in float32; InputError if one is not floating-point and finite."""
    tensors = {}
    for name, tensor in state_dict.items():
        if is_buffer(name):
            continue
        if not np.issubdtype(tensor.dtype, np.floating) and tensor.dtype != ml_dtypes.bfloat16:
            raise InputError(f"{name} is of type {tensor.dtype}, not floating point")
        tensors[name] = np.asarray(tensor, np.float32)
        if not np.isfinite(tensors[name]).all():
            raise InputError(f"{name} contains NaN or infinity")
    return tensors


def _fill(
    template: Variables,
    tensors: StateDict,
    name_of: Callable[[Path], str],
    stored: Layout,
    restored: Layout,
) -> dict[str, Any]:
    """Fill a template (variables or their shapes), using every tensor once.

    Raises:
        InputError: a tensor is missing, left over or of another shape.
    """
    unused = set(tensors)

    def pick(key_path: Any, wanted: jax.ShapeDtypeStruct | np.ndarray) -> np.ndarray:
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


def _unchanged(path: Path, leaf: np.ndarray) -> np.ndarray:
    return leaf


def _leaves(variables: Variables) -> Iterator[tuple[Path, np.ndarray]]:
    for key_path, leaf in jax.tree_util.tree_leaves_with_path(dict(variables)):
        yield _path(key_path), np.asarray(leaf)


def _path(key_path: Any) -> Path:
    return tuple(entry.key for entry in key_path)


# ---------------------------------------------------------------------------- AudioSep's ResUNet


def torch_name(path: Path) -> str:
    """Return AudioSep's name, without prefix, of `("params", "base", "bn0", "scale")`."""
    return ".".join([*path[1:-1], _LEAVES[path[-1]]])


def from_torch_layout(path: Path, weight: np.ndarray) -> np.ndarray:
    """Transpose a tensor of AudioSep's into our layout."""
    if path[-1] != "kernel":
        return weight
    if weight.ndim == 2:  # linear (out, in)
        return weight.T
    if _is_upsample(path):  # transposed convolution (in, out, time, frequency)
        return weight.transpose(2, 3, 0, 1)
    return weight.transpose(2, 3, 1, 0)  # convolution (out, in, time, frequency)


def to_torch_layout(path: Path, leaf: np.ndarray) -> np.ndarray:
    """Transpose one of our arrays into AudioSep's layout."""
    if path[-1] != "kernel":
        return leaf
    if leaf.ndim == 2:
        return leaf.T
    return leaf.transpose(2, 3, 0, 1) if _is_upsample(path) else leaf.transpose(3, 2, 0, 1)


def import_separator(state_dict: StateDict, template: Variables) -> dict[str, Any]:
    """Make variables shaped as `template` from AudioSep's names, with the prefix or without.

    Raises:
        InputError: a tensor is missing, left over or of another shape.
    """
    tensors = {name.removeprefix(PREFIX): tensor for name, tensor in state_dict.items()}
    learnt = {name: tensor for name, tensor in tensors.items() if not is_buffer(name)}
    return _fill(template, learnt, torch_name, to_torch_layout, from_torch_layout)


def export_separator(variables: Variables) -> Iterator[tuple[str, np.ndarray]]:
    """Yield every leaf under AudioSep's name, without prefix, in AudioSep's layout."""
    for path, leaf in _leaves(variables):
        yield torch_name(path), to_torch_layout(path, leaf)


def learnt_state_dict(variables: Variables, step: int) -> dict[str, np.ndarray]:
    """Return parameters, statistics and batch counters under AudioSep's names, with the prefix."""
    tensors = {}
    for name, tensor in export_separator(variables):
        tensors[PREFIX + name] = np.asarray(tensor, np.float32)
        if name.endswith(".running_var"):
            count = 0 if _UNUSED_NORM.match(name) else step
            norm = name.removesuffix("running_var")
            tensors[f"{PREFIX}{norm}{COUNTER}"] = np.asarray(count, np.int64)
    return tensors


def full_state_dict(variables: Variables, model: ModelConfig, step: int) -> dict[str, np.ndarray]:
    """Return what AudioSep's code loads with `strict=True`: `learnt_state_dict` and buffers.

    The head for the activity and the slots are left out, since that code has none.
    """
    buffers = {PREFIX + name: x for name, x in stft_buffers(model.window_samples).items()}
    learnt = learnt_state_dict(variables, step).items()
    return buffers | {
        name: x for name, x in learnt if ".activity." not in name and not name.endswith(SLOTS)
    }


def num_steps(state_dict: StateDict) -> int:
    """Return the number of batches that the first norm has counted; 0 if it is not stored."""
    name = f"base.bn0.{COUNTER}"
    counter = np.asarray(state_dict.get(PREFIX + name, state_dict.get(name, 0)))
    is_count = counter.size == 1 and counter.dtype.kind in "iu"
    return min(max(int(counter.reshape(())), 0), MAX_STEPS) if is_count else 0


def is_buffer(name: str) -> bool:
    """Return True for a tensor of AudioSep's that holds nothing learnt."""
    return name.removeprefix(PREFIX).startswith(BUFFERS) or name.endswith(COUNTER)


def stft_buffers(window_samples: int) -> dict[str, np.ndarray]:
    """Compute the Hann-windowed DFT matrices in torchlibrosa's STFT and ISTFT, float32.

    torchlibrosa takes powers of one root of unity, this code takes the roots themselves. One value
    in 200 differs in its last bit, where this one is nearer to the exact value.
    """
    n = np.arange(window_samples)
    window_S = hann_window(window_samples)
    roots = np.exp(-2j * np.pi * n / window_samples)
    # Rows are frequencies and columns samples. The inverse's are transposed, which is the same.
    dft_FS = roots[np.outer(n, n) % window_samples]
    analysis_FS = (dft_FS * window_S)[: window_samples // 2 + 1]
    synthesis_SF = dft_FS.conj() * (window_S / window_samples)[:, None]
    buffers = {
        "base.stft.conv_real.weight": analysis_FS.real[:, None, :],
        "base.stft.conv_imag.weight": analysis_FS.imag[:, None, :],
        "base.istft.ola_window": window_S**2,
        "base.istft.conv_real.weight": synthesis_SF.real[:, :, None],
        "base.istft.conv_imag.weight": synthesis_SF.imag[:, :, None],
    }
    return {name: buffer.astype(np.float32, order="C") for name, buffer in buffers.items()}


def model_config(
    state_dict: StateDict, sample_rate_hz: int | None = None, hop_samples: int | None = None
) -> ResUNetConfig:
    """Infer the sizes of a ResUNet from the shapes of its tensors, with the prefix or without.

    No tensor depends on the rate and the hop. They are known for two windows, 2048 and 1024.

    Raises:
        InputError: the tensors are not AudioSep's, or the rate and the hop are not known.
    """
    shapes = {name.removeprefix(PREFIX): np.shape(tensor) for name, tensor in state_dict.items()}
    window_samples = 2 * (_size(shapes, "base.bn0.weight", 0, 1) - 1)
    if window_samples > MAX_WINDOW_SAMPLES:
        raise InputError(f"base.bn0.weight stands for a window of {window_samples} samples")
    rate_hz, hop = RATE_AND_HOP.get(window_samples, (0, 0))
    if not rate_hz and (sample_rate_hz is None or hop_samples is None):
        raise InputError(
            f"has a window of {window_samples} samples, for which sample_rate_hz and hop_samples "
            "are not known: give both to `audiosep convert`, and use the workdir that it writes"
        )
    blocks = {re.match(r"base\.encoder_block(\d+)\.", name) for name in shapes}
    levels = len({match[1] for match in blocks if match})
    if not 1 <= levels <= MAX_LEVELS:
        raise InputError(f"has {levels} encoder blocks: not a checkpoint of AudioSep")
    channels, upsamples = [], []
    for level in range(1, levels + 1):
        conv = f"base.encoder_block{level}.conv_block1.conv2.weight"
        channels.append(_size(shapes, conv, 0, 4))
        upsample = f"base.decoder_block{levels + 1 - level}.conv1.weight"
        upsamples.append([_size(shapes, upsample, axis, 4) for axis in (2, 3)])
    film = "film.encoder_block1->conv_block1->beta1.weight"
    return ResUNetConfig(
        sample_rate_hz=sample_rate_hz or rate_hz,
        window_samples=window_samples,
        hop_samples=hop_samples or hop,
        condition_features=_size(shapes, film, 1, 2),
        stem_channels=_size(shapes, "base.pre_conv.weight", 0, 4),
        encoder_channels=tuple(channels),
        time_pools=tuple(time for time, _ in upsamples),
        frequency_pools=tuple(frequency for _, frequency in upsamples),
    )


def _size(shapes: Mapping[str, tuple[int, ...]], name: str, axis: int, num_axes: int) -> int:
    if name not in shapes:
        raise InputError(f"has no {name}: not a checkpoint of AudioSep")
    if len(shapes[name]) != num_axes:
        raise InputError(f"{name} has shape {shapes[name]}, not one of {num_axes} dimensions")
    return shapes[name][axis]


def _is_upsample(path: Path) -> bool:
    return path[-3].startswith("decoder_block") and path[-2] == "conv1"
