"""Changes to clips before they are mixed: pure functions, each with its own random generator.

All are off by default. Whatever is done to the target is done to the clip that the loss sees.
"""

import dataclasses
import math
from typing import Annotated

import numpy as np
from pydantic import Field
from scipy import fft

from audiosep_jax.data.mixing import between, decibels
from audiosep_jax.settings import Share, rising, section

_TRANSITION = 0.1  # width of a low-pass filter's edge, in parts of its cut-off
_RINGING_SECONDS = 0.05  # the response of a filter at 1 kHz or above has decayed by then
_OCTAVES = 7  # gains of the equaliser
_TIMBRE_SAMPLES = 1024  # its response has decayed by then

Cutoffs = Annotated[tuple[Annotated[float, Field(ge=1000)], ...], Field(min_length=1)]


@section
class AugmentConfig:
    """Probability of each change, and the ranges that it draws from."""

    gain_probability: Share = 0.0  # of the target; interferers are brought to its level
    gain_db: Annotated[tuple[float, ...], rising(-100, 100)] = (-12.0, 6.0)
    polarity_probability: Share = 0.0  # of each clip
    # Each clip is limited to the band of a telephone or of a codec at a low to a high rate.
    band_limit_probability: Share = 0.0
    band_limit_hz: Cutoffs = (3400.0, 4000.0, 5500.0, 7000.0, 8000.0, 11000.0, 15000.0)
    # All clips of a mixture are heard in one room, each from a place of its own.
    reverb_probability: Share = 0.0
    # To fall by 60 dB.
    reverb_seconds: Annotated[tuple[float, ...], rising(0.01, 10)] = (0.2, 1.0)
    # Direct sound over reverberation.
    reverb_direct_db: Annotated[tuple[float, ...], rising(-100, 100)] = (-3.0, 12.0)
    # Each clip is played slower or faster, which changes its pitch too.
    speed_probability: Share = 0.0
    speed: Annotated[tuple[float, ...], rising(0.25, 4)] = (0.8, 1.25)
    # Each clip gets a smooth curve of gains over frequency.
    equalise_probability: Share = 0.0
    equalise_db: Annotated[tuple[float, ...], rising(-100, 100)] = (-6.0, 6.0)
    # Each clip sounds only in a part of the mixture; the share of it is drawn evenly.
    span_probability: Share = 0.0
    span_share: Annotated[tuple[float, ...], rising(0.01, 1)] = (0.3, 1.0)
    silence_probability: Share = 0.0  # of mixtures that hold nothing but the target
    absent_probability: Share = 0.0  # of queries for what is not there: the target is silence

    @property
    def any(self) -> bool:
        """True if any change has a probability above 0."""
        return any(value for name, value in vars(self).items() if name.endswith("_probability"))


@dataclasses.dataclass(frozen=True)
class Changes:
    """Changes to one mixture."""

    silent_interferer: bool
    absent_target: bool
    gain_db: float
    room_seconds: float  # 0: no room


def draw_clip_changes(
    config: AugmentConfig, rng: np.random.Generator
) -> tuple[float, np.ndarray | None]:
    """Draw (speed, gains_db for `change_timbre` or None) of one clip.

    The number of draws does not depend on the config.
    """
    sped, equalised = rng.random(2).tolist()
    speed = math.exp(between(tuple(map(math.log, config.speed)), rng))
    least_db, most_db = config.equalise_db
    gains_db = rng.uniform(least_db, most_db, _OCTAVES)
    return (
        speed if sped < config.speed_probability else 1.0,
        gains_db if equalised < config.equalise_probability else None,
    )


def draw_changes(config: AugmentConfig, rng: np.random.Generator) -> Changes:
    """Draw the changes to one mixture.

    The number of draws does not depend on the config, so that one change does not affect another.
    """
    silent, absent, gained, reverberated = rng.random(4).tolist()
    gain_db, room_seconds = between(config.gain_db, rng), between(config.reverb_seconds, rng)
    return Changes(
        silent_interferer=silent < config.silence_probability,
        absent_target=absent < config.absent_probability,
        gain_db=gain_db if gained < config.gain_probability else 0.0,
        room_seconds=room_seconds if reverberated < config.reverb_probability else 0.0,
    )


def augment_target(
    audio_S: np.ndarray,
    changes: Changes,
    config: AugmentConfig,
    sample_rate_hz: int,
    rng: np.random.Generator,
) -> np.ndarray:
    """`augment_clip`, and the gain of the mixture."""
    audio_S = augment_clip(audio_S, changes, config, sample_rate_hz, rng)
    return audio_S * np.float32(decibels(changes.gain_db)) if changes.gain_db else audio_S


def augment_clip(
    audio_S: np.ndarray,
    changes: Changes,
    config: AugmentConfig,
    sample_rate_hz: int,
    rng: np.random.Generator,
) -> np.ndarray:
    """Change one clip: the part that sounds, polarity, band limit, and its place in the room."""
    # Nothing is drawn at probability 0, so that the batches of older configs stay the same.
    if config.span_probability and rng.random() < config.span_probability:
        audio_S = keep_span(audio_S, between(config.span_share, rng), rng.random())
    inverted, limited = rng.random(2).tolist()
    cutoff_hz = float(rng.choice(config.band_limit_hz))
    direct_db = between(config.reverb_direct_db, rng)
    if inverted < config.polarity_probability:
        audio_S = -audio_S
    if limited < config.band_limit_probability:
        audio_S = band_limit(audio_S, cutoff_hz, sample_rate_hz)
    if changes.room_seconds:
        audio_S = reverberate(
            audio_S, room_response(changes.room_seconds, direct_db, sample_rate_hz, rng)
        )
    return audio_S


def keep_span(audio_S: np.ndarray, share: float, place: float) -> np.ndarray:
    """Silence a clip outside of a span; `place` from 0 to 1 moves the span from start to end."""
    length = round(share * len(audio_S))
    begin = round(place * (len(audio_S) - length))
    span_S = np.zeros_like(audio_S)
    span_S[begin : begin + length] = audio_S[begin : begin + length]
    return span_S


def band_limit(audio_S: np.ndarray, cutoff_hz: float, sample_rate_hz: int) -> np.ndarray:
    """Low-pass of linear phase without delay; a cut-off above half the rate changes nothing.

    The gain falls as a raised cosine from 1 at 0.95 to 0 at 1.05 of the cut-off.
    """
    if cutoff_hz >= sample_rate_hz / 2:
        return audio_S
    num_samples = fft.next_fast_len(len(audio_S) + math.ceil(_RINGING_SECONDS * sample_rate_hz))
    freq_F = np.arange(num_samples // 2 + 1) * (sample_rate_hz / num_samples)
    place_F = np.clip((freq_F / cutoff_hz - 1) / _TRANSITION, -0.5, 0.5)
    gain_F = (0.5 - 0.5 * np.sin(np.pi * place_F)).astype(np.float32)
    spectrum_F = fft.rfft(audio_S, num_samples) * gain_F
    return fft.irfft(spectrum_F, num_samples)[: len(audio_S)]


def change_timbre(
    audio_S: np.ndarray, num_samples: int, gains_db: np.ndarray | None = None
) -> np.ndarray:
    """Play a clip so that it lasts `num_samples`, with gains over frequency.

    The gains are those at each octave up to half the rate, lowest first. Between them decibels are
    linear over octaves; below the first, its gain applies. The speed is lower than that of the
    lengths by up to 1 %, for the sake of a fast Fourier transform.
    """
    if gains_db is None and len(audio_S) == num_samples:
        return audio_S
    num_in = fft.next_fast_len(len(audio_S) + _TIMBRE_SAMPLES)
    num_out = fft.next_fast_len(math.ceil(num_in * num_samples / len(audio_S)))
    spectrum_F = fft.rfft(audio_S, num_in) * np.float32(num_out / num_in)
    if gains_db is not None:
        octave_F = np.log2(np.maximum(np.arange(len(spectrum_F)), 1) / (num_in / 2))
        gain_db_F = np.interp(octave_F, np.arange(1 - len(gains_db), 1), gains_db)
        spectrum_F *= np.exp(gain_db_F.astype(np.float32) * np.float32(math.log(10) / 20))
    return fft.irfft(spectrum_F, num_out)[:num_samples]


def room_response(
    seconds: float, direct_db: float, sample_rate_hz: int, rng: np.random.Generator
) -> np.ndarray:
    """An impulse, then noise that falls by 60 dB in `seconds` (Polack, 1988); energy 1 in all.

    The impulse has `direct_db` more energy than the noise.
    """
    num_samples = max(2, round(seconds * sample_rate_hz))
    noise_S = rng.standard_normal(num_samples - 1, np.float32)
    noise_S *= 10 ** (-3 * np.arange(1, num_samples, dtype=np.float32) / num_samples)
    response_S = np.concatenate([np.zeros(1, np.float32), noise_S])
    response_S *= np.float32(decibels(-direct_db)) / np.linalg.norm(noise_S)
    response_S[0] = 1
    return response_S / np.linalg.norm(response_S)


def reverberate(audio_S: np.ndarray, response_S: np.ndarray) -> np.ndarray:
    """Convolution with a room's response, as long as the clip."""
    num_samples = fft.next_fast_len(len(audio_S) + len(response_S) - 1)
    spectrum_F = fft.rfft(audio_S, num_samples) * fft.rfft(response_S, num_samples)
    return fft.irfft(spectrum_F, num_samples)[: len(audio_S)]
