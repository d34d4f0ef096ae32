"""Files in, files out: equal to arrays, exact sums, every format, and nothing half finished."""

import dataclasses
import os
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st
from tiny_run import RATE_HZ, save_run

from audiosep_jax.audio import files as audio_files
from audiosep_jax.errors import InputError
from audiosep_jax.separation.files import presence, spans
from audiosep_jax.separation.separator import Separator

QUERIES = ["a dog barking", "rain"]


@pytest.fixture(scope="module")
def separator(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    save_run(folder)
    return Separator.load(folder)


@pytest.fixture(scope="module")
def all_pass(separator):
    """Mask (0, 1, 0) everywhere: half of the mixture, unturned."""
    params = jax.tree.map(np.array, separator.variables["params"])
    params["base"]["after_conv"] = {
        "kernel": np.zeros_like(params["base"]["after_conv"]["kernel"]),
        "bias": np.float32([0, 1, 0]),
    }
    return dataclasses.replace(separator, variables={**separator.variables, "params": params})


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def noise(num_channels=2, num_samples=9000, scale=0.05, seed=0):
    rng = np.random.default_rng(seed)
    return (scale * rng.standard_normal((num_channels, num_samples))).astype(np.float32)


def save(name, audio_CS, rate_hz=RATE_HZ, **options):
    soundfile.write(name, audio_CS.T, rate_hz, **options)
    return name


def run(separator, name, *, suffix=".wav", **options):
    """(what is told, mixture, estimates, residual), as they are read back."""
    outputs = [f"{number}{suffix}" for number in range(len(QUERIES))]
    conditions = separator.embed_text(QUERIES)
    rest = f"rest{suffix}"
    told = separator.separate_file(name, outputs, conditions, residual=rest, **options)
    assert [str(path) for path in told.paths] == [*outputs, rest]
    estimates = np.stack([audio_files.read(path)[0] for path in outputs])
    return told, audio_files.read(name)[0], estimates, audio_files.read(rest)[0]


# ---------------------------------------------------------------------- numbers


@pytest.mark.parametrize(("rate_hz", "channels"), [(8000, 1), (11025, 2), (48000, 6)])
@pytest.mark.parametrize("tile_seconds", [None, 0.1])
def test_a_file_gives_what_its_array_gives(separator, rate_hz, channels, tile_seconds):
    audio_CS = noise(channels, rate_hz)
    name = save("in.wav", audio_CS, rate_hz, subtype="FLOAT")
    options = {"stereo": "channels", "above_nyquist": "drop", "tile_seconds": tile_seconds}
    told, _, estimate_NCS, _ = run(separator, name, **options)
    expected_NCS = separator.separate(audio_CS, rate_hz, QUERIES)
    np.testing.assert_allclose(estimate_NCS, expected_NCS, rtol=0, atol=2e-6)
    assert (told.sample_rate_hz, told.num_channels) == (rate_hz, channels)
    assert told.num_samples == rate_hz


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "FLOAT"])
@pytest.mark.parametrize("rate_hz", [8000, 44100])
def test_targets_and_residual_add_up_to_the_last_bit(separator, subtype, rate_hz):
    name = save("in.wav", noise(), rate_hz, subtype="PCM_16")
    name = (
        name if subtype == "PCM_16" else save("b.wav", audio_files.read(name)[0], subtype=subtype)
    )
    told, mixture_CS, estimate_NCS, rest_CS = run(separator, name)
    assert told.subtype == subtype
    np.testing.assert_array_equal(estimate_NCS[0] + estimate_NCS[1] + rest_CS, mixture_CS)
    assert np.abs(estimate_NCS).max() > 0.01


def test_floating_point_adds_up_to_the_last_bit_of_the_largest(separator):
    name = save("in.wav", noise(), subtype="FLOAT")
    _, mixture_CS, estimate_NCS, rest_CS = run(separator, name)
    error_CS = np.abs(estimate_NCS.sum(0) + rest_CS - mixture_CS)
    assert error_CS.max() <= 2.0**-23 * max(np.abs(estimate_NCS).max(), np.abs(rest_CS).max())


@pytest.mark.parametrize("tile_seconds", [None, 0.1])
def test_spans_mute_each_estimate_and_the_residual_gets_it(separator, tile_seconds):
    """Two channels at another rate, written with 16 bits."""
    name = save("in.wav", noise(2, 44100), 44100, subtype="PCM_16")
    mixture_CS = audio_files.read(name)[0]
    during_N = [[(0.2, 0.4), (0.7, 9)], []]
    options = {"tile_seconds": tile_seconds, "stereo": "channels", "above_nyquist": "drop"}
    told, _, estimate_NCS, rest_CS = run(separator, name, during_N=during_N, **options)
    second_S = np.arange(44100) / 44100
    gain_S = np.interp(second_S, [0.19, 0.2, 0.4, 0.41, 0.69, 0.7], [0, 1, 1, 0, 0, 1])
    expected_NCS = separator.separate(mixture_CS, 44100, QUERIES) * [[gain_S], [gain_S**0]]
    np.testing.assert_allclose(estimate_NCS, expected_NCS, rtol=0, atol=2.0**-15)
    assert np.abs(estimate_NCS[0, :, 18100:30400]).max() == 0 < np.abs(estimate_NCS[0]).max()
    np.testing.assert_array_equal(estimate_NCS.sum(0) + rest_CS, mixture_CS)
    assert (told.activity_NT[0, 5:6] == 0).all()
    assert told.activity_NT[0, 2:3] > 0


def test_spans_of_arrays_are_those_of_all_queries(separator):
    audio_S = noise(1, 4000)[0]
    condition_NE = separator.embed_text(QUERIES)
    spans = [(0.1, 0.3)]
    expected_NS = separator.separate_conditions(audio_S, 8000, condition_NE, during_N=[spans] * 2)
    muted_NS = separator.separate(audio_S, 8000, QUERIES, during=spans)
    np.testing.assert_array_equal(muted_NS, expected_NS)
    assert np.abs(muted_NS).sum(0)[2500:].max() == 0 < np.abs(muted_NS[:, 800:2400]).min(1).max()
    for wrong in ([(1, 2)], [(0.3, 0.1)], [(0.5, 0.6)]):
        with pytest.raises(InputError, match="the span"):
            separator.separate(audio_S, 8000, QUERIES, during=wrong)
    with pytest.raises(InputError, match="spans of 1 queries for 2 conditions"):
        separator.stream(8000, condition_NE, during_N=[spans])
    with pytest.raises(InputError, match=r"in\.wav: the span 2-3 s lies outside"):
        run(separator, save("in.wav", audio_S[None]), during_N=[[], [(2, 3)]])


def test_what_is_told_of_shares_and_activity(all_pass):
    audio_CS = noise(2, 8000)
    audio_CS[:, 4000:] *= 0.1
    told, _, _, _ = run(all_pass, save("in.wav", audio_CS, subtype="FLOAT"))
    # The network's topmost bin, of 33, is never seen and comes out as nothing.
    np.testing.assert_allclose(told.share_N, [0.25, 0.25], rtol=0.04)
    assert told.activity_hop_seconds == 0.1
    expected_T = (audio_CS**2).reshape(2, 10, 800).mean((0, 2))
    np.testing.assert_allclose(told.mixture_activity_T, expected_T, rtol=1e-5)
    np.testing.assert_allclose(told.activity_NT, [expected_T / 4] * 2, rtol=0.06)


def test_silence_has_no_share(separator):
    told, _, estimate_NCS, _ = run(separator, save("in.wav", noise() * 0))
    assert not told.share_N.any()
    assert not estimate_NCS.any()


def test_one_mask_keeps_the_image(separator):
    left_S = noise(1)[0]
    name = save("in.wav", np.stack([left_S, 0.5 * left_S]), subtype="FLOAT")
    _, _, estimate_NCS, _ = run(separator, name, stereo="mid")
    np.testing.assert_allclose(estimate_NCS[:, 1], 0.5 * estimate_NCS[:, 0], rtol=0, atol=1e-6)


def test_above_the_models_band(all_pass):
    """The model hears up to 4 kHz; of noise up to 22 kHz the all-pass mask leaves a half."""
    audio_CS = noise(2, 44100)
    name = save("in.wav", audio_CS, 44100, subtype="FLOAT")
    for tile_seconds in (None, 0.2):
        options = {"above_nyquist": "keep", "tile_seconds": tile_seconds}
        kept_CS = run(all_pass, name, **options)[2][0]
        np.testing.assert_allclose(kept_CS[:, :-50], audio_CS[:, :-50] / 2, rtol=0, atol=1e-3)
    dropped_CS = run(all_pass, name, above_nyquist="drop")[2][0]
    power_F = np.abs(np.fft.rfft(dropped_CS[0])) ** 2
    above = np.fft.rfftfreq(44100, 1 / 44100) > 4200
    assert power_F[above].sum() < 1e-5 * power_F.sum()  # what cutting it off makes


def test_progress_adds_up(separator):
    told = []
    run(separator, save("in.wav", noise(1, 20000)), tile_seconds=0.3, progress=told.append)
    assert len(told) > 2
    assert sum(told) == pytest.approx(2.5)


# ---------------------------------------------------------------------- formats


@pytest.mark.parametrize(
    ("suffix", "options", "expected"),
    [
        (".flac", {"subtype": "PCM_24"}, ("FLAC", "PCM_24")),
        (".aiff", {}, ("AIFF", "PCM_16")),
        (".ogg", {}, ("OGG", "VORBIS")),
        (".mp3", {}, ("MP3", "MPEG_LAYER_III")),
        (".wav", {"subtype": "MS_ADPCM"}, ("WAV", "MS_ADPCM")),
        (".wav", {"format": "WAVEX", "subtype": "PCM_24"}, ("WAVEX", "PCM_24")),
        (".wav", {"format": "RF64"}, ("RF64", "PCM_16")),
        (".caf", {"subtype": "ALAC_16"}, ("CAF", "ALAC_16")),
    ],
)
def test_writes_what_it_read(all_pass, suffix, options, expected):
    name = save(f"in{suffix}", noise(), **options)
    told, mixture_CS, estimate_NCS, _ = run(all_pass, name, suffix=suffix)
    assert (told.format, told.subtype) == expected
    shift = 2 * estimate_NCS[0, :, :8000] - mixture_CS[:, :8000]
    assert np.sqrt(np.mean(shift**2)) < 0.1 * np.sqrt(np.mean(mixture_CS**2)) * 10
    assert estimate_NCS.shape[-1] == mixture_CS.shape[-1]


def test_what_the_format_cannot_hold_becomes_wav(separator):
    nine_CS = noise(9, 100)  # FLAC holds 8 channels
    save("in.caf", nine_CS)
    with audio_files.AudioReader("in.caf") as recording:
        assert audio_files.writable_format(recording) == ("CAF", "PCM_16")
        told = "9 channels at 8000 Hz cannot be written as FLAC; choose WAV$"
        with pytest.raises(InputError, match=told):
            audio_files.writable_format(recording, "flac")
    told, *_ = run(separator, "in.caf", output_format="wav", subtype="pcm_24")
    assert (told.format, told.subtype) == ("WAV", "PCM_24")


@pytest.mark.parametrize(
    ("subtype", "clip", "peak"),
    [("FLOAT", "none", 1.5), ("FLOAT", None, 1.5), ("FLOAT", "clamp", 1), ("PCM_16", "clamp", 1)],
)
def test_clipping(all_pass, subtype, clip, peak):
    audio_CS = np.full((1, 4000), 3.0, np.float32)
    options = {"subtype": subtype, "clip": clip}
    _, _, estimate_NCS, _ = run(all_pass, save("in.wav", audio_CS, subtype="FLOAT"), **options)
    np.testing.assert_allclose(estimate_NCS[..., 500:-500], peak, rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    ("subtype", "clip", "atol"),
    [
        ("FLOAT", "rescale", 1e-4),
        ("PCM_16", "rescale", 1e-4),
        ("PCM_16", None, 1e-4),
        ("ULAW", None, 0.06),  # its steps are 1/32 near full scale, in each of three files
    ],
)
def test_rescaling_is_one_factor_for_all(all_pass, subtype, clip, atol):
    audio_CS = noise(2, 8000, scale=1.0)
    name = save("in.wav", audio_CS, subtype="FLOAT")
    told, _, estimate_NCS, rest_CS = run(all_pass, name, clip=clip, subtype=subtype)
    assert max(np.abs(estimate_NCS).max(), np.abs(rest_CS).max()) == pytest.approx(1, abs=atol)
    assert told.factor < 0.6
    total_CS = estimate_NCS.sum(0) + rest_CS
    np.testing.assert_allclose(total_CS, told.factor * audio_CS, rtol=0, atol=atol)


def test_what_would_clip_is_refused_and_leaves_nothing(all_pass):
    name = save("in.wav", noise(1, 4000, scale=2.0), subtype="FLOAT")
    with pytest.raises(InputError, match="would clip in PCM_16"):
        run(all_pass, name, subtype="PCM_16", clip="none")
    assert os.listdir() == ["in.wav"]


# ---------------------------------------------------------------------- nothing half finished


def test_a_fault_found_late_leaves_nothing(separator, folder):
    audio_CS = noise(1, 40000)
    audio_CS[0, -5] = np.nan
    save("in.wav", audio_CS, subtype="FLOAT")
    save("in.flac", noise(1, 40000))
    content = (folder / "in.flac").read_bytes()
    (folder / "in.flac").write_bytes(content[: len(content) * 3 // 4])
    for name in ("in.wav", "in.flac"):
        with pytest.raises(audio_files.AudioError, match=name):
            run(separator, name, tile_seconds=0.3)
    assert sorted(os.listdir()) == ["in.flac", "in.wav"]


def test_names_that_collide_are_refused(separator):
    name = save("in.wav", noise())
    condition_NE = separator.embed_text(QUERIES)
    with pytest.raises(InputError, match="is the input"):
        separator.separate_file(name, ["in.wav", "b.wav"], condition_NE)
    with pytest.raises(InputError, match="same name"):
        separator.separate_file(name, ["b.wav", "b.wav"], condition_NE)
    with pytest.raises(InputError, match="1 outputs for 2"):
        separator.separate_file(name, ["b.wav"], condition_NE)
    assert os.listdir() == ["in.wav"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"stereo": "side"}, "stereo"),
        ({"above_nyquist": "maybe"}, "above_nyquist"),
        ({"tile_seconds": 0}, "tile_seconds"),
        ({"tile_seconds": float("inf")}, "tile_seconds"),
        ({"clip": "Rescale"}, "clip"),
        ({"output_format": "WAVE9"}, "WAVE9"),
        ({"subtype": "PCM_9"}, "PCM_9"),
    ],
)
def test_arguments_that_make_no_sense(separator, options, words):
    with pytest.raises(InputError, match=words):
        run(separator, save("in.wav", noise(1, 100)), **options)
    assert os.listdir() == ["in.wav"]


KILLED = """
import sys, time
from audiosep_jax.separation.separator import Separator
separator = Separator.load(sys.argv[1])
condition_NE = separator.embed_text(["rain"])
def slowly(seconds):
    print("on", flush=True)
    time.sleep(0.5)
separator.separate_file(
    "in.wav", ["out/a.wav"], condition_NE, residual="out/r.wav", tile_seconds=0.3, progress=slowly
)
"""


def test_killed_in_the_middle_it_leaves_nothing_that_looks_finished(folder):
    save_run(folder / "run")
    save("in.wav", noise(1, 200_000))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", KILLED, "run"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout.readline() == b"on\n"
        time.sleep(0.2)
        process.send_signal(signal.SIGKILL)
    names = os.listdir("out")
    assert len(names) == 2  # it was at work
    assert all(name.startswith(".") and ".partial" in name for name in names)


# ---------------------------------------------------------------------- presence and spans

HOP = 0.1


def of(level, mixture=0.01):
    """(estimate_T, level_T) in which the estimate has these levels."""
    level_T = np.array(level, float)
    return level_T**2 * mixture, np.minimum(level_T, 1)


def active(level, hop_seconds=HOP, seconds=None):
    return spans(*of(level), hop_seconds, seconds or len(level) * hop_seconds)


@pytest.mark.parametrize(
    ("level", "score"),
    [
        ([1] + [0] * 36000, 1),  # a bark in an hour
        ([0.25] * 9, 0.25),
        ([0.5, 0.25, 0.25], (2**-5 + 2 * 2**-10) / (2**-4 + 2 * 2**-8)),
        ([0] * 5, 0),
        ([4, 4], 1),  # louder than the mixture, out of phase with the rest
    ],
)
def test_presence_is_the_level_where_the_sound_is(level, score):
    assert presence(*of(level)) == pytest.approx(score)


def test_silence_holds_nothing():
    assert presence(np.zeros(3), np.zeros(3)) == 0
    assert presence(np.full(3, 1e-12), np.full(3, 1e-12)) == 0  # inaudible
    assert spans(np.full(3, 1e-12), np.ones(3), HOP, 0.3) == []
    assert presence(np.zeros(0), np.zeros(0)) == 0


def test_a_span_starts_high_and_ends_low():
    assert active([0, 0.2, 0.45, 0.2, 0.11, 0.2, 0, 0]) == [(0.1, 0.4)]
    assert active([0.34] * 8) == []
    assert active([0.14] * 3 + [0.9]) == [(0.0, 0.4)]


def test_a_single_high_level_among_many_low_ones_is_no_span():
    assert active([0.5] + [0.3] * 3)
    assert active([0.5] + [0.3] * 30) == []


def test_close_spans_are_one_and_far_ones_two():
    assert active([0.9, 0, 0, 0.9]) == [(0.0, 0.4)]
    assert active([0.9, 0, 0, 0, 0.9]) == [(0.0, 0.1), (0.4, 0.5)]


def test_what_is_far_below_the_loudest_is_not_active():
    estimate_T = np.array([1e-1, 0, 0, 0, 0.9e-4, 0, 0, 0, 1.1e-4])
    assert spans(estimate_T, np.ones(9), HOP, 0.9) == [(0.0, 0.1), (0.8, 0.9)]


def test_the_last_span_ends_with_the_recording():
    assert active([0, 0, 1], seconds=0.23) == [(0.2, 0.23)]


@given(st.lists(st.floats(0, 2), max_size=60))
def test_spans_are_apart_in_order_and_inside(level):
    found = [x for span in active(level) for x in span]
    assert found == sorted(found)
    assert all(0 <= x <= len(level) * HOP + 1e-9 for x in found)
    assert all(b - a > 0.2 for a, b in zip(found[1::2], found[2::2], strict=False))
    assert 0 <= presence(*of(level)) <= 1
