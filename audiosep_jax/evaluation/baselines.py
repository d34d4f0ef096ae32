"""Estimators to compare the network with: no separation, and masks computed from the target.

Each is a body for `parallel_eval_step`, like the network: it maps variables and a batch with
`mixture`, `target` and `condition` to estimates `(B, S)`.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from audiosep_jax.data.mixing import caption_key
from audiosep_jax.errors import InputError
from audiosep_jax.evaluation.lists import Item
from audiosep_jax.model import make_model
from audiosep_jax.model.network import ModelConfig
from audiosep_jax.model.stft import istft, stft

WITHOUT_STFT = ("mixture", "silence")
WITH_NETWORK = ("", "random_query")  # "" is no baseline: the separation itself
_TINY = 1e-20

Body = Callable[[Any, Mapping[str, jax.Array]], jax.Array]


@functools.lru_cache(maxsize=4)
def body_of(baseline: str, model: ModelConfig) -> Body:
    """Body of a baseline of `protocols.BASELINES`, or of the network if `baseline` is ""."""
    if baseline in WITH_NETWORK:
        network = make_model(model)

        def separate(variables: Any, batch: Mapping[str, jax.Array]) -> jax.Array:
            mixture_BS, condition_BE = batch["mixture"], batch["condition"]
            return jnp.asarray(network.apply(variables, mixture_BS, condition_BE, train=False))

        return separate
    if baseline == "mixture":
        return lambda _, batch: batch["mixture"]
    if baseline == "silence":
        return lambda _, batch: jnp.zeros_like(batch["mixture"])
    mask = {"irm": ideal_ratio_mask, "icm": ideal_complex_mask}[baseline]
    return lambda _, batch: masked(mask, model, batch["mixture"], batch["target"])


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
