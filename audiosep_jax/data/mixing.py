"""AudioSep's mixing recipe in numpy: pure functions that take their random generator."""

import math
from collections.abc import Sequence
from typing import Annotated, Protocol

import numpy as np
from pydantic import Field

from audiosep_jax.errors import InputError
from audiosep_jax.settings import Positive, Share, rising, section

_SILENCE_ENERGY = 1e-10  # the original's floor under the reference's energy
_BLOCK_SAMPLES = 8192  # few enough that BLAS starts no threads


Gain = Annotated[int, Field(ge=-100, le=100)]


@section
class MixingConfig:
    """Settings of adding clips to a mixture; the defaults are the published recipe."""

    max_mix_num: Annotated[int, Field(ge=2, le=1024)] = 2  # clips in a mixture, with the target
    min_gain_db: Gain = -10
    max_gain_db: Gain = 10
    min_match_ratio: Positive = 0.02
    max_match_ratio: Positive = 50.0
    declipped_peak: Annotated[float, Field(gt=0, le=1)] = 0.9
    # Lowest and highest; where given, the SNR is drawn evenly and exact, within no match ratio.
    snr_db: Annotated[tuple[float, ...], rising(-100, 100, optional=True)] = ()
    # Lowest and highest RMS of the target, in dB of full scale; empty: as recorded.
    target_rms_db: Annotated[tuple[float, ...], rising(-100, 0, optional=True)] = ()
    # Largest number of sounds in one recording. Each sound of the mixture is a query of its own:
    # the estimates of the target's sounds add up to the target, the others to the rest. With 1, one
    # caption of the target is the only query.
    num_queries: Annotated[int, Field(ge=1, le=64)] = 1
    # Random crops of each clip, of which the first is taken that is no pause beside the others.
    num_crops: Annotated[int, Field(ge=1, le=64)] = 1
    # Share of mixtures that are asked by a relational sentence (`data/cues.py`), if one holds.
    cue_probability: Share = 0.0
    # Share of targets with a sentence and a picture whose query is a random blend of one of each.
    mixup_probability: Share = 0.0

    def __post_init__(self) -> None:
        if self.cue_probability and (self.max_mix_num > 2 or self.num_queries > 1):
            raise InputError(
                f"cue_probability={self.cue_probability} compares two clips; "
                "it needs max_mix_num=2 and num_queries=1"
            )
        if self.mixup_probability and self.num_queries > 1:
            raise InputError(f"mixup_probability={self.mixup_probability} needs num_queries=1")
        if self.num_queries > 1 and self.max_mix_num > 2:  # two of the rest may be of one kind
            raise InputError(f"num_queries={self.num_queries} needs max_mix_num=2")
        for low, high in (("min_gain_db", "max_gain_db"), ("min_match_ratio", "max_match_ratio")):
            least, most = getattr(self, low), getattr(self, high)
            if least > most:
                raise InputError(f"{low}={least} must be at most {high}={most}")


def between(ends: tuple[float, ...], rng: np.random.Generator) -> float:
    """Draw a number between a low and a high end."""
    low, high = ends
    return rng.uniform(low, high)


class Audio(Protocol):
    """Samples of a clip, float32: an array, or an object that decodes the slice asked for."""

    def __len__(self) -> int: ...

    def __getitem__(self, span: slice) -> np.ndarray: ...


def crop_or_pad(
    audio_S: Audio,
    num_samples: int,
    rng: np.random.Generator,
    *,
    num_crops: int = 1,
    length: int | None = None,
) -> np.ndarray:
    """Random crop of `num_samples`, or the whole clip with zeros behind it.

    Args:
        num_crops: crops to draw, of which the first is taken whose power is at most 20 dB below
            that of the loudest.
        length: length of the crop, if another one; the draws are those for `num_samples`.
    """
    surplus, length = len(audio_S) - num_samples, length or num_samples
    last, crops = max(0, len(audio_S) - length), []
    for _ in range(num_crops if surplus > 0 else 1):
        start = min(int(rng.integers(surplus + 1)) if surplus > 0 else 0, last)
        crops.append(audio_S[start : start + length])
    powers = [np.square(crop_S).mean() for crop_S in crops] if len(crops) > 1 else [1]
    crop_S = crops[next(k for k, power in enumerate(powers) if power >= max(powers) / 100)]
    return crop_S if len(crop_S) == length else np.pad(crop_S, (0, length - len(crop_S)))


def energy(audio_S: np.ndarray) -> float:
    """Mean square, summed in float64."""
    wide_S = audio_S.astype(np.float64)
    whole = len(wide_S) - len(wide_S) % _BLOCK_SAMPLES
    blocks = wide_S[:whole].reshape(-1, _BLOCK_SAMPLES)
    tail_S = wide_S[whole:]
    return float(np.vecdot(blocks, blocks).sum() + tail_S @ tail_S) / len(wide_S)


def decibels(gain_db: float) -> float:
    """Amplitude factor of a gain."""
    return 10.0 ** (gain_db / 20.0)


def match_ratio(
    energy_audio: float, energy_reference: float, min_ratio: float, max_ratio: float
) -> float:
    """Amplitude factor that brings one energy to the other, clamped; defined for silence too."""
    energy_audio = max(energy_audio, np.finfo(np.float64).tiny)
    energy_reference = max(energy_reference, _SILENCE_ENERGY)
    return min(max(math.sqrt(energy_reference / energy_audio), min_ratio), max_ratio)


def declip(
    mixture_S: np.ndarray, target_S: np.ndarray, peak: float = 0.9
) -> tuple[np.ndarray, np.ndarray]:
    """Scale both alike so that the mixture peaks at `peak`, if it peaks above 1."""
    loudest = max(float(mixture_S.max()), -float(mixture_S.min()))
    if loudest <= 1:
        return mixture_S, target_S
    scale = mixture_S.dtype.type(peak / loudest)
    return mixture_S * scale, target_S * scale


def mix(
    target_S: np.ndarray,
    interferers_KS: Sequence[np.ndarray] | np.ndarray,
    config: MixingConfig,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Mix a target with interferers; return (mixture_S, target_S).

    Each interferer, and then their sum, is brought to the energy of the target and to a random gain
    relative to it. With `snr_db` the sum gets a random SNR instead. With `target_rms_db` the target
    is first brought to a random RMS.
    """
    target_S = _at_random_rms(target_S, config, rng)
    energy_target = energy(target_S)
    ratios = config.min_match_ratio, config.max_match_ratio

    def level(audio_S: np.ndarray, out_S: np.ndarray | None = None) -> np.ndarray:
        """Match, then gain: two steps, for the rounding of the original."""
        number = audio_S.dtype.type
        ratio = match_ratio(energy(audio_S), energy_target, *ratios)
        out_S = np.multiply(audio_S, number(ratio), out=out_S)
        gain_db = int(rng.integers(config.min_gain_db, config.max_gain_db, endpoint=True))
        return np.multiply(out_S, number(decibels(gain_db)), out=out_S)

    noise_S: np.ndarray | None = None
    for interferer_S in interferers_KS:
        leveled_S = level(interferer_S)
        noise_S = leveled_S if noise_S is None else np.add(noise_S, leveled_S, out=noise_S)
    if noise_S is None:
        return declip(target_S, target_S, config.declipped_peak)
    if config.snr_db:
        snr_db = between(config.snr_db, rng)
        noise_S *= noise_S.dtype.type(snr_ratio(energy_target, energy(noise_S), snr_db))
    else:
        level(noise_S, noise_S)
    return declip(np.add(target_S, noise_S, out=noise_S), target_S, config.declipped_peak)


def _at_random_rms(
    target_S: np.ndarray, config: MixingConfig, rng: np.random.Generator
) -> np.ndarray:
    if not config.target_rms_db:
        return target_S
    wanted = decibels(between(config.target_rms_db, rng))
    rms = math.sqrt(max(energy(target_S), _SILENCE_ENERGY))  # silence stays silence
    return target_S * target_S.dtype.type(wanted / rms)


def snr_ratio(energy_target: float, energy_noise: float, snr_db: float) -> float:
    """Amplitude factor of the noise for that SNR; silence counts as -100 dB of full scale."""
    energy_target, energy_noise = (max(x, _SILENCE_ENERGY) for x in (energy_target, energy_noise))
    return math.sqrt(energy_target / energy_noise) * decibels(-snr_db)


def mix_at_snr(
    target_S: np.ndarray, interferer_S: np.ndarray, snr_db: float, peak: float = 0.9
) -> tuple[np.ndarray, np.ndarray]:
    """(mixture_S, target_S) at exactly `snr_db`; neither clip may be silent."""
    ratio = snr_ratio(energy(target_S), energy(interferer_S), snr_db)
    noise_S = interferer_S * interferer_S.dtype.type(ratio)
    return declip(target_S + noise_S, target_S, peak)


def caption_key(caption: str) -> str:
    """Form that is equal for captions that differ in case and spaces only."""
    return " ".join(caption.casefold().split())
