"""A trained network as it lies on disk: a workdir of train.py, a folder or file of weights.

The folder is what hubs hold: `config.json` and `model.safetensors` under the published names.
Files of weights are AudioSep's own, of any of PyTorch's formats.
"""

import contextlib
import dataclasses
import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from audiosep_jax.encoders.encoder import TextConfig
from audiosep_jax.errors import InputError
from audiosep_jax.model import variable_shapes
from audiosep_jax.model.network import ModelConfig
from audiosep_jax.model.resunet import ResUNetConfig
from audiosep_jax.training.config import CHECKPOINT_FOLDER as FOLDER
from audiosep_jax.training.config import CheckpointConfig, Config, from_mapping
from audiosep_jax.weights.published import (
    MAX_STEPS,
    PREFIXES,
    full_state_dict,
    model_config,
    num_steps,
    stored_prefixes,
    stored_state_dict,
    stored_variables,
)
from audiosep_jax.weights.torch_files import read_state_dict, write_safetensors, write_torch

PUBLISHED = "audiosep"
PUBLISHED_SPACE = "spaces/Audio-AGI/AudioSep"
PUBLISHED_FILE = "checkpoint/audiosep_base_4M_steps.ckpt"
CONFIG, WEIGHTS = "config.json", "model.safetensors"
# In which file a repository or folder holds its weights, best first.
WEIGHT_FILES = (WEIGHTS, "pytorch_model.bin", PUBLISHED_FILE, "*.safetensors", "*.ckpt")
# Part of a stored conversion's name: raise it when conversions come to hold something else.
CONVERSION = "separator-1"
OURS = {"library_name": "audiosep_jax"}


@dataclasses.dataclass(frozen=True, eq=False)
class Trained:
    """Weights, and what they were trained with; `text_fingerprint` is None where not known."""

    model: ModelConfig
    text: TextConfig
    text_fingerprint: str | None
    variables: Any
    step: int


def read(source: str | Path, *, option: str) -> Trained:
    """What lies at `source`: any of ours or AudioSep's, on disk or on a hub.

    Args:
        source: a workdir of train.py, a checkpoint in it, a folder of weights, a file of weights,
            a hub id such as `owner/name`, or `audiosep`, the published weights.
        option: how a user names it, such as `--checkpoint PATH`.

    Raises:
        InputError: there is nothing of the kind, or it is damaged.
    """
    path = Path(source)
    if os.path.isfile(path):
        return read_file(path)
    if os.path.isdir(path) and not _is_folder_of_weights(path):
        return read_checkpoint(path)
    if os.path.isdir(path):
        return _read_weights(path, convert=False, option=option)
    from audiosep_jax.weights import hub  # a client that takes long to import

    name = PUBLISHED_SPACE if str(source) == PUBLISHED else str(source)
    files = (hub.OR.join(WEIGHT_FILES),)
    folder = hub.snapshot(name, files, optional=(CONFIG,))
    return _read_weights(folder, convert=True, option=option)


def read_checkpoint(path: Path) -> Trained:
    """The checkpoint at `path`, or a workdir's best one by validation SDRi, or its newest.

    If that one of a workdir is damaged, the newest whole one is read, and a warning is logged.
    """
    from audiosep_jax.training.checkpoints import Checkpoints  # Orbax takes long to import

    workdir, step = _find(path)
    with contextlib.closing(Checkpoints(workdir)) as checkpoints:

        def read(step: int) -> Trained:
            place = workdir / FOLDER / f"{step:08d}"
            config, fingerprint = _config(checkpoints.about(step), place)
            variables = checkpoints.restore_variables(step, variable_shapes(config.model))
            return Trained(config.model, config.text, fingerprint, variables, step)

        if step is not None:
            return read(step)
        best = checkpoints.best_step()
        found = checkpoints.newest_whole(read, logging.getLogger(__name__).warning, first=best)
    if found is None:
        raise InputError(f"{workdir / FOLDER}: holds no checkpoint yet")
    return found


def read_file(
    path: Path, sample_rate_hz: int | None = None, hop_samples: int | None = None
) -> Trained:
    """The separator in a file of AudioSep's, of whatever PyTorch format, trained with CLAP."""
    state_dict = read_state_dict(path, prefixes=PREFIXES)
    try:
        model = model_config(state_dict, sample_rate_hz, hop_samples)
        variables = stored_variables(model, state_dict)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    return Trained(model, TextConfig(encoder="clap"), None, variables, num_steps(state_dict))


def read_folder(folder: Path) -> Trained:
    """What `write_folder` wrote."""
    about = _read_config(folder / CONFIG)
    config, fingerprint = _config(about, folder / CONFIG)
    prefixes = stored_prefixes(config.model)
    state_dict = read_state_dict(folder / WEIGHTS, prefixes=prefixes)
    try:
        variables = stored_variables(config.model, state_dict)
    except InputError as error:
        raise InputError(f"{folder / WEIGHTS}: {error}") from error
    step, told = num_steps(state_dict), about.get("step")
    if not step and isinstance(told, int) and 0 <= told <= MAX_STEPS:
        step = told  # only the published names include a counter
    return Trained(config.model, config.text, fingerprint, variables, step)


def write_folder(folder: Path, trained: Trained) -> None:
    """Writes weights and config; files of these names are replaced, each in one go."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tensors = stored_state_dict(trained.model, trained.variables, trained.step)
        write_safetensors(folder / WEIGHTS, tensors)
        write_text(folder / CONFIG, json.dumps(_hub_config(trained), indent=2) + "\n")
    except OSError as error:
        raise InputError(f"{folder}: cannot be written ({error.strerror})") from error


def write_file(path: Path, trained: Trained) -> None:
    """Writes what the original loads with `strict=True`, in the format of the suffix."""
    if not isinstance(trained.model, ResUNetConfig):
        raise InputError(
            f"{path}: only a ResUNet has a form in AudioSep's PyTorch code, not a network "
            f"{trained.model.network!r}; give a folder"
        )
    tensors = full_state_dict(trained.variables, trained.model, trained.step)
    if path.suffix == ".safetensors":
        write_safetensors(path, tensors)
    else:
        write_torch(path, tensors, lightning=path.suffix == ".ckpt")


def write_workdir(workdir: Path, trained: Trained, name: str) -> None:
    """Writes a workdir with one checkpoint, to separate with or to start a training from."""
    from audiosep_jax.training.checkpoints import Checkpoints
    from audiosep_jax.training.processes import RunFailed
    from audiosep_jax.training.steps import TrainState

    # No optimiser: it can be fine-tuned but not resumed.
    state = TrainState(
        step=jnp.int32(trained.step),
        params=trained.variables["params"],
        batch_stats=trained.variables.get("batch_stats", {}),
        opt_state={},
        ema=None,
        skipped_steps=jnp.int32(0),
    )
    try:
        with contextlib.closing(Checkpoints(workdir, CheckpointConfig())) as checkpoints:
            checkpoints.save(trained.step, state, _about(trained, name), None)
    except OSError as error:
        raise InputError(f"{workdir}: cannot be written ({error.strerror})") from error
    except RunFailed as error:
        raise InputError(str(error)) from error


def _is_folder_of_weights(path: Path) -> bool:
    """Whether a folder holds weights as hubs do, and no checkpoints as train.py writes them."""
    if os.path.isdir(path / FOLDER) or path.absolute().parent.name == FOLDER:
        return False
    return any(next(path.glob(pattern), None) for pattern in WEIGHT_FILES)


def _read_weights(folder: Path, *, convert: bool, option: str) -> Trained:
    """Ours, or AudioSep's, which is converted once where `convert`."""
    if os.path.isfile(folder / CONFIG) and OURS.items() <= _read_config(folder / CONFIG).items():
        return read_folder(folder)
    found = next(path for pattern in WEIGHT_FILES for path in sorted(folder.glob(pattern)))
    if not convert or found.suffix == ".safetensors":
        return read_file(found)
    from audiosep_jax.weights import hub

    return read_folder(hub.converted(found, CONVERSION, _convert))


def _convert(source: Path, destination: Path) -> None:
    write_folder(destination, read_file(source))


def _find(path: Path) -> tuple[Path, int | None]:
    """(workdir, step or None for the best) of a workdir or of one of its checkpoints."""
    if not os.path.isdir(path):  # False where pathlib raises: no permission, name too long
        raise InputError(f"{path}: no such folder; give a training workdir or a checkpoint in it")
    if os.path.isdir(path / FOLDER):
        return path, None
    absolute = path.absolute()
    if absolute.parent.name == FOLDER and absolute.name.isdecimal():
        return absolute.parent.parent, int(absolute.name)
    raise InputError(f"{path}: is no training workdir (no folder {FOLDER} in it)")


def _config(about: Any, place: Path) -> tuple[Config, str | None]:
    """Config (model and text only) and fingerprint of the text encoder."""
    try:
        config = about.get("config", about)
        stored = {room: config[room] for room in ("model", "text")}
        fingerprint = about["text_fingerprint"]
    except (AttributeError, KeyError, TypeError) as error:
        raise InputError(f"{place}: does not tell its config or text encoder") from error
    if not all(isinstance(room, Mapping) for room in stored.values()):
        raise InputError(f"{place}: does not tell its config or text encoder")
    try:
        return from_mapping(stored), fingerprint
    except (InputError, TypeError) as error:
        raise InputError(f"{place}: was made by another version: {error}") from error


def _read_config(path: Path) -> dict[str, Any]:
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as JSON") from error
    if not isinstance(about, dict):
        raise InputError(f"{path}: holds no fields")
    return about


def _about(trained: Trained, name: str) -> dict[str, Any]:
    """Of a checkpoint, as train.py writes it."""
    config = Config(name=name, model=trained.model, text=trained.text)
    return {
        "config": dataclasses.asdict(config),
        "text_fingerprint": trained.text_fingerprint,
        "data_fingerprint": None,
    }


def _hub_config(trained: Trained) -> dict[str, Any]:
    return OURS | {
        "model": dataclasses.asdict(trained.model),
        "text": dataclasses.asdict(trained.text),
        "text_fingerprint": trained.text_fingerprint,
        "step": trained.step,
    }


def write_text(path: Path, text: str) -> None:
    """Writes a small file whole."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)
