"""The model: STFT, network, mask, and recordings of any length.

A new network is a file in this folder with a section of settings (derived from `ModelConfig`) and
a class (derived from `Network`), and one line in `NETWORKS`.
"""

from typing import Any, NamedTuple

from audiosep_jax.errors import InputError
from audiosep_jax.model.audiosep import NUM_MASK_CHANNELS, AudioSep
from audiosep_jax.model.network import ModelConfig, Network
from audiosep_jax.model.resunet import ResUNet, ResUNetConfig


class Kind(NamedTuple):
    """Settings and class of a network."""

    config: type[Any]  # derived from ModelConfig, with a default for every field
    network: type[Network]


# By the name that `config.model.network` has.
NETWORKS: dict[str, Kind] = {"resunet": Kind(ResUNetConfig, ResUNet)}


def kind_of(name: str) -> Kind:
    """Look up a network; InputError if there is none of that name."""
    if name not in NETWORKS:
        raise InputError(f"model.network={name!r} must be one of: {', '.join(NETWORKS)}")
    return NETWORKS[name]


def make_model(config: ModelConfig, axis_name: str | None = None) -> AudioSep:
    """Build the separator with the network that `config` names and sizes."""
    return AudioSep(kind_of(config.network).network(config, NUM_MASK_CHANNELS, axis_name))
