"""Scores of a model on a fixed set of mixtures, on all local devices."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from audiosep_jax.training.steps import split_batch


def validate(
    eval_step: Callable[[Any, Any], Any],
    variables: Any,
    mixtures: Mapping[str, Any],
    batch_size: int,
    *,
    condition: str = "condition",
    num_estimates: int = 0,
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """(scores of each mixture by name, the first `num_estimates` estimates `(N, S)`).

    `eval_step` is the parallel one; `condition` is the key of the conditions to separate with.
    """
    devices = jax.local_device_count()
    rows = max(1, batch_size // devices) * devices
    total = len(mixtures["mixture"])
    scores: dict[str, list[np.ndarray]] = {}
    estimates: list[np.ndarray] = []
    for start in range(0, total, rows):
        # The last batch is filled up with its first rows again: one shape, one compilation.
        index = np.resize(np.arange(start, min(start + rows, total)), rows)
        batch = {key: mixtures[key][index] for key in ("mixture", "target")}
        result = eval_step(
            variables, split_batch({**batch, "condition": mixtures[condition][index]})
        )
        estimate = result.pop("estimate")
        if start < num_estimates:
            estimates.append(_rows(estimate)[: total - start])
        for name, values in result.items():
            scores.setdefault(name, []).append(_rows(values)[: total - start])
    merged = {name: np.concatenate(parts) for name, parts in scores.items()}
    empty = np.zeros((0, *np.shape(mixtures["mixture"])[1:]), np.float32)
    return merged, np.concatenate([*estimates, empty])[:num_estimates]


def _rows(x: jax.Array) -> np.ndarray:
    """`(devices, B, ...)` to `(devices * B, ...)`, on the host."""
    host = np.asarray(x)
    return host.reshape(-1, *host.shape[2:])
