"""Baselines to compare the network with: no separation, and masks computed from the target."""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from audiosep_jax.audio.files import resample
from audiosep_jax.data.mixing import caption_key
from audiosep_jax.errors import InputError
from audiosep_jax.evaluation.lists import Item
from audiosep_jax.metrics import fitted
from audiosep_jax.model.network import ModelConfig
from audiosep_jax.model.stft import istft, stft

WITH_NETWORK = ("", "random_query")  # "" is no baseline: the separation itself
_TINY = 1e-20


def estimate(
    baseline: str,
    model: ModelConfig,
    mixture_S: np.ndarray,
    target_S: np.ndarray,
    sample_rate_hz: int,
) -> np.ndarray:
    """Estimate `(S,)` of a baseline of `protocols.BASELINES` that has no network."""
    if baseline == "mixture":
        return mixture_S
    if baseline == "silence":
        return np.zeros_like(mixture_S)
    rates = sample_rate_hz, model.sample_rate_hz
    both_BS = resample(np.stack([mixture_S, target_S]), *rates)
    estimate_S = np.asarray(masked(MASKS[baseline], model, both_BS[:1], both_BS[1:]))
    return fitted(resample(estimate_S, *rates[::-1])[0], len(mixture_S))


@functools.partial(jax.jit, static_argnums=(0, 1))
def masked(
    mask: Callable[[jax.Array, jax.Array], jax.Array],
    model: ModelConfig,
    mixture_BS: jax.Array,
    target_BS: jax.Array,
) -> jax.Array:
    """Estimates `(B, S)` of a mask that is computed from the target, at the model's STFT."""
    window, hop = model.window_samples, model.hop_samples
    mixture_BTF, target_BTF = (stft(x, window, hop) for x in (mixture_BS, target_BS))
    estimate_BTF = mask(target_BTF, mixture_BTF - target_BTF) * mixture_BTF
    return istft(estimate_BTF, mixture_BS.shape[1], window, hop)


def ideal_ratio_mask(target_BTF: jax.Array, noise_BTF: jax.Array) -> jax.Array:
    """sqrt(|S|^2 / (|S|^2 + |N|^2)), 0 to 1 (Wang, Narayanan and Wang, 2014, eq. 3, beta 0.5)."""
    target, noise = (jnp.abs(x) ** 2 for x in (target_BTF, noise_BTF))
    return jnp.sqrt(target / jnp.maximum(target + noise, _TINY))


def ideal_complex_mask(target_BTF: jax.Array, noise_BTF: jax.Array) -> jax.Array:
    """S / (S + N) with its magnitude limited to 1, as the network's mask is."""
    mixture_BTF = target_BTF + noise_BTF
    power_BTF = jnp.maximum(jnp.abs(mixture_BTF) ** 2, _TINY)
    mask_BTF = target_BTF * jnp.conj(mixture_BTF) / power_BTF
    return mask_BTF / jnp.maximum(jnp.abs(mask_BTF), 1)


MASKS = {"irm": ideal_ratio_mask, "icm": ideal_complex_mask}


def sounds_of(items: Sequence[Item]) -> list[set[str]]:
    """Keys of the queries that describe a sound of each mixture.

    A noise is known by its own query, and by those of the rows whose target it is.
    """
    captions: dict[str, set[str]] = {}  # keys of the queries for each target
    for item in items:
        for clip in item.clips[:1]:
            captions.setdefault(clip, set()).add(caption_key(item.query))
    return [
        {caption_key(item.query), caption_key(item.noise_query)}.union(
            *(captions.get(clip, ()) for clip in item.clips)
        )
        for item in items
    ]


def random_queries(items: Sequence[Item], seed: int = 0) -> list[str]:
    """Draw for each item a query of the list that describes neither of its sounds.

    InputError if there is no query.
    """
    spelling = {caption_key(item.query): item.query for item in reversed(items)}
    distinct = sorted(spelling)
    rng = np.random.default_rng(np.random.SeedSequence(seed))
    drawn = []
    for item, known in zip(items, sounds_of(items), strict=True):
        if known.issuperset(distinct):
            raise InputError(f"the list has no query for other sounds than those of {item.id}")
        while (key := distinct[int(rng.integers(len(distinct)))]) in known:
            pass
        drawn.append(spelling[key])
    return drawn
