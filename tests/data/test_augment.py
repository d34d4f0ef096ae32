"""augment: by value, in closed form."""

import dataclasses

import numpy as np
import pytest

from audiosep_jax.data import augment
from audiosep_jax.data.augment import AugmentConfig, Changes
from audiosep_jax.errors import InputError

RATE_HZ = 16000
NOTHING = Changes(silent_interferer=False, absent_target=False, gain_db=0.0, room_seconds=0.0)


def noise(num_samples=8000, seed=0):
    return np.random.default_rng(seed).standard_normal(num_samples).astype(np.float32)


def sine(freq_hz, num_samples=8000):
    return np.sin(2 * np.pi * freq_hz * np.arange(num_samples) / RATE_HZ).astype(np.float32)


def test_a_clip_keeps_its_span_and_is_silent_outside():
    audio_S = 1 + np.arange(1000, dtype=np.float32)
    for place, begin in ((0.0, 0), (0.5, 350), (1.0, 700)):
        expected_S = np.where(
            (np.arange(1000) >= begin) & (np.arange(1000) < begin + 300), audio_S, 0
        )
        np.testing.assert_array_equal(augment.keep_span(audio_S, 0.3, place), expected_S)


@pytest.mark.parametrize("span_probability", [0.0, 1.0])
def test_spans_are_drawn_for_each_clip(span_probability):
    config, rng = AugmentConfig(span_probability=span_probability), np.random.default_rng(0)
    ones_S = np.ones(1000, np.float32)
    clips = [augment.augment_clip(ones_S, NOTHING, config, RATE_HZ, rng) for _ in range(200)]
    shares = np.mean(clips, axis=1)
    low, high = (0.3, 1.0) if span_probability else (1.0, 1.0)
    assert (shares.min(), shares.max()) == pytest.approx((low, high), abs=0.02)
    begins = np.argmax(clips, axis=1)
    assert begins.max() == pytest.approx(600 if span_probability else 0, abs=100)


@pytest.mark.parametrize("num_samples", [8000, 7919])
def test_band_limit_keeps_what_is_below_and_takes_what_is_above(num_samples):
    low_S, high_S = sine(1000, num_samples), sine(5000, num_samples)
    limited_S = augment.band_limit(low_S + high_S, 4000, RATE_HZ)
    inside = slice(800, -800)  # a sine that begins at once has an edge of its own
    np.testing.assert_allclose(limited_S[inside], low_S[inside], atol=2e-3)
    assert limited_S.dtype == np.float32
    assert len(limited_S) == num_samples


def test_band_limit_does_not_wrap_around():
    late_S = np.zeros(8000, np.float32)
    late_S[-1] = 1
    limited_S = augment.band_limit(late_S, 3400, RATE_HZ)
    assert np.abs(limited_S[:4000]).max() < 1e-5
    assert limited_S[-1] == pytest.approx(3400 / 8000, rel=0.01)  # of the sinc's peak


def test_a_cutoff_above_half_the_rate_changes_nothing():
    np.testing.assert_array_equal(augment.band_limit(noise(), 8000, RATE_HZ), noise())


def test_the_equaliser_has_the_gains_asked_for_and_lines_between():
    gains_db = np.array([-6, 0, 6, 0, 0, 3, -3], np.float64)
    # Octaves below 8 kHz: -6 dB up to 125 Hz, 6 dB at 500 Hz, 3 dB at 4 kHz, halfway 0 dB.
    expected = {62.5: -6, 125: -6, 500: 6, 1000: 0, 4000: 3, 4000 * 2**0.5: 0}
    for freq_hz, gain_db in expected.items():
        equalised_S = augment.change_timbre(sine(freq_hz, 16000), 16000, gains_db)
        inside = slice(2000, -2000)
        np.testing.assert_allclose(
            equalised_S[inside], 10 ** (gain_db / 20) * sine(freq_hz, 16000)[inside], atol=0.03
        )
    late_S = np.eye(1, 8000, 7999, dtype=np.float32)[0]
    equalised_S = augment.change_timbre(late_S, 8000, gains_db)
    assert np.abs(equalised_S[:4000]).max() < 1e-3  # no wrapping around


@pytest.mark.parametrize("speed", [0.8, 1.0, 1.25])
def test_a_faster_clip_is_shorter_and_higher(speed):
    audio_S = sine(1000, round(8000 * speed))
    played_S = augment.change_timbre(audio_S, 8000)
    assert len(played_S) == 8000
    spectrum_F = np.abs(np.fft.rfft(played_S * np.hanning(8000), 1 << 17))
    peak_hz = np.argmax(spectrum_F) * RATE_HZ / (1 << 17)
    assert -0.001 < 1 - peak_hz / (1000 * speed) < 0.01
    assert np.std(played_S[500:-500]) == pytest.approx(0.5**0.5, rel=0.01)
    if speed == 1:
        np.testing.assert_array_equal(played_S, audio_S)


def test_changes_of_clips_have_their_ranges_and_move_no_other_draw():
    config = AugmentConfig(speed_probability=0.25, speed=(0.5, 2.0))
    more = dataclasses.replace(config, equalise_probability=1.0, equalise_db=(-3.0, 6.0))
    rng, other_rng = np.random.default_rng(0), np.random.default_rng(0)
    drawn = [augment.draw_clip_changes(config, rng) for _ in range(1000)]
    others = [augment.draw_clip_changes(more, other_rng) for _ in range(1000)]
    assert [speed for speed, _ in drawn] == [speed for speed, _ in others]
    assert all(gains_db is None for _, gains_db in drawn)
    speeds = [speed for speed, _ in drawn if speed != 1]
    assert abs(len(speeds) / 1000 - 0.25) < 0.05
    assert 0.5 <= min(speeds) < 0.52
    assert 1.92 < max(speeds) <= 2
    assert abs(np.mean(np.log(speeds))) < 0.1  # as often slower as faster
    gains_db = np.stack([gains_db for _, gains_db in others])
    assert -3 <= gains_db.min() < -2.9
    assert 5.9 < gains_db.max() <= 6


@pytest.mark.parametrize(("seconds", "direct_db"), [(0.2, 0.0), (0.8, 10.0)])
def test_room_response_has_the_decay_and_the_ratio_asked_for(seconds, direct_db):
    response_S = augment.room_response(seconds, direct_db, RATE_HZ, np.random.default_rng(0))
    tail_S = np.float64(response_S[1:])
    assert np.sum(np.float64(response_S) ** 2) == pytest.approx(1, abs=1e-5)
    assert 20 * np.log10(response_S[0] / np.linalg.norm(tail_S)) == pytest.approx(
        direct_db, abs=1e-4
    )
    # Schroeder's backward integral falls by 60 dB in `seconds`; a line through -5 to -35 dB.
    decay_db = 10 * np.log10(np.cumsum(tail_S[::-1] ** 2)[::-1] / np.sum(tail_S**2))
    line = np.flatnonzero((decay_db < -5) & (decay_db > -35))
    slope = np.polyfit(line / RATE_HZ, decay_db[line], 1)[0]
    assert -60 / slope == pytest.approx(seconds, rel=0.05)


def test_reverberate_is_a_convolution_cut_where_the_clip_ends():
    audio_S, response_S = noise(501), noise(300, seed=1)
    expected_S = np.convolve(audio_S, response_S)[:501]
    np.testing.assert_allclose(augment.reverberate(audio_S, response_S), expected_S, atol=1e-4)


def test_augment_clip_does_what_the_plan_says():
    config = AugmentConfig(polarity_probability=1.0)
    inverted_S = augment.augment_target(
        noise(),
        dataclasses.replace(NOTHING, gain_db=-6.0),
        config,
        RATE_HZ,
        np.random.default_rng(0),
    )
    np.testing.assert_allclose(inverted_S, -noise() * 10 ** (-6 / 20), rtol=1e-6)
    rng = np.random.default_rng(0)
    in_room_S = augment.augment_clip(
        noise(), dataclasses.replace(NOTHING, room_seconds=0.3), AugmentConfig(), RATE_HZ, rng
    )
    # Unit energy of the response keeps the level of noise.
    assert np.std(in_room_S) == pytest.approx(np.std(noise()), rel=0.1)
    assert not np.allclose(in_room_S, noise(), atol=0.1)


def test_clips_of_one_room_have_places_of_their_own():
    changes, rng = dataclasses.replace(NOTHING, room_seconds=0.3), np.random.default_rng(0)
    impulse_S = np.eye(1, 4000, dtype=np.float32)[0]
    one_S, other_S = (
        augment.augment_clip(impulse_S, changes, AugmentConfig(), RATE_HZ, rng) for _ in range(2)
    )
    assert abs(np.corrcoef(one_S[1:], other_S[1:])[0, 1]) < 0.1


def test_probabilities_are_kept_and_move_no_other_draw():
    config = AugmentConfig(gain_probability=0.25, silence_probability=0.5)
    more = dataclasses.replace(config, absent_probability=1.0, reverb_probability=1.0)
    plans = [augment.draw_changes(config, np.random.default_rng(k)) for k in range(1000)]
    others = [augment.draw_changes(more, np.random.default_rng(k)) for k in range(1000)]
    assert abs(np.mean([changes.silent_interferer for changes in plans]) - 0.5) < 0.06
    gains_db = [changes.gain_db for changes in plans if changes.gain_db]
    assert abs(len(gains_db) / 1000 - 0.25) < 0.05
    assert -12 <= min(gains_db) < -11
    assert 5 < max(gains_db) <= 6
    for changes, other in zip(plans, others, strict=True):
        assert other == dataclasses.replace(
            changes, absent_target=True, room_seconds=other.room_seconds
        )
    assert 0.2 <= min(other.room_seconds for other in others) < 0.22


def test_nothing_is_on_by_default():
    assert not AugmentConfig().any
    assert AugmentConfig(reverb_probability=0.1).any
    rng = np.random.default_rng(0)
    assert augment.draw_changes(AugmentConfig(), rng) == NOTHING


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("gain_probability", 1.5),
        ("absent_probability", -0.1),
        ("gain_db", (3.0, -3.0)),
        ("gain_db", (3.0,)),
        ("reverb_seconds", (0.0, 1.0)),
        ("reverb_direct_db", ()),
        ("band_limit_hz", ()),
        ("band_limit_hz", (100.0,)),
    ],
)
def test_config_refuses_by_name(name, value):
    with pytest.raises(InputError, match=rf"^{name}(\[0\])?=.* must "):
        AugmentConfig(**{name: value})
