"""Scores of enhanced speech: PESQ and STOI by their packages, and segmental SNR."""

import numpy as np

from audiosep_jax.audio import files as audio_files
from audiosep_jax.errors import InputError

PESQ_RATE_HZ, LOWEST_PESQ = 16000, 1.0  # of wide-band PESQ
FRAME_SECONDS, HOP_SECONDS = 0.030, 0.0075
MIN_SEGMENT_DB, MAX_SEGMENT_DB = -10.0, 35.0
_TINY = 1e-10


def check_packages() -> None:
    """InputError where the packages of the extra `eval` are not there."""
    try:
        import pesq  # noqa: F401
        import pystoi  # noqa: F401
    except ImportError as error:
        hint = "pip install 'audiosep-jax[eval]'"
        raise InputError(f"PESQ and STOI need the packages pesq and pystoi: {hint}") from error


def speech_scores(
    reference_S: np.ndarray,
    estimate_S: np.ndarray,
    mixture_S: np.ndarray,
    sample_rate_hz: int,
    query: str,
) -> dict[str, float]:
    """`pesq` (wide band, 1.04 to 4.64), `stoi` (to 1) and `segmental_snr` of one clip.

    Where no speech is found, as in silence, PESQ is 1 and STOI 0: the lowest there is.
    """
    del mixture_S, query
    return {
        "pesq": pesq_wide_band(reference_S, estimate_S, sample_rate_hz),
        "stoi": stoi(reference_S, estimate_S, sample_rate_hz),
        "segmental_snr": segmental_snr(reference_S, estimate_S, sample_rate_hz),
    }


def pesq_wide_band(reference_S: np.ndarray, estimate_S: np.ndarray, sample_rate_hz: int) -> float:
    """ITU-T P.862.2 at 16 kHz; 1 where it finds no utterance or has under 0.25 s."""
    import pesq

    pair_CS = np.stack([reference_S, estimate_S]).astype(np.float32)
    pair_CS = audio_files.resample(pair_CS, sample_rate_hz, PESQ_RATE_HZ)
    if not pair_CS.any(axis=1).all():
        return LOWEST_PESQ
    try:
        return float(pesq.pesq(PESQ_RATE_HZ, pair_CS[0], pair_CS[1], "wb"))
    except (pesq.NoUtterancesError, pesq.BufferTooShortError):
        return LOWEST_PESQ


def stoi(reference_S: np.ndarray, estimate_S: np.ndarray, sample_rate_hz: int) -> float:
    """Short-time objective intelligibility (Taal et al., 2011); 0 where either is silent."""
    import pystoi

    if not np.any(reference_S) or not np.any(estimate_S):
        return 0.0
    return float(pystoi.stoi(reference_S, estimate_S, sample_rate_hz, extended=False))


def segmental_snr(reference_S: np.ndarray, estimate_S: np.ndarray, sample_rate_hz: int) -> float:
    """Mean over frames of the SNR in dB, each held to -10..35 dB (Hu and Loizou, 2008).

    Frames are of 30 ms with a Hann window, a quarter of that apart.
    """
    frame = max(2, round(FRAME_SECONDS * sample_rate_hz))
    hop = max(1, round(HOP_SECONDS * sample_rate_hz))
    padding = max(0, frame - len(reference_S))
    reference_S, error_S = (
        np.pad(np.asarray(x, np.float64), (0, padding))
        for x in (reference_S, np.asarray(reference_S, np.float64) - estimate_S)
    )
    window_W = 0.5 * (1 - np.cos(2 * np.pi * np.arange(1, frame + 1) / (frame + 1)))

    def energy(audio_S: np.ndarray) -> np.ndarray:
        frames_TW = np.lib.stride_tricks.sliding_window_view(audio_S, frame)[::hop]
        return np.sum((frames_TW * window_W) ** 2, axis=1)

    snr_T = 10 * np.log10(energy(reference_S) / (energy(error_S) + _TINY) + _TINY)
    return float(np.mean(np.clip(snr_T, MIN_SEGMENT_DB, MAX_SEGMENT_DB)))
