"""The typed form of an experiment; files in configs/ state where they differ from its defaults."""

import dataclasses
import math
import typing
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from ml_collections import ConfigDict

from audiosep_jax.data.augment import AugmentConfig
from audiosep_jax.data.data_config import DataConfig
from audiosep_jax.data.mixing import MixingConfig
from audiosep_jax.encoders.encoder import TextConfig
from audiosep_jax.errors import InputError
from audiosep_jax.model.resunet import ModelConfig
from audiosep_jax.training.losses import LossConfig
from audiosep_jax.training.optim import OptimConfig


def _at_least(room: str, config: Any, least: int, *names: str) -> None:
    for name in names:
        value = vars(config)[name]
        if value < least:
            raise InputError(f"{room}.{name}={value} must be at least {least}")


CHECKPOINT_FOLDER = "checkpoints"  # in a workdir


@dataclasses.dataclass(frozen=True)
class ValidConfig:
    """The fixed set of held-out mixtures that training is scored on."""

    num_mixtures: int = 256
    batch_size: int = 32
    every_steps: int = 10_000
    segment_seconds: float = 0.0  # 0: as long as the training segments
    snr_db: int = 0
    seed: int = 1
    num_examples: int = 4  # shown in TensorBoard and written to the workdir at the end

    def __post_init__(self) -> None:
        _at_least("valid", self, 1, "num_mixtures", "batch_size", "every_steps")
        _at_least("valid", self, 0, "num_examples", "seed", "segment_seconds")


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """When to save, besides after each validation and at the end, and what to keep.

    The newest `keep_latest`, the best, and one every `keep_every_steps` (0: none) stay.
    """

    every_steps: int = 1_000
    keep_latest: int = 2
    keep_every_steps: int = 100_000
    on_error: Literal["stop", "continue"] = "stop"  # when one cannot be written: a full disk

    def __post_init__(self) -> None:
        if self.on_error not in ("stop", "continue"):
            raise InputError(f"checkpoint.on_error={self.on_error!r} must be stop or continue")
        _at_least("checkpoint", self, 1, "every_steps", "keep_latest")
        _at_least("checkpoint", self, 0, "keep_every_steps")


@dataclasses.dataclass(frozen=True)
class Config:
    """An experiment; the defaults are the paper's."""

    name: str = "audiosep"
    seed: int = 0
    batch_size: int = 96  # over all devices of all hosts
    num_steps: int = 1_000_000
    log_every_steps: int = 100
    profile: int = 0  # steps of a trace below the workdir, once the first have compiled
    device_peak_tflops: float = 0.0  # of one device, for `peak_share`; 0: from a table of devices
    # Weights to begin with, under a fresh optimiser: a workdir, a hub id, a file; empty: random.
    init_from: str = ""
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    text: TextConfig = dataclasses.field(default_factory=TextConfig)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    mixing: MixingConfig = dataclasses.field(default_factory=MixingConfig)
    augment: AugmentConfig = dataclasses.field(default_factory=AugmentConfig)
    loss: LossConfig = dataclasses.field(default_factory=LossConfig)
    optim: OptimConfig = dataclasses.field(default_factory=OptimConfig)
    valid: ValidConfig = dataclasses.field(default_factory=ValidConfig)
    checkpoint: CheckpointConfig = dataclasses.field(default_factory=CheckpointConfig)

    def __post_init__(self) -> None:
        _at_least("config", self, 1, "batch_size", "num_steps", "log_every_steps")
        _at_least("config", self, 0, "seed", "profile", "device_peak_tflops")
        if self.augment.absent_probability and self.text.use_text_ratio < 1:
            raise InputError(
                "augment.absent_probability needs text.use_text_ratio=1: "
                "a target that is silence cannot be the query"
            )


# Fields that a run may change when it is resumed: they move no weight.
FREE_FIELDS = (
    *("name", "num_steps", "log_every_steps", "profile", "device_peak", "valid.", "checkpoint."),
    # The clips themselves are compared by their fingerprint, wherever they lie.
    *("data.root", "data.valid_root", "data.valid_folds", "data.valid_split"),
    "data.max_bad_share",
    *("text.model", "text.batch_size"),  # the same for the text encoder's files
    *("data.cache_megabytes", "data.num_threads", "data.num_workers", "data.prefetch_"),
)

# Fields that may differ between the processes of one run: where the files lie, how to read them.
LOCAL_FIELDS = tuple(
    name for name in FREE_FIELDS if name.startswith(("data.", "text.")) and "max_bad" not in name
)


def default_config() -> ConfigDict:
    """The defaults, free-form: config files change them and `--config.x=y` overrides them."""
    return ConfigDict(dataclasses.asdict(Config()))


def from_mapping(values: Mapping[str, Any]) -> Config:
    """Checked config from nested mappings; InputError names an unknown field or a wrong value."""
    return _typed(Config, values, "")


def material_difference(old: Config, new: Config) -> str | None:
    """One line on the first field that differs and changes the training, or None."""
    new_fields = dict(_flatten(new))
    for name, value in _flatten(old):
        if not name.startswith(FREE_FIELDS) and new_fields[name] != value:
            return f"{name} is {value!r} there and {new_fields[name]!r} here"
    return None


def shared_fields(config: Config) -> dict[str, Any]:
    """Every field, by its dotted name, that must be the same in all processes of a run."""
    return {name: value for name, value in _flatten(config) if not name.startswith(LOCAL_FIELDS)}


def _typed(kind: type, values: Mapping[str, Any], prefix: str) -> Any:
    types = typing.get_type_hints(kind)
    if not isinstance(values, Mapping):
        example = next(iter(types))
        raise InputError(f"{prefix[:-1]}={values!r} must hold fields, such as {example}")
    for name in values:
        if name not in types:
            raise InputError(f"unknown config field {prefix}{name}; {_known(types)}")
    return kind(**{name: _field(types[name], v, f"{prefix}{name}") for name, v in values.items()})


def _field(kind: Any, value: Any, name: str) -> Any:
    if dataclasses.is_dataclass(kind):
        return _typed(typing.cast(type, kind), value, f"{name}.")
    if typing.get_origin(kind) is tuple:  # JSON has turned it into a list
        element = typing.get_args(kind)[0]
        if not isinstance(value, tuple | list):
            raise InputError(f"{name}={value!r} must be a list of {element.__name__}")
        return tuple(_field(element, x, f"{name}[{i}]") for i, x in enumerate(value))
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(kind, type) and type(value) is not kind:
        raise InputError(f"{name}={value!r} must be of type {kind.__name__}")
    if kind is float and not math.isfinite(value):
        raise InputError(f"{name}={value} must be finite")
    return value


def _flatten(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from _flatten(value, f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}", value


def _known(types: Mapping[str, Any]) -> str:
    return f"known: {', '.join(types)}"
