"""What a run tells: metrics.jsonl, TensorBoard, and a progress bar."""

import json
import os
import socket
import struct
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from tensorboardX import summary
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.record_writer import masked_crc32c
from tqdm import tqdm

from audiosep_jax.errors import InputError
from audiosep_jax.plots import spectrogram_picture

METRICS_FILE = "metrics.jsonl"
_MOST_UNWRITTEN_BYTES = 64 * 2**20


class RunLog:
    """Writes below `workdir`, going on from `first_step`; what was logged after it is dropped.

    Only the main process of several writes; in the others every method does nothing. A full disk
    ends nothing: what it refuses is kept, and written when there is space again.
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
        self._rows = self._events = None
        if write:
            try:
                _drop_after(workdir / METRICS_FILE, first_step)
                self._rows = Tail(workdir / METRICS_FILE)
                self._events = Tail(_new_events_file(workdir / "tensorboard"))
            except OSError as error:
                raise InputError(f"{workdir}: cannot be written to ({error.strerror})") from error
            self._event(first_step + 1, file_version="brain.Event:2")
            self._event(first_step + 1, session_log=SessionLog(status=SessionLog.START))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """One line of JSON and one point of every curve."""
        if self._rows is None:
            return
        row = {"step": step, **{name: float(value) for name, value in values.items()}}
        told = self._rows.error
        error = self._rows.write((json.dumps(row) + "\n").encode())
        for name, value in values.items():
            self._event(step, summary=summary.scalar(name, value))
        if error and not told:
            self.say(f"{self._rows.path}: {error}; rows are kept and written when that is over")

    def say(self, text: str) -> None:
        """A line above the progress bar."""
        if self._rows is not None:
            self.bar.write(text)

    def example(self, step: int, name: str, sounds: Mapping[str, np.ndarray], model: Any) -> None:
        """Spectrograms below one another, and the audio, of one validation example."""
        if self._events is None:
            return
        picture = spectrogram_picture(list(sounds.values()), model.sample_rate_hz)
        tag = f"{name}/{' above '.join(sounds)}"
        self._event(step, summary=summary.image(tag, picture, dataformats="HWC"))
        peak = max(1.0, *(np.abs(audio_S).max() for audio_S in sounds.values()))
        for kind, audio_S in sounds.items():
            sound = summary.audio(f"{name}/{kind}", audio_S[:, None] / peak, model.sample_rate_hz)
            self._event(step, summary=sound)

    def close(self) -> None:
        """Writes what is left."""
        self.bar.close()
        for tail in (self._rows, self._events):
            if tail is not None:
                tail.close()

    def _event(self, step: int, **what: Any) -> None:
        """A record as TFRecord frames it."""
        if self._events is not None:
            data = Event(step=step, wall_time=time.time(), **what).SerializeToString()
            length = struct.pack("<Q", len(data))
            checks = (struct.pack("<I", masked_crc32c(part)) for part in (length, data))
            self._events.write(length + next(checks) + data + next(checks))


class Tail:
    """A file that is appended to; what the disk refuses is kept and tried again with the next."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("ab", buffering=0)
        self._unwritten = b""
        self.error = ""

    def write(self, data: bytes) -> str:
        """What went wrong, or nothing; of too much that is unwritten the latest is given up."""
        if len(self._unwritten) + len(data) <= _MOST_UNWRITTEN_BYTES:
            self._unwritten += data
        self.error = ""
        try:
            while self._unwritten:
                self._unwritten = self._unwritten[self._file.write(self._unwritten) :]
        except OSError as error:
            self.error = error.strerror or str(error)
        return self.error

    def close(self) -> None:
        """One more attempt."""
        self.write(b"")
        self._file.close()


def _new_events_file(folder: Path) -> Path:
    """TensorBoard reads the files in the order of their names."""
    folder.mkdir(parents=True, exist_ok=True)
    seconds, rest = divmod(time.time_ns(), 10**9)
    return folder / f"events.out.tfevents.{seconds:010d}.{rest:09d}.{socket.gethostname()}"


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
