"""Checkpoints of a run: written by Orbax in the background, atomic, pruned by a policy."""

import json
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from orbax.checkpoint.checkpoint_managers import preservation_policy as policy

from audiosep_jax.config import CheckpointConfig
from audiosep_jax.errors import InputError
from audiosep_jax.steps import TrainState

FOLDER = "checkpoints"
BEST_METRIC = "valid/sdri"


class Checkpoints:
    """The checkpoints below `workdir`.

    Each holds three items: `model`, what separation needs (averaged parameters where there are
    any); `training`, the rest of the state; and `about`, a JSON of config, fingerprints and step.
    """

    def __init__(self, workdir: str | Path, config: CheckpointConfig | None = None) -> None:
        """Opens the folder; without a config only for reading."""
        self.folder = Path(workdir).absolute() / FOLDER
        if config is None and not self.folder.is_dir():
            raise InputError(f"{workdir}: holds no checkpoint (no folder {FOLDER} in it)")
        self._manager = ocp.CheckpointManager(self.folder, options=_options(config))

    def latest_step(self) -> int | None:
        """Step of the newest checkpoint, or None."""
        return self._manager.latest_step()

    def best_step(self) -> int | None:
        """Step of the checkpoint with the highest validation SDRi, else of the newest, or None."""
        step = self._manager.best_step()
        return self._manager.latest_step() if step is None else step

    def save(
        self, step: int, state: TrainState, about: dict[str, Any], sdri_db: float | None
    ) -> None:
        """Starts writing; the state may be donated at once. A step that is there already stays."""
        if self._manager.latest_step() == step:
            return
        items = ocp.args.Composite(
            model=ocp.args.StandardSave(state.variables()),
            training=ocp.args.StandardSave(_training(state)),
            about=ocp.args.JsonSave({**about, "step": step}),
        )
        metrics = None if sdri_db is None else {BEST_METRIC: float(sdri_db)}
        self._manager.save(step, args=items, metrics=metrics, force=True)

    def about(self, step: int) -> dict[str, Any]:
        """Config, fingerprints and step, read without opening any array."""
        path = self.folder / self._name(step) / "about" / "metadata"
        try:
            about = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            about = None
        if not isinstance(about, dict):
            raise InputError(f"{path.parent.parent}: is no checkpoint of audiosep_jax")
        return about

    def restore_variables(self, step: int, template: Any) -> Any:
        """`model` of a step, on every local device; `template` is its tree of shapes."""
        return self._restore(step, "model", template)

    def restore_state(self, step: int, template: TrainState) -> TrainState:
        """Whole state of a step, as it was, on every local device."""
        variables = self._restore(step, "model", template.variables())
        training = self._restore(step, "training", _training(template))
        averaged = template.ema is not None
        return TrainState(
            step=training["step"],
            params=training["params"] if averaged else variables["params"],
            batch_stats=variables["batch_stats"],
            opt_state=training["opt_state"],
            ema=variables["params"] if averaged else None,
            skipped_steps=training["skipped_steps"],
        )

    def wait(self) -> None:
        """Returns when all that was saved is on disk; raises what went wrong."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits and frees the threads."""
        self._manager.close()

    def _restore(self, step: int, item: str, template: Any) -> Any:
        place = self.folder / self._name(step) / item
        with ocp.StandardCheckpointer() as checkpointer:
            try:
                _check_shapes(checkpointer.metadata(place).item_metadata, template, str(place))
                return checkpointer.restore(place, _replicated(template))
            except InputError:
                raise
            except Exception as error:  # Orbax raises a bare Exception for a damaged array
                reason = " ".join(str(error).split(". See full")[0].split()) or type(error).__name__
                raise InputError(f"{place}: cannot be read ({reason})") from error

    def _name(self, step: int) -> str:
        return f"{step:08d}"


def _options(config: CheckpointConfig | None) -> ocp.CheckpointManagerOptions:
    def score(metrics: dict[str, float]) -> float:
        return metrics[BEST_METRIC]

    # Without best_fn Orbax would not write the metrics that BestN reads.
    best: dict[str, Any] = {"best_fn": score, "best_mode": "max"}
    if config is None:
        return ocp.CheckpointManagerOptions(
            read_only=True, step_format_fixed_length=8, create=False, **best
        )
    keep: list[Any] = [
        policy.LatestN(config.keep_latest),
        policy.BestN(get_metric_fn=score, n=1, keep_checkpoints_without_metrics=False),
    ]
    if config.keep_every_steps:
        keep.append(policy.EveryNSteps(config.keep_every_steps))
    return ocp.CheckpointManagerOptions(
        preservation_policy=policy.AnyPreservationPolicy(keep),
        step_format_fixed_length=8,
        cleanup_tmp_directories=True,
        **best,
    )


def _training(state: TrainState) -> dict[str, Any]:
    """All of the state that `model` does not hold."""
    rest = {
        "step": state.step,
        "opt_state": state.opt_state,
        "skipped_steps": state.skipped_steps,
    }
    return rest if state.ema is None else {**rest, "params": state.params}


def _replicated(template: Any) -> Any:
    """Shapes with the sharding of a state that lies on every local device."""
    sharding = NamedSharding(Mesh(jax.local_devices(), ("data",)), PartitionSpec())
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), template
    )


def _check_shapes(stored: Any, template: Any, place: str) -> None:
    """InputError that names the first array that is missing, left over or of another shape."""
    there = {_path(path): leaf.shape for path, leaf in jax.tree.leaves_with_path(stored)}
    wanted = {_path(path): leaf.shape for path, leaf in jax.tree.leaves_with_path(template)}
    if not there:
        raise InputError(f"{place}: cannot be read (its list of arrays is missing or damaged)")
    for name in sorted(there.keys() | wanted.keys()):
        if there.get(name) != wanted.get(name):
            raise InputError(
                f"{place}: is of another architecture, {name} is "
                f"{there.get(name, 'missing')} there and {wanted.get(name, 'missing')} in the model"
            )


def _path(key_path: tuple[Any, ...]) -> str:
    return "/".join(str(getattr(key, "key", getattr(key, "name", key))) for key in key_path)
