"""Score each checkpoint of a run as training writes it, and add the scores to its TensorBoard."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tensorboardX import SummaryWriter

from audiosep_jax import files
from audiosep_jax.errors import InputError
from audiosep_jax.evaluation.results import JSON_NAME
from audiosep_jax.training.checkpoints import FOLDER

MARK = "watched.json"  # written last: the settings, and that TensorBoard has the scores
Score = Callable[[Path, Path], bool]  # (checkpoint's folder, folder of results)


def watch(
    workdir: Path,
    output: Path,
    score: Score,
    about: dict[str, Any],
    *,
    overwrite: bool = False,
    poll_seconds: float = 30.0,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Score all checkpoints, oldest first, and wait for new ones up to the run's last step.

    `score` writes results, those of step 3000 to `output/00003000`, and returns False if the
    checkpoint cannot be read. Checkpoints that were scored with these settings are skipped.
    """
    seen: set[str] = set()
    with SummaryWriter(str(workdir / "tensorboard" / f"evaluate-{output.name}")) as board:
        while True:
            # Orbax renames the folder of a checkpoint to its step when it is complete.
            names = sorted(path.name for path in (workdir / FOLDER).glob("*"))
            waiting = [name for name in names if name.isdecimal() and name not in seen]
            if not waiting and not seen:
                print(f"{workdir}: has no checkpoint yet", flush=True)
            for name in waiting:
                seen.add(name)
                place = output / name
                if (overwrite or not _is_scored(place, about)) and score(
                    workdir / FOLDER / name, place
                ):
                    _add_to_board(board, int(name), files.read_json_object(place / JSON_NAME))
                    files.write_json(place / MARK, about)
            if _finished(workdir, seen):
                return
            if not waiting:
                sleep(poll_seconds)


def _is_scored(place: Path, about: dict[str, Any]) -> bool:
    try:
        return files.read_json_object(place / MARK) == about
    except InputError:  # it does not exist, or a kill has damaged it
        return False


def _add_to_board(board: SummaryWriter, step: int, content: dict[str, Any]) -> None:
    for name, value in content["scores"].items():
        board.add_scalar(f"{content['protocol']}/{name}", value["mean"], step)
    if content["notes"]:
        board.add_text(f"{content['protocol']}/notes", "; ".join(content["notes"]), step)
    board.flush()


def _finished(workdir: Path, seen: set[str]) -> bool:
    """Return True if the run's last step has been seen."""
    last = max(seen, default="")
    about = workdir / FOLDER / last / "about" / "metadata"
    try:
        return int(last) >= files.read_json_object(about)["config"]["num_steps"]
    except (InputError, KeyError, TypeError, ValueError):
        return False
