"""Scores of a model on a fixed set of mixtures, which all devices of all processes share."""

import functools
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from audiosep_jax.audio import files as audio_files
from audiosep_jax.encoders.encoder import query_of
from audiosep_jax.training.config import Config
from audiosep_jax.training.log import RunLog
from audiosep_jax.training.parallel import Parallel, local_rows, split_batch
from audiosep_jax.training.processes import failing_together
from audiosep_jax.training.steps import TrainState


def validate(
    eval_step: Callable[[Any, Any], Any],
    variables: Any,
    mixtures: Mapping[str, Any],
    batch_size: int,
    *,
    condition: str = "condition",
    num_estimates: int = 0,
    how: Parallel = "pmap",
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Score every mixture. All processes must call it, with the same arguments.

    Args:
        eval_step: a parallel step that maps variables and a batch to `estimate` and scores.
        variables: variables of the model, as `place_state` returns them.
        mixtures: "mixture" and "target" (N, S), and the conditions (N, E), if there are any.
        batch_size: rows at once, over all devices of all processes.
        condition: key of the conditions to separate with.

    Returns:
        The scores `(N,)` by name, and the first `num_estimates` estimates `(N, S)`.
    """
    total, processes = len(mixtures["mixture"]), jax.process_count()
    own = max(1, min(batch_size, total) // jax.device_count()) * jax.local_device_count()
    rows = own * processes
    results: dict[str, list[np.ndarray]] = {"estimate": []}
    for start in range(0, total, rows):
        # The last batch is filled up with its first rows again: one shape, one compilation.
        index = np.resize(np.arange(start, min(start + rows, total)), rows)
        index = index[jax.process_index() * own :][:own]
        keys = {"mixture": "mixture", "target": "target", "condition": condition}
        batch = {name: mixtures[key][index] for name, key in keys.items() if key in mixtures}
        for name, values in eval_step(variables, split_batch(batch, how)).items():
            if name != "estimate" or start < num_estimates:
                results.setdefault(name, []).append(local_rows(values, how))
    scores = {name: _in_order(parts)[:total] for name, parts in results.items() if parts}
    empty_NS = np.zeros((0, *np.shape(mixtures["mixture"])[1:]), np.float32)
    return scores, scores.pop("estimate", empty_NS)[:num_estimates]


def validate_and_log(
    config: Config, eval_step: Any, state: TrainState, mixtures: Any, log: RunLog, step: int
) -> dict[str, np.ndarray]:
    """Score every mixture; log the means, those of wrong queries, and examples."""
    given = (eval_step, state.variables(), mixtures, config.valid.batch_size)
    score = functools.partial(validate, *given, how=config.parallel)
    scores, estimates_NS = score(num_estimates=config.valid.num_examples)
    values = {f"valid/{name}": float(x.mean()) for name, x in scores.items()}
    if "wrong_condition" in mixtures:
        wrong, _ = score(condition="wrong_condition")
        values["valid/sdri_wrong_query"] = float(wrong["sdri"].mean())
        # SDRi alone can be high for a model that ignores the query; this gap is then 0.
        values["valid/query_gap"] = values["valid/sdri"] - values["valid/sdri_wrong_query"]
    with failing_together():
        log.scalars(step, values)
        shown = (f"{name.removeprefix('valid/')} {value:.2f} dB" for name, value in values.items())
        log.say(f"step {step}: {', '.join(shown)}")
        for i, estimate_S in enumerate(estimates_NS):
            sounds = {"mixture": mixtures["mixture"][i], "target": mixtures["target"][i]}
            name = f"{i} {mixtures['caption'][i]}"
            log.example(step, name, {**sounds, "estimate": estimate_S}, config.model)
    return scores


def write_example(
    config: Config, scores: dict[str, np.ndarray], mixtures: Any, workdir: Path
) -> None:
    """Write the validation mixture of median score, and print the command that separates it."""
    row = int(np.argsort(scores["sdri"])[len(scores["sdri"]) // 2])
    rate_hz = config.model.sample_rate_hz
    for kind in ("mixture", "target"):
        audio_files.write(workdir / "example" / f"{kind}.wav", mixtures[kind][row][None], rate_hz)
    print(f"Trained: {workdir}. A held-out mixture and its target: {workdir / 'example'}. Try:\n")
    mixture, caption = workdir / "example" / "mixture.wav", mixtures["caption"][row]
    kind, value = query_of(caption)
    query = (f"--{kind}", value)
    if config.text.encoder == "none":
        query = ("--blind", str(config.model.slots))
    command = ["python", "separate.py", mixture, *query, "--checkpoint", workdir]
    print(f"    {shlex.join(map(str, command))}\n", flush=True)


def _in_order(parts: list[np.ndarray]) -> np.ndarray:
    """Rows of all batches, of which each process has a block, in the order of the mixtures."""
    own = np.stack(parts)
    if jax.process_count() == 1:
        return np.concatenate(own)
    blocks = multihost_utils.process_allgather(own)  # (processes, batches, rows, ...)
    return np.moveaxis(blocks, 0, 1).reshape(-1, *own.shape[2:])
