"""Sounds made by arithmetic: a source of captioned clips that needs no download.

Every kind is a pure function of (generator, number of samples, rate). All of them are recognisable
below 4 kHz and overlap in frequency, so that telling them apart takes more than a band filter.
"""

import functools

import numpy as np
from scipy import signal

from audiosep_jax.data.captions import Captions
from audiosep_jax.data.source import Source
from audiosep_jax.errors import InputError

SAMPLE_RATES_HZ = (8000, 48000)
CLIP_SECONDS = (2.0, 6.0)
PEAKS = (0.3, 0.9)
TICKS_PER_SECOND = (3.5, 6.0)
BEEP_HZ = (800.0, 2600.0)
FADE_SECONDS = 0.01


def _fraction(cycles: np.ndarray) -> np.ndarray:
    """Phase within the cycle; wrapped in float64, then float32, whose sine and exp are fast."""
    return (cycles - np.floor(cycles)).astype(np.float32)


def _sine(cycles: np.ndarray) -> np.ndarray:
    return np.sin(np.float32(2 * np.pi) * _fraction(cycles))


def _harmonics(
    cycles_S: np.ndarray, amplitudes: list[float], top_hz: float, rate: int
) -> np.ndarray:
    """Sum of the first harmonics of a phase that never runs faster than `top_hz`, alias-free."""
    out_S = np.zeros(len(cycles_S), np.float32)
    for number, amplitude in enumerate(amplitudes, start=1):
        if amplitude and number * top_hz < 0.48 * rate:
            out_S += np.float32(amplitude) * _sine(number * cycles_S)
    return out_S


def _band(x_S: np.ndarray, low_hz: float, high_hz: float, rate: int) -> np.ndarray:
    """The part between two edges, 12 dB per octave outside, scaled to unit RMS.

    Second-order Butterworth high-pass and low-pass by the bilinear transform (Bristow-Johnson's
    audio EQ formulas, Q = 1/sqrt(2)), since scipy takes longer to design one than to run it.
    """
    angle = 2 * np.pi * np.array([low_hz, min(high_hz, 0.47 * rate)]) / rate
    width, cosine = np.sin(angle) / np.sqrt(2), np.cos(angle)
    gain = (1 + cosine * [1, -1]) / 2
    middle = gain * [-2, 2]
    rows = np.stack([gain, middle, gain, 1 + width, -2 * cosine, 1 - width], axis=1)
    y_S = signal.sosfilt(rows / rows[:, 3:4], x_S)
    return y_S / max(np.sqrt(np.mean(y_S**2)), 1e-9)


def _white(rng: np.random.Generator, num_samples: int) -> np.ndarray:
    return rng.standard_normal(num_samples, np.float32)


def _drift(
    rng: np.random.Generator, seconds_S: np.ndarray, low: float, high: float, per_second: float
) -> np.ndarray:
    """Curve that wanders between `low` and `high` with random corners."""
    corners_s = np.arange(int(seconds_S[-1] * per_second) + 2) / per_second
    return np.interp(seconds_S, corners_s, rng.uniform(low, high, len(corners_s)))


def _beats(
    rng: np.random.Generator, seconds: float, per_second: float, jitter: float
) -> np.ndarray:
    """Onset times in seconds; `jitter` is the standard deviation in fractions of the period."""
    number = np.arange(int(seconds * per_second) + 1) + rng.uniform(0.0, 0.4)
    late = jitter * np.clip(rng.standard_normal(len(number)), -2, 2)
    return np.maximum(number + late, 0.0) / per_second


def _decays(
    onsets_s: np.ndarray, gains: np.ndarray, decay_s: float, num_samples: int, rate: int
) -> np.ndarray:
    """Envelope that jumps by `gains` at the onsets and falls by 1/e in `decay_s` seconds."""
    starts = np.rint(onsets_s * rate).astype(int)
    inside = starts < num_samples
    impulses_S = np.zeros(num_samples)
    np.add.at(impulses_S, starts[inside], gains[inside])
    return signal.lfilter([1.0], [1.0, -np.exp(-1.0 / (decay_s * rate))], impulses_S)


def _struck(
    freqs_hz: np.ndarray, amplitudes: np.ndarray, decays_s: np.ndarray, seconds: float, rate: int
) -> np.ndarray:
    """Sum of decaying partials after a strike, with an attack of 1 ms; partials above band drop."""
    seconds_S = np.arange(int(seconds * rate)) / rate
    out_S = np.zeros(len(seconds_S), np.float32)
    for freq_hz, amplitude, decay_s in zip(freqs_hz, amplitudes, decays_s, strict=True):
        if freq_hz < 0.48 * rate:
            fall_S = np.exp((-seconds_S / decay_s).astype(np.float32))
            out_S += np.float32(amplitude) * fall_S * _sine(freq_hz * seconds_S)
    return out_S * np.minimum(seconds_S / 0.001, 1.0)


def _place(
    events: list[np.ndarray], onsets_s: np.ndarray, gains: np.ndarray, num_samples: int, rate: int
) -> np.ndarray:
    """Add `events` in turn at the onsets, cut where the clip ends."""
    out_S = np.zeros(num_samples)
    for number, (onset_s, gain) in enumerate(zip(onsets_s, gains, strict=True)):
        start = round(onset_s * rate)
        event = events[number % len(events)][: max(num_samples - start, 0)]
        out_S[start : start + len(event)] += gain * event
    return out_S


def siren(rng: np.random.Generator, num_samples: int, sample_rate_hz: int) -> np.ndarray:
    """A tone with overtones that glides up and down: slow wail or fast yelp."""
    seconds_S = np.arange(num_samples) / sample_rate_hz
    low_hz, ratio = rng.uniform(450, 750), rng.uniform(1.7, 2.4)
    sweeps_per_second = rng.uniform(0.3, 0.7) if rng.random() < 0.6 else rng.uniform(2.0, 4.0)
    rise_S = 0.5 - 0.5 * _sine(sweeps_per_second * seconds_S + rng.random())
    pitch_S = low_hz * np.exp(np.float32(np.log(ratio)) * rise_S)
    cycles_S = np.cumsum(pitch_S, dtype=np.float64) / sample_rate_hz
    overtones = [1.0, rng.uniform(0.3, 0.6), rng.uniform(0.1, 0.4), rng.uniform(0.0, 0.2)]
    return _harmonics(cycles_S, overtones, low_hz * ratio, sample_rate_hz)


def alarm(rng: np.random.Generator, num_samples: int, sample_rate_hz: int) -> np.ndarray:
    """Two fixed pitches in turn without a pause, hollow and bright like a square wave."""
    seconds_S = np.arange(num_samples) / sample_rate_hz
    low_hz, ratio = rng.uniform(650, 1000), rng.uniform(1.2, 1.5)
    high_S = _fraction(rng.uniform(1.5, 4.0) * seconds_S + rng.random()) < 0.5
    cycles_S = np.cumsum(np.where(high_S, low_hz * ratio, low_hz)) / sample_rate_hz
    overtones = [1.0, 0.0, rng.uniform(0.4, 0.6), 0.0, rng.uniform(0.2, 0.35)]
    return _harmonics(cycles_S, overtones, low_hz, sample_rate_hz) * np.float32(0.6)


def beeps(rng: np.random.Generator, num_samples: int, sample_rate_hz: int) -> np.ndarray:
    """One pure tone switched on and off in a strict rhythm."""
    seconds_S = np.arange(num_samples) / sample_rate_hz
    tone_hz = rng.uniform(*BEEP_HZ)
    beeps_per_second, duty = rng.uniform(1.5, 4.0), rng.uniform(0.45, 0.65)
    since_S = _fraction(beeps_per_second * seconds_S + rng.random())
    gate_S = np.clip(np.minimum(since_S, duty - since_S) / (0.005 * beeps_per_second), 0, 1)
    tone_S = _harmonics(tone_hz * seconds_S, [1.0, rng.uniform(0, 0.1)], tone_hz, sample_rate_hz)
    return (tone_S * gate_S).astype(np.float32)


def telephone(rng: np.random.Generator, num_samples: int, sample_rate_hz: int) -> np.ndarray:
    """Two small gongs under a fast clapper, in rings of about a second with short rests."""
    seconds_S = np.arange(num_samples) / sample_rate_hz
    gong_hz, clapper_hz = rng.uniform(1000, 1500), rng.uniform(10, 14)
    ring_s, rest_s = rng.uniform(0.8, 1.3), rng.uniform(0.2, 0.5)
    cadence_s = ring_s + rest_s
    ringing_S = _fraction((seconds_S + rng.uniform(0, ring_s)) / cadence_s) < ring_s / cadence_s
    swing_S = clapper_hz * seconds_S + rng.random()
    out_S = np.zeros(num_samples)
    for offset, tone_hz in ((0.0, gong_hz), (0.5, gong_hz * rng.uniform(1.15, 1.35))):
        strike_S = np.exp(np.float32(-2.5) * _fraction(swing_S + offset))
        for ratio, gain in ((1.0, 1.0), (2.32, 0.5)):
            if tone_hz * ratio < 0.48 * sample_rate_hz:
                out_S += np.float32(gain) * strike_S * _sine(tone_hz * ratio * seconds_S)
    # The gongs ring on for some 60 ms after the clapper rests.
    hush = np.exp(-1 / (0.06 * sample_rate_hz))
    return (out_S * signal.lfilter([1 - hush], [1, -hush], ringing_S)).astype(np.float32)


def bell(rng: np.random.Generator, num_samples: int, sample_rate_hz: int) -> np.ndarray:
    """Slow strikes on a bell: inharmonic partials, the low ones ringing for a second or more."""
    ratios = np.array([0.5, 1.0, 1.2, 1.5, 2.0, 2.67, 3.0, 4.1, 5.3])
    ratios *= rng.uniform(0.99, 1.01, len(ratios))
    gains = rng.uniform(0.4, 1.0, len(ratios)) / np.sqrt(ratios)
    decays_s = rng.uniform(0.6, 1.2) / np.sqrt(ratios)
    strike = _struck(rng.uniform(300, 650) * ratios, gains, decays_s, 2.5, sample_rate_hz)
    onsets_s = _beats(rng, num_samples / sample_rate_hz, rng.uniform(0.8, 1.6), 0.02)
    loudness = rng.uniform(0.7, 1.0, len(onsets_s))
    return _place([strike], onsets_s, loudness, num_samples, sample_rate_hz).astype(np.float32)


def pluck(rng: np.random.Generator, num_samples: int, sample_rate_hz: int) -> np.ndarray:
    """A plucked string that repeats a short tune: harmonics that die faster the higher they are."""
    number = np.arange(1, 11)
    shape = np.abs(np.sin(np.pi * number * rng.uniform(0.12, 0.3))) / number
    root_hz, ring_s = rng.uniform(110, 300), rng.uniform(0.3, 0.6)
    pitches_hz = root_hz * 2 ** (rng.choice([0, 2, 4, 7, 9, 12, 14], 4, replace=False) / 12)
    notes = [
        _struck(pitch_hz * number, shape, ring_s / np.sqrt(number), 0.8, sample_rate_hz)
        for pitch_hz in pitches_hz
    ]
    onsets_s = _beats(rng, num_samples / sample_rate_hz, rng.uniform(2.0, 5.0), 0.02)
    loudness = rng.uniform(0.5, 1.0, len(onsets_s))
    return _place(notes, onsets_s, loudness, num_samples, sample_rate_hz).astype(np.float32)


def flute(rng: np.random.Generator, num_samples: int, sample_rate_hz: int) -> np.ndarray:
    """A tied melody of nearly pure notes with vibrato and a little breath."""
    seconds_S = np.arange(num_samples) / sample_rate_hz
    notes_per_second, root_hz = rng.uniform(1.5, 3.5), rng.uniform(420, 750)
    place_S = notes_per_second * seconds_S
    steps = rng.choice([0, 2, 4, 5, 7, 9, 12], int(place_S[-1]) + 1)
    pitch_S = (root_hz * 2 ** (steps / 12))[place_S.astype(int)]
    pitch_S *= 1 + rng.uniform(0.006, 0.015) * _sine(rng.uniform(4.5, 6.5) * seconds_S)
    overtones = [1.0, rng.uniform(0.2, 0.45), rng.uniform(0.05, 0.15)]
    tone_S = _harmonics(np.cumsum(pitch_S) / sample_rate_hz, overtones, 2 * root_hz, sample_rate_hz)
    breath_S = _band(_white(rng, num_samples), 800, 3000, sample_rate_hz)
    tongue_S = np.minimum(1.0, 0.2 + _fraction(place_S) / (0.05 * notes_per_second))
    return (tongue_S * (tone_S + rng.uniform(0.02, 0.05) * breath_S)).astype(np.float32)


def engine(rng: np.random.Generator, num_samples: int, sample_rate_hz: int) -> np.ndarray:
    """Steady firing at 45 to 110 Hz, uneven between cylinders, heard through an exhaust."""
    seconds_S = np.arange(num_samples) / sample_rate_hz
    firing_S = rng.uniform(45, 95) * _drift(rng, seconds_S, 0.92, 1.15, 1.0)
    cycles_S = np.cumsum(firing_S) / sample_rate_hz
    pulse_S = np.exp(np.float32(-rng.uniform(4, 8)) * _fraction(cycles_S))
    pulse_S *= 1 + np.float32(0.3) * _sine(cycles_S / 2)
    rough_S = pulse_S * (1 + np.float32(0.25) * _white(rng, num_samples))
    return _band(rough_S, 40, rng.uniform(500, 1000), sample_rate_hz).astype(np.float32)


def purr(rng: np.random.Generator, num_samples: int, sample_rate_hz: int) -> np.ndarray:
    """Soft low noise in 20 to 30 bursts a second that swells with each breath, in and out."""
    seconds_S = np.arange(num_samples) / sample_rate_hz
    bursts_S = np.exp(np.float32(-4) * _fraction(rng.uniform(20, 30) * seconds_S + rng.random()))
    breath_S = np.sqrt(np.abs(_sine(rng.uniform(0.4, 0.8) * seconds_S + rng.random())))
    throat_S = _band(_white(rng, num_samples), 120, rng.uniform(500, 900), sample_rate_hz)
    return (throat_S * bursts_S * (0.15 + breath_S)).astype(np.float32)


def rain(rng: np.random.Generator, num_samples: int, sample_rate_hz: int) -> np.ndarray:
    """Steady hiss above 1 kHz with the clicks of single drops."""
    seconds_S = np.arange(num_samples) / sample_rate_hz
    hiss_S = _band(_white(rng, num_samples), rng.uniform(1300, 2000), 10000, sample_rate_hz)
    drops_S = np.zeros(num_samples)
    where = rng.integers(0, num_samples, int(rng.uniform(20, 80) * seconds_S[-1]) + 1)
    drops_S[where] = rng.uniform(5, 15, len(where))
    ring = signal.iirpeak(rng.uniform(1800, 3200), 4.0, fs=sample_rate_hz)
    # A filter's answer to an impulse shrinks as the rate grows.
    drops_S = signal.lfilter(*ring, drops_S) * (sample_rate_hz / 8000)
    return (hiss_S * _drift(rng, seconds_S, 0.8, 1.2, 1.0) + drops_S).astype(np.float32)


def wind(rng: np.random.Generator, num_samples: int, sample_rate_hz: int) -> np.ndarray:
    """Rumble below 600 Hz that comes in gusts, each with a faint howl of its own."""
    seconds_S = np.arange(num_samples) / sample_rate_hz
    white_S = _white(rng, num_samples)
    rumble_S = _band(white_S, 50, rng.uniform(200, 300), sample_rate_hz)
    out_S = rumble_S * _drift(rng, seconds_S, 0.15, 1.0, 1.5)
    for howl_hz in rng.uniform(220, 480, 2):
        howl_S = signal.lfilter(*signal.iirpeak(howl_hz, 8.0, fs=sample_rate_hz), white_S)
        howl_S *= 0.6 / np.std(howl_S)
        out_S += howl_S * _drift(rng, seconds_S, 0.0, 1.0, 1.5)
    return out_S.astype(np.float32)


def birds(rng: np.random.Generator, num_samples: int, sample_rate_hz: int) -> np.ndarray:
    """Phrases of short whistles that glide between 1.8 and 3.7 kHz."""
    syllables = []
    for length_s in rng.uniform(0.07, 0.16, 3):
        run_S = np.linspace(0, 1, int(length_s * sample_rate_hz))
        begin_hz, end_hz = rng.uniform(1800, 3600, 2)
        pitch_S = begin_hz + (end_hz - begin_hz) * run_S + rng.uniform(0, 100) * _sine(3 * run_S)
        syllables.append(_sine(np.cumsum(pitch_S) / sample_rate_hz) * np.sin(np.pi * run_S))
    onsets_s = _beats(rng, num_samples / sample_rate_hz, rng.uniform(5, 9), 0.05)
    # Every phrase of a few notes ends in one note's rest.
    sung = np.arange(1, len(onsets_s) + 1) % rng.integers(4, 8) != 0
    loudness = sung * rng.uniform(0.5, 1.0, len(onsets_s))
    return _place(syllables, onsets_s, loudness, num_samples, sample_rate_hz).astype(np.float32)


def clock(rng: np.random.Generator, num_samples: int, sample_rate_hz: int) -> np.ndarray:
    """Dry ticks at a strict rate, each a few clicks of the escapement in a small wooden case."""
    ticks_per_second = rng.uniform(*TICKS_PER_SECOND)
    freqs_hz = np.array([rng.uniform(350, 650), *rng.uniform(1300, 3500, 3)])
    gains, decays_s = np.array([0.35, 1.0, 0.8, 0.6]), np.array([0.05, 0.015, 0.01, 0.008])
    click = _struck(freqs_hz, gains, decays_s, 0.25, sample_rate_hz)
    parts_s = np.array([0.0, rng.uniform(0.008, 0.015), rng.uniform(0.02, 0.035)])
    tick = _place([click], parts_s, np.array([0.5, 1.0, 0.4]), len(click), sample_rate_hz)
    onsets_s = _beats(rng, num_samples / sample_rate_hz, ticks_per_second, 0.0)
    loudness = np.where(np.arange(len(onsets_s)) % 2, rng.uniform(0.7, 1.0), 1.0)
    return _place([tick], onsets_s, loudness, num_samples, sample_rate_hz).astype(np.float32)


def footsteps(rng: np.random.Generator, num_samples: int, sample_rate_hz: int) -> np.ndarray:
    """Walking: a dull thump of the heel, then the scuff of the sole."""
    pace = rng.uniform(1.7, 2.8)
    heels_s = _beats(rng, num_samples / sample_rate_hz, pace, 0.03)
    loudness = rng.uniform(0.6, 1.0, len(heels_s))
    thump_S = _decays(heels_s, loudness, rng.uniform(0.03, 0.05), num_samples, sample_rate_hz)
    toes_s = heels_s + rng.uniform(0.08, 0.14)
    scuff_S = _decays(toes_s, loudness, rng.uniform(0.04, 0.07), num_samples, sample_rate_hz)
    white_S = _white(rng, num_samples)
    thump_S = thump_S * _band(white_S, 90, 400, sample_rate_hz)
    scuff_S = scuff_S * _band(white_S, 500, rng.uniform(1200, 2500), sample_rate_hz)
    return (thump_S + rng.uniform(0.3, 0.8) * scuff_S).astype(np.float32)


def dog(rng: np.random.Generator, num_samples: int, sample_rate_hz: int) -> np.ndarray:
    """Barks: short voiced bursts whose pitch jumps up and falls, hoarse, loudest near 1 kHz."""
    barks, voice_hz = [], rng.uniform(280, 520)
    for length_s in rng.uniform(0.18, 0.3, 3):
        run_S = np.linspace(0, 1, int(length_s * sample_rate_hz))
        pitch_S = voice_hz * rng.uniform(0.9, 1.1) * (0.75 + 0.5 * np.sin(np.pi * run_S**0.6))
        cycles_S = np.cumsum(pitch_S) / sample_rate_hz
        voiced_S = _harmonics(cycles_S, [0.5, 1.0, 0.8, 0.4, 0.2], 1.4 * voice_hz, sample_rate_hz)
        hoarse_S = _band(_white(rng, len(run_S)), 500, 1800, sample_rate_hz)
        barks.append((voiced_S + 0.35 * hoarse_S) * np.sin(np.pi * run_S**0.5) ** 2)
    onsets_s = _beats(rng, num_samples / sample_rate_hz, rng.uniform(2.2, 3.2), 0.08)
    loudness = rng.uniform(0.6, 1.0, len(onsets_s))
    return _place(barks, onsets_s, loudness, num_samples, sample_rate_hz).astype(np.float32)


def drums(rng: np.random.Generator, num_samples: int, sample_rate_hz: int) -> np.ndarray:
    """A drum kit: kick with falling pitch, snare on the off beats, a hi-hat on every step."""
    steps_s = _beats(rng, num_samples / sample_rate_hz, rng.uniform(4.0, 6.5), 0.01)
    step = np.arange(len(steps_s)) % 4
    seconds_S = np.arange(int(0.3 * sample_rate_hz)) / sample_rate_hz
    cycles_S = rng.uniform(55, 80) * (seconds_S + 0.06 * (1 - np.exp(-seconds_S / 0.03)))
    kick = _sine(cycles_S) * np.exp(-seconds_S / rng.uniform(0.07, 0.12))
    kicks = (step == 0) | ((step != 2) & (rng.random(len(step)) < 0.2))
    snare_S = _decays(steps_s, 1.0 * (step == 2), 0.07, num_samples, sample_rate_hz)
    hat_S = _decays(steps_s, rng.uniform(0.3, 0.6, len(step)), 0.03, num_samples, sample_rate_hz)
    out_S = _place([kick], steps_s, 1.2 * kicks, num_samples, sample_rate_hz)
    white_S = _white(rng, num_samples)
    out_S += 0.4 * snare_S * _band(white_S, 250, 3000, sample_rate_hz)
    out_S += 0.4 * hat_S * _band(white_S, 2500, 9000, sample_rate_hz)
    return out_S.astype(np.float32)


SOUNDS = {
    siren: "a siren wailing|an ambulance siren|emergency vehicle siren|a police siren|"
    "a fire truck siren rising and falling",
    alarm: "an alarm going off|a two-tone alarm|a burglar alarm sounding|a fire alarm blaring|"
    "the loud warning alarm of a building",
    beeps: "an electronic device beeping|repeated beeps|a microwave beep|"
    "a machine beeping steadily|short electronic beeps",
    telephone: "a telephone ringing|an old phone rings|the ringing of a telephone|"
    "a landline phone ringing|somebody's phone is ringing",
    bell: "a church bell tolling|a bell is struck|large bells chiming|the bell of a tower tolls|"
    "bell strikes ringing out slowly",
    pluck: "a guitar being plucked|plucked strings|someone picks a tune on a guitar|"
    "an acoustic guitar playing|string plucking",
    flute: "a flute playing a melody|flute music|somebody plays the flute|a soft flute tune|"
    "a wooden flute",
    engine: "an engine running|a car engine idling|a motor humming|the engine of a truck|"
    "a vehicle with its motor running",
    purr: "a cat purring|the purr of a cat|a kitten purrs|a purring cat close by|a contented cat",
    rain: "rain falling|heavy rain|rainfall on a roof|raindrops pattering|a steady rain shower",
    wind: "wind blowing|strong wind gusts|a howling wind|the wind in a storm|gusty windy weather",
    birds: "birds chirping|a bird singing|birdsong in the morning|a small bird tweets|"
    "chirps of songbirds",
    clock: "a clock ticking|the tick-tock of a clock|ticking of an old watch|"
    "a clock ticks on the wall|a mechanical clock",
    footsteps: "footsteps|a person walking|someone's footsteps on the floor|"
    "walking steps in a hallway|a man walks by in shoes",
    dog: "a dog barking|dog barks|a barking puppy|the bark of a large dog|"
    "a dog barks several times",
    drums: "drums playing|a drum beat|someone playing a drum kit|a drummer keeping the beat|"
    "drum rhythm with snare and hi-hat",
}
KINDS = {make.__name__: (make, tuple(words.split("|"))) for make, words in SOUNDS.items()}


class SyntheticSource(Source):
    """`num_clips` made-up clips; clip `index` is a pure function of (seed, index, rate)."""

    def __init__(self, num_clips: int, seed: int, sample_rate_hz: int):
        low_hz, high_hz = SAMPLE_RATES_HZ
        if not low_hz <= sample_rate_hz <= high_hz:
            limits = f"must lie in {low_hz} to {high_hz} for synthetic clips"
            raise InputError(f"sample_rate_hz={sample_rate_hz} {limits}")
        self.num_clips, self.seed, self.sample_rate_hz = num_clips, seed, sample_rate_hz

    def __len__(self) -> int:
        return self.num_clips

    def kind(self, index: int) -> str:
        """Key into KINDS; the kinds take turns, so that any run of clips is balanced."""
        if not 0 <= index < self.num_clips:
            raise IndexError(f"clip {index} of a synthetic source of {self.num_clips}")
        return list(KINDS)[index % len(KINDS)]

    @functools.cached_property
    def captions(self) -> Captions:
        """All wordings for the kind of each clip; no wording is shared between kinds."""
        return Captions(KINDS[self.kind(index)][1] for index in range(self.num_clips))

    def name(self, index: int) -> str:
        """Identity of the clip, such as synthetic/siren/000123."""
        return f"synthetic/{self.kind(index)}/{index:06d}"

    def load(self, index: int) -> np.ndarray:
        """Mono float32 audio_S of 2 to 6 seconds with its peak between 0.3 and 0.9."""
        self.kind(index)  # checks the index
        return self.clip(index)

    def clip(self, number: int) -> np.ndarray:
        """Clip of any number, also beyond those of the source."""
        make, _ = list(KINDS.values())[number % len(KINDS)]
        rng = np.random.default_rng((self.seed, number))
        num_samples = round(rng.uniform(*CLIP_SECONDS) * self.sample_rate_hz)
        peak = np.exp(rng.uniform(*np.log(PEAKS)))
        audio_S = make(rng, num_samples, self.sample_rate_hz)
        fade = np.linspace(0, 1, round(FADE_SECONDS * self.sample_rate_hz), dtype=np.float32)
        audio_S[: len(fade)] *= fade
        audio_S[-len(fade) :] *= fade[::-1]
        return audio_S * np.float32(peak / np.max(np.abs(audio_S)))


class SyntheticMixtures(SyntheticSource):
    """Recordings of two sounds each, as they are found: no sound is ever heard alone.

    Recording `index` is the clip `index` of a `SyntheticSource` and one of another kind, which is
    up to 5 dB louder or quieter, over the length of the shorter one.
    """

    def other(self, index: int) -> int:
        """Number of the second clip; the kinds of the two meet in all pairs."""
        rng = np.random.default_rng((self.seed, index, 1))
        return len(KINDS) * self.num_clips + index + int(rng.integers(1, len(KINDS)))

    @functools.cached_property
    def captions(self) -> Captions:
        """All wordings for the kind of each of the two sounds, as lists of their own."""
        words = [captions for _, captions in KINDS.values()]
        pairs = ((index, self.other(index)) for index in range(self.num_clips))
        return Captions([words[clip % len(words)] for clip in pair] for pair in pairs)

    def load(self, index: int) -> np.ndarray:
        """Mono float32 audio_S, with its peak between 0.3 and 0.9."""
        rng = np.random.default_rng((self.seed, index, 2))
        first_S, other_S = self.clip(index), self.clip(self.other(index))
        length = min(len(first_S), len(other_S))
        ratio = np.sqrt(np.mean(first_S**2) / np.mean(other_S**2)) * 10 ** (rng.uniform(-5, 5) / 20)
        audio_S = first_S[:length] + np.float32(ratio) * other_S[:length]
        return audio_S * (np.max(np.abs(first_S)) / np.max(np.abs(audio_S)))
