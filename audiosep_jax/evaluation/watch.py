"""Scores each checkpoint of a run as training writes it, and adds the scores to its TensorBoard."""

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tensorboardX import SummaryWriter

from audiosep_jax.errors import InputError
from audiosep_jax.evaluation import results
from audiosep_jax.evaluation.results import JSON_NAME
from audiosep_jax.training.checkpoints import FOLDER

MARK = "watched.json"  # written last: what was scored, and that TensorBoard has it
Score = Callable[[Path, Path], None]  # of a checkpoint's folder, into a folder of results


def watch(
    workdir: Path,
    output: Path,
    score: Score,
    about: Mapping[str, Any],
    *,
    overwrite: bool = False,
    poll_seconds: float = 30.0,
    sleep: Callable[[float], None] = time.sleep,
) -> int:
    """Scores what is there, then what comes, oldest first, up to the run's last step.

    A checkpoint that was scored before, or that training has removed meanwhile, is passed over.
    Results of step 3000 go to `output/00003000`. Returns how many were scored now.

    InputError where one was scored in another way than `about` says, without `overwrite`.
    """
    seen: set[str] = set()
    num_scored = 0
    with SummaryWriter(str(workdir / "tensorboard" / f"evaluate-{output.name}")) as board:
        while True:
            waiting = [name for name in _steps(workdir) if name not in seen]
            for name in waiting:
                seen.add(name)
                if not overwrite and _is_done(output / name / MARK, about):
                    continue
                num_scored += _score(workdir / FOLDER / name, output / name, score, board, about)
            if _finished(workdir, seen):
                return num_scored
            if not waiting:
                sleep(poll_seconds)


def _is_done(mark: Path, about: Mapping[str, Any]) -> bool:
    """Whether the mark of a checkpoint that was scored, to the end, is there."""
    if not mark.is_file():
        return False
    if json.loads(mark.read_text(encoding="utf-8")) != dict(about):
        told = "was scored with another list or other options; choose another --output"
        raise InputError(f"{mark.parent}: {told}, or --overwrite")
    return True


def _score(
    checkpoint: Path, place: Path, score: Score, board: SummaryWriter, about: Mapping[str, Any]
) -> bool:
    """Whether the checkpoint was scored now, and is not gone."""
    try:
        score(checkpoint, place)
    except (FileNotFoundError, InputError):
        if checkpoint.is_dir():
            raise
        return False
    content = json.loads((place / JSON_NAME).read_text(encoding="utf-8"))
    for name, value in content["scores"].items():
        if value["mean"] is not None:
            board.add_scalar(f"{content['protocol']}/{name}", value["mean"], int(checkpoint.name))
    if content["notes"]:
        notes = "; ".join(content["notes"])
        board.add_text(f"{content['protocol']}/notes", notes, int(checkpoint.name))
    board.flush()
    results.write_json(place / MARK, about)
    return True


def _steps(workdir: Path) -> list[str]:
    """Names of the checkpoints that are whole; Orbax renames a folder when it is."""
    folder = workdir / FOLDER
    return sorted(path.name for path in folder.glob("*") if path.name.isdecimal())


def _finished(workdir: Path, seen: set[str]) -> bool:
    """Whether the run's last step is among those seen."""
    if not seen:
        return False
    about = workdir / FOLDER / max(seen) / "about" / "metadata"
    try:
        num_steps = json.loads(about.read_text(encoding="utf-8"))["config"]["num_steps"]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return int(max(seen)) >= num_steps
