"""AudioSep's mixing recipe in numpy: pure functions that take their random generator."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from audiosep_jax.errors import InputError

_SILENCE_ENERGY = 1e-10  # the original's floor under the reference's energy


@dataclasses.dataclass(frozen=True)
class MixingConfig:
    """How clips are added to a mixture; the defaults are the published recipe."""

    max_mix_num: int = 2  # clips in a mixture, the target among them
    min_gain_db: int = -10
    max_gain_db: int = 10
    min_match_ratio: float = 0.02
    max_match_ratio: float = 50.0
    declipped_peak: float = 0.9

    def __post_init__(self) -> None:
        for name in ("max_mix_num", "min_gain_db", "max_gain_db"):
            value = vars(self)[name]
            if isinstance(value, bool) or not isinstance(value, int):
                raise InputError(f"mixing.{name} must be an integer, not {value!r}")
        if self.max_mix_num < 2:
            raise InputError(f"mixing.max_mix_num must be at least 2, not {self.max_mix_num}")
        if not -100 <= self.min_gain_db <= self.max_gain_db <= 100:
            gains = f"{self.min_gain_db} to {self.max_gain_db}"
            raise InputError(f"mixing.min_gain_db to max_gain_db must rise in -100..100: {gains}")
        if not 0 < self.min_match_ratio <= self.max_match_ratio < float("inf"):
            ratios = f"{self.min_match_ratio} to {self.max_match_ratio}"
            raise InputError(
                f"mixing.min_match_ratio to max_match_ratio must rise above 0: {ratios}"
            )
        if not 0 < self.declipped_peak <= 1:
            raise InputError(f"mixing.declipped_peak must be in (0, 1], not {self.declipped_peak}")


def crop_or_pad(audio_S: np.ndarray, num_samples: int, rng: np.random.Generator) -> np.ndarray:
    """A random stretch of `num_samples`, or the whole clip with zeros behind it."""
    surplus = len(audio_S) - num_samples
    if surplus > 0:
        start = int(rng.integers(surplus + 1))
        return audio_S[start : start + num_samples]
    return np.pad(audio_S, (0, -surplus))


def energy(audio_S: np.ndarray) -> float:
    """Mean square, summed in float64."""
    return float(np.mean(np.square(audio_S, dtype=np.float64)))


def decibels(gain_db: float) -> float:
    """Amplitude factor of a gain."""
    return 10.0 ** (gain_db / 20.0)


def match_energy(
    audio_S: np.ndarray,
    reference_S: np.ndarray,
    min_ratio: float = 0.02,
    max_ratio: float = 50.0,
) -> np.ndarray:
    """`audio_S` times sqrt(energy_reference / energy_audio) clamped to min_ratio..max_ratio."""
    energy_audio = max(energy(audio_S), np.finfo(np.float64).tiny)
    energy_reference = max(energy(reference_S), _SILENCE_ENERGY)
    ratio = np.clip(np.sqrt(energy_reference / energy_audio), min_ratio, max_ratio)
    return audio_S * audio_S.dtype.type(ratio)


def random_gain(audio_S: np.ndarray, config: MixingConfig, rng: np.random.Generator) -> np.ndarray:
    """`audio_S` louder or softer by whole decibels, each equally likely, both ends included."""
    gain_db = int(rng.integers(config.min_gain_db, config.max_gain_db, endpoint=True))
    return audio_S * audio_S.dtype.type(decibels(gain_db))


def declip(
    mixture_S: np.ndarray, target_S: np.ndarray, peak: float = 0.9
) -> tuple[np.ndarray, np.ndarray]:
    """Both scaled alike so that the mixture peaks at `peak`, if it peaked above 1."""
    loudest = float(np.max(np.abs(mixture_S)))
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
    """(mixture_S, target_S): each interferer, then their sum, is energy-matched and gained."""

    def loudness(audio_S: np.ndarray) -> np.ndarray:
        ratios = config.min_match_ratio, config.max_match_ratio
        return random_gain(match_energy(audio_S, target_S, *ratios), config, rng)

    noise_S = np.sum([loudness(audio_S) for audio_S in interferers_KS], axis=0)
    return declip(target_S + loudness(noise_S), target_S, config.declipped_peak)


def mix_at_snr(
    target_S: np.ndarray, interferer_S: np.ndarray, snr_db: float, peak: float = 0.9
) -> tuple[np.ndarray, np.ndarray]:
    """(mixture_S, target_S) at exactly `snr_db`; neither clip may be silent."""
    ratio = np.sqrt(energy(target_S) / energy(interferer_S)) * decibels(-snr_db)
    noise_S = interferer_S * interferer_S.dtype.type(ratio)
    return declip(target_S + noise_S, target_S, peak)


def caption_key(caption: str) -> str:
    """What two captions have in common when they differ in case and spaces only."""
    return " ".join(caption.casefold().split())
