"""Where a run begins: at its newest checkpoint, at given weights, or at random ones."""

import dataclasses
import functools
import sys
from pathlib import Path
from typing import Any

import jax

from audiosep_jax.errors import InputError
from audiosep_jax.model.network import ModelConfig
from audiosep_jax.training.checkpoints import Checkpoints
from audiosep_jax.training.config import Config, from_stored, material_difference
from audiosep_jax.training.optim import OptimConfig
from audiosep_jax.training.steps import TrainState, init_state, state_from_variables


def make_workdir(workdir: Path) -> None:
    """InputError where nothing can be written to it."""
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        probe = workdir / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise InputError(f"{workdir}: cannot be written to ({error.strerror})") from error


def start_or_resume(
    config: Config,
    checkpoints: Checkpoints,
    about: dict[str, Any],
    workdir: Path,
    given: dict[str, Any] | None = None,
) -> TrainState:
    """State of the newest whole checkpoint, or a fresh one, with the given weights if any."""

    def resume(step: int) -> TrainState:
        there = checkpoints.about(step)
        where = str(checkpoints.folder / f"{step:08d}")
        difference = material_difference(from_stored(there["config"], where), config)
        for name in ("text_fingerprint", "data_fingerprint"):
            if there[name] != about[name] and difference is None:
                difference = f"{name} is {there[name]} there and {about[name]} here"
        if difference:
            raise InputError(
                f"{workdir} holds another run: {difference}; choose another --workdir, or that "
                "config"
            )
        return checkpoints.restore_state(step, state_shapes(config))

    state = checkpoints.newest_whole(resume, functools.partial(print, file=sys.stderr, flush=True))
    if state is not None:
        return state
    if given is not None:
        return state_from_variables(given, config.optim)
    # Unoptimised: LLVM would spend most of a minute on random numbers that are drawn once.
    options = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
    init = jax.jit(init_state, static_argnums=(0, 1), compiler_options=options)
    return init(config.model, config.optim, jax.random.key(config.seed))


def state_shapes(config: Config) -> TrainState:
    """The state of a run, shapes and types only."""
    return _shapes(config.model, config.optim)


@functools.cache
def _shapes(model: ModelConfig, optim: OptimConfig) -> TrainState:
    return jax.eval_shape(functools.partial(init_state, model, optim), jax.random.key(0))


def given_variables(config: Config) -> dict[str, Any]:
    """Weights to begin with; InputError where they are of another network than the config's."""
    from audiosep_jax.training import trained  # with the hub's client, which takes a second

    given = trained.read(config.init_from)
    there = dataclasses.replace(given.model, dtype=config.model.dtype)
    difference = material_difference(Config(model=there), Config(model=config.model))
    if difference:
        raise InputError(f"init_from={config.init_from}: {difference}")
    return given.variables
