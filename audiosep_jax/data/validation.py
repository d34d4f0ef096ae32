"""The fixed mixtures of held-out clips that a run is scored on."""

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from audiosep_jax.data import mixing as mixing_lib
from audiosep_jax.data.data_config import DataConfig, num_segment_samples
from audiosep_jax.data.drawing import BLIND_DRAWS, check_captions, draw_clip, keys, load_clip
from audiosep_jax.data.mixing import MixingConfig
from audiosep_jax.data.sources import Source
from audiosep_jax.errors import InputError

_AUDIBLE_ENERGY = 1e-8  # -80 dB of full scale


def validation_set(
    source: Source,
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
    check_captions(source, conditions)
    rng = np.random.default_rng(np.random.SeedSequence(seed))
    num_samples = num_segment_samples(data, source.sample_rate_hz)
    rounds = -(-num_mixtures // len(source))
    order = np.concatenate([rng.permutation(len(source)) for _ in range(rounds)])
    bad: list[int] = []
    rows = [
        _validation_row(source, int(first), num_samples, gain_db, mixing.declipped_peak, rng, bad)
        for first in order[:num_mixtures]
    ]
    return {
        "mixture": np.stack([row.mixture_S for row in rows]),
        "target": np.stack([row.target_S for row in rows]),
        "condition": np.stack([conditions[row.caption] for row in rows]),
        "wrong_condition": np.stack([conditions[row.wrong_caption] for row in rows]),
        "caption": [row.caption for row in rows],
        "source_id": [source.name(row.index) for row in rows],
        "bad_clips": sorted(set(bad)),
    }


@dataclasses.dataclass(frozen=True)
class _ValidationRow:
    index: int
    mixture_S: np.ndarray
    target_S: np.ndarray
    caption: str
    wrong_caption: str


def _validation_row(
    source: Source,
    first: int,
    num_samples: int,
    snr_db: float,
    peak: float,
    rng: np.random.Generator,
    bad: list[int],
) -> _ValidationRow:
    index, target_S = _audible_segment(source, num_samples, rng, bad, first=first)
    captions = source.captions(index)
    avoid = keys(captions)
    other, interferer_S = _audible_segment(source, num_samples, rng, bad, avoid=avoid)
    mixture_S, target_S = mixing_lib.mix_at_snr(target_S, interferer_S, snr_db, peak)
    return _ValidationRow(
        index,
        mixture_S,
        target_S,
        _pick(captions, rng),
        _pick(_wrong_captions(source, index, other, rng), rng),
    )


def _audible_segment(
    source: Source,
    num_samples: int,
    rng: np.random.Generator,
    bad: list[int],
    *,
    avoid: Collection[str] = (),
    first: int | None = None,
) -> tuple[int, np.ndarray]:
    """Like `load_clip`, cropped; a stretch of silence has no SNR, so another clip is drawn."""
    for attempt in range(BLIND_DRAWS):
        index, audio_S = load_clip(source, rng, bad, avoid=avoid, first=None if attempt else first)
        segment_S = mixing_lib.crop_or_pad(audio_S, num_samples, rng)
        if mixing_lib.energy(segment_S) > _AUDIBLE_ENERGY:
            return index, segment_S
    raise InputError(f"{BLIND_DRAWS} stretches drawn for validation were all silent")


def _wrong_captions(
    source: Source, target: int, interferer: int, rng: np.random.Generator
) -> tuple[str, ...]:
    """Captions of a clip that shares none with the two, else those of the interferer."""
    both = keys(source.captions(target)) | keys(source.captions(interferer))
    try:
        return source.captions(draw_clip(source, rng, both, ()))
    except InputError:
        return source.captions(interferer)


def _pick(captions: tuple[str, ...], rng: np.random.Generator) -> str:
    return captions[int(rng.integers(len(captions)))]
