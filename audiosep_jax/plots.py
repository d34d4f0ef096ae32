"""Log-frequency spectrograms: figures with axes for people, small pictures for TensorBoard.

Figures need matplotlib, which is imported when one is drawn; no display and no global state.
"""

import contextlib
import os
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from audiosep_jax import files
from audiosep_jax.errors import InputError

FORMATS = ("png", "svg")
RANGE_DB = 80.0  # shown below the loudest point of all panels
FLOOR_DB = -120.0  # level of silence
WINDOW_SECONDS = 0.064
MAX_COLUMNS = 1000  # a column of a longer recording shows its loudest frame
MAX_ROWS = 240
LOWEST_HZ = 40.0
MAX_TITLE_CHARACTERS = 90
_FRAMES_AT_ONCE = 512
_SECONDS_BEFORE_MINUTES = 600
# Control points of a dark-to-light colour map whose lightness rises evenly, for readers with any
# colour vision. It resembles matplotlib's magma, which may not be installed.
_COLOURS = np.array([[0, 0, 4], [60, 15, 110], [150, 40, 105], [235, 105, 50], [252, 255, 164]])
_drawing = threading.RLock()  # matplotlib's settings belong to the process


def spectrogram_figure(
    panels: Mapping[str, np.ndarray], sample_rate_hz: int, path: str | os.PathLike[str]
) -> None:
    """Draw log-frequency spectrograms of waveforms below one another, on one dB scale.

    Args:
        panels: samples `(S,)` or `(channels, S)` by title, such as mixture, target and estimate.
        sample_rate_hz: sample rate of all panels.
        path: .png or .svg file to write, whole or not at all.

    Raises:
        InputError: matplotlib is not installed, or the file cannot be written.
    """
    check_figure(path)
    draw_figure([(title, _spectrogram(x, sample_rate_hz)) for title, x in panels.items()], path)


def spectrogram_picture(panels_NS: Sequence[np.ndarray], sample_rate_hz: int) -> np.ndarray:
    """Spectrograms as in a figure, without axes: `(height, width, 3)` uint8, for TensorBoard."""
    levels = [_spectrogram(audio_S, sample_rate_hz).levels_db() for audio_S in panels_NS]
    loudest_db = _loudest_db(levels)
    line = np.full((2, len(levels[0]), 3), 255, np.uint8)
    colours = [_colour((level_XR.T[::-1] - loudest_db) / RANGE_DB + 1) for level_XR in levels]
    return np.concatenate([part for colour in colours for part in (line, colour)][1:])


def _spectrogram(audio: np.ndarray, sample_rate_hz: int) -> "LogSpectrogram":
    audio_CS = np.atleast_2d(audio)
    spectrogram = LogSpectrogram(sample_rate_hz, audio_CS.shape[1])
    spectrogram.add(audio_CS)
    return spectrogram


def _loudest_db(levels: Sequence[np.ndarray]) -> float:
    """Upper end of the scale; at least `FLOOR_DB + RANGE_DB`, so that silence is dark."""
    return max(FLOOR_DB + RANGE_DB, *(float(level_XR.max()) for level_XR in levels), FLOOR_DB)


def _colour(level: np.ndarray) -> np.ndarray:
    """Map values of 0 to 1 to RGB bytes."""
    points = np.linspace(0, 1, len(_COLOURS))
    channels = [np.interp(level, points, _COLOURS[:, c]) for c in range(3)]
    return np.stack(channels, axis=-1).astype(np.uint8)


def check_figure(path: str | os.PathLike[str]) -> None:
    """Raise InputError unless `path` is a .png or .svg file and matplotlib is installed."""
    if Path(path).suffix.lower()[1:] not in FORMATS:
        raise InputError(f"{path}: a figure is a .png or .svg file")
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        hint = "pip install 'audiosep-jax[plot]'"
        raise InputError(f"{path}: figures need matplotlib: {hint}") from error


class LogSpectrogram:
    """Levels of a recording that is fed in blocks, in memory that does not grow with its length.

    A frame has 64 ms and overlaps the next by half to three quarters. Its power is the mean of the
    channels. Each of 240 rows of equal pitch shows its loudest bin, and each of at most 1000
    columns its loudest frame.
    """

    def __init__(self, sample_rate_hz: int, num_samples: int) -> None:
        self.sample_rate_hz, self.num_samples = sample_rate_hz, num_samples
        window = max(16, 2 ** round(np.log2(WINDOW_SECONDS * sample_rate_hz)))
        hop = int(np.clip(num_samples // (4 * MAX_COLUMNS), window // 4, window // 2))
        self._window_samples, self._hop_samples = window, hop
        self._num_frames = num_samples // hop + 1
        hann_W = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window) / window)
        self._window_W = (2 / hann_W.sum() * hann_W).astype(np.float32)  # full-scale sine: 0 dB
        self.edges_hz = row_edges(sample_rate_hz)
        bins = window * self.edges_hz / sample_rate_hz
        self._centre_bins = np.sqrt(bins[1:] * bins[:-1])
        self._first_bins = np.ceil(bins[:-1]).astype(int)
        self._power_XR = np.zeros((min(MAX_COLUMNS, self._num_frames), MAX_ROWS), np.float32)
        self._pending_CS = np.zeros((1, 0), np.float32)
        self._begun, self._ended, self._frame = False, False, 0

    def add(self, audio_CS: np.ndarray) -> None:
        """Add the next block, of any length."""
        pending_CS = np.broadcast_to(self._pending_CS, (len(audio_CS), self._pending_CS.shape[1]))
        self._pending_CS = np.concatenate([pending_CS, audio_CS], axis=1, dtype=np.float32)
        half = self._window_samples // 2
        if not self._begun and self._pending_CS.shape[1] > half:
            self._reflect(half, 0)
            self._begun = True
        if self._begun:
            self._consume()

    def levels_db(self) -> np.ndarray:
        """End the recording; return its levels `(columns, rows)` in dB of full scale."""
        if not self._ended and self._pending_CS.size:
            half = self._window_samples // 2
            self._reflect(0 if self._begun else half, half)
            self._consume()
        self._ended = True
        levels_XR = 10 * np.log10(np.maximum(self._power_XR, 10 ** (FLOOR_DB / 10)))
        return np.maximum(levels_XR, FLOOR_DB)  # the logarithm may round to less than the floor

    def _reflect(self, before: int, after: int) -> None:
        """Pad with a reflection, since a cut would spread over all frequencies."""
        self._pending_CS = np.pad(self._pending_CS, ((0, 0), (before, after)), mode="reflect")

    def _consume(self) -> None:
        """Turn all whole frames of the pending samples into levels."""
        window, hop = self._window_samples, self._hop_samples
        num = (self._pending_CS.shape[1] - window) // hop + 1
        for first in range(0, num, _FRAMES_AT_ONCE):
            last = min(first + _FRAMES_AT_ONCE, num)
            part_CS = self._pending_CS[:, first * hop : (last - 1) * hop + window]
            views_CTW = np.lib.stride_tricks.sliding_window_view(part_CS, window, axis=1)
            self._put(self._rows(views_CTW[:, ::hop]))
        self._pending_CS = self._pending_CS[:, max(0, num) * hop :]

    def _rows(self, frames_CTW: np.ndarray) -> np.ndarray:
        """Power `(T, rows)`: the loudest bin of a row, or interpolated if a row has no bin."""
        spectrum_CTF = np.fft.rfft(frames_CTW * self._window_W)
        power_TF = np.mean(spectrum_CTF.real**2 + spectrum_CTF.imag**2, axis=0)
        below = np.minimum(self._centre_bins.astype(int), power_TF.shape[1] - 2)
        share = (self._centre_bins - below).astype(np.float32)
        between_TR = power_TF[:, below] * (1 - share) + power_TF[:, below + 1] * share
        # For a row without a bin reduceat returns the next bin above, which is not in the row.
        within_TR = np.maximum.reduceat(power_TF, self._first_bins, axis=1)
        holds = np.diff(self._first_bins, append=power_TF.shape[1]) > 0
        return np.where(holds, np.maximum(between_TR, within_TR), between_TR)

    def _put(self, power_TR: np.ndarray) -> None:
        """Raise the columns of the next frames to their power."""
        columns = len(self._power_XR)
        frames = np.minimum(self._frame + np.arange(len(power_TR)), self._num_frames - 1)
        self._frame += len(power_TR)
        column_T = frames * columns // self._num_frames
        starts = np.flatnonzero(np.diff(column_T, prepend=-1))
        loudest_XR = np.maximum.reduceat(power_TR, starts, axis=0)
        where = column_T[starts]
        self._power_XR[where] = np.maximum(self._power_XR[where], loudest_XR)


def row_edges(sample_rate_hz: int) -> np.ndarray:
    """Frequencies (Hz) between rows, from 40 Hz, or 1/50 of the highest, to the highest."""
    highest_hz = sample_rate_hz / 2
    return np.geomspace(min(LOWEST_HZ, highest_hz / 50), highest_hz, MAX_ROWS + 1)


@contextlib.contextmanager
def new_figure(path: str | os.PathLike[str], width: float, height: float) -> Iterator[Any]:
    """Yield an empty matplotlib figure, in inches, and write it when the block succeeds.

    Raises:
        InputError: matplotlib is not installed, or the file cannot be written.
    """
    check_figure(path)
    from matplotlib import style
    from matplotlib.figure import Figure

    form = Path(path).suffix.lower()[1:]
    # Equal figures are equal files, whatever style the user has set.
    own = {"svg.hashsalt": "audiosep_jax", "text.parse_math": False}  # names may hold a $
    settings: list[Any] = ["default", own]
    metadata = {"Date": None} if form == "svg" else None
    with _drawing, style.context(settings, after_reset=True), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # missing ones are drawn as boxes
        figure = Figure(figsize=(width, height), facecolor="white", layout="constrained")
        yield figure
        with files.replacing(path) as partial:
            figure.savefig(partial, format=form, dpi=120, metadata=metadata)


def draw_figure(panels: Sequence[tuple[str, LogSpectrogram]], path: str | os.PathLike[str]) -> None:
    """Draw spectrograms as `spectrogram_figure` does; two titles may be equal."""
    levels = [panel.levels_db() for _, panel in panels]
    loudest_db = _loudest_db(levels)
    seconds = max(panel.num_samples / panel.sample_rate_hz for _, panel in panels)
    unit, unit_seconds = ("min", 60) if seconds > _SECONDS_BEFORE_MINUTES else ("s", 1)
    with new_figure(path, 9, 0.7 + 1.9 * len(panels)) as figure:
        axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
        for axis, (title, panel), level_XR in zip(axes, panels, levels, strict=True):
            duration = panel.num_samples / panel.sample_rate_hz / unit_seconds
            mesh = axis.pcolormesh(
                np.linspace(0, duration, len(level_XR) + 1),
                panel.edges_hz,
                level_XR.T,
                cmap="magma",
                vmin=loudest_db - RANGE_DB,
                vmax=loudest_db,
                rasterized=True,
            )
            _label_frequencies(axis)
            axis.set_title(_one_line(title), loc="left", fontsize=10)
        axes[-1].set_xlabel(f"time ({unit})")
        figure.supylabel("frequency (Hz)", fontsize=10)
        figure.colorbar(mesh, ax=list(axes), label="level (dB of full scale)", pad=0.01, aspect=40)


def _label_frequencies(axis: Any) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_yscale("log")
    axis.yaxis.set_major_locator(LogLocator(base=10, subs=(1, 3), numticks=20))
    axis.yaxis.set_major_formatter(
        FuncFormatter(lambda hz, _: f"{hz / 1000:g}k" if hz >= 1000 else f"{hz:g}")
    )
    axis.yaxis.set_minor_formatter(NullFormatter())


def _one_line(title: str) -> str:
    text = " ".join(title.encode(errors="replace").decode().split())
    text = "".join(letter if letter.isprintable() else "_" for letter in text)
    return text if len(text) <= MAX_TITLE_CHARACTERS else text[: MAX_TITLE_CHARACTERS - 1] + "…"
