"""Relational sentences, such as "whoever speaks first", and a test which of two clips they fit.

Clips are compared while they are mixed, so the sentences need no annotation.
"""

import math

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from scipy import fft

_FRAME_SECONDS = 0.064  # more than three periods of the lowest pitch
_ACTIVE = 1e-3  # 30 dB below the loudest frame, relative power
_SILENT_POWER = 1e-8  # -80 dB of full scale
_PITCH_HZ = (60.0, 500.0)
_VOICED = 0.5  # least autocorrelation, relative to that at lag 0

# Quantities that `describe` returns, and the least difference that a sentence needs.
LEVEL, ONSET, TIME, PITCH = range(4)
LEAST = (2.0, 0.3, math.log(1.2), 2.0)  # dB, seconds, 20 %, semitones
# Quantity, sign of the difference from the other clip, wordings.
CUES = (
    (LEVEL, 1, ("the louder speaker", "the louder voice", "whoever speaks louder")),
    (LEVEL, -1, ("the quieter voice", "the quieter speaker", "whoever speaks more quietly")),
    (ONSET, -1, ("whoever speaks first", "the first to speak", "the speaker who starts first")),
    (ONSET, 1, ("the last to speak", "whoever speaks last", "the speaker who starts last")),
    (TIME, 1, ("the one who talks longer", "whoever talks longer", "the longer speech")),
    (PITCH, 1, ("the higher voice", "the voice of higher pitch", "whoever has the higher voice")),
    (PITCH, -1, ("the deeper voice", "the voice of lower pitch", "whoever has the deeper voice")),
)
SENTENCES = tuple(sentence for _, _, wordings in CUES for sentence in wordings)


def holding(target_S: np.ndarray, rest_S: np.ndarray, sample_rate_hz: int) -> tuple[str, ...]:
    """Return all wordings of the sentences that are true of the target, not of the other clip."""
    more = describe(target_S, sample_rate_hz) - describe(rest_S, sample_rate_hz)
    held = (wordings for what, sign, wordings in CUES if sign * more[what] >= LEAST[what])
    return tuple(sentence for wordings in held for sentence in wordings)


def describe(audio_S: np.ndarray, sample_rate_hz: int) -> np.ndarray:
    """Measure level while active (dB), onset (s), log of the active time, and pitch (semitones).

    All are NaN for silence, and the pitch is NaN for a clip without one. The pitch is the median
    fundamental frequency of the active frames with a clear period.
    """
    num_samples = min(len(audio_S), max(2, round(_FRAME_SECONDS * sample_rate_hz)))
    frames_TS = sliding_window_view(audio_S, num_samples)[:: num_samples // 2]
    power_T = np.square(frames_TS).mean(axis=1, dtype=np.float64)
    if power_T.max() <= _SILENT_POWER:
        return np.full(4, np.nan)
    active_T = power_T > _ACTIVE * power_T.max()
    onset = np.argmax(active_T) * (num_samples // 2) / sample_rate_hz
    level_db = 10 * math.log10(power_T[active_T].mean())
    pitch = 12 * math.log2(_pitch_hz(frames_TS[active_T], sample_rate_hz))
    return np.array([level_db, onset, math.log(active_T.sum()), pitch])


def _pitch_hz(frames_TS: np.ndarray, sample_rate_hz: int) -> float:
    """Median fundamental frequency by autocorrelation; NaN if no frame has a period.

    The autocorrelation is not divided by the overlap of the frames, so that the period is a higher
    peak than its multiples.
    """
    num_samples = frames_TS.shape[1]
    spectrum_TF = fft.rfft(frames_TS - frames_TS.mean(axis=1, keepdims=True), 2 * num_samples)
    similar_TS = fft.irfft(np.square(np.abs(spectrum_TF)), 2 * num_samples)[:, :num_samples]
    least, most = (round(sample_rate_hz / hz) for hz in reversed(_PITCH_HZ))
    inner_TS = similar_TS[:, 1:-1]
    is_peak_TS = (inner_TS > similar_TS[:, :-2]) & (inner_TS >= similar_TS[:, 2:])
    lag_S = np.arange(1, num_samples - 1)
    is_peak_TS &= (lag_S >= least) & (lag_S <= most)
    is_peak_TS &= inner_TS > _VOICED * similar_TS[:, :1]
    voiced_T = is_peak_TS.any(axis=1)
    if not voiced_T.any():
        return math.nan
    best_T = np.argmax(np.where(is_peak_TS, inner_TS, 0)[voiced_T], axis=1) + 1
    return sample_rate_hz / float(np.median(best_T))
