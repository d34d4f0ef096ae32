"""Hybrid supervision: which batches get audio embeddings; the same ones after resuming."""

import numpy as np
import pytest

from audiosep_jax.encoders.encoder import TextConfig
from audiosep_jax.training.hybrid import asks_by_audio, hybrid_batches, make_audio_encoder


class MeanEncoder:
    """Gives each clip its mean and its rate; counts the batches it sees."""

    def __init__(self):
        self.batches = 0

    def embed_audio(self, audio, sample_rate_hz):
        self.batches += 1
        return np.stack([audio.mean(axis=1), np.full(len(audio), sample_rate_hz)], axis=1)


def batches(first_step, last_step):
    for step in range(first_step, last_step):
        target_BS = np.random.default_rng(step).standard_normal((4, 10))
        yield {
            "mixture": -target_BS,
            "target": target_BS,
            "condition": np.full((4, 2), float(step)),
        }


def hybrid(encoder, first_step=0, last_step=40, seed=3, ratio=0.5, make=batches):
    return hybrid_batches(
        make(first_step, last_step),
        encoder,
        seed=seed,
        first_step=first_step,
        use_text_ratio=ratio,
        sample_rate_hz=16_000,
    )


def by_audio(batch):
    return batch["condition"][0, 1] == 16_000


def test_whole_batches_are_conditioned_on_their_targets():
    encoder = MeanEncoder()
    for step, batch in enumerate(hybrid(encoder)):
        (plain,) = batches(step, step + 1)
        if by_audio(batch):
            np.testing.assert_array_equal(batch["condition"][:, 0], plain["target"].mean(axis=1))
        else:
            np.testing.assert_array_equal(batch["condition"], plain["condition"])
        np.testing.assert_array_equal(batch["target"], plain["target"])
        np.testing.assert_array_equal(batch["mixture"], plain["mixture"])
    assert 0 < encoder.batches < 40


@pytest.mark.parametrize(("ratio", "count"), [(0.0, 40), (1.0, 0)])
def test_the_extremes(ratio, count):
    encoder = MeanEncoder()
    assert sum(map(by_audio, hybrid(encoder, ratio=ratio))) == encoder.batches == count


@pytest.mark.parametrize("first_step", [1, 17])
def test_resuming_goes_on_with_the_same_conditions(first_step):
    whole = list(hybrid(MeanEncoder()))[first_step:]
    resumed = list(hybrid(MeanEncoder(), first_step))
    assert {by_audio(batch) for batch in whole} == {True, False}
    for one, other in zip(whole, resumed, strict=True):
        np.testing.assert_array_equal(one["condition"], other["condition"])


def test_the_share_is_the_ratio_and_seeds_differ():
    draws = np.array([[asks_by_audio(seed, step, 0.3) for step in range(2000)] for seed in (0, 1)])
    # 0.7 within four standard deviations of 2000 draws.
    np.testing.assert_allclose(draws.mean(axis=1), 0.7, atol=0.041)
    assert 0.35 < (draws[0] != draws[1]).mean() < 0.49  # 0.42 where independent
    assert asks_by_audio(0, 1, 0.5) == asks_by_audio(0, 1, 0.5)


def test_a_larger_share_of_text_only_adds_steps_of_text():
    few, many = ([asks_by_audio(5, step, ratio) for step in range(200)] for ratio in (0.2, 0.6))
    assert all(low or not high for low, high in zip(few, many, strict=True))
    assert sum(few) > sum(many)


def test_closing_closes_what_is_read():
    closed = []

    def make(first_step, last_step):
        try:
            yield from batches(first_step, last_step)
        finally:
            closed.append(True)

    stream = hybrid(MeanEncoder(), make=make)
    next(stream)
    stream.close()
    assert closed == [True]


def test_sentences_alone_need_no_audio_encoder():
    assert make_audio_encoder(TextConfig(encoder="clap", model="not/looked-for")) is None
