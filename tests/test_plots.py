"""Spectrogram pictures and figures: where they are bright, and how silence looks."""

import sys
import threading

import numpy as np
import pytest
from PIL import Image

from audiosep_jax.errors import InputError
from audiosep_jax.plots import (
    FLOOR_DB,
    MAX_COLUMNS,
    MAX_ROWS,
    LogSpectrogram,
    _colour,
    _one_line,
    check_figure,
    new_figure,
    row_edges,
    spectrogram_figure,
    spectrogram_picture,
)

RATE_HZ = 8000
BRIGHT, DARK = (252, 255, 164), (0, 0, 4)


def sine(hz, num_samples=RATE_HZ, rate_hz=RATE_HZ):
    return np.sin(2 * np.pi * hz * np.arange(num_samples) / rate_hz).astype(np.float32)[None]


def brightness(picture):
    return picture.astype(int).sum(-1)


# ---------------------------------------------------------------------- pictures


@pytest.mark.parametrize("hz", [200, 1000, 3500])
def test_low_sounds_are_at_the_bottom(hz):
    picture = spectrogram_picture([sine(hz)[0]], RATE_HZ)
    assert picture.shape == (MAX_ROWS, RATE_HZ // 128 + 1, 3)
    assert picture.dtype == np.uint8
    row = MAX_ROWS - 1 - brightness(picture)[:, 5:-5].sum(1).argmax()
    low_hz, high_hz = row_edges(RATE_HZ)[row : row + 2]
    assert low_hz - RATE_HZ / 512 <= hz <= high_hz + RATE_HZ / 512


def test_time_runs_from_left_to_right():
    audio_S = np.concatenate([0 * sine(1000, 4000)[0], sine(1000, 4000)[0]])
    columns = brightness(spectrogram_picture([audio_S], RATE_HZ)).sum(0)
    assert columns[:29].max() < columns[34:].min()


def test_panels_lie_below_one_another_on_one_scale():
    tone_S = sine(1000)[0]
    picture = spectrogram_picture([tone_S, 0.1 * tone_S, 0 * tone_S], RATE_HZ)
    step = MAX_ROWS + 2
    assert picture.shape == (3 * MAX_ROWS + 2 * 2, RATE_HZ // 128 + 1, 3)
    assert (picture[MAX_ROWS:step] == 255).all()
    row = brightness(picture[:MAX_ROWS])[:, 20].argmax()
    assert tuple(picture[row].max(0)) == BRIGHT
    # 20 dB down on a scale of 80.
    np.testing.assert_allclose(picture[row + step, 20], _colour(np.array(0.75)), atol=8)
    assert (picture[2 * step :] == DARK).all()


def test_silence_is_dark():
    assert (spectrogram_picture([np.zeros(640, np.float32)], RATE_HZ) == DARK).all()


def test_colours_rise_in_lightness():
    lightness = _colour(np.linspace(0, 1, 50)) @ np.array([0.2126, 0.7152, 0.0722])
    assert (np.diff(lightness) > 0).all()


def test_long_and_short_sounds_fit():
    for num_samples in (1, 400 * RATE_HZ):
        picture = spectrogram_picture([sine(500, num_samples)[0]], RATE_HZ)
        assert picture.shape[0] == MAX_ROWS
        assert picture.shape[1] == min(MAX_COLUMNS, num_samples // 128 + 1)


# ---------------------------------------------------------------------- figures


def levels(audio_CS, rate_hz=RATE_HZ, block_samples=None):
    spectrogram = LogSpectrogram(rate_hz, audio_CS.shape[1])
    for start in range(0, audio_CS.shape[1], block_samples or audio_CS.shape[1]):
        spectrogram.add(audio_CS[:, start:][:, :block_samples])
    return spectrogram.levels_db()


@pytest.mark.parametrize("hz", [60, 440, 3950])
def test_a_full_scale_tone_is_0_db_in_its_row(hz):
    level_XR, edges_hz = levels(sine(hz)), row_edges(RATE_HZ)
    row = level_XR[20:-20].mean(0).argmax()
    # The window's main lobe is four bins wide: a low tone covers several rows.
    assert abs(np.sqrt(edges_hz[row] * edges_hz[row + 1]) - hz) < max(RATE_HZ / 512, 0.02 * hz)
    assert abs(level_XR[20:-20, row] - 0).max() < 1.5  # between two bins it is less


def test_channels_are_a_mean_of_power_also_in_opposite_phase():
    one_XR = levels(sine(1000))
    np.testing.assert_allclose(levels(np.concatenate([sine(1000), -sine(1000)])), one_XR, atol=1e-3)
    half_XR = levels(np.concatenate([sine(1000), 0 * sine(1000)]))
    assert abs(one_XR.max() - half_XR.max() - 10 * np.log10(2)) < 1e-3


@pytest.mark.parametrize("block_samples", [1, 77, 256, 257, 4999])
def test_blocks_give_what_the_whole_gives(block_samples):
    audio_CS = np.random.default_rng(0).standard_normal((2, 5000)).astype(np.float32)
    np.testing.assert_allclose(
        levels(audio_CS, block_samples=block_samples), levels(audio_CS), atol=1e-3
    )


@pytest.mark.parametrize("num_samples", [1, 2, 255, 256, 257, 513])
def test_the_ends_of_a_constant_are_constant(num_samples):
    """Its mirror image goes on beyond either end: no splash, however short it is."""
    level_XR = levels(np.ones((1, num_samples), np.float32))
    inner_R = levels(np.ones((1, 5000), np.float32))[10]
    assert level_XR.shape == (num_samples // 128 + 1, MAX_ROWS)
    np.testing.assert_allclose(level_XR, np.tile(inner_R, (len(level_XR), 1)), atol=1e-3)


def test_nothing_is_silent():
    assert (LogSpectrogram(RATE_HZ, 0).levels_db() == FLOOR_DB).all()


def test_a_click_lights_its_column_in_a_long_recording_of_bounded_memory():
    rate_hz, seconds = 1000, 4000
    spectrogram = LogSpectrogram(rate_hz, seconds * rate_hz)
    for second in range(0, seconds, 50):
        block_CS = np.zeros((1, 50 * rate_hz), np.float32)
        if second == 3000:
            block_CS[0, 10] = 1
        spectrogram.add(block_CS)
        assert spectrogram._pending_CS.shape[1] < 64
    level_XR = spectrogram.levels_db()
    assert level_XR.shape == (MAX_COLUMNS, MAX_ROWS)
    (lit,) = np.nonzero(level_XR.max(1) > FLOOR_DB)
    assert abs(lit - MAX_COLUMNS * 3000 / seconds).max() <= 1


def test_a_figure_reads_the_same_on_a_light_and_a_dark_page(tmp_path):
    """Opaque, dark text on white; the tone is where its ticks say it is."""
    audio_CS = np.concatenate([0 * sine(1000), sine(1000)], axis=1)
    spectrogram_figure(
        {"mixture": audio_CS, "残り $_{ 🐶": audio_CS[0]}, RATE_HZ, tmp_path / "a.png"
    )
    picture = np.asarray(Image.open(tmp_path / "a.png").convert("RGBA")).astype(int)
    assert (picture[..., 3] == 255).all()
    assert (picture[:2, :, :3] == 255).all()
    margin = picture[:, :60, :3].sum(-1)  # ticks and labels
    assert margin.min() < 100
    # Of a panel, left of the colour bar: the rows that are dark in its silent half.
    light = picture[..., :3].sum(-1)
    inside = np.flatnonzero((light[:, :990] < 60).mean(0) > 0.5)
    rows = (light[:, inside[5:50]] < 60).all(1)
    lit = (light[rows][:, inside[0] : inside[-1]] > 600).any(0)
    assert not lit[: int(0.48 * len(lit))].any()
    assert lit[int(0.52 * len(lit)) : int(0.95 * len(lit))].all()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png"]


def test_axes_are_labelled_and_the_same_figure_is_the_same_file(tmp_path, monkeypatch):
    import matplotlib

    panels = {"reference": sine(500), "estimate": 0.1 * sine(500)}
    spectrogram_figure(panels, RATE_HZ, tmp_path / "a.svg")
    text = (tmp_path / "a.svg").read_text()
    for words in (
        "reference",
        "estimate",
        "time (s)",
        "frequency (Hz)",
        "level (dB of full scale)",
    ):
        assert f"<!-- {words} -->" in text
    monkeypatch.setitem(matplotlib.rcParams, "text.color", "white")  # a user's dark style
    monkeypatch.setitem(matplotlib.rcParams, "savefig.transparent", True)
    spectrogram_figure(panels, RATE_HZ, tmp_path / "b.svg")
    assert (tmp_path / "b.svg").read_text() == text


def test_figures_of_several_threads_are_drawn_one_after_another(tmp_path):
    """Matplotlib's settings, which drawing changes for a while, are those of the process."""
    begun = threading.Event()

    def draw():
        with new_figure(tmp_path / "b.svg", 1, 1):
            begun.set()

    other = threading.Thread(target=draw)
    with new_figure(tmp_path / "a.svg", 1, 1):
        other.start()
        assert not begun.wait(0.3)
    assert begun.wait(30)
    other.join()


def test_titles_are_one_line():
    assert _one_line(" a\n b\x1b[31m\udc80") == "a b_[31m?"
    assert len(_one_line("x" * 500)) == 90


def test_what_a_figure_needs(tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"a\.pdf: a figure is a \.png or \.svg file"):
        check_figure("a.pdf")
    (tmp_path / "taken.png").mkdir()
    with pytest.raises(InputError, match="cannot be written"):
        spectrogram_figure({"a": sine(500)}, RATE_HZ, tmp_path / "taken.png")
    assert [path.name for path in tmp_path.iterdir()] == ["taken.png"]
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(InputError, match=r"a\.png: figures need matplotlib: pip install"):
        spectrogram_figure({"a": sine(500)}, RATE_HZ, tmp_path / "a.png")
