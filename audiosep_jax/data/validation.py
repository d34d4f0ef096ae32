"""The fixed mixtures of held-out clips that a run is scored on."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from audiosep_jax.data import mixing as mixing_lib
from audiosep_jax.data.batches import ClipSampler
from audiosep_jax.data.mixing import MixingConfig
from audiosep_jax.data.source import Source
from audiosep_jax.data.sources import DataConfig, num_segment_samples
from audiosep_jax.errors import InputError

_AUDIBLE_ENERGY = 1e-8  # -80 dB of full scale
_MAX_SILENT = 64  # silent crops in a row before the set is given up


def validation_set(
    source: Source | ClipSampler,
    conditions: Mapping[str, np.ndarray] | None,
    mixing: MixingConfig,
    data: DataConfig,
    *,
    seed: int,
    num_mixtures: int,
    gain_db: int = 0,
) -> dict[str, Any]:
    """N fixed mixtures of two clips at exactly `gain_db` of SNR, on the keys of the batch schema.

    `wrong_condition` (N, E) is the embedding of a caption that describes neither clip (that of the
    interferer where there is no third caption), `bad_clips` a list of the indices skipped. With
    `cue_probability` the conditions are relational sentences that hold for the target and for the
    interferer, where there are any. With `conditions=None` there are no conditions.
    """
    sampler = ClipSampler.of(source)
    num_samples = num_segment_samples(data, sampler.source.sample_rate_hz)
    rng = np.random.default_rng(np.random.SeedSequence(seed))
    rounds = -(-num_mixtures // sampler.num_recordings)
    order = np.concatenate([rng.permutation(sampler.num_recordings) for _ in range(rounds)])
    mixtures, targets, chosen, wrong, names = [], [], [], [], []
    bad: list[int] = []
    for recording in order[:num_mixtures].tolist():
        first = sampler.clip_of(recording, rng)
        index, target_S = _audible(sampler, num_samples, bad, rng, first=first)
        keys = sampler.captions.excluded(index)
        other, interferer_S = _audible(sampler, num_samples, bad, rng, avoid=keys)
        mixed = mixing_lib.mix_at_snr(target_S, interferer_S, gain_db, mixing.declipped_peak)
        mixtures.append(mixed[0])
        targets.append(mixed[1])
        query = sampler.caption_of(index, rng)
        try:
            third = sampler.draw(rng, keys | sampler.captions.excluded(other))
        except InputError:  # every clip shares a caption with one of the two
            third = other
        wrong_query = sampler.caption_of(third, rng)
        if mixing.cue_probability:
            rest_S = mixed[0] - mixed[1]
            query = sampler.cue(mixed[1], rest_S, rng) or query
            wrong_query = sampler.cue(rest_S, mixed[1], rng) or wrong_query
        chosen.append(sampler.text(query))
        wrong.append(sampler.text(wrong_query))
        names.append(sampler.source.name(index))
    made = {
        "mixture": np.stack(mixtures),
        "target": np.stack(targets),
        "caption": chosen,
        "source_id": names,
        "bad_clips": sorted(set(bad)),
    }
    if conditions is not None:
        made["condition"] = np.stack([conditions[caption] for caption in chosen])
        made["wrong_condition"] = np.stack([conditions[caption] for caption in wrong])
    return made


def _audible(
    sampler: ClipSampler,
    num_samples: int,
    bad: list[int],
    rng: np.random.Generator,
    *,
    avoid: frozenset[int] = frozenset(),
    first: int | None = None,
) -> tuple[int, np.ndarray]:
    """(index, audio_S) of a crop that is not silent, since silence has no SNR."""
    for _ in range(_MAX_SILENT):
        index, audio_S = sampler.load(rng, num_samples, bad, avoid=avoid, first=first)
        if mixing_lib.energy(audio_S) > _AUDIBLE_ENERGY:
            return index, audio_S
        first = None
    last = sampler.source.name(index)
    raise InputError(f"{_MAX_SILENT} crops drawn for validation were all silent, last: {last}")
