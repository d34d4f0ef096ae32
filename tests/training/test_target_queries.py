"""Hybrid supervision: batches whose queries are their targets; the same ones after resuming."""

import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from audiosep_jax.encoders.encoder import TextConfig
from audiosep_jax.training.conditions import TargetQueries, asks_by_sound, target_queries
from audiosep_jax.training.config import Config
from audiosep_jax.training.parallel import local_rows, split_batch


class MeanEncoder:
    """Embeds a clip as its mean and its rate, scaled by a parameter; notes where it runs."""

    def __init__(self):
        self.params = {"scale": np.float32(2)}
        self.threads, self.rows = set(), []

    def fit(self, audio_S, sample_rate_hz):
        self.threads.add(threading.current_thread())
        return np.append(audio_S[:5], np.float32(sample_rate_hz))

    def embed_waves(self, params, wave_BS):
        self.rows.append(wave_BS.shape[0])
        return params["scale"] * jnp.stack([wave_BS[:, :5].mean(axis=1), wave_BS[:, 5]], axis=1)


def config(ratio=0.5, how="pmap"):
    return Config(seed=3, parallel=how, text=TextConfig("clap", use_text_ratio=ratio))


def batch_of(step):
    target_BS = np.random.default_rng(step).standard_normal((16, 10)).astype(np.float32)
    condition_BE = np.full((16, 2), step, np.float32)
    return {"mixture": -target_BS, "target": target_BS, "condition": condition_BE}


@pytest.mark.parametrize("how", ["pmap", "shard_map"])
def test_whole_batches_are_conditioned_on_their_targets(how):
    encoder = MeanEncoder()
    queries, by_sound = TargetQueries(encoder, config(how=how)), 0
    for step in range(20):
        plain = batch_of(step)
        prepared = queries.prepare(step, plain)
        batch = queries.embed(split_batch(prepared, how))
        assert set(batch) == {"mixture", "target", "condition"}
        assert all(isinstance(x, jax.Array) for x in batch.values())
        host = {name: local_rows(x, how) for name, x in batch.items()}
        if asks_by_sound(3, step, 0.5):
            by_sound += 1
            mean_B = plain["target"][:, :5].mean(axis=1)
            np.testing.assert_allclose(host["condition"][:, 0], 2 * mean_B, rtol=1e-5)
            np.testing.assert_array_equal(host["condition"][:, 1], 2 * 32000)
        else:
            np.testing.assert_array_equal(host["condition"], plain["condition"])
        np.testing.assert_array_equal(host["target"], plain["target"])
        np.testing.assert_array_equal(host["mixture"], plain["mixture"])
    assert 0 < by_sound < 20
    # Each device embeds its own rows, in one program that is traced once.
    assert set(encoder.rows) == {16 // jax.local_device_count()}
    assert threading.current_thread() not in encoder.threads


@pytest.mark.parametrize(("ratio", "count"), [(0.0, 40), (1.0, 0)])
def test_the_extremes(ratio, count):
    queries = TargetQueries(MeanEncoder(), config(ratio))
    prepared = [queries.prepare(step, batch_of(step)) for step in range(40)]
    assert sum("query_wave" in batch for batch in prepared) == count


def test_the_share_is_the_ratio_and_seeds_differ():
    draws = np.array([[asks_by_sound(seed, step, 0.3) for step in range(2000)] for seed in (0, 1)])
    # 0.7 within four standard deviations of 2000 draws.
    np.testing.assert_allclose(draws.mean(axis=1), 0.7, atol=0.041)
    assert 0.35 < (draws[0] != draws[1]).mean() < 0.49  # 0.42 if independent
    assert asks_by_sound(0, 1, 0.5) == asks_by_sound(0, 1, 0.5)


def test_a_larger_share_of_text_only_adds_steps_of_text():
    few, many = ([asks_by_sound(5, step, ratio) for step in range(200)] for ratio in (0.2, 0.6))
    assert all(low or not high for low, high in zip(few, many, strict=True))
    assert sum(few) > sum(many)


def test_captions_alone_need_no_audio_encoder():
    text = TextConfig(encoder="clap", model="not/looked-for")
    assert target_queries(Config(text=text)) is None
