"""Baselines: no separation, masks computed from the target, and wrong queries."""

import numpy as np
import pytest
from separator_examples import TINY, tiny_batch

from audiosep_jax.errors import InputError
from audiosep_jax.evaluation.baselines import (
    estimate,
    ideal_complex_mask,
    ideal_ratio_mask,
    masked,
    random_queries,
)
from audiosep_jax.evaluation.lists import Item
from audiosep_jax.evaluation.mixtures import Mixture
from audiosep_jax.evaluation.runner import make_estimator
from audiosep_jax.metrics import sdr
from audiosep_jax.model.resunet import ResUNetConfig


def estimates(baseline, batch):
    pairs = zip(batch["mixture"], batch["target"], strict=True)
    return np.stack([estimate(baseline, TINY, *pair, TINY.sample_rate_hz) for pair in pairs])


def test_mixture_and_silence():
    batch = tiny_batch(1, 2)
    np.testing.assert_array_equal(estimates("mixture", batch), batch["mixture"])
    np.testing.assert_array_equal(estimates("silence", batch), 0 * batch["mixture"])


def test_masks_by_hand():
    target, noise = np.complex64([3, 4j, 2, 0, 0]), np.complex64([4, 3j, -3, 1, 0])
    np.testing.assert_allclose(ideal_ratio_mask(target, noise), [0.6, 0.8, 2 / 13**0.5, 0, 0], 1e-6)
    # 2 / (2 - 3) would be -2, more than the network can.
    expected = [3 / 7, 4 / 7, -1, 0, 0]
    np.testing.assert_allclose(ideal_complex_mask(target, noise), expected, rtol=1e-6)


def test_masks_come_close_to_the_target():
    batch = tiny_batch(1, 4, 400)
    mixture_BS, target_BS = batch["mixture"], batch["target"]
    plain = np.asarray(sdr(target_BS, mixture_BS))
    ratio = np.asarray(sdr(target_BS, estimates("irm", batch)))
    whole = np.asarray(sdr(target_BS, estimates("icm", batch)))
    assert (ratio > plain + 3).all()
    assert (whole > ratio).all()


def test_wrong_sentences_ask_for_neither_sound():
    items = [
        Item(n, str(n), query, query, None, None, clips=clips, noise_query=noise_query)
        for n, (query, clips, noise_query) in enumerate(
            [
                ("dog", ("a", "b"), ""),
                ("rain", ("b", "c"), ""),
                ("bells", ("c", "x"), "Rain"),
                ("Dog", ("a", "x"), ""),
            ]
            * 20
        )
    ]
    found = random_queries(items)
    assert found == random_queries(items)
    asked = [{q.casefold() for q in found[n::4]} for n in range(4)]
    assert asked == [{"bells"}, {"dog"}, {"dog"}, {"rain", "bells"}]
    with pytest.raises(InputError, match="no query for other sounds than those of 0"):
        random_queries(items[:2])


@pytest.mark.parametrize(("rate_hz", "window", "hop"), [(32000, 2048, 320), (16000, 1024, 160)])
def test_masks_without_a_model_have_the_published_stft(rate_hz, window, hop):
    estimator = make_estimator(None, "irm", [], rate_hz)
    rng = np.random.default_rng(0)
    mixture_S, target_S = rng.standard_normal((2, rate_hz), np.float32)
    model = ResUNetConfig(sample_rate_hz=rate_hz, window_samples=window, hop_samples=hop)
    expected_BS = masked(ideal_ratio_mask, model, mixture_S[None], target_S[None])
    made = Mixture(mixture_S, target_S, "")
    found_KS, _ = estimator(Item(0, "", "", "", None, None), made)
    np.testing.assert_allclose(found_KS, expected_BS, atol=1e-6)
