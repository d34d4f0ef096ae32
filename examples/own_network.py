"""Plug in a network of your own: register it, train it, and separate with it.

    PYTHONPATH=. python examples/own_network.py runs/gru

In the package, the network would be a file in `audiosep_jax/model/` and a line of `NETWORKS` there.
"""

import sys
from pathlib import Path
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from audiosep_jax import Separator
from audiosep_jax.model import NETWORKS, Kind
from audiosep_jax.model.network import ModelConfig, Network, Size, Span
from audiosep_jax.settings import section
from audiosep_jax.training.config import Config, from_mapping
from train import train


@section
class GRUConfig(ModelConfig):
    """Settings of `GRUNetwork`, beside those that every network has."""

    network: Literal["gru"] = "gru"
    features: Size = 64


class GRUNetwork(Network):
    """A recurrent network over the frames, whose input is shifted by the condition."""

    config: GRUConfig

    @nn.compact
    def __call__(
        self, mag_BTF: jax.Array, condition_BE: jax.Array, *, train: bool, span: Span | None = None
    ) -> jax.Array:
        """Compute the mask channels `(B, T, F, mask_channels)`."""
        x_BTC = nn.Dense(self.config.features)(jnp.log1p(mag_BTF))
        x_BTC = nn.relu(x_BTC + nn.Dense(self.config.features)(condition_BE)[:, None])
        x_BTC = nn.RNN(nn.GRUCell(self.config.features))(x_BTC)
        mask_BTFC = nn.Dense(mag_BTF.shape[-1] * self.mask_channels)(x_BTC)
        return mask_BTFC.reshape(*mag_BTF.shape, self.mask_channels)


def experiment(num_steps: int) -> Config:
    """Train on synthetic sounds; as a file, this would be in `configs/`."""
    stft = {"sample_rate_hz": 8000, "window_samples": 256, "hop_samples": 128}
    return from_mapping(
        {
            "name": "gru",
            "num_steps": num_steps,
            "batch_size": 8,
            "log_every_steps": 20,
            "model": {"network": "gru", **stft},
            "data": {"source": "synthetic", "segment_seconds": 0.5},
            "valid": {"num_mixtures": 16, "batch_size": 16, "every_steps": num_steps},
            "optim": {"learning_rate": 3e-3, "warmup": "none"},
        }
    )


def main(workdir: str, num_steps: int = 200) -> Separator:
    """Train the network into `workdir`, and load it from there."""
    NETWORKS["gru"] = Kind(GRUConfig, GRUNetwork)
    train(experiment(num_steps), Path(workdir))
    separator = Separator.load(workdir)
    example = Path(workdir) / "example" / "mixture.wav"
    result = separator.separate_file(
        example, [Path(workdir) / "rain.wav"], separator.embed_text(["heavy rain"])
    )
    print(f"rain is {result.share_N[0]:.0%} of the energy of {example}")
    return separator


if __name__ == "__main__":
    main(*sys.argv[1:])
