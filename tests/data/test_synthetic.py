import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from scipy import signal

from audiosep_jax.data import synthetic
from audiosep_jax.data.synthetic import (
    BEEP_HZ,
    KINDS,
    TICKS_PER_SECOND,
    SyntheticMixtures,
    SyntheticSource,
)
from audiosep_jax.errors import InputError

RATE = 8000
SEEDS = range(8)


def clip(kind, seed, seconds=4.0):
    """A clip straight from its function, at 8 kHz."""
    return KINDS[kind][0](np.random.default_rng(seed), int(seconds * RATE), RATE)


def power_spectrum(audio_S, rate=RATE):
    """Frequencies in Hz and the power in each."""
    power = np.abs(np.fft.rfft(audio_S * np.hanning(len(audio_S)))) ** 2
    return np.fft.rfftfreq(len(audio_S), 1 / rate), power


def energy_share(audio_S, low_hz, high_hz):
    freqs_hz, power = power_spectrum(audio_S)
    return power[(freqs_hz >= low_hz) & (freqs_hz < high_hz)].sum() / power.sum()


def spectrogram(audio_S, window=256, hop=128):
    frames = np.lib.stride_tricks.sliding_window_view(audio_S, window)[::hop]
    return np.abs(np.fft.rfft(frames * np.hanning(window), 8 * window, axis=1)) ** 2


def pitch_track(audio_S, window=256):
    """The strongest frequency of every frame, in Hz."""
    return spectrogram(audio_S, window).argmax(axis=1) * RATE / (8 * window)


def envelope(audio_S, rate_hz=200):
    """RMS of consecutive blocks, `rate_hz` a second."""
    block = RATE // rate_hz
    blocks = audio_S[: len(audio_S) // block * block].reshape(-1, block)
    return np.sqrt(np.mean(blocks.astype(np.float64) ** 2, axis=1))


def strongest_beat(curve, rate_hz, low_hz, high_hz):
    """Frequency at which a curve beats most within a range, in Hz."""
    power = np.abs(np.fft.rfft((curve - curve.mean()) * np.hanning(len(curve)), 1 << 16)) ** 2
    freqs_hz = np.fft.rfftfreq(1 << 16, 1 / rate_hz)
    inside = (freqs_hz > low_hz) & (freqs_hz < high_hz)
    return freqs_hz[inside][power[inside].argmax()]


# The source


def test_a_clip_depends_on_seed_and_index_alone():
    source = SyntheticSource(64, 5, RATE)
    backwards = [source.load(index) for index in reversed(range(32))][::-1]
    copy = pickle.loads(pickle.dumps(SyntheticSource(32, 5, RATE)))
    with ThreadPoolExecutor(4) as pool:
        threaded = list(pool.map(copy.load, range(32)))
    for one, other in zip(backwards, threaded, strict=True):
        np.testing.assert_array_equal(one, other)


def closeness(one_S, other_S):
    """Largest normalised cross-correlation of two clips over all shifts."""
    products = signal.correlate(one_S, other_S, method="fft")
    return np.abs(products).max() / np.sqrt(np.sum(one_S**2) * np.sum(other_S**2))


@pytest.mark.parametrize("kind", KINDS)
def test_no_two_clips_alike(kind):
    first = list(KINDS).index(kind)
    indices = [first, first + len(KINDS), first + 2 * len(KINDS)]
    clips = [SyntheticSource(64, seed, RATE).load(i) for seed in (1, 2) for i in indices]
    assert closeness(clips[0], 0.5 * clips[0]) == pytest.approx(1.0, abs=1e-4)
    for number, one_S in enumerate(clips):
        for other_S in clips[:number]:
            assert closeness(one_S, other_S) < 0.8


@pytest.mark.parametrize("rate", [8000, 11025, 16000, 32000, 44100, 48000])
def test_levels_and_lengths(rate):
    source = SyntheticSource(2 * len(KINDS), 9, rate)
    for index in range(len(source)):
        audio_S = source.load(index)
        assert audio_S.dtype == np.float32
        assert audio_S.ndim == 1
        assert 2.0 <= len(audio_S) / rate <= 6.0
        assert np.isfinite(audio_S).all()
        assert 0.3 <= np.abs(audio_S).max() <= 0.9 + 1e-6
        assert audio_S[0] == audio_S[-1] == 0.0
        assert abs(audio_S.mean()) < 0.05 * audio_S.std()


def test_recordings_of_two_sounds():
    singles, source = SyntheticSource(40, 3, RATE), SyntheticMixtures(40, 3, RATE)
    kinds = list(KINDS)
    partners = [(kinds[k % 16], kinds[source.other(k) % 16]) for k in range(40)]
    assert all(first != second for first, second in partners)
    assert len({second for _, second in partners}) > 10
    for index, pair in enumerate(partners):
        texts = source.captions.texts
        sounds = [tuple(texts[n] for n in own) for own in source.captions.sounds(index)]
        assert sounds == [KINDS[kind][1] for kind in pair]
    audio_S, first_S = source.load(5), singles.load(5)
    other_S = singles.clip(source.other(5))[: len(audio_S)]
    gains, residual, *_ = np.linalg.lstsq(
        np.stack([first_S[: len(audio_S)], other_S], axis=1), audio_S, rcond=None
    )
    assert residual < 1e-6 * np.sum(audio_S**2)
    powers = [np.mean(x**2) for x in (gains[0] * first_S, gains[1] * other_S)]
    assert abs(10 * np.log10(powers[0] / powers[1])) < 6
    assert np.abs(audio_S).max() == pytest.approx(np.abs(first_S).max())


def test_clips_differ_in_level_and_length():
    clips = [SyntheticSource(40, 3, RATE).load(index) for index in range(40)]
    peaks, seconds = [np.abs(c).max() for c in clips], [len(c) / RATE for c in clips]
    assert min(peaks) < 0.36
    assert max(peaks) > 0.75
    assert min(seconds) < 2.6
    assert max(seconds) > 5.4


@pytest.mark.parametrize("kind", KINDS)
def test_sound_fills_most_of_the_clip(kind):
    for seed in SEEDS:
        level = envelope(clip(kind, seed), rate_hz=20)
        assert np.mean(level < 0.01 * level.max()) < 0.5


def test_the_rate_changes_no_pitch():
    for index in range(2, 64, len(KINDS)):
        tones_hz = []
        for rate in (8000, 44100):
            freqs_hz, power = power_spectrum(SyntheticSource(64, 4, rate).load(index), rate)
            tones_hz.append(freqs_hz[power.argmax()])
        assert tones_hz[0] == pytest.approx(tones_hz[1], abs=0.6)


def test_captions_and_names():
    source = SyntheticSource(3 * len(KINDS), 0, RATE)
    assert len(KINDS) >= 14
    wordings = [wording for _, captions in KINDS.values() for wording in captions]
    assert len(set(wordings)) == len(wordings)
    assert all(wording == wording.strip() and len(wording) > 5 for wording in wordings)
    for index in range(len(source)):
        kind = list(KINDS)[index % len(KINDS)]
        assert source.captions[index] == KINDS[kind][1]
        assert len(source.captions[index]) >= 5
        assert source.name(index) == f"synthetic/{kind}/{index:06d}"
    assert source.name(16) == "synthetic/siren/000016"
    assert "an ambulance siren" in source.captions[0]


@pytest.mark.parametrize("index", [-1, 5, 6])
def test_index_outside(index):
    source = SyntheticSource(5, 0, RATE)
    for ask in (source.load, source.captions.numbers, source.name):
        with pytest.raises(IndexError, match=f"clip {index} "):
            ask(index)


def test_a_rate_that_is_too_low_is_refused():
    with pytest.raises(InputError, match="sample_rate_hz=7999 must lie in 8000 to 48000"):
        SyntheticSource(1, 0, 7999)


# The parts


def test_band_is_butterworth():
    impulse_S = np.zeros(8192)
    impulse_S[0] = 1.0
    rate = 48000
    sections = [signal.butter(2, 500, mode, fs=rate) for mode in ("high", "low")]
    want_S = signal.lfilter(*sections[1], signal.lfilter(*sections[0], impulse_S))
    got_S = synthetic._band(impulse_S, 500, 500, rate)
    np.testing.assert_allclose(got_S, want_S / np.sqrt(np.mean(want_S**2)), atol=1e-9)


def test_decays_in_closed_form():
    got_S = synthetic._decays(
        np.array([0.0, 0.25, 9.0]), np.array([1.0, 3.0, 5.0]), 0.1, RATE, RATE
    )
    seconds_S = np.arange(RATE) / RATE
    late_S = np.where(seconds_S >= 0.25, 3 * np.exp(-(seconds_S - 0.25) / 0.1), 0)
    np.testing.assert_allclose(got_S, np.exp(-seconds_S / 0.1) + late_S, atol=1e-9)


def test_partials_above_the_band_are_dropped():
    seconds_S = np.arange(RATE) / RATE
    got_S = synthetic._harmonics(1500 * seconds_S, [1.0, 0.5, 7.0], 1500, RATE)
    want_S = np.sin(2 * np.pi * 1500 * seconds_S) + 0.5 * np.sin(2 * np.pi * 3000 * seconds_S)
    np.testing.assert_allclose(got_S, want_S, atol=1e-5)
    ones = np.ones(2)
    got_S = synthetic._struck(np.array([440.0, 4100.0]), ones, 0.2 * ones, 1.0, RATE)
    want_S = np.exp(-seconds_S / 0.2) * np.sin(2 * np.pi * 440 * seconds_S)
    np.testing.assert_allclose(got_S[8:], want_S[8:], atol=1e-5)


def test_events_are_cut_at_the_end():
    got_S = synthetic._place([np.ones(3), np.full(2, 5.0)], [0, 2, 4, 9], [1, 2, 3, 4], 6, 1)
    np.testing.assert_array_equal(got_S, [1, 1, 11, 10, 3, 3])


# What each kind sounds like


@pytest.mark.parametrize("seed", SEEDS)
def test_siren_glides_and_alarm_jumps(seed):
    glide_hz = pitch_track(clip("siren", seed))
    assert np.percentile(glide_hz, 95) > 1.5 * np.percentile(glide_hz, 5)
    jump_hz = pitch_track(clip("alarm", seed))
    low_hz, high_hz = np.percentile(jump_hz, [25, 75])
    assert 1.15 < high_hz / low_hz < 1.55

    def share_near(track_hz, centre_hz):
        return np.mean(np.abs(track_hz / centre_hz - 1) < 0.02)

    assert share_near(jump_hz, low_hz) + share_near(jump_hz, high_hz) > 0.8
    centres_hz = np.percentile(glide_hz, [25, 75])
    assert sum(share_near(glide_hz, centre_hz) for centre_hz in centres_hz) < 0.5


@pytest.mark.parametrize("seed", SEEDS)
def test_wind_is_low_and_comes_in_gusts_and_rain_is_high_and_steady(seed):
    wind_S, rain_S = clip("wind", seed), clip("rain", seed)
    assert energy_share(wind_S, 0, 600) > 0.9
    assert energy_share(rain_S, 1000, 4000) > 0.9
    gusts, drops = envelope(wind_S, 2), envelope(rain_S, 2)
    assert gusts.std() / gusts.mean() > 1.5 * drops.std() / drops.mean()


@pytest.mark.parametrize("seed", SEEDS)
def test_clock_ticks_at_the_drawn_rate(seed):
    ticks_per_second = np.random.default_rng(seed).uniform(*TICKS_PER_SECOND)
    level = envelope(clip("clock", seed), rate_hz=1000)
    level = level - level.mean()
    correlation = np.correlate(level, level, "full")[len(level) - 1 :] / np.sum(level**2)
    lag = 80 + correlation[80:350].argmax()
    assert correlation[lag] > 0.6
    assert lag / 1000 == pytest.approx(1 / ticks_per_second, abs=0.0015)


@pytest.mark.parametrize("seed", SEEDS)
def test_beeps_are_one_tone_on_and_off(seed):
    tone_hz = np.random.default_rng(seed).uniform(*BEEP_HZ)
    beeps_S = clip("beeps", seed)
    assert energy_share(beeps_S, tone_hz - 30, tone_hz + 30) > 0.97
    level = envelope(beeps_S)
    assert 0.4 < np.mean(level > 0.5 * level.max()) < 0.7


@pytest.mark.parametrize("seed", SEEDS)
def test_purr_telephone_and_engine_beat_in_their_ranges(seed):
    purr_hz = strongest_beat(envelope(clip("purr", seed)), 200, 8, 90)
    assert 19.5 < purr_hz < 30.5
    phone_S = clip("telephone", seed)
    freqs_hz, power = power_spectrum(phone_S)
    gong_hz = freqs_hz[power.argmax()]
    edges_hz = [gong_hz - 40, gong_hz + 40]
    gong_S = signal.sosfilt(signal.butter(2, edges_hz, "band", fs=RATE, output="sos"), phone_S)
    assert 9.5 < strongest_beat(envelope(gong_S), 200, 5, 90) < 14.5
    engine_S = clip("engine", seed)
    assert 40 < strongest_beat(engine_S, RATE, 35, 300) < 112
    assert energy_share(engine_S, 0, 600) > 0.8


@pytest.mark.parametrize("seed", SEEDS)
def test_birds_sing_high_dogs_bark_in_the_middle_and_drums_reach_low(seed):
    assert energy_share(clip("birds", seed), 1600, 3900) > 0.95
    assert energy_share(clip("dog", seed), 250, 2500) > 0.9
    assert energy_share(clip("drums", seed), 0, 150) > 0.15
    assert energy_share(clip("footsteps", seed), 0, 2500) > 0.9


@pytest.mark.parametrize("seed", SEEDS)
def test_strikes_and_plucks_die_away_and_a_flute_does_not(seed):
    flute = envelope(clip("flute", seed), 20)
    assert np.percentile(flute, 10) > 0.5 * np.percentile(flute, 90)
    for kind in ("bell", "pluck"):
        change = np.diff(envelope(clip(kind, seed), 50))
        # The level leaps up at a strike and creeps down after it; a flute's ratio is below 1.3.
        assert np.sum(change[change > 0] ** 2) > 1.4 * np.sum(change[change < 0] ** 2)


# The kinds together


def features(audio_S):
    """Level, change and spread of 24 log bands, and how the envelope beats in five ranges."""
    edges = np.geomspace(8, 1024, 25).astype(int)
    power = spectrogram(audio_S / audio_S.std(), hop=256)[:, :1025]
    bands = np.log(1e-3 + np.add.reduceat(power, edges[:-1], axis=1))
    level = envelope(audio_S)
    beats = np.abs(np.fft.rfft((level / level.mean() - 1) * np.hanning(len(level)), 2048)) ** 2
    ranges = [np.log(1e-3 + part.mean()) for part in np.split(beats, [10, 60, 120, 180])]
    change = np.abs(np.diff(bands, axis=0)).mean(axis=0)
    return np.concatenate([bands.mean(axis=0), bands.std(axis=0), change, ranges])


def test_nearest_centroid_tells_the_kinds_apart():
    count = len(KINDS)
    table = {
        seed: np.array([features(SyntheticSource(clips, seed, RATE).load(i)) for i in range(clips)])
        for seed, clips in ((1, 8 * count), (2, 6 * count))
    }
    scale = table[1].std(axis=0)
    centroids = table[1].reshape(8, count, -1).mean(axis=0)
    distances = np.linalg.norm((table[2][:, None] - centroids) / scale, axis=-1)
    right = (distances.argmin(axis=1) == np.arange(6 * count) % count).reshape(6, count)
    assert right.mean() > 0.9
    assert right.mean(axis=0).min() >= 0.5
