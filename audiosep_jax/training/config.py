"""The typed form of an experiment; files in configs/ state where they differ from its defaults."""

import dataclasses
import runpy
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from ml_collections import ConfigDict
from pydantic import Field

from audiosep_jax.data.augment import AugmentConfig
from audiosep_jax.data.mixing import MixingConfig
from audiosep_jax.data.sources import DataConfig
from audiosep_jax.encoders.encoder import TextConfig
from audiosep_jax.errors import InputError
from audiosep_jax.model import kind_of, parse_config
from audiosep_jax.model.network import ModelConfig
from audiosep_jax.model.resunet import ResUNetConfig
from audiosep_jax.settings import (
    Count,
    CountOrZero,
    PositiveOrZero,
    Seed,
    fields_of,
    override,
    parse,
    section,
    setting,
)
from audiosep_jax.training.grouping import sums
from audiosep_jax.training.losses import LossConfig
from audiosep_jax.training.optim import OptimConfig


@section
class ValidConfig:
    """The fixed set of held-out mixtures that training is scored on."""

    num_mixtures: Annotated[int, Field(ge=1, le=100_000)] = 256
    batch_size: Count = 32
    every_steps: Count = 10_000
    segment_seconds: Annotated[float, Field(ge=0, le=3600)] = 0.0  # 0: as in training
    snr_db: Annotated[int, Field(ge=-100, le=100)] = 0
    seed: Seed = 1
    num_examples: CountOrZero = 4  # shown in TensorBoard and written to the workdir at the end


@section
class CheckpointConfig:
    """Steps after which to save, besides each validation and the end, and what to keep.

    The newest `keep_latest`, the best, and one every `keep_every_steps` (0: none) stay.
    """

    every_steps: Count = 1_000
    keep_latest: Count = 2
    keep_every_steps: CountOrZero = 100_000


@section
class Config:
    """An experiment; the defaults are the paper's."""

    name: Annotated[str, Field(min_length=1)] = setting(default="audiosep", resumable=True)
    seed: Seed = 0
    batch_size: Annotated[int, Field(ge=1, le=2**20)] = 96  # over all devices of all hosts
    num_steps: Count = setting(default=1_000_000, resumable=True)
    log_every_steps: Count = setting(default=100, resumable=True)
    # Steps of a trace that is written below the workdir once the first steps have compiled.
    profile: CountOrZero = setting(default=0, resumable=True)
    # Both give the same numbers; shard_map takes less time on the host in runs of many processes.
    parallel: Literal["pmap", "shard_map"] = setting(default="pmap", resumable=True)
    # Peak of one device, for `peak_share` in the log; 0: from a table of devices.
    device_peak_tflops: PositiveOrZero = setting(default=0.0, resumable=True)
    # same: a resumed run must have the config that it had. changed: it goes on with another one,
    # such as another learning rate or batch size, which its checkpoints record in their history.
    resume: Literal["same", "changed"] = setting(default="same", resumable=True)
    # Weights to begin with, under a fresh optimiser: a workdir, a hub id, a file; empty: random.
    init_from: str = ""
    model: ModelConfig = ResUNetConfig()
    text: TextConfig = TextConfig()
    data: DataConfig = DataConfig()
    mixing: MixingConfig = MixingConfig()
    augment: AugmentConfig = AugmentConfig()
    loss: LossConfig = LossConfig()
    optim: OptimConfig = OptimConfig()
    valid: ValidConfig = setting(default=ValidConfig(), resumable=True)
    checkpoint: CheckpointConfig = setting(default=CheckpointConfig(), resumable=True)

    def __post_init__(self) -> None:
        if self.optim.adapter_rank and not self.init_from:
            raise InputError("optim.adapter_rank needs init_from: the weights that are frozen")
        speakers = "speakers" in (self.data.source, *self.data.sources)
        if speakers != (self.text.encoder == "voice") and self.text.encoder != "none":
            raise InputError(
                "data.source=speakers and text.encoder=voice need each other: the recordings of a "
                "speaker are the queries"
            )
        if self.mixing.cue_probability and self.text.encoder in ("voice", "none"):
            raise InputError(
                f"mixing.cue_probability asks by sentences, which text.encoder={self.text.encoder} "
                "does not embed; choose another, and data.source=folders for folders of speakers"
            )
        if self.mixing.num_queries > 1 and self.text.use_text_ratio < 1:
            raise InputError(
                f"mixing.num_queries={self.mixing.num_queries} needs text.use_text_ratio=1: "
                "a target of several sounds has no query of its own"
            )
        if self.augment.absent_probability and self.text.use_text_ratio < 1:
            raise InputError(
                f"augment.absent_probability={self.augment.absent_probability} needs "
                "text.use_text_ratio=1: a target that is silence cannot be the query"
            )


def default_config(network: str = "resunet") -> ConfigDict:
    """Defaults for a network: config files change them and `--config.x=y` overrides them."""
    return ConfigDict(dataclasses.asdict(Config(model=kind_of(network).config())))


def from_mapping(values: Any, where: str = "") -> Config:
    """Checked config from nested mappings; InputError names `where`, the field and its value."""
    if not isinstance(values, Mapping):
        return parse(Config, values, where)  # which says what is wrong
    model = parse_config(values.get("model", {}), where)
    others = {name: value for name, value in values.items() if name != "model"}
    config = dataclasses.replace(parse(Config, others, where), model=model)
    asks = config.text.encoder != "none"
    if not asks and not model.slots:
        raise InputError("text.encoder=none needs model.slots=1 or more, which need no caption")
    if model.slots:
        sums(config.mixing.num_queries * asks, model.slots, config.loss.assign)
    return config


def from_file(path: str, overrides: Mapping[str, str]) -> Config:
    """Checked config of a Python file that defines `get_config()`, with fields overridden by text.

    Raises:
        InputError: the file is missing or no config file, or a field or value is wrong.
    """
    if not Path(path).is_file():
        problem = "is a folder" if Path(path).is_dir() else "there is no such file"
        raise InputError(f"--config={path}: {problem}")
    try:
        values = runpy.run_path(path)["get_config"]().to_dict()
    except Exception as error:  # the file can raise anything
        frames = traceback.extract_tb(error.__traceback__)
        lines = [f"line {frame.lineno}, " for frame in frames if frame.filename == path]
        reason = " ".join(f"{''.join(lines[-1:])}{type(error).__name__}: {error}".split())
        raise InputError(
            f"--config={path}: is no Python file whose get_config() returns a config ({reason})"
        ) from error
    if network := overrides.get("model.network"):  # keeps the fields that both networks have
        model = dataclasses.asdict(kind_of(network).config())
        old = values.get("model", {}).items()
        values["model"] = model | {name: value for name, value in old if name in model}
    for name, text in overrides.items():
        override(values, name, text)
    return from_mapping(values)


def take_overrides(words: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """({dotted field: text}, the other words) of a command line.

    `--config.FIELD=VALUE` and `--config.FIELD VALUE` are the same; the second must have a value.
    """
    overrides: dict[str, str] = {}
    others, rest = [], iter(words)
    for word in rest:
        option, equals, text = word.lstrip("-").partition("=")
        if not word.startswith("-") or not option.startswith("config."):
            others.append(word)
            continue
        if not equals and (text := next(rest, "--")).startswith("--"):  # the next option
            raise InputError(f"{word} needs a value: {word}=VALUE")
        if overrides.setdefault(option.removeprefix("config."), text) != text:
            raise InputError(f"--{option} is given twice; a list is written --{option}=A,B")
    if sum(word.lstrip("-").partition("=")[0] == "config" for word in others) > 1:
        raise InputError(
            "--config is given twice; give one file, and change its fields by --config.FIELD=VALUE"
        )
    return overrides, others


def differences(old: Any, new: Any) -> dict[str, tuple[Any, Any]]:
    """{dotted field: (old value, new value)} of fields that differ and affect the weights."""
    new_values = {name: value for name, value, _ in fields_of(new)}
    return {
        name: (value, new_values.get(name))
        for name, value, resumable in fields_of(old, "resumable")
        if not resumable and new_values.get(name) != value
    }


def shared_fields(config: Config) -> dict[str, Any]:
    """Every field, by its dotted name, that must be the same in all processes of a run."""
    return {name: value for name, value, differs in fields_of(config, "per_process") if not differs}
