"""Pictures of spectrograms."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from audiosep_jax.stft import stft

RANGE_DB = 80.0  # below the loudest point of all panels
FLOOR_DB = -120.0  # of silence
MAX_WIDTH = 512
# Control points of a dark-to-light map that rises evenly in lightness, red-green blind or not.
_COLOURS = np.array([[0, 0, 4], [60, 15, 110], [150, 40, 105], [235, 105, 50], [252, 255, 164]])


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
