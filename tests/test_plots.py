"""Spectrogram pictures: where the light is, and what silence looks like."""

import numpy as np

from audiosep_jax.plots import MAX_WIDTH, _colour, spectrogram_picture

W = 64
BINS = W // 2 + 1
BRIGHT, DARK = (252, 255, 164), (0, 0, 4)


def tone(cycles_per_window, num_samples=640, gain=1.0):
    return gain * np.sin(2 * np.pi * cycles_per_window * np.arange(num_samples) / W).astype(
        np.float32
    )


def brightness(picture):
    return picture.astype(int).sum(-1)


def test_low_sounds_are_at_the_bottom():
    for cycles in (3, 20):
        picture = spectrogram_picture([tone(cycles)], W)
        assert picture.shape == (BINS, 41, 3)
        assert picture.dtype == np.uint8
        rows = brightness(picture)[:, 5:-5].sum(1)
        assert rows.argmax() == BINS - 1 - cycles


def test_time_runs_from_left_to_right():
    audio_S = np.concatenate([np.zeros(320, np.float32), tone(8, 320)])
    columns = brightness(spectrogram_picture([audio_S], W)).sum(0)
    assert columns[:18].max() < columns[22:].min()


def test_panels_lie_below_one_another_on_one_scale():
    picture = spectrogram_picture([tone(4), tone(4, gain=0.1), np.zeros(640, np.float32)], W)
    assert picture.shape == (3 * BINS + 2 * 2, 41, 3)
    assert (picture[BINS : BINS + 2] == 255).all()
    row, step = BINS - 1 - 4, BINS + 2
    assert tuple(picture[row].max(0)) == BRIGHT
    # 20 dB down on a scale of 80.
    np.testing.assert_allclose(picture[row + step, 20], _colour(np.array(0.75)), atol=8)
    assert (picture[2 * step :] == DARK).all()


def test_silence_is_dark():
    assert (spectrogram_picture([np.zeros(640, np.float32)], W) == DARK).all()


def test_colours_rise_in_lightness():
    lightness = _colour(np.linspace(0, 1, 50)) @ np.array([0.2126, 0.7152, 0.0722])
    assert (np.diff(lightness) > 0).all()


def test_long_and_short_sounds_fit():
    for num_samples in (1, 600 * W):
        picture = spectrogram_picture([tone(5, num_samples)], W)
        assert picture.shape[0] == BINS
        assert picture.shape[1] <= MAX_WIDTH
    # Far beyond it, time is squeezed, not cut, while hops still overlap.
    audio_S = np.concatenate([np.zeros(15_000, np.float32), tone(8, 5_000)])
    picture = brightness(spectrogram_picture([audio_S], W))
    assert picture[:, -20:].max() > picture[:, :300].max()
