"""AudioSep's own state dict: the sizes that its tensors tell, and the buffers that they go with."""

import re
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np

from audiosep_jax.errors import InputError
from audiosep_jax.model import variable_shapes
from audiosep_jax.model.network import ModelConfig
from audiosep_jax.model.resunet import ResUNetConfig
from audiosep_jax.model.stft import hann_window
from audiosep_jax.weights.names import (
    COUNTER,
    PREFIX,
    export_separator,
    export_variables,
    import_separator,
    import_variables,
)

# What a Lightning checkpoint holds besides, such as `query_encoder.*`, is not the separator's.
PREFIXES = (PREFIX, "base.", "film.")
# Rate and hop by window: the published model's, and the 16 kHz variant's of DCASE 2024.
RATE_AND_HOP = {2048: (32000, 320), 1024: (16000, 160)}
MAX_WINDOW_SAMPLES, MAX_LEVELS = 1 << 16, 16
MAX_STEPS = 99_999_999  # the folder of a checkpoint has a name of eight digits
# The decoder's own second norm is in the file, but no forward pass counts a batch there.
_UNUSED_NORM = re.compile(r"base\.decoder_block\d+\.bn2\.")

StateDict = Mapping[str, np.ndarray]


def model_config(
    state_dict: StateDict, sample_rate_hz: int | None = None, hop_samples: int | None = None
) -> ModelConfig:
    """Sizes of the network that a state dict, with prefix or without, belongs to.

    Rate and hop are in no tensor; they are looked up for the two windows that are in use.
    """
    tensors = {name.removeprefix(PREFIX): np.shape(tensor) for name, tensor in state_dict.items()}
    window_samples = 2 * (_size(tensors, "base.bn0.weight", 0, 1) - 1)
    if window_samples > MAX_WINDOW_SAMPLES:
        raise InputError(f"base.bn0.weight stands for a window of {window_samples} samples")
    known = RATE_AND_HOP.get(window_samples)
    if known is None and (sample_rate_hz is None or hop_samples is None):
        raise InputError(
            f"has a window of {window_samples} samples, which does not tell the rate: give "
            "--sample_rate_hz and --hop_samples"
        )
    rate_hz, hop = known or (0, 0)
    blocks = {re.match(r"base\.encoder_block(\d+)\.", name) for name in tensors}
    levels = len({match[1] for match in blocks if match})
    if not 1 <= levels <= MAX_LEVELS:
        raise InputError(f"has {levels} encoder blocks: not a checkpoint of AudioSep")
    channels, upsamples = [], []
    for level in range(1, levels + 1):
        conv = f"base.encoder_block{level}.conv_block1.conv2.weight"
        channels.append(_size(tensors, conv, 0, 4))
        upsample = f"base.decoder_block{levels + 1 - level}.conv1.weight"
        upsamples.append([_size(tensors, upsample, axis, 4) for axis in (2, 3)])
    film = "film.encoder_block1->conv_block1->beta1.weight"
    return ResUNetConfig(
        sample_rate_hz=sample_rate_hz or rate_hz,
        window_samples=window_samples,
        hop_samples=hop_samples or hop,
        condition_features=_size(tensors, film, 1, 2),
        stem_channels=_size(tensors, "base.pre_conv.weight", 0, 4),
        encoder_channels=tuple(channels),
        time_pools=tuple(time for time, _ in upsamples),
        frequency_pools=tuple(frequency for _, frequency in upsamples),
    )


def stored_state_dict(
    model: ModelConfig, variables: Mapping[str, Any], step: int
) -> dict[str, np.ndarray]:
    """All that a network has learnt, float32, under the names in which it is stored."""
    if isinstance(model, ResUNetConfig):
        return learnt_state_dict(variables, step)
    return export_variables(variables)


def stored_prefixes(model: ModelConfig) -> tuple[str, ...]:
    """Beginnings of the names of `stored_state_dict`."""
    return PREFIXES if isinstance(model, ResUNetConfig) else tuple(variable_shapes(model))


def stored_variables(model: ModelConfig, state_dict: StateDict) -> dict[str, Any]:
    """Variables from a `stored_state_dict`; InputError where it is of another network."""
    convert = import_separator if isinstance(model, ResUNetConfig) else import_variables
    return convert(float32_state_dict(state_dict), variable_shapes(model))


def float32_state_dict(state_dict: StateDict) -> dict[str, np.ndarray]:
    """The learnt tensors in float32, which must be finite floating-point numbers."""
    tensors = {}
    for name, tensor in state_dict.items():
        if name.endswith(COUNTER) or is_buffer(name):
            continue
        if not np.issubdtype(tensor.dtype, np.floating) and tensor.dtype != ml_dtypes.bfloat16:
            raise InputError(f"{name} is of type {tensor.dtype}, not floating point")
        tensors[name] = np.asarray(tensor, np.float32)
        if not np.isfinite(tensors[name]).all():
            raise InputError(f"{name} contains NaN or infinite numbers")
    return tensors


def num_steps(state_dict: StateDict) -> int:
    """Batches the network was trained on, as its first norm has counted them; 0 where not told."""
    name = f"base.bn0.{COUNTER}"
    counter = np.asarray(state_dict.get(PREFIX + name, state_dict.get(name, 0)))
    told = counter.size == 1 and counter.dtype.kind in "iu"
    return min(max(int(counter.reshape(())), 0), MAX_STEPS) if told else 0


def is_buffer(name: str) -> bool:
    """Whether a tensor of the state dict belongs to the STFT, which holds nothing learnt."""
    return name.removeprefix(PREFIX).startswith(("base.stft.", "base.istft."))


def learnt_state_dict(variables: Mapping[str, Any], step: int) -> dict[str, np.ndarray]:
    """Parameters, statistics and batch counters under their published names, with the prefix."""
    tensors = {}
    for name, tensor in export_separator(variables):
        tensors[PREFIX + name] = np.asarray(tensor, np.float32)
        if name.endswith(".running_var"):
            count = 0 if _UNUSED_NORM.match(name) else step
            norm = name.removesuffix("running_var")
            tensors[f"{PREFIX}{norm}{COUNTER}"] = np.asarray(count, np.int64)
    return tensors


def full_state_dict(
    variables: Mapping[str, Any], model: ModelConfig, step: int
) -> dict[str, np.ndarray]:
    """What the original's separator loads with `strict=True`: `learnt_state_dict` and buffers."""
    buffers = {PREFIX + name: x for name, x in stft_buffers(model.window_samples).items()}
    return buffers | learnt_state_dict(variables, step)


def stft_buffers(window_samples: int) -> dict[str, np.ndarray]:
    """The Hann-windowed DFT matrices that torchlibrosa's STFT and ISTFT keep, float32.

    torchlibrosa takes powers of one root of unity, we the root itself: one value in 200 differs
    by its last bit, and ours is the nearer.
    """
    n = np.arange(window_samples)
    window_S = hann_window(window_samples)
    roots = np.exp(-2j * np.pi * n / window_samples)
    # Row is the frequency, column the sample; the inverse's, the other way round, are symmetric.
    dft_FS = roots[np.outer(n, n) % window_samples]
    analysis_FS = (dft_FS * window_S)[: window_samples // 2 + 1]
    synthesis_SF = dft_FS.conj() * (window_S / window_samples)[:, None]
    return {
        "base.stft.conv_real.weight": _float32(analysis_FS.real)[:, None, :],
        "base.stft.conv_imag.weight": _float32(analysis_FS.imag)[:, None, :],
        "base.istft.ola_window": _float32(window_S**2),
        "base.istft.conv_real.weight": _float32(synthesis_SF.real)[:, :, None],
        "base.istft.conv_imag.weight": _float32(synthesis_SF.imag)[:, :, None],
    }


def _float32(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array, np.float32)


def _size(shapes: Mapping[str, tuple[int, ...]], name: str, axis: int, num_axes: int) -> int:
    if name not in shapes:
        raise InputError(f"has no {name}: not a checkpoint of AudioSep")
    if len(shapes[name]) != num_axes:
        raise InputError(f"{name} has shape {shapes[name]}, not one of {num_axes} dimensions")
    return shapes[name][axis]
