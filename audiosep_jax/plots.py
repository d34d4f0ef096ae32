"""Pictures of spectrograms: figures with axes for people, small pictures for TensorBoard.

Figures need matplotlib, which is imported where one is drawn; no display, no global state.
"""

import contextlib
import os
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from audiosep_jax.errors import InputError
from audiosep_jax.model.stft import hann_window, stft

FORMATS = ("png", "svg")

RANGE_DB = 80.0  # below the loudest point of all panels
FLOOR_DB = -120.0  # of silence
MAX_WIDTH = 512
# Control points of a dark-to-light map that rises evenly in lightness, red-green blind or not.
_COLOURS = np.array([[0, 0, 4], [60, 15, 110], [150, 40, 105], [235, 105, 50], [252, 255, 164]])

WINDOW_SECONDS = 0.064
MAX_COLUMNS = 1000  # of a figure; longer recordings show the loudest frame of each column
MAX_ROWS = 240
LOWEST_HZ = 40.0
MAX_TITLE_CHARACTERS = 90
_FRAMES_AT_ONCE = 512
_SECONDS_BEFORE_MINUTES = 600
# Opaque, so that text is as readable on a dark page as on a light one, whatever a user's style.
_drawing = threading.RLock()  # matplotlib's settings are those of the process
_STYLE: dict[Any, Any] = {
    "axes.edgecolor": "black",
    "axes.facecolor": "white",
    "axes.labelcolor": "black",
    "font.family": ["DejaVu Sans"],
    "savefig.bbox": None,
    "savefig.facecolor": "white",
    "savefig.transparent": False,
    "svg.hashsalt": "audiosep_jax",  # the same picture is the same file
    "text.color": "black",
    "text.usetex": False,
    "xtick.color": "black",
    "ytick.color": "black",
}


def spectrogram_figure(
    panels: Mapping[str, np.ndarray], sample_rate_hz: int, path: str | os.PathLike[str]
) -> None:
    """Log-frequency spectrograms of waveforms below one another, by title, on one dB scale.

    Args:
        panels: title to samples, `(S,)` or `(channels, S)`, such as mixture, targets, residual
            or reference and estimate.
        sample_rate_hz: of all of them.
        path: .png or .svg file to write, whole or not at all.

    Raises:
        InputError: matplotlib is not installed, or the file cannot be written.
    """
    check_figure(path)
    spectrograms = []
    for title, audio in panels.items():
        audio_CS = np.atleast_2d(audio)
        spectrograms.append((title, LogSpectrogram(sample_rate_hz, audio_CS.shape[1])))
        spectrograms[-1][1].add(audio_CS)
    draw_figure(spectrograms, path)


def check_figure(path: str | os.PathLike[str]) -> None:
    """InputError where a figure cannot be drawn: no matplotlib, or neither .png nor .svg."""
    if Path(path).suffix.lower()[1:] not in FORMATS:
        raise InputError(f"{path}: a figure is a .png or .svg file")
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        hint = "pip install 'audiosep-jax[plot]'"
        raise InputError(f"{path}: figures need matplotlib: {hint}") from error


class LogSpectrogram:
    """Levels of a recording that is fed in blocks, in memory that does not grow with it.

    Frames of 64 ms, half to three quarters overlapping, mean power of the channels, the loudest
    bin of each of 240 rows of equal pitch, the loudest frame of each of at most 1000 columns.
    """

    def __init__(self, sample_rate_hz: int, num_samples: int) -> None:
        self.sample_rate_hz, self.num_samples = sample_rate_hz, num_samples
        self._window_samples = max(16, 2 ** round(np.log2(WINDOW_SECONDS * sample_rate_hz)))
        quarter = self._window_samples // 4
        self._hop_samples = int(np.clip(num_samples // (4 * MAX_COLUMNS), quarter, 2 * quarter))
        self._num_frames = num_samples // self._hop_samples + 1
        # A full-scale sine is 0 dB.
        self._window_W = hann_window(self._window_samples).astype(np.float32)
        self._window_W *= 2 / self._window_W.sum()
        self.edges_hz = row_edges(sample_rate_hz)
        bins = self._window_samples * self.edges_hz / sample_rate_hz
        self._centre_bins = np.sqrt(bins[1:] * bins[:-1])
        self._first_bins = np.ceil(bins[:-1]).astype(int)
        columns = min(MAX_COLUMNS, self._num_frames)
        self._power_XR = np.zeros((columns, len(self.edges_hz) - 1), np.float32)
        self._pending_CS = np.zeros((1, 0), np.float32)
        self._begun, self._ended, self._frame = False, False, 0

    def add(self, audio_CS: np.ndarray) -> None:
        """Takes the next block, of any length."""
        pending_CS = np.broadcast_to(self._pending_CS, (len(audio_CS), self._pending_CS.shape[1]))
        self._pending_CS = np.concatenate([pending_CS, audio_CS], axis=1, dtype=np.float32)
        half = self._window_samples // 2
        if not self._begun and self._pending_CS.shape[1] > half:
            self._extend(half, 0)
            self._begun = True
        if self._begun:
            self._consume()

    def levels_db(self) -> np.ndarray:
        """`(columns, rows)` dB of full scale; ends the recording."""
        if not self._ended and self._pending_CS.size:
            half = self._window_samples // 2
            self._extend(0 if self._begun else half, half)
            self._consume()
        self._ended = True
        levels_XR = 10 * np.log10(np.maximum(self._power_XR, 10 ** (FLOOR_DB / 10)))
        return np.maximum(levels_XR, FLOOR_DB)  # below which some processors' logarithm rounds

    def _extend(self, before: int, after: int) -> None:
        """A mirror image at an end: a cut there would splash over all frequencies."""
        widths = ((0, 0), (before, after))
        self._pending_CS = np.pad(self._pending_CS, widths, mode="reflect")

    def _consume(self) -> None:
        window, hop = self._window_samples, self._hop_samples
        num = (self._pending_CS.shape[1] - window) // hop + 1
        for first in range(0, num, _FRAMES_AT_ONCE):
            last = min(first + _FRAMES_AT_ONCE, num)
            part_CS = self._pending_CS[:, first * hop : (last - 1) * hop + window]
            views_CTW = np.lib.stride_tricks.sliding_window_view(part_CS, window, axis=1)
            self._put(self._rows(views_CTW[:, ::hop]))
        self._pending_CS = self._pending_CS[:, max(0, num) * hop :]

    def _rows(self, frames_CTW: np.ndarray) -> np.ndarray:
        """Power `(T, rows)`: the loudest bin in a row, or between bins the way from one to next."""
        spectrum_CTF = np.fft.rfft(frames_CTW * self._window_W)
        power_TF = np.mean(spectrum_CTF.real**2 + spectrum_CTF.imag**2, axis=0)
        below = np.minimum(self._centre_bins.astype(int), power_TF.shape[1] - 2)
        share = (self._centre_bins - below).astype(np.float32)
        between_TR = power_TF[:, below] * (1 - share) + power_TF[:, below + 1] * share
        # Where a row holds no bin, reduceat gives the next bin above it, which is not in it.
        within_TR = np.maximum.reduceat(power_TF, self._first_bins, axis=1)
        holds = np.diff(self._first_bins, append=power_TF.shape[1]) > 0
        return np.where(holds, np.maximum(between_TR, within_TR), between_TR)

    def _put(self, power_TR: np.ndarray) -> None:
        columns = len(self._power_XR)
        frames = np.minimum(self._frame + np.arange(len(power_TR)), self._num_frames - 1)
        self._frame += len(power_TR)
        column_T = frames * columns // self._num_frames
        starts = np.flatnonzero(np.diff(column_T, prepend=-1))
        loudest_XR = np.maximum.reduceat(power_TR, starts, axis=0)
        where = column_T[starts]
        self._power_XR[where] = np.maximum(self._power_XR[where], loudest_XR)


def row_edges(sample_rate_hz: int) -> np.ndarray:
    """Frequencies between rows, Hz, from 40 Hz (or 1/50 of the highest) to the highest."""
    highest_hz = sample_rate_hz / 2
    return np.geomspace(min(LOWEST_HZ, highest_hz / 50), highest_hz, MAX_ROWS + 1)


def draw_figure(panels: Sequence[tuple[str, LogSpectrogram]], path: str | os.PathLike[str]) -> None:
    """As `spectrogram_figure`, of spectrograms that were fed; titles may be alike."""
    with new_figure(path, 9, 0.7 + 1.9 * len(panels)) as figure:
        _draw_panels(figure, panels)


@contextlib.contextmanager
def new_figure(path: str | os.PathLike[str], width: float, height: float) -> Iterator[Any]:
    """An empty matplotlib figure, inches by inches, which is written where the block succeeds.

    Raises:
        InputError: matplotlib is not installed, or the file cannot be written.
    """
    check_figure(path)
    import matplotlib
    from matplotlib.figure import Figure

    path = Path(path)
    part = path.with_name(f".{path.name[:80]}.{os.getpid()}.part")
    with _drawing, matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # drawn as a box
        figure = Figure(figsize=(width, height), facecolor="white", layout="constrained")
        yield figure
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            form = path.suffix.lower()[1:]
            # No date: the same picture is the same file.
            metadata = {"Date": None} if form == "svg" else None
            figure.savefig(part, format=form, dpi=120, metadata=metadata)
            os.replace(part, path)
        except OSError as error:
            reason = error.strerror or error
            raise InputError(f"{path}: cannot be written ({reason})") from error
        finally:
            part.unlink(missing_ok=True)


def _draw_panels(figure: Any, panels: Sequence[tuple[str, LogSpectrogram]]) -> None:
    levels = [panel.levels_db() for _, panel in panels]
    loudest_db = max(FLOOR_DB + RANGE_DB, *(level_XR.max() for level_XR in levels), -999)
    axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    seconds = max(panel.num_samples / panel.sample_rate_hz for _, panel in panels)
    unit, unit_seconds = ("min", 60) if seconds > _SECONDS_BEFORE_MINUTES else ("s", 1)
    for axis, (title, panel), level_XR in zip(axes, panels, levels, strict=True):
        duration = panel.num_samples / panel.sample_rate_hz / unit_seconds
        mesh = axis.pcolormesh(
            np.linspace(0, duration, len(level_XR) + 1),
            panel.edges_hz,
            level_XR.T,
            cmap="magma",  # rises evenly in lightness, for colour-blind readers too
            vmin=loudest_db - RANGE_DB,
            vmax=loudest_db,
            rasterized=True,
        )
        _label_frequencies(axis)
        axis.set_title(_one_line(title), loc="left", fontsize=10, parse_math=False)
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
    long = len(text) > MAX_TITLE_CHARACTERS
    return text[: MAX_TITLE_CHARACTERS - 1] + "…" if long else text


def spectrogram_picture(panels_NS: Sequence[np.ndarray], window_samples: int) -> np.ndarray:
    """Log spectrograms below one another on one dB scale, `(height, width, 3)` uint8."""
    spectra = [_decibels(audio_S, window_samples) for audio_S in panels_NS]
    # Where all is silent, that is shown dark.
    loudest = max(FLOOR_DB + RANGE_DB, *(spectrum.max() for spectrum in spectra))
    rule = np.full((2, min(MAX_WIDTH, spectra[0].shape[0]), 3), 255, np.uint8)
    rows: list[np.ndarray] = []
    for decibels_TF in spectra:
        level_TF = np.clip((decibels_TF - loudest) / RANGE_DB + 1, 0, 1)
        rows += [rule, _colour(level_TF.T[::-1])]
    return np.concatenate(rows[1:])


def _decibels(audio_S: np.ndarray, window_samples: int) -> np.ndarray:
    hop_samples = max(window_samples // 4, -(-len(audio_S) // (MAX_WIDTH - 1)))
    audio_BS = jnp.asarray(audio_S[None])
    spectrum_BTF = stft(audio_BS, window_samples, min(hop_samples, window_samples))
    mag_TF = np.abs(np.asarray(spectrum_BTF))[0]
    return 20 * np.log10(np.maximum(mag_TF[:MAX_WIDTH], 10 ** (FLOOR_DB / 20)))


def _colour(level: np.ndarray) -> np.ndarray:
    """Values of 0 to 1 to RGB bytes."""
    points = np.linspace(0, 1, len(_COLOURS))
    channels = [np.interp(level, points, _COLOURS[:, c]) for c in range(3)]
    return np.stack(channels, axis=-1).astype(np.uint8)
