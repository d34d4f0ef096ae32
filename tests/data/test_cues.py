"""cues: sentences that are true of one of two tones, by value."""

import contextlib
import functools

import numpy as np
import pytest
from tones import Tones

from audiosep_jax.data import cues
from audiosep_jax.data.augment import AugmentConfig
from audiosep_jax.data.batches import ClipSampler, RowMaker, row_rng
from audiosep_jax.data.mixing import MixingConfig
from audiosep_jax.data.pipeline import train_batches
from audiosep_jax.data.sources import DataConfig
from audiosep_jax.data.validation import validation_set
from audiosep_jax.errors import InputError

RATE_HZ = 8000
NAMES = ("louder", "quieter", "first", "last", "longer", "higher", "deeper")
WORDINGS = {name: set(row[2]) for name, row in zip(NAMES, cues.CUES, strict=True)}
NOTHING = AugmentConfig()
ASKED = MixingConfig(cue_probability=1.0)


def tone(pitch_hz=150.0, begin=0.5, end=1.5, level_db=-20.0):
    """Two seconds, in which a tone with overtones sounds from `begin` to `end`."""
    time_S = np.arange(2 * RATE_HZ) / RATE_HZ
    wave_S = sum(np.sin(2 * np.pi * pitch_hz * k * time_S) / k for k in (1, 2, 3))
    wave_S *= 10 ** (level_db / 20) / np.sqrt(np.mean(wave_S**2))
    return (wave_S * ((begin <= time_S) & (time_S < end))).astype(np.float32)


@pytest.mark.parametrize(
    ("change", "mine", "others"),
    [
        ({"level_db": -17.0}, {"louder"}, {"quieter"}),
        ({"level_db": -18.5}, set(), set()),
        ({"begin": 0.1, "end": 1.1}, {"first"}, {"last"}),
        ({"begin": 0.3, "end": 1.3}, set(), set()),
        ({"end": 1.8}, {"longer"}, set()),
        ({"end": 1.6}, set(), set()),
        ({"pitch_hz": 175.0}, {"higher"}, {"deeper"}),
        ({"pitch_hz": 160.0}, set(), set()),
        ({"begin": 0.0, "pitch_hz": 100.0}, {"first", "longer", "deeper"}, {"last", "higher"}),
    ],
)
def test_exactly_the_sentences_that_hold(change, mine, others):
    first_S, second_S = tone(**change), tone()
    for pair, kinds in (((first_S, second_S), mine), ((second_S, first_S), others)):
        expected = set().union(*(WORDINGS[kind] for kind in kinds))
        assert set(cues.holding(*pair, RATE_HZ)) == expected


def test_equal_tones_and_silence_give_none():
    silence_S = np.zeros(2 * RATE_HZ, np.float32)
    for pair in ((tone(), tone()), (tone(), silence_S), (silence_S, tone())):
        assert cues.holding(*pair, RATE_HZ) == ()


@pytest.mark.parametrize("pitch_hz", [70, 110, 234, 400])
def test_the_description_of_a_tone(pitch_hz):
    level_db, onset, time, pitch = cues.describe(tone(pitch_hz, 0.5, 1.5, -26.0), RATE_HZ)
    assert level_db == pytest.approx(-26, abs=0.3)
    assert onset == pytest.approx(0.5, abs=0.07)
    whole = cues.describe(tone(pitch_hz, 0.0, 2.0), RATE_HZ)[cues.TIME]
    assert np.exp(whole - time) == pytest.approx(2, rel=0.1)
    assert 2 ** (pitch / 12) == pytest.approx(pitch_hz, rel=0.03)


def test_noise_has_no_pitch():
    noise_S = np.random.default_rng(0).standard_normal(RATE_HZ).astype(np.float32)
    assert np.isnan(cues.describe(noise_S, RATE_HZ)[cues.PITCH])
    assert not np.isnan(cues.describe(noise_S, RATE_HZ)[: cues.PITCH]).any()


# ------------------------------------------------------------------------------ rows


class Voices(Tones):
    """Clip k is a tone of 100 Hz and two whole tones more for each clip before it."""

    def load(self, index):
        return tone(100 * 2 ** (index / 3), 0.0, 2.0)


VOICES = Voices(tuple((f"voice {k}",) for k in range(5)), sample_rate_hz=RATE_HZ)


def rows(mixing, augment=NOTHING, count=20):
    make_row = RowMaker(ClipSampler(VOICES), mixing, augment, 2 * RATE_HZ)
    key = np.random.Philox(1).state["state"]["key"]
    return [make_row(k % 5, functools.partial(row_rng, key, k)) for k in range(count)]


def test_a_row_is_asked_by_a_sentence_that_holds_and_is_otherwise_the_same():
    text, heard = ClipSampler(VOICES).text, set()
    for plain, asked in zip(rows(MixingConfig()), rows(ASKED), strict=True):
        np.testing.assert_array_equal(plain.mixture_S, asked.mixture_S)
        np.testing.assert_array_equal(plain.target_S, asked.target_S)
        rest_S = asked.mixture_S - asked.target_S
        assert text(asked.query) in cues.holding(asked.target_S, rest_S, RATE_HZ)
        assert text(plain.query) == VOICES.captions.texts[plain.query]
        heard.add(text(asked.query))
    assert len(heard) > 5


def test_the_share_of_sentences_is_that_asked_for():
    asked = rows(MixingConfig(cue_probability=0.3), count=100)
    share = np.mean([row.query >= len(VOICES.captions.texts) for row in asked])
    assert 0.2 < share < 0.4


def test_without_a_sentence_that_holds_the_caption_asks():
    for augment in (AugmentConfig(absent_probability=1.0), AugmentConfig(silence_probability=1.0)):
        pairs = zip(rows(MixingConfig(), augment), rows(ASKED, augment), strict=True)
        assert all(plain.query == asked.query for plain, asked in pairs)


def test_batches_and_validation_have_the_embeddings_of_the_sentences():
    texts = [*VOICES.captions.texts, *cues.SENTENCES]
    conditions = dict(zip(texts, np.eye(len(texts), dtype=np.float32), strict=True))
    data = DataConfig(segment_seconds=2.0, num_threads=0, num_workers=0)
    options = {"seed": 0, "batch_size": 8, "first_step": 0}
    with contextlib.closing(train_batches(VOICES, conditions, ASKED, data, **options)) as stream:
        batch = next(stream)
    fixed = validation_set(VOICES, conditions, ASKED, data, seed=0, num_mixtures=8)
    for made in (batch, fixed):
        for mixture_S, target_S, condition_E in zip(
            made["mixture"], made["target"], made["condition"], strict=True
        ):
            asked = texts[int(condition_E.argmax())]
            assert asked in cues.holding(target_S, mixture_S - target_S, RATE_HZ)
    for k, caption in enumerate(fixed["caption"]):
        rest_S = fixed["mixture"][k] - fixed["target"][k]
        assert texts[int(fixed["condition"][k].argmax())] == caption
        wrong = texts[int(fixed["wrong_condition"][k].argmax())]
        assert wrong in cues.holding(rest_S, fixed["target"][k], RATE_HZ)


def test_more_than_two_clips_and_voices_as_queries_are_refused():
    for options in ({"max_mix_num": 3}, {"num_queries": 2}):
        with pytest.raises(InputError, match=r"cue_probability=0\.5 compares two clips"):
            MixingConfig(cue_probability=0.5, **options)
