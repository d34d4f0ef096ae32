"""Scores of one clip beside SDR: those of enhanced speech, and CLAPScore."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from audiosep_jax.audio import files as audio_files
from audiosep_jax.encoders import make_encoder
from audiosep_jax.encoders.encoder import TextConfig
from audiosep_jax.encoders.pretrained import AudioEncoder
from audiosep_jax.errors import InputError
from audiosep_jax.metrics import fitted


class Scored(NamedTuple):
    """Signals, sample rate and query that a score is computed from."""

    reference_S: np.ndarray
    estimate_S: np.ndarray
    mixture_S: np.ndarray
    sample_rate_hz: int
    query: str


ScoreFunction = Callable[[Scored], Mapping[str, float]]

PESQ_RATE_HZ, LOWEST_PESQ = 16000, 1.0  # wide band
STOI_LEAST_SECONDS = 0.4  # its shortest segment: 30 frames
_TINY = 1e-10


def score_functions(
    queries: Sequence[str], speech: bool, clap_model: str | None
) -> list[ScoreFunction]:
    """Functions of the scores of speech, and of CLAPScore with a folder or hub id.

    A `clap_model` of "" is the default model, None no CLAPScore.
    """
    functions: list[ScoreFunction] = []
    if speech:
        try:
            import pesq  # noqa: F401
            import pystoi  # noqa: F401
        except ImportError as error:
            hint = "pip install 'audiosep-jax[eval]'"
            raise InputError(f"PESQ and STOI need the packages pesq and pystoi: {hint}") from error
        functions.append(speech_scores)
    if clap_model is not None:
        functions.append(ClapScore(queries, clap_model))
    return functions


class ClapScore:
    """CLAPScore: the cosine of the query's and the estimate's CLAP embeddings; 0 for silence."""

    def __init__(self, queries: Sequence[str], model: str = "") -> None:
        text = TextConfig(encoder="clap", model=model)
        distinct = list(dict.fromkeys(queries))
        self._text = dict(zip(distinct, make_encoder(text)(distinct), strict=True))
        self._encoder, self._model = AudioEncoder(text.source), model

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the arguments: the model is loaded where it is used."""
        return ClapScore, (list(self._text), self._model)

    def __call__(self, clip: Scored) -> dict[str, float]:
        if not np.any(clip.estimate_S):
            return {"clap_score": 0.0}
        audio_NE = self._encoder.embed_audio(clip.estimate_S, clip.sample_rate_hz)
        return {"clap_score": float(audio_NE[0] @ self._text[clip.query])}


def speech_scores(clip: Scored) -> dict[str, float]:
    """`pesq` (wide band, 1.04 to 4.64), `stoi` (at most 1) and `segmental_snr` (dB).

    If no speech is found, for example in silence, PESQ is 1 and STOI 0, their lowest values.
    """
    scored = clip.reference_S, clip.estimate_S, clip.sample_rate_hz
    return {
        "pesq": pesq_wide_band(*scored),
        "stoi": stoi(*scored),
        "segmental_snr": segmental_snr(*scored),
    }


def pesq_wide_band(reference_S: np.ndarray, estimate_S: np.ndarray, sample_rate_hz: int) -> float:
    """PESQ of ITU-T P.862.2 at 16 kHz; 1 if it finds no utterance or less than 0.25 s of audio."""
    import pesq

    pair_CS = np.stack([reference_S, estimate_S]).astype(np.float32)
    pair_CS = audio_files.resample(pair_CS, sample_rate_hz, PESQ_RATE_HZ)
    if not pair_CS.any(axis=1).all():
        return LOWEST_PESQ
    try:
        value = float(pesq.pesq(PESQ_RATE_HZ, pair_CS[0], pair_CS[1], "wb"))
    except (pesq.NoUtterancesError, pesq.BufferTooShortError):
        return LOWEST_PESQ
    return value if np.isfinite(value) else LOWEST_PESQ


def stoi(reference_S: np.ndarray, estimate_S: np.ndarray, sample_rate_hz: int) -> float:
    """Short-time objective intelligibility (Taal et al., 2011); 0 for silent or short clips."""
    import pystoi

    is_short = len(reference_S) < STOI_LEAST_SECONDS * sample_rate_hz
    if is_short or not np.any(reference_S) or not np.any(estimate_S):
        return 0.0
    return float(pystoi.stoi(reference_S, estimate_S, sample_rate_hz, extended=False))


def segmental_snr(reference_S: np.ndarray, estimate_S: np.ndarray, sample_rate_hz: int) -> float:
    """Mean over frames of the SNR in dB, clipped to -10..35 dB (Hu and Loizou, 2008).

    Frames have 30 ms, a Hann window and a hop of a quarter.
    """
    frame = max(2, round(0.030 * sample_rate_hz))
    hop = max(1, round(0.0075 * sample_rate_hz))
    reference_S = np.asarray(reference_S, np.float64)
    num_samples = max(frame, len(reference_S))
    reference_S, error_S = (
        fitted(audio_S, num_samples) for audio_S in (reference_S, reference_S - estimate_S)
    )
    window_W = 0.5 * (1 - np.cos(2 * np.pi * np.arange(1, frame + 1) / (frame + 1)))

    def energy(audio_S: np.ndarray) -> np.ndarray:
        frames_TW = np.lib.stride_tricks.sliding_window_view(audio_S, frame)[::hop]
        return np.sum((frames_TW * window_W) ** 2, axis=1)

    snr_T = 10 * np.log10(energy(reference_S) / (energy(error_S) + _TINY) + _TINY)
    return float(np.mean(np.clip(snr_T, -10, 35)))
