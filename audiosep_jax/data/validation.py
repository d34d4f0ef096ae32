"""The fixed mixtures of held-out clips that a run is scored on."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from audiosep_jax.data import mixing as mixing_lib
from audiosep_jax.data.batches import ClipSampler, check_conditions
from audiosep_jax.data.mixing import MixingConfig
from audiosep_jax.data.sources import DataConfig, Source, num_segment_samples
from audiosep_jax.errors import InputError

_AUDIBLE_ENERGY = 1e-8  # -80 dB of full scale
_MAX_SILENT = 64  # silent crops in a row before the set is given up


def validation_set(
    source: Source | ClipSampler,
    conditions: Mapping[str, np.ndarray],
    mixing: MixingConfig,
    data: DataConfig,
    *,
    seed: int,
    num_mixtures: int,
    gain_db: int = 0,
) -> dict[str, Any]:
    """N fixed mixtures of two clips at exactly `gain_db` of SNR, on the keys of the batch schema.

    `wrong_condition` (N, E) is the embedding of a caption that describes neither clip (that of the
    interferer where there is no third caption), `bad_clips` a list of the indices skipped.
    """
    sampler = ClipSampler.of(source)
    check_conditions(sampler, conditions)
    num_samples = num_segment_samples(data, sampler.source.sample_rate_hz)
    maker = _MixtureMaker(sampler, num_samples, gain_db, mixing.declipped_peak)
    rng = np.random.default_rng(np.random.SeedSequence(seed))
    rounds = -(-num_mixtures // sampler.num_recordings)
    order = np.concatenate([rng.permutation(sampler.num_recordings) for _ in range(rounds)])
    mixtures = [maker(int(recording), rng) for recording in order[:num_mixtures]]
    return {
        "mixture": np.stack([mixture.mixture_S for mixture in mixtures]),
        "target": np.stack([mixture.target_S for mixture in mixtures]),
        "condition": np.stack([conditions[mixture.caption] for mixture in mixtures]),
        "wrong_condition": np.stack([conditions[mixture.wrong_caption] for mixture in mixtures]),
        "caption": [mixture.caption for mixture in mixtures],
        "source_id": [sampler.source.name(mixture.index) for mixture in mixtures],
        "bad_clips": sorted(set(maker.bad)),
    }


@dataclasses.dataclass(frozen=True)
class _Mixture:
    index: int
    mixture_S: np.ndarray
    target_S: np.ndarray
    caption: str
    wrong_caption: str


@dataclasses.dataclass(frozen=True)
class _MixtureMaker:
    sampler: ClipSampler
    num_samples: int
    snr_db: float
    peak: float
    bad: list[int] = dataclasses.field(default_factory=list)

    def __call__(self, recording: int, rng: np.random.Generator) -> _Mixture:
        captions, first = self.sampler.captions, self.sampler.clip_of(recording, rng)
        index, target_S = self._audible(rng, frozenset(), first)
        other, interferer_S = self._audible(rng, captions.keys(index))
        mixed = mixing_lib.mix_at_snr(target_S, interferer_S, self.snr_db, self.peak)
        caption = _pick(captions[index], rng)
        return _Mixture(index, *mixed, caption, self._wrong_caption(index, other, rng))

    def _audible(
        self, rng: np.random.Generator, avoid: frozenset[int], first: int | None = None
    ) -> tuple[int, np.ndarray]:
        """(index, audio_S) of a crop that is not silent, since silence has no SNR."""
        for _ in range(_MAX_SILENT):
            index, audio_S = self.sampler.load(
                rng, self.num_samples, self.bad, avoid=avoid, first=first
            )
            if mixing_lib.energy(audio_S) > _AUDIBLE_ENERGY:
                return index, audio_S
            first = None
        raise InputError(f"{_MAX_SILENT} crops drawn for validation were all silent")

    def _wrong_caption(self, target: int, interferer: int, rng: np.random.Generator) -> str:
        """Caption of a clip that shares none with the two, else one of the interferer's."""
        captions = self.sampler.captions
        try:
            other = self.sampler.draw(rng, captions.keys(target) | captions.keys(interferer))
        except InputError:
            other = interferer
        return _pick(captions[other], rng)


def _pick(captions: tuple[str, ...], rng: np.random.Generator) -> str:
    return captions[int(rng.integers(len(captions)))]
