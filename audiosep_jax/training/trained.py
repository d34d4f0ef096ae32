"""Trained networks on disk and on hubs: workdirs of train.py, folders and files of weights.

A folder of weights holds what hubs hold: `config.json`, `model.safetensors` under the published
names, and a model card. Files of weights are AudioSep's own, in any of PyTorch's formats.
"""

import contextlib
import dataclasses
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from audiosep_jax import files
from audiosep_jax.cli import naming
from audiosep_jax.encoders.encoder import TextConfig
from audiosep_jax.errors import InputError
from audiosep_jax.model import parse_config, variable_shapes
from audiosep_jax.model.network import ModelConfig
from audiosep_jax.model.resunet import ResUNetConfig
from audiosep_jax.settings import parse
from audiosep_jax.training import CHECKPOINT_FOLDER, WeightType
from audiosep_jax.weights.names import (
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

SHIPPED, SHIPPED_FOLDER = "small", Path(__file__).parents[1] / "weights" / "small"
PUBLISHED = "audiosep"
PUBLISHED_SPACE = "spaces/Audio-AGI/AudioSep"
PUBLISHED_FILE = "checkpoint/audiosep_base_4M_steps.ckpt"
CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"
TEXT = "text"  # folder beside them with the table of word vectors, if the text encoder is static
# Names of the file of weights in a repository or folder, best first.
WEIGHT_FILES = (WEIGHTS, "pytorch_model.bin", PUBLISHED_FILE, "*.safetensors", "*.ckpt")
# Part of the name of a stored conversion. Raise it when the result of a conversion changes.
CONVERSION = "separator-1"
OURS = {"library_name": "audiosep_jax"}
TAGS = ("audio", "audio-to-audio", "source-separation", "language-queried", "jax", "flax")


@dataclasses.dataclass(frozen=True, eq=False)
class Trained:
    """Weights, and the settings that they were trained with."""

    model: ModelConfig
    text: TextConfig
    text_fingerprint: str | None  # of the text encoder; None if not known
    variables: Any
    step: int
    words: tuple[str, ...] = ()  # of the captions, if the text encoder knows no others


# ------------------------------------------------------------------ reading


def read(source: str | Path) -> Trained:
    """Read trained weights, ours or AudioSep's own, from disk or from a hub.

    Args:
        source: a workdir of train.py, a checkpoint in it, a folder of weights, a file of weights,
            a hub id such as `owner/name`; or one of two names: `small`, the weights that the
            package holds, and `audiosep`, the published ones. A string with such a name never means
            a local path, `./small` does.

    Raises:
        InputError: there is nothing of the kind, or it is damaged.
    """
    path, is_name = Path(source), source in (SHIPPED, PUBLISHED)
    if is_name and os.path.lexists(path):
        note = f"{source}: is the name of known weights; ./{source} is the path in this folder"
        logging.getLogger(__name__).warning(note)
    if source == SHIPPED:
        return read_folder(SHIPPED_FOLDER)
    if not is_name and os.path.isfile(path):
        return read_file(path)
    if not is_name and os.path.isdir(path):
        return _read_weights(path) if _is_folder_of_weights(path) else read_checkpoint(path)
    from audiosep_jax.weights import hub  # a client that takes long to import

    name = PUBLISHED_SPACE if str(source) == PUBLISHED else str(source)
    folder = hub.snapshot(name, (hub.OR.join(WEIGHT_FILES),), optional=(CONFIG, f"{TEXT}/*"))
    return _read_weights(folder, convert=True)


def read_checkpoint(path: Path) -> Trained:
    """Read the checkpoint at `path`, or of a workdir the best, or without scores the newest one.

    If that is damaged, the newest whole one of the workdir is read, and a warning is logged.
    """
    from audiosep_jax.training.checkpoints import Checkpoints  # Orbax takes long to import

    workdir, step = _find(path)
    with _quiet(), contextlib.closing(Checkpoints(workdir)) as checkpoints:

        def read(step: int) -> Trained:
            about = checkpoints.about(step)
            place = str(workdir / CHECKPOINT_FOLDER / f"{step:08d}")
            model, text, fingerprint, words = _settings(about.get("config"), about, place)
            variables = checkpoints.restore_variables(step, variable_shapes(model))
            return Trained(model, text, fingerprint, variables, step, words)

        if step is not None:
            return read(step)
        best = checkpoints.best_step()
        found = checkpoints.newest_whole(read, logging.getLogger(__name__).warning, first=best)
    if found is None:
        raise InputError(f"{workdir / CHECKPOINT_FOLDER}: holds no checkpoint yet")
    return found


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hide Orbax's warnings that a folder is read only, and that it has no metadata or score."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def read_file(
    path: Path, sample_rate_hz: int | None = None, hop_samples: int | None = None
) -> Trained:
    """Read the separator in a file of AudioSep's, of any PyTorch format, trained with CLAP.

    Args:
        sample_rate_hz: needed, with `hop_samples`, for windows that AudioSep did not publish.
    """
    state_dict = read_state_dict(path, prefixes=PREFIXES)
    with naming(str(path)):
        model = model_config(state_dict, sample_rate_hz, hop_samples)
        variables = stored_variables(model, state_dict)
    return Trained(model, TextConfig(encoder="clap"), None, variables, num_steps(state_dict))


def read_folder(folder: Path) -> Trained:
    """Read what `write_folder` wrote."""
    about = files.read_json_object(folder / CONFIG)
    model, text, fingerprint, words = _settings(about, about, str(folder / CONFIG))
    if os.path.isdir(folder / TEXT):
        text = dataclasses.replace(text, model=str(folder / TEXT))
    state_dict = read_state_dict(folder / WEIGHTS, prefixes=stored_prefixes(model))
    with naming(str(folder / WEIGHTS)):
        variables = stored_variables(model, state_dict)
    step = num_steps(state_dict) or about.get("step", 0)  # only AudioSep's names include a counter
    if not isinstance(step, int) or not 0 <= step <= MAX_STEPS:
        step = 0
    return Trained(model, text, fingerprint, variables, step, words)


def _is_folder_of_weights(path: Path) -> bool:
    """Return whether a folder holds weights as hubs do, and is no workdir or checkpoint."""
    if os.path.isdir(path / CHECKPOINT_FOLDER) or path.absolute().parent.name == CHECKPOINT_FOLDER:
        return False
    return any(next(path.glob(pattern), None) for pattern in WEIGHT_FILES)


def _read_weights(folder: Path, *, convert: bool = False) -> Trained:
    """Read our weights or AudioSep's, which `convert` converts once and keeps in the cache."""
    config = folder / CONFIG
    if os.path.isfile(config) and OURS.items() <= files.read_json_object(config).items():
        return read_folder(folder)
    found = next(path for pattern in WEIGHT_FILES for path in sorted(folder.rglob(pattern)))
    if not convert or found.suffix == ".safetensors":
        return read_file(found)
    from audiosep_jax.weights import hub

    return read_folder(
        hub.converted(found, CONVERSION, lambda old, new: write_folder(new, read_file(old)))
    )


def _find(path: Path) -> tuple[Path, int | None]:
    """(workdir, step or None for the best) of a workdir or of one of its checkpoints."""
    if not os.path.isdir(path):  # False where pathlib raises: no permission, name too long
        raise InputError(f"{path}: no such folder; give a training workdir or a checkpoint in it")
    if os.path.isdir(path / CHECKPOINT_FOLDER):
        return path, None
    absolute = path.absolute()
    if absolute.parent.name == CHECKPOINT_FOLDER and absolute.name.isdecimal():
        return absolute.parent.parent, int(absolute.name)
    raise InputError(f"{path}: is no training workdir (no folder {CHECKPOINT_FOLDER} in it)")


def _settings(
    config: Any, about: Any, where: str
) -> tuple[ModelConfig, TextConfig, str | None, tuple[str, ...]]:
    """(network, text encoder, its fingerprint, its words) as stored in JSON beside weights."""
    try:
        model, text, fingerprint = config["model"], config["text"], about["text_fingerprint"]
        words = tuple(about.get("words") or ())
    except (KeyError, TypeError) as error:
        raise InputError(f"{where}: does not hold its model, text and text_fingerprint") from error
    with naming(f"{where}: was made by another version"):
        return parse_config(model), parse(TextConfig, text, inside="text"), fingerprint, words


# ------------------------------------------------------------------ writing


def write_folder(
    folder: Path, trained: Trained, name: str = "", dtype: WeightType = "float32"
) -> None:
    """Write weights and config, and with a `name` a model card; each file replaces an older one.

    A table of word vectors is copied, so that the folder needs no other files.

    Args:
        dtype: of kernels. Biases and the values of norms, which are few, remain float32.
    """
    fields = dataclasses.asdict(dataclasses.replace(trained, variables=None))
    del fields["variables"]
    if trained.text.encoder == "static":
        from audiosep_jax.encoders import static
        from audiosep_jax.weights import hub

        fields["text"]["model"] = ""  # `read_folder` finds the copy
        source = hub.snapshot(trained.text.source, static.FILES)
        for file in static.FILES:
            with files.replacing(folder / TEXT / file) as partial:
                shutil.copyfile(source / file, partial)
    tensors = stored_state_dict(trained.model, trained.variables, trained.step)
    kernels = {name: x.astype(dtype) for name, x in tensors.items() if x.ndim > 1}
    write_safetensors(folder / WEIGHTS, tensors | kernels)
    files.write_json(folder / CONFIG, OURS | fields, indent=2)
    if name:
        files.write_text(folder / CARD, model_card(trained, name))


def write_file(path: Path, trained: Trained) -> None:
    """Write what AudioSep's code loads with `strict=True`, in the format of the suffix."""
    model = trained.model
    if not isinstance(model, ResUNetConfig) or model.network != "resunet" or model.decoder_channels:
        raise InputError(f"{path}: only a ResUNet exists in AudioSep's code; give a folder")
    tensors = full_state_dict(trained.variables, model, trained.step)
    if path.suffix == ".safetensors":
        write_safetensors(path, tensors)
    else:
        write_torch(path, tensors, lightning=path.suffix == ".ckpt")


def model_card(trained: Trained, name: str) -> str:
    """Markdown with the header that hubs read; `name` is the hub id or folder of the weights."""
    model, text = trained.model, trained.text
    count = sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(trained.variables["params"]))
    common = {field.name for field in dataclasses.fields(ModelConfig)} - {"network"}
    sizes = {name: x for name, x in dataclasses.asdict(model).items() if name not in common}
    own = "".join(f"| {name.replace('_', ' ')} | {_listed(x)} |\n" for name, x in sizes.items())
    hop_ms = 1000 * model.hop_samples / model.sample_rate_hz
    source = f"in {TEXT}/" if text.encoder == "static" else text.source
    encoder = f"{text.encoder} ({source})" if source else text.encoder
    tags = "".join(f"- {tag}\n" for tag in TAGS)
    wanted, option = "what a sentence describes", '--text "a dog barking"'
    code = 'dog = separator.separate(audio, sample_rate_hz, "a dog barking")'
    if text.encoder == "voice":
        wanted, option = "the voice of another recording", "--voice enrolment.wav"
        code = """condition = separator.embed("voice", [(enrolment, enrolment_rate_hz)])
voice = separator.separate_conditions(audio, sample_rate_hz, condition)[0]"""
    return f"""---
library_name: audiosep_jax
pipeline_tag: audio-to-audio
tags:
{tags}---

# {name}

Separates {wanted} from a recording: AudioSep (Liu et al., "Separate Anything You
Describe", 2023), a network conditioned on the query, in JAX and Flax.

## Use

```python
from audiosep_jax import Separator

separator = Separator.from_pretrained("{name}")
{code}
```

or, for a file:

```
audiosep separate street.wav {option} --checkpoint {name}
```

## Sizes

| | |
|---|---|
| parameters | {count:,} |
| sample rate | {model.sample_rate_hz:,} Hz, mono; other rates and channels are converted |
| STFT | window {model.window_samples}, hop {model.hop_samples} samples ({hop_ms:g} ms) |
{own}| text encoder | {encoder}, {model.condition_features} numbers |
| trained for | {f"{trained.step:,} steps" if trained.step else "an unknown number of steps"} |

## Files

`model.safetensors` holds tensors under the names of AudioSep's PyTorch code (`ss_model.*`),
without the constant matrices of its STFT. PyTorch reads it with `load_state_dict(tensors,
strict=False)`, and `audiosep convert {name} audiosep.ckpt` writes a checkpoint for `strict=True`.
`config.json` holds the sizes above.
"""


def _listed(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)
