"""Start of a run: from its newest checkpoint, from given weights, or from random ones."""

import dataclasses
import functools
import os
import sys
from pathlib import Path
from typing import Any

import jax
from flax.traverse_util import flatten_dict, unflatten_dict

from audiosep_jax.cli import say
from audiosep_jax.errors import InputError
from audiosep_jax.model.audiosep import SLOTS
from audiosep_jax.training.checkpoints import Checkpoints
from audiosep_jax.training.config import Config, differences, from_mapping
from audiosep_jax.training.steps import TrainState, init_state, state_from_variables


def start_or_resume(
    config: Config,
    checkpoints: Checkpoints,
    about: dict[str, Any],
    workdir: Path,
    given: dict[str, Any] | None = None,
) -> TrainState:
    """State of the newest whole checkpoint, or a fresh one, with the given weights if any.

    Adds the checkpoint's "history" to `about`, and to that the step and the fields that change now,
    if `config.resume` is "changed".

    Raises:
        InputError: the checkpoint is of a run with another config, data set or text encoder.
    """

    def resume(step: int) -> TrainState:
        there = checkpoints.about(step)
        there["config"].get("checkpoint", {}).pop("on_error", None)  # of older versions
        stored = from_mapping(there["config"], str(checkpoints.folder / f"{step:08d}"))
        changes = differences(stored, config)
        for name in ("data_fingerprint", "text_fingerprint"):
            if there[name] != about[name]:
                changes[name] = (there[name], about[name])
        if changes and (config.resume == "same" or "text_fingerprint" in changes):
            ways = "that config, or go on with the changed one by --config.resume=changed"
            if "text_fingerprint" in changes:
                ways = "that text encoder"
            raise InputError(
                f"{workdir} holds another run: {_described(changes)}; choose another --workdir, or "
                f"{ways}"
            )
        about["history"] = there.get("history", [])
        if changes:
            about["history"] = [*about["history"], {"step": step, "changes": changes}]
        return checkpoints.restore_state(step, state_shapes(config))

    state = checkpoints.newest_whole(resume, functools.partial(print, file=sys.stderr, flush=True))
    if state is not None:
        return state
    if given is not None:
        return state_from_variables(given, config.optim)
    return _random_state(config)


def _random_state(config: Config) -> TrainState:
    # Unoptimised: LLVM would spend most of a minute on random numbers that are drawn once.
    options = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
    init = jax.jit(init_state, static_argnums=(0, 1), compiler_options=options)
    return init(config.model, config.optim, jax.random.key(config.seed))


@functools.cache
def state_shapes(config: Config) -> TrainState:
    """Shapes and types of the state of a run."""
    init = functools.partial(init_state, config.model, config.optim)
    return jax.eval_shape(init, jax.random.key(0))


def with_frozen_network(config: Config) -> Config:
    """Return the config with the network and text encoder of `init_from`, if adapters train."""
    if not config.optim.adapter_rank:
        return config
    from audiosep_jax.training import trained

    found = trained.read(os.path.expanduser(config.init_from))
    model = dataclasses.replace(found.model, dtype=config.model.dtype)
    return dataclasses.replace(config, model=model, text=found.text)


def load_initial_weights(config: Config) -> dict[str, Any]:
    """Read the weights that `config.init_from` names.

    Weights without a head for the activity get a new one, if the config's network has one. Of more
    slots than the config's network has, the first ones are kept; more slots are all new.

    Raises:
        InputError: the weights are of another network.
    """
    from audiosep_jax.training import trained  # with the hub's client, which takes a second

    found = trained.read(os.path.expanduser(config.init_from))
    # The type of the activations is no property of the weights.
    changes = differences(dataclasses.replace(found.model, dtype=config.model.dtype), config.model)
    old, new = changes.get("activity", ("none", "none"))
    if new != "none":
        changes.pop("activity", None)
    old_slots, new_slots = changes.pop("slots", (0, 0))
    if changes:
        model = {f"model.{name}": values for name, values in changes.items()}
        raise InputError(f"init_from={config.init_from}: {_described(model)}")
    new_head = old == "none" and new != "none"
    if not new_head and old_slots == new_slots:
        return found.variables
    if new_head:
        say(f"init_from={config.init_from}: has no head for the activity; a new one is trained")
    given = dict(found.variables["params"])
    if old_slots > new_slots:
        given[SLOTS] = given[SLOTS][:new_slots]
    elif old_slots < new_slots:
        given.pop(SLOTS, None)
    fresh, given = (flatten_dict(x) for x in (_random_state(config).params, given))
    params = {path: given.get(path, x) for path, x in fresh.items()}
    return {**found.variables, "params": unflatten_dict(params)}


def _described(changes: dict[str, tuple[Any, Any]]) -> str:
    name, (old, new) = next(iter(changes.items()))
    return f"{name} is {old!r} there and {new!r} here"
