"""The model: STFT, network, mask, and recordings of any length.

A new network is a file in this folder with a section of settings (derived from `ModelConfig`) and
a class (derived from `Network`), and one line in `NETWORKS`.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from audiosep_jax.errors import InputError
from audiosep_jax.model.audiosep import NUM_MASK_CHANNELS, SLOTS, AudioSep
from audiosep_jax.model.bands import Bands, BandsConfig
from audiosep_jax.model.dual_path import DualPathConfig, DualPathResUNet
from audiosep_jax.model.network import ModelConfig, Network, Span
from audiosep_jax.model.resunet import ResUNet, ResUNetConfig
from audiosep_jax.model.resunet_graph import write_resunet
from audiosep_jax.settings import parse


class Kind(NamedTuple):
    """Settings and class of a network, and its ONNX graph, if it has one.

    `write_graph(config, variables, stream=...)` returns a `ModelProto` as `onnx_graph` describes
    it. A network without a graph runs in JAX alone.
    """

    config: type[Any]  # derived from ModelConfig, with a default for every field
    network: type[Network]
    write_graph: Callable[..., Any] | None = None


SIZING_FRAMES = 4096  # long against what a network pads or keeps of the past

# By the name that `config.model.network` has.
NETWORKS: dict[str, Kind] = {
    "resunet": Kind(ResUNetConfig, ResUNet, write_resunet),
    "dual_path": Kind(DualPathConfig, DualPathResUNet),
    "bands": Kind(BandsConfig, Bands),
}


def kind_of(name: str) -> Kind:
    """Look up a network; InputError if there is none of that name."""
    if name not in NETWORKS:
        raise InputError(f"model.network={name!r} must be one of: {', '.join(NETWORKS)}")
    return NETWORKS[name]


def parse_config(values: Any, where: str = "") -> ModelConfig:
    """Check the section `model` of a config; its field `network` decides on its class.

    Raises:
        InputError: `where` (a file, or nothing), the field, its value, and what it accepts.
    """
    name = values.get("network", "resunet") if isinstance(values, Mapping) else "resunet"
    return parse(kind_of(str(name)).config, values, where, inside="model")


def make_network(config: ModelConfig, axis_name: str | None = None) -> Network:
    """Build the network that `config` names and sizes."""
    network: Network = kind_of(config.network).network(config, NUM_MASK_CHANNELS, axis_name)
    return network


def make_model(config: ModelConfig, axis_name: str | None = None) -> AudioSep:
    """Build the separator around the network of `config`."""
    return AudioSep(make_network(config, axis_name))


def variable_shapes(config: ModelConfig) -> dict[str, Any]:
    """Variables of the separator that `config` describes, shapes and types only."""
    variables = {name: shapes(config).get(name, {}) for name in ("params", "batch_stats")}
    if config.slots:
        shape = (config.slots, config.condition_features)
        slots = {SLOTS: jax.ShapeDtypeStruct(shape, jnp.float32)}
        variables["params"] = variables["params"] | slots
    return variables


@functools.cache
def shapes(config: ModelConfig) -> Any:
    """All collections of a network, traced once, shapes and types only.

    "intermediates" are the outputs of all modules for one row of about `SIZING_FRAMES` frames,
    "stream" is what a network that can stream carries for one row.
    """
    network = make_network(config)
    frames = -(-SIZING_FRAMES // config.time_stride) * config.time_stride
    options: dict[str, Any] = {"mutable": True, "capture_intermediates": True}
    if network.delay_frames is not None:
        options["span"] = Span(0, frames)
    mag_BTF = jax.ShapeDtypeStruct((1, frames, config.num_bins), jnp.float32)
    condition_BE = jax.ShapeDtypeStruct((1, config.condition_features), jnp.float32)
    init = functools.partial(network.init, train=False, **options)
    with jax.enable_x64(False):  # the result is cached, also for callers without x64
        return jax.eval_shape(init, jax.random.key(0), mag_BTF, condition_BE)
