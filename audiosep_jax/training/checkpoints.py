"""Checkpoints of a run: written by Orbax in the background, atomic, pruned by a policy."""

import concurrent.futures
import dataclasses
import errno
import json
import os
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy as policy

from audiosep_jax.errors import InputError
from audiosep_jax.training.config import CHECKPOINT_FOLDER as FOLDER
from audiosep_jax.training.config import CheckpointConfig
from audiosep_jax.training.steps import TrainState, place_state

BEST_METRIC = "valid/sdri"


class NotWritten(OSError):
    """A checkpoint that could not be written; the message is one line."""

    def __str__(self) -> str:
        return str(self.strerror)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of a checkpoint: seconds it took to write, and why it is not there if it is not.

    Nothing is wrong with one that was `skipped`: the folder was too slow for it.
    """

    step: int
    seconds: float = 0.0
    error: NotWritten | None = None
    skipped: bool = False


@dataclasses.dataclass(frozen=True)
class _Save:
    step: int
    state: TrainState
    about: dict[str, Any]
    sdri_db: float | None


class Checkpoints:
    """The checkpoints below `workdir`; of several processes one holds it.

    Each holds three items: `model`, what separation needs (averaged parameters where there are
    any); `training`, the rest of the state; and `about`, a JSON of config, fingerprints and step.
    """

    def __init__(self, workdir: str | Path, config: CheckpointConfig | None = None) -> None:
        """Opens the folder; without a config only for reading."""
        self.folder = Path(workdir).absolute() / FOLDER
        if config is None and not self.folder.is_dir():
            raise InputError(f"{workdir}: holds no checkpoint (no folder {FOLDER} in it)")
        if config is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
        self._config = config
        self._manager = ocp.CheckpointManager(self.folder, options=_options(config))
        # Orbax itself starts to write on the caller's time; here a slow folder costs it nothing.
        self._writer = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._running: tuple[int, concurrent.futures.Future[float]] | None = None
        self._waiting: _Save | None = None
        self._outcomes: list[Outcome] = []

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
        """Starts writing, once what was being written is; the state may be donated at once.

        A step that is there already stays. Raises what went wrong with the ones before.
        """
        self.wait()
        self.offer(step, state, about, sdri_db)

    def offer(
        self, step: int, state: TrainState, about: dict[str, Any], sdri_db: float | None
    ) -> None:
        """Like `save`, but never waits for the folder.

        The state is copied and written when its turn comes; of several that wait the newest, or
        the newest with a score, is kept.
        """
        self._look()
        # Copies: on a CPU `device_get` may only look into buffers that the next step is given.
        host = jax.tree.map(np.array, jax.device_get(state))
        offered = _Save(step, host, {**about, "step": step}, sdri_db)
        if self._running is None:
            self._start(offered)
            return
        waiting, self._waiting = self._waiting, offered
        if waiting and waiting.sdri_db is not None and sdri_db is None:
            waiting, self._waiting = offered, waiting
        if waiting:
            self._outcomes.append(Outcome(waiting.step, skipped=True))

    def outcomes(self) -> list[Outcome]:
        """What has become of the checkpoints since the last call; starts the one that waits."""
        self._look()
        told, self._outcomes = self._outcomes, []
        return told

    def wait(self) -> None:
        """Returns when all that was saved is on disk; raises what went wrong."""
        self.finish()
        errors = [outcome.error for outcome in self._outcomes if outcome.error]
        if errors:
            self._outcomes = [outcome for outcome in self._outcomes if not outcome.error]
            raise errors[0]

    def finish(self) -> None:
        """Returns when nothing is being written and nothing waits for it."""
        while self._running:
            concurrent.futures.wait([self._running[1]])
            self._look()

    def close(self) -> None:
        """Finishes and frees the threads."""
        self.finish()
        self._writer.shutdown()
        self._manager.close()

    def _look(self) -> None:
        if self._running is None or not self._running[1].done():
            return
        (step, future), self._running = self._running, None
        error = future.exception()
        if error is None:
            self._outcomes.append(Outcome(step, seconds=future.result()))
        else:
            self._outcomes.append(Outcome(step, error=self._not_written(step, error)))
        if self._waiting:
            waiting, self._waiting = self._waiting, None
            self._start(waiting)

    def _start(self, save: _Save) -> None:
        self._running = (save.step, self._writer.submit(self._write, save))

    def _write(self, save: _Save) -> float:
        """Seconds that it took."""
        started = time.perf_counter()
        if self._manager.latest_step() == save.step:
            return 0.0
        items = ocp.args.Composite(
            model=ocp.args.StandardSave(save.state.variables()),
            training=ocp.args.StandardSave(_training(save.state)),
            about=ocp.args.JsonSave(save.about),
        )
        metrics = None if save.sdri_db is None else {BEST_METRIC: float(save.sdri_db)}
        try:
            self._manager.save(save.step, args=items, metrics=metrics, force=True)
            self._manager.wait_until_finished()
        except Exception:
            # A manager is of no use after that; a new one also removes what lies there in part.
            self._manager = ocp.CheckpointManager(self.folder, options=_options(self._config))
            raise
        return time.perf_counter() - started

    def _not_written(self, step: int, error: BaseException) -> NotWritten:
        newest = self._manager.latest_step()
        left = "there is none before it" if newest is None else f"step {newest} is the newest"
        return NotWritten(
            errno.EIO,
            f"{self.folder}: the checkpoint of step {step} could not be written "
            f"({_reason(error)}); {left}",
        )

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

    def _restore(self, step: int, item: str, template: Any) -> Any:
        place = self.folder / self._name(step) / item
        with ocp.StandardCheckpointer(multiprocessing_options=_this_process()) as checkpointer:
            try:
                _check_shapes(checkpointer.metadata(place).item_metadata, template, str(place))
                return place_state(checkpointer.restore(place, template))
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
            read_only=True,
            save_interval_steps=0,
            step_format_fixed_length=8,
            create=False,
            multiprocessing_options=_this_process(),
            **best,
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
        create=False,
        multiprocessing_options=_this_process(),
        **best,
    )


def _this_process() -> ocp.options.MultiprocessingOptions:
    """Leaves the other processes out of it: the state is the same on all."""
    index = jax.process_index()
    return ocp.options.MultiprocessingOptions(primary_host=index, active_processes={index})


def _reason(error: BaseException) -> str:
    """What the system said, however deep Orbax has hidden it, or else the beginning of its text."""
    texts = []
    cause: BaseException | None = error
    while cause is not None:
        texts.append(" ".join(str(cause).split()))
        cause = cause.__cause__ or cause.__context__
    for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EIO):
        if any(os.strerror(number) in text for text in texts):
            return os.strerror(number)
    return texts[0][:200] or type(error).__name__


def saved_steps(workdir: Path) -> list[int]:
    """Steps of the checkpoints below a workdir, in order; none where it is not there."""
    folder = workdir / FOLDER
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    return sorted(int(name) for name in names if name.isdecimal())


def _training(state: TrainState) -> dict[str, Any]:
    """All of the state that `model` does not hold."""
    rest = {
        "step": state.step,
        "opt_state": state.opt_state,
        "skipped_steps": state.skipped_steps,
    }
    return rest if state.ema is None else {**rest, "params": state.params}


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
