"""What a run tells: metrics.jsonl, TensorBoard, and a progress bar."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from tensorboardX import SummaryWriter
from tqdm import tqdm

from audiosep_jax.plots import spectrogram_picture

METRICS_FILE = "metrics.jsonl"


class RunLog:
    """Writes below `workdir`, going on from `first_step`; what was logged after it is dropped.

    Only the main process of several writes; in the others every method does nothing.
    """

    def __init__(
        self, workdir: Path, first_step: int, num_steps: int, *, write: bool = True
    ) -> None:
        self.bar = tqdm(
            total=num_steps,
            initial=first_step,
            unit="step",
            disable=not write,
            dynamic_ncols=True,
            mininterval=1.0,
            smoothing=0.05,
        )
        self._board = self._file = None
        if write:
            _drop_after(workdir / METRICS_FILE, first_step)
            self._file = (workdir / METRICS_FILE).open("a", encoding="utf-8")
            self._board = SummaryWriter(str(workdir / "tensorboard"), purge_step=first_step + 1)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """One line of JSON and one point of every curve."""
        if self._file is None or self._board is None:
            return
        row = {"step": step, **{name: float(value) for name, value in values.items()}}
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()
        for name, value in values.items():
            self._board.add_scalar(name, value, step)

    def say(self, text: str) -> None:
        """A line above the progress bar."""
        if self._file is not None:
            self.bar.write(text)

    def example(self, step: int, name: str, sounds: Mapping[str, np.ndarray], model: Any) -> None:
        """Spectrograms below one another, and the audio, of one validation example."""
        if self._board is None:
            return
        picture = spectrogram_picture(list(sounds.values()), model.window_samples)
        title = " above ".join(sounds)
        self._board.add_image(f"{name}/{title}", picture, step, dataformats="HWC")
        peak = max(1.0, *(np.abs(audio_S).max() for audio_S in sounds.values()))
        for kind, audio_S in sounds.items():
            audio_SC = audio_S[:, None] / peak
            self._board.add_audio(f"{name}/{kind}", audio_SC, step, model.sample_rate_hz)

    def close(self) -> None:
        """Flushes everything."""
        self.bar.close()
        if self._file is not None and self._board is not None:
            self._file.close()
            self._board.close()


def _drop_after(path: Path, step: int) -> None:
    """Removes rows of later steps, which a resumed run writes again, and a cut-off last line."""
    if not path.is_file():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if row["step"] <= step:
            kept.append(line + "\n")
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(kept), encoding="utf-8")
    os.replace(temporary, path)
