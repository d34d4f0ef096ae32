"""Files of a frozen tower: a hub's repository, a folder of that layout, or one checkpoint."""

import dataclasses
import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from audiosep_jax.errors import InputError
from audiosep_jax.weights import hub
from audiosep_jax.weights.torch_files import read_state_dict

WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # the first that is there


@dataclasses.dataclass(frozen=True)
class ModelFiles:
    """Weights, and the folder that tells their sizes; None where there is only a checkpoint."""

    weights: Path
    folder: Path | None

    def config(self, name: str = "config.json") -> dict[str, Any]:
        """A JSON file of the folder; nothing for a checkpoint."""
        if self.folder is None:
            return {}
        path = self.folder / name
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise InputError(f"{path}: cannot be read as JSON") from error
        if not isinstance(values, dict):
            raise InputError(f"{path}: holds no JSON object")
        return values

    def state(self, prefixes: tuple[str, ...]) -> dict[str, np.ndarray]:
        """The tensors whose names start so; all of a checkpoint, whose names are its own."""
        return read_state_dict(self.weights, prefixes=prefixes if self.folder else ("",))


def find_model(source: str, names: Sequence[str], *, option: str) -> ModelFiles:
    """Files of a hub id, folder or checkpoint; `names` are needed beside config and weights."""
    if os.path.isfile(source):
        return ModelFiles(Path(source), None)
    wanted = ("config.json", *names, hub.OR.join(WEIGHTS))
    folder = hub.snapshot(source, wanted, option=option)
    weights = next(folder / name for name in WEIGHTS if (folder / name).is_file())
    return ModelFiles(weights, folder)


def fingerprint(kind: str, version: int, files: Sequence[Path]) -> str:
    """Name of what a tower computes: its kind, our version of it and the content of its files."""
    digest = hashlib.sha256(f"{version}".encode())
    for path in files:
        digest.update(hub.file_hash(path).encode())
    return f"{kind}-{digest.hexdigest()[:32]}"


def to_float32(params: Any) -> Any:
    """Copies out of the mapped file in the precision that towers compute in."""
    if isinstance(params, dict):
        return {name: to_float32(value) for name, value in params.items()}
    return np.array(params, np.float32)
