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
Score = Callable[[Path, Path], None]  # (checkpoint's folder, folder of results)


def watch(
    workdir: Path,
    output: Path,
    score: Score,
    about: dict[str, Any],
    *,
    overwrite: bool = False,
    poll_seconds: float = 30.0,
    sleep: Callable[[float], None] = time.sleep,
) -> int:
    """Score all checkpoints, oldest first, and wait for new ones up to the run's last step.

    Checkpoints that were scored before, or that training has removed since, are skipped. Results
    of step 3000 are written to `output/00003000`. Returns how many were scored now.

    Args:
        about: settings of `score`; a checkpoint that was scored with others is scored again.
    """
    seen: set[str] = set()
    num_scored = 0
    with SummaryWriter(str(workdir / "tensorboard" / f"evaluate-{output.name}")) as board:
        while True:
            # Orbax renames the folder of a checkpoint to its step when it is complete.
            names = sorted(path.name for path in (workdir / FOLDER).glob("*"))
            waiting = [name for name in names if name.isdecimal() and name not in seen]
            for name in waiting:
                seen.add(name)
                mark = output / name / MARK
                if not overwrite and mark.is_file() and files.read_json_object(mark) == about:
                    continue
                num_scored += _score(workdir / FOLDER / name, output / name, score, board, about)
            if _finished(workdir, seen):
                return num_scored
            if not waiting:
                sleep(poll_seconds)


def _score(
    checkpoint: Path, place: Path, score: Score, board: SummaryWriter, about: dict[str, Any]
) -> bool:
    """Score a checkpoint; return False if it was removed meanwhile."""
    try:
        score(checkpoint, place)
    except (FileNotFoundError, InputError):
        if checkpoint.is_dir():
            raise
        return False
    content = files.read_json_object(place / JSON_NAME)
    protocol, step = content["protocol"], int(checkpoint.name)
    for name, value in content["scores"].items():
        if value["mean"] is not None:
            board.add_scalar(f"{protocol}/{name}", value["mean"], step)
    if content["notes"]:
        board.add_text(f"{protocol}/notes", "; ".join(content["notes"]), step)
    board.flush()
    files.write_json(place / MARK, about)
    return True


def _finished(workdir: Path, seen: set[str]) -> bool:
    """Return True if the run's last step has been seen."""
    last = max(seen, default="")
    about = workdir / FOLDER / last / "about" / "metadata"
    try:
        return int(last) >= files.read_json_object(about)["config"]["num_steps"]
    except (InputError, KeyError, TypeError, ValueError):
        return False
