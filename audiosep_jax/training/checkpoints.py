"""Checkpoints of a run: written by Orbax in the background, whole or not at all."""

import contextlib
import dataclasses
import errno
import json
import logging
import math
import os
import traceback
import uuid
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy as policy

from audiosep_jax import files
from audiosep_jax.errors import InputError
from audiosep_jax.training import CHECKPOINT_FOLDER as FOLDER
from audiosep_jax.training.config import CheckpointConfig
from audiosep_jax.training.parallel import place_state
from audiosep_jax.training.processes import RunFailed
from audiosep_jax.training.steps import TrainState

BEST_METRIC = "valid/sdri"
CHECKSUMS = "checksums"  # in `about`, by item
VALID_SET = "valid_set"  # identifies the validation set of the score
Result = TypeVar("Result")


class Damaged(InputError):
    """Part of a checkpoint is missing or cannot be read."""


class _Manager(ocp.CheckpointManager):
    """Orbax's manager, which would also ask JAX for preemptions, from a thread, for old steps."""

    def reached_preemption(self, step: int) -> bool:
        return False


@dataclasses.dataclass
class _FirstOfEach(policy.PreservationPolicy):
    """Keep the first checkpoint at or after each multiple of `steps`."""

    steps: int

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        intervals = [checkpoint.step // self.steps for checkpoint in checkpoints]
        return [n > 0 and n not in intervals[:i] for i, n in enumerate(intervals)]


class Checkpoints:
    """The checkpoints in a workdir. Where a run has several processes, process 0 alone opens it.

    A checkpoint has three items: `model`, which separation needs (the averaged parameters, if
    there are any); `training`, the rest of the state; and `about`, a JSON object with config,
    fingerprints and step. Checkpoints with a validation score have a fourth one, `metrics`.
    """

    def __init__(self, workdir: str | Path, config: CheckpointConfig | None = None) -> None:
        """Open the folder, without a config for reading only."""
        self._workdir = Path(workdir).absolute()
        self.folder = self._workdir / FOLDER
        if config is None and not self.folder.is_dir():
            raise InputError(f"{workdir}: holds no checkpoint (no folder {FOLDER} in it)")
        if config is not None:
            files.make_folder(self.folder)
        self._config = config
        self._manager: _Manager | None = None
        self._valid_set: str | None = None

    # ------------------------------------------------------------------ which there are

    def latest_step(self) -> int | None:
        """Step of the newest checkpoint, or None."""
        return max(saved_steps(self._workdir), default=None)

    def best_step(self) -> int | None:
        """Step of the highest validation SDRi, or of the newest checkpoint without any, or None.

        Only scores of one validation set are compared: that of the newest score.
        """
        steps = saved_steps(self._workdir)
        scored = {step: score for step in steps if (score := self._score(step))}
        if not scored:
            return self.latest_step()
        valid_set = scored[max(scored)].get(VALID_SET)
        alike = [step for step, score in scored.items() if score.get(VALID_SET) == valid_set]
        return max(alike, key=lambda step: (scored[step][BEST_METRIC], step))

    def _score(self, step: int) -> dict[str, Any] | None:
        """Validation score and set of a checkpoint; None if it has none or it is damaged."""
        try:
            score = self._json(step, "metrics")
        except Damaged:
            return None
        return score if isinstance(score.get(BEST_METRIC), int | float) else None

    def newest_whole(
        self, read: Callable[[int], Result], say: Callable[[str], None], first: int | None = None
    ) -> Result | None:
        """Return `read(step)` of the newest checkpoint that is not damaged; None without any.

        `first` is a step to try before the others. A line names the damaged ones. If the folder is
        open for writing they are renamed, so that the run can save these steps again.

        Raises:
            Damaged: all of them are.
        """
        steps = saved_steps(self._workdir)
        errors: dict[int, Damaged] = {}
        for step in sorted(steps, key=lambda step: (step == first, step), reverse=True):
            try:
                if (self._step_folder(step) / "metrics").exists():
                    self._json(step, "metrics")
                result = read(step)
            except Damaged as error:
                errors[step] = error
                continue
            for damaged, reason in errors.items():
                say(f"{reason}; the checkpoint of step {step} is used instead")
                if self._config is not None:
                    self._set_aside(damaged)
            return result
        if errors:
            raise Damaged(f"{next(iter(errors.values()))}; no other checkpoint there is whole")
        return None

    def _set_aside(self, step: int) -> None:
        """Rename a damaged checkpoint, so that neither we nor Orbax take it for one."""
        folder = self._step_folder(step)
        os.replace(folder, folder.with_name(f"{folder.name}.damaged.{uuid.uuid4().hex[:8]}"))

    # ------------------------------------------------------------------ writing

    def save(
        self, step: int, state: TrainState, about: dict[str, Any], sdri_db: float | None
    ) -> None:
        """Start to write in the background, as soon as the save before this one has ended.

        The state may be donated at once. A step that exists already is left as it is.

        Raises:
            RunFailed: this or the save before failed.
        """
        if step == self.latest_step():
            return
        # Copies, since on a CPU `device_get` may return a view of memory that the next step reuses.
        state = jax.tree.map(np.array, jax.device_get(state))
        trees = {"model": state.variables(), "training": _training(state)}
        about = {**about, "step": step}
        sums = {name: _checksum(tree) for name, tree in trees.items()} | {"about": _crc(about)}
        items = ocp.args.Composite(
            **{name: ocp.args.StandardSave(tree) for name, tree in trees.items()},
            about=ocp.args.JsonSave({**about, CHECKSUMS: sums}),
        )
        self._valid_set = about.get(VALID_SET)
        score = {BEST_METRIC: sdri_db, VALID_SET: self._valid_set}
        metrics = None if sdri_db is None else score
        self._attempt(lambda manager: manager.save(step, args=items, metrics=metrics, force=True))

    def wait(self) -> None:
        """Return when everything saved is on disk; RunFailed if something could not be saved."""
        if self._manager is not None:
            self._attempt(_Manager.wait_until_finished)

    def close(self) -> None:
        """Wait, and free Orbax's threads."""
        self.wait()
        if self._manager is not None:
            self._manager.close()
            self._manager = None

    def _attempt(self, action: Callable[[_Manager], Any]) -> None:
        if self._manager is None:
            self._manager = self._open_manager()
        try:
            action(self._manager)
        except Exception as error:  # Orbax raises whatever its threads have raised
            with contextlib.suppress(Exception):
                self._manager.close()  # ends its threads, which may still write
            self._manager = None  # it fails from now on
            newest = self.latest_step()
            left = "there is none yet" if newest is None else f"that of step {newest} is the newest"
            raise RunFailed(
                f"{self.folder}: a checkpoint could not be written ({_reason(error)}); {left}"
            ) from error

    def _open_manager(self) -> _Manager:
        """Orbax's manager; it also removes what killed processes left in part."""
        config = self._config
        assert config is not None, "the folder is open for reading only"
        # Orbax reads all scores at once, and fails if one of them is damaged.
        for step in saved_steps(self._workdir):
            if self._score(step) is None and (self._step_folder(step) / "metrics").exists():
                self._set_aside(step)
        best = policy.BestN(get_metric_fn=self._rank, n=1, keep_checkpoints_without_metrics=False)
        keep: list[Any] = [policy.LatestN(config.keep_latest), best]
        if config.keep_every_steps:
            keep.append(_FirstOfEach(config.keep_every_steps))
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policy.AnyPreservationPolicy(keep),
            best_fn=self._rank,  # without it Orbax would not write the metrics that BestN reads
            step_format_fixed_length=8,
            cleanup_tmp_directories=True,
            create=False,
            multiprocessing_options=_this_process(),
        )
        return _Manager(self.folder, options=options)

    def _rank(self, metrics: dict[str, Any]) -> float:
        """Score to choose the best one by; below all others if it is of another validation set."""
        return metrics[BEST_METRIC] if metrics.get(VALID_SET) == self._valid_set else -math.inf

    # ------------------------------------------------------------------ reading

    def about(self, step: int) -> dict[str, Any]:
        """Config, fingerprints and step, read without opening any array."""
        about = self._json(step, "about")
        expected = about.pop(CHECKSUMS, {}).get("about")
        if expected not in (None, _crc(about)):
            raise Damaged(f"{self._step_folder(step)}/about: cannot be read (wrong checksum)")
        return about

    def restore_variables(self, step: int, template: Any) -> Any:
        """`model` of a step, on every local device; `template` is its tree of shapes."""
        return self._restore(step, "model", template)

    def restore_state(self, step: int, template: TrainState) -> TrainState:
        """Whole state of a step, as it was, on every local device."""
        variables = self._restore(step, "model", jax.eval_shape(TrainState.variables, template))
        training = self._restore(step, "training", _training(template))
        return TrainState(
            step=training["step"],
            params=training.get("params", variables["params"]),
            batch_stats=variables["batch_stats"],
            opt_state=training["opt_state"],
            ema=None if template.ema is None else variables["params"],
            skipped_steps=training["skipped_steps"],
            base=training.get("base"),
        )

    def _restore(self, step: int, item: str, template: Any) -> Any:
        place = self._step_folder(step) / item
        # Orbax leaves the errors of some of its tasks to asyncio, which would print traces.
        logging.getLogger("asyncio").setLevel(logging.CRITICAL)
        with ocp.StandardCheckpointer(multiprocessing_options=_this_process()) as checkpointer:
            try:
                _check_shapes(checkpointer.metadata(place).item_metadata, template, place)
                restored = checkpointer.restore(place, template)
                expected = self._json(step, "about").get(CHECKSUMS, {}).get(item)
                if expected not in (None, _checksum(restored)):
                    raise ValueError("wrong checksum")
            except InputError:
                raise
            except Exception as error:  # Orbax raises a bare Exception for a damaged array
                reason = " ".join(str(error).split(". See full")[0].split()) or type(error).__name__
                raise Damaged(f"{place}: cannot be read ({reason})") from error
        return place_state(restored)

    def _json(self, step: int, item: str) -> dict[str, Any]:
        path = self._step_folder(step) / item / ("metadata" if item == "about" else item)
        try:
            return files.read_json_object(path)
        except InputError as error:
            message = f"{path.parent}: cannot be read (no JSON object in {path.name})"
            raise Damaged(message) from error

    def _step_folder(self, step: int) -> Path:
        return self.folder / f"{step:08d}"


def saved_steps(workdir: Path) -> list[int]:
    """Steps of the checkpoints in a workdir, in order; none if the workdir does not exist."""
    folder = workdir / FOLDER
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    return sorted(int(name) for name in names if name.isdecimal())


def _this_process() -> ocp.options.MultiprocessingOptions:
    """Options that leave the other processes out, since the state is the same in all of them."""
    index = jax.process_index()
    return ocp.options.MultiprocessingOptions(primary_host=index, active_processes={index})


def _reason(error: BaseException) -> str:
    """Return the system's message from any depth of Orbax's errors, or the start of their text."""
    text = " ".join("".join(traceback.format_exception(error)).split())
    numbers = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EIO)
    known = (os.strerror(number) for number in numbers)
    return next((reason for reason in known if reason in text), str(error)[:200])


def _training(state: TrainState) -> dict[str, Any]:
    """Everything of the state that `model` does not hold."""
    names = ["step", "opt_state", "skipped_steps"] + ["params"] * (state.ema is not None)
    names += ["params", "base"] * (state.base is not None)
    return {name: getattr(state, name) for name in names}


def _checksum(tree: Any) -> int:
    """CRC-32 of all arrays. Orbax's files hold none, so a flipped bit would go unnoticed."""
    crc = 0
    for leaf in jax.tree.leaves(tree):
        crc = zlib.crc32(np.ascontiguousarray(leaf).view(np.uint8).data, crc)
    return crc


def _crc(value: Any) -> int:
    """CRC-32 of a JSON value."""
    return zlib.crc32(json.dumps(value, sort_keys=True).encode())


def _check_shapes(stored: Any, template: Any, place: Path) -> None:
    """Raise InputError for the first array that is missing, left over or of another shape."""
    there, wanted = _shapes(stored), _shapes(template)
    if not there:
        raise Damaged(f"{place}: cannot be read (its list of arrays is missing or damaged)")
    for name in sorted(there.keys() | wanted.keys()):
        if there.get(name) != wanted.get(name):
            raise InputError(
                f"{place}: is of another architecture, {name} is "
                f"{there.get(name, 'missing')} there and {wanted.get(name, 'missing')} in the model"
            )


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree.leaves_with_path(tree)
    return {jax.tree_util.keystr(k, simple=True, separator="/"): x.shape for k, x in leaves}
