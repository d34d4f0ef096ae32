"""Audio files: every format and rate is read as it is, and every broken file is named."""

import gc
import os
import resource
import struct

import numpy as np
import pytest
import soundfile
from audio_examples import RATE_HZ, fails, save, sines
from hypothesis import given, settings
from hypothesis import strategies as st

from audiosep_jax.audio import files as audio_files
from audiosep_jax.audio import writing
from audiosep_jax.audio.files import AudioError
from audiosep_jax.errors import InputError


@pytest.mark.parametrize(
    ("suffix", "options", "tolerance"),
    [
        (".wav", {"subtype": "PCM_16"}, 4e-5),
        (".wav", {"subtype": "PCM_U8"}, 8e-3),
        (".wav", {"subtype": "DOUBLE"}, 0),
        (".wav", {"format": "RF64", "subtype": "PCM_24"}, 1e-6),
        (".wav", {"format": "WAV", "endian": "BIG", "subtype": "PCM_16"}, 4e-5),
        (".flac", {}, 4e-5),
        (".aiff", {}, 4e-5),
        (".au", {}, 4e-5),
        (".ogg", {"subtype": "VORBIS"}, 0.05),
    ],
)
def test_reads_every_format_with_its_rate_and_channels(tmp_path, suffix, options, tolerance):
    audio_CS = sines()
    read_CS, rate_hz = audio_files.read(save(tmp_path / f"a{suffix}", audio_CS, **options))
    assert rate_hz == RATE_HZ
    assert read_CS.dtype == np.float32
    np.testing.assert_allclose(read_CS, audio_CS, rtol=0, atol=tolerance)


def test_reads_more_than_one_block(tmp_path, monkeypatch):
    monkeypatch.setattr(audio_files, "_READ_FRAMES", 1000)
    audio_CS = sines()
    path = save(tmp_path / "a.wav", audio_CS, subtype="FLOAT")
    np.testing.assert_array_equal(audio_files.read(path)[0], audio_CS)


def test_reads_real_recordings(shared):
    speech_CS, rate_hz = audio_files.read(shared / "data/recordings/speech_female_austen.ogg")
    assert len(speech_CS) in (1, 2)
    assert 1 < speech_CS.shape[1] / rate_hz < 120
    assert 1e-3 < np.sqrt(np.mean(speech_CS**2)) < 0.5


def test_names_what_is_not_an_audio_file(tmp_path):
    (tmp_path / "empty.wav").touch()
    (tmp_path / "text.wav").write_text("Once upon a time there was no sound.\n" * 20)
    (tmp_path / "file").write_text("x")
    assert "no such file" in fails(tmp_path / "missing.wav")
    assert "no such file" in fails(tmp_path / "file" / "below.wav")
    assert "folder" in fails(tmp_path)
    assert "empty" in fails(tmp_path / "empty.wav")
    assert "cannot be read as audio" in fails(tmp_path / "text.wav")


def test_names_samples_that_cannot_be_used(tmp_path):
    audio_CS = sines()
    assert "no samples" in fails(save(tmp_path / "zero.wav", audio_CS[:, :0]))
    for value in (np.nan, np.inf, -np.inf):
        audio_CS[1, 17] = value
        assert "NaN" in fails(save(tmp_path / "a.wav", audio_CS, subtype="FLOAT"))
    # Finite in the file's 64 bits, infinite in float32.
    huge_CS = np.full((1, 10), 1e300)
    assert "NaN" in fails(save(tmp_path / "huge.wav", huge_CS, subtype="DOUBLE"))


@pytest.mark.parametrize("rate_hz", [0, 1, 2**31 - 1])
def test_names_an_absurd_rate(tmp_path, rate_hz):
    path = save(tmp_path / "a.wav", sines())
    content = bytearray(path.read_bytes())
    content[24:28] = struct.pack("<I", rate_hz)
    path.write_bytes(content)
    fails(path)


@pytest.mark.parametrize("share", [0.02, 0.3, 0.5, 0.9, 0.999])
@pytest.mark.parametrize(
    ("suffix", "options"),
    [
        (".wav", {"subtype": "PCM_16"}),
        (".wav", {"subtype": "FLOAT"}),
        (".wav", {"format": "RF64"}),
        (".aiff", {}),
        (".au", {}),
        (".caf", {}),
        (".w64", {}),
        (".flac", {}),
        (".ogg", {"subtype": "VORBIS"}),
    ],
)
def test_names_truncated_audio(tmp_path, suffix, options, share):
    path = save(tmp_path / f"a{suffix}", sines(60000), **options)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    fails(path)


def test_an_ogg_that_ends_between_two_pages_is_read(tmp_path):
    """Recorders that died leave such files; no header states how much there should be."""
    path = save(tmp_path / "a.ogg", sines(400_000), subtype="VORBIS")
    content = path.read_bytes()
    path.write_bytes(content[: content.rfind(b"OggS")])
    audio_CS, _ = audio_files.read(path)
    assert 300_000 < audio_CS.shape[1] < 400_000
    np.testing.assert_allclose(audio_CS, sines(400_000)[:, : audio_CS.shape[1]], atol=0.05)


@pytest.mark.parametrize("written", [0, 0x7FFFF000, 0xFFFFFFFF])
def test_accepts_the_unknown_length_of_streaming_writers(tmp_path, written):
    audio_CS = sines()
    path = save(tmp_path / "a.wav", audio_CS, subtype="PCM_16")
    content = bytearray(path.read_bytes())
    at = content.index(b"data") + 4
    content[4:8] = content[at : at + 4] = struct.pack("<I", written)
    path.write_bytes(content)
    np.testing.assert_allclose(audio_files.read(path)[0], audio_CS, rtol=0, atol=4e-5)


def test_accepts_a_whole_wav_whose_outer_size_is_wrong(tmp_path):
    path = save(tmp_path / "a.wav", sines(), subtype="PCM_16")
    content = bytearray(path.read_bytes())
    content[4:8] = struct.pack("<I", len(content))  # a common slip: should be 8 less
    path.write_bytes(content)
    assert audio_files.read(path)[0].shape == (2, 6000)


def test_to_mono_averages_the_channels():
    np.testing.assert_allclose(audio_files.to_mono(np.array([[1.0, 2], [3, 6]])), [2, 4])
    np.testing.assert_array_equal(audio_files.to_mono(np.array([[1.0, 2]])), [1, 2])


@given(
    num_samples=st.integers(1, 3000),
    from_hz=st.sampled_from([8000, 11025, 16000, 44100, 48000, 96000]),
    to_hz=st.sampled_from([8000, 16000, 22050, 32000, 48000]),
)
@settings(max_examples=40, deadline=None)
def test_resampled_length_is_rounded_up(num_samples, from_hz, to_hz):
    audio_CS = np.ones((2, num_samples), np.float32)
    resampled_CS = audio_files.resample(audio_CS, from_hz, to_hz)
    assert resampled_CS.shape == (2, -(-num_samples * to_hz // from_hz))
    # The last sample is computed, not filled in with zero.
    assert np.abs(resampled_CS[:, -1]).min() > 1e-3


@pytest.mark.parametrize(("from_hz", "to_hz"), [(44100, 32000), (32000, 44100), (96000, 8000)])
def test_resampled_sine_is_the_same_sine(from_hz, to_hz):
    audio_CS = sines(from_hz, rate_hz=from_hz)
    expected_CS = sines(to_hz, rate_hz=to_hz)
    resampled_CS = audio_files.resample(audio_CS, from_hz, to_hz)
    edge = to_hz // 10
    error_CS = (resampled_CS - expected_CS)[:, edge:-edge]
    assert np.abs(error_CS).max() < 1e-4


def test_resampling_removes_what_the_lower_rate_cannot_hold():
    time_S = np.arange(44100) / 44100
    audio_CS = np.sin(2 * np.pi * 10_000 * time_S)[None].astype(np.float32)
    assert np.abs(audio_files.resample(audio_CS, 44100, 16000)[:, 800:-800]).max() < 1e-4


def test_equal_rates_change_nothing():
    audio_CS = sines()
    assert audio_files.resample(audio_CS, 44100, 44100) is audio_CS


def test_float_files_keep_what_is_above_one(tmp_path):
    audio_CS = sines(amplitude=3.0)
    path = tmp_path / "new" / "folder" / "a.wav"
    audio_files.write(path, audio_CS, 48000)
    read_CS, rate_hz = audio_files.read(path)
    np.testing.assert_array_equal(read_CS, audio_CS)
    assert rate_hz == 48000
    assert os.listdir(path.parent) == ["a.wav"]


@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24", "PCM_32"])
def test_integer_files_neither_wrap_nor_clip(tmp_path, subtype):
    path = tmp_path / "a.wav"
    audio_CS = sines(amplitude=1.0)
    audio_CS[0, :2] = [1, -1]
    audio_files.write(path, audio_CS, RATE_HZ, subtype=subtype)
    np.testing.assert_allclose(audio_files.read(path)[0], audio_CS, rtol=0, atol=5e-5)
    with pytest.raises(InputError, match=r"1\.01 would clip"):
        audio_files.write(path, audio_CS * 1.01, RATE_HZ, subtype=subtype)
    assert audio_files.read(path)[0].max() <= 1  # the earlier file is still there


def test_long_audio_gets_64_bit_lengths(tmp_path, monkeypatch):
    monkeypatch.setattr(writing, "_WAV_MAX_BYTES", 1000)
    path, audio_CS = tmp_path / "a.wav", sines()
    audio_files.write(path, audio_CS, RATE_HZ)
    assert path.read_bytes()[:4] == b"RF64"
    np.testing.assert_array_equal(audio_files.read(path)[0], audio_CS)


def refused(path, audio_CS, **options):
    with pytest.raises(InputError) as caught:
        audio_files.write(path, audio_CS, RATE_HZ, **options)
    assert "\n" not in str(caught.value)
    assert str(path).startswith(str(caught.value).partition(": ")[0])


def test_refused_writes_leave_nothing_behind(tmp_path):
    audio_CS = sines()
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder").mkdir()
    refused(tmp_path / "file" / "a.wav", audio_CS)
    refused(tmp_path / "folder", audio_CS)
    refused(tmp_path / "new" / "a.wav", audio_CS[:, :0])
    refused(tmp_path / "new" / "a.wav", audio_CS * np.nan)
    refused(tmp_path / "new" / "a.wav", audio_CS, subtype="MPEG_LAYER_III_X")
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]


def test_an_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    path, audio_CS = tmp_path / "a.wav", sines()
    audio_files.write(path, audio_CS, RATE_HZ)

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(soundfile.SoundFile, "write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        audio_files.write(path, audio_CS * 0, RATE_HZ)
    assert os.listdir(tmp_path) == ["a.wav"]
    np.testing.assert_array_equal(audio_files.read(path)[0], audio_CS)


@pytest.mark.parametrize("rate_hz", [8000, 11025])
def test_mono_blocks_are_the_whole_read_mixed_down_and_resampled(tmp_path, rate_hz, monkeypatch):
    audio_CS = np.random.default_rng(0).uniform(-0.5, 0.5, (2, 5003)).astype(np.float32)
    audio_files.write(tmp_path / "a.wav", audio_CS, rate_hz)
    monkeypatch.setattr(audio_files, "_READ_FRAMES", 512)
    blocks = list(audio_files.mono_blocks(tmp_path / "a.wav", 8000))
    whole_CS = audio_files.resample(audio_files.to_mono(audio_CS)[None], rate_hz, 8000)
    assert len(blocks) > 5
    np.testing.assert_allclose(np.concatenate(blocks), whole_CS[0], rtol=0, atol=1e-6)


# ---------------------------------------------------------------------- in blocks


@given(
    blocks=st.lists(st.integers(0, 3000), min_size=1, max_size=8),
    rates=st.sampled_from([(44100, 16000), (8000, 48000), (32000, 44100), (192000, 32000)]),
)
@settings(max_examples=25, deadline=None)
def test_resampling_in_blocks_changes_nothing(blocks, rates):
    audio_CS = np.random.default_rng(0).standard_normal((2, sum(blocks) + 1)).astype(np.float32)
    stream = audio_files.Resampler(*rates, 2)
    parts = [stream.feed(block_CS) for block_CS in np.split(audio_CS, np.cumsum(blocks), axis=1)]
    actual_CS = np.concatenate([*parts, stream.finish()], axis=1)
    np.testing.assert_array_equal(actual_CS, audio_files.resample(audio_CS, *rates))


def test_reads_and_writes_in_blocks(tmp_path):
    audio_CS = sines()
    with audio_files.AudioWriter(tmp_path / "a.wav", RATE_HZ, 2) as out:
        for block_CS in np.array_split(audio_CS, 7, axis=1):
            out.write(block_CS)
            assert not (tmp_path / "a.wav").exists()
    with audio_files.AudioReader(tmp_path / "a.wav") as recording:
        told = (recording.sample_rate_hz, recording.num_channels, recording.num_samples)
        assert told == (RATE_HZ, 2, 6000)
        assert (recording.format, recording.subtype) == ("WAV", "FLOAT")
        np.testing.assert_array_equal(recording.read(10), audio_CS[:, :10])
        rest = list(recording.blocks(2500))
        assert [block_CS.shape[1] for block_CS in rest] == [2500, 2500, 990]
        np.testing.assert_array_equal(np.concatenate(rest, 1), audio_CS[:, 10:])
        assert recording.read(5).shape == (2, 0)


@pytest.mark.parametrize("subtype", list(audio_files.INTEGER_BITS))
def test_what_is_read_and_written_again_is_the_same(tmp_path, subtype):
    """libsndfile alone would make it a little quieter each time."""
    name = next(x for x in ("WAV", "AIFF", "CAF") if soundfile.check_format(x, subtype))
    kind = {"format": name, "subtype": subtype}
    path = save(tmp_path / "a", sines(amplitude=1.0), **kind)
    audio_CS, _ = audio_files.read(path)
    audio_files.write(tmp_path / "b", audio_CS, RATE_HZ, **kind)
    np.testing.assert_array_equal(audio_files.read(tmp_path / "b")[0], audio_CS)


LOUD_CS = sines(48000, 1, rate_hz=48000, amplitude=1.6)


@pytest.mark.parametrize(
    "kind", ["WAV ULAW", "AU ALAW", "WAV IMA_ADPCM", "WAV MS_ADPCM", "CAF ALAC_16", "AIFF PCM_S8"]
)
def test_what_would_wrap_round_is_refused(tmp_path, kind):
    format, subtype = kind.split()
    with pytest.raises(InputError, match=f"would clip in {subtype}"):
        audio_files.write(tmp_path / "a", LOUD_CS, 48000, format=format, subtype=subtype)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "kind", ["WAV FLOAT", "WAV DOUBLE", "OGG VORBIS", "OGG OPUS", "MP3 MPEG_LAYER_III"]
)
def test_what_holds_loud_samples_takes_them(tmp_path, kind):
    format, subtype = kind.split()
    audio_files.write(tmp_path / "a", LOUD_CS, 48000, format=format, subtype=subtype)
    read_CS, _ = audio_files.read(tmp_path / "a")
    assert read_CS.max() == pytest.approx(1.6, rel=0.1)
    assert np.sqrt(np.mean(read_CS**2)) == pytest.approx(1.6 / np.sqrt(2), rel=0.05)


def test_clamping_limits_and_keeps_the_rest(tmp_path):
    audio_CS = sines(amplitude=2.0)
    for subtype in ("PCM_16", "FLOAT"):
        options = {"subtype": subtype, "clip": "clamp"}
        with audio_files.AudioWriter(tmp_path / "a.wav", RATE_HZ, 2, **options) as out:
            out.write(audio_CS)
        actual_CS, _ = audio_files.read(tmp_path / "a.wav")
        np.testing.assert_allclose(actual_CS, np.clip(audio_CS, -1, 1), rtol=0, atol=5e-5)


def test_a_wav_of_unknown_length_ends_with_an_error_where_it_gets_too_long(tmp_path, monkeypatch):
    monkeypatch.setattr(writing, "_WAV_MAX_BYTES", 40_000)
    with (
        pytest.raises(InputError, match="more than 4 GB"),
        audio_files.AudioWriter(tmp_path / "new" / "a.wav", RATE_HZ, 2) as out,
    ):
        out.write(sines())
    assert os.listdir(tmp_path) == []


def test_faults_that_show_while_reading(tmp_path):
    audio_CS = sines()
    audio_CS[1, 5000] = np.nan
    with audio_files.AudioReader(save(tmp_path / "a.wav", audio_CS, subtype="FLOAT")) as recording:
        np.testing.assert_array_equal(recording.read(5000), audio_CS[:, :5000])
        with pytest.raises(AudioError, match="NaN"):
            recording.read(5000)


def test_counts_where_the_header_does_not(tmp_path):
    path = save(tmp_path / "a.flac", sines())
    content = bytearray(path.read_bytes())
    content[21] &= 0xF0  # the 36 bits of the total in STREAMINFO, 0 for unknown
    content[22:26] = bytes(4)
    path.write_bytes(content)
    with audio_files.AudioReader(path) as recording:
        assert recording.num_samples == 6000
        assert recording.read(7000).shape == (2, 6000)


def test_files_get_their_usual_suffix():
    assert audio_files.suffix_of("WAVEX", "PCM_16") == ".wav"
    assert audio_files.suffix_of("OGG", "OPUS") == ".opus"
    assert audio_files.suffix_of("FLAC", "PCM_24") == ".flac"


@pytest.mark.parametrize("kind", ["WAV FLOAT", "FLAC PCM_16", "OGG VORBIS", "MP3 MPEG_LAYER_III"])
@pytest.mark.parametrize("room", [10_000, 20])
def test_the_systems_reason_is_named_where_a_file_cannot_be_written(tmp_path, capfd, kind, room):
    """libsndfile alone says "System error" of a full disk, and soundfile prints traces."""
    format, subtype = kind.split()
    noise_CS = 0.1 * np.random.default_rng(0).standard_normal((2, 400_000))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))
    try:
        with pytest.raises(InputError, match=r"a: cannot be written \(File too large\)"):
            audio_files.write(tmp_path / "a", noise_CS, 44100, format=format, subtype=subtype)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    gc.collect()
    assert capfd.readouterr().err == ""
    assert not list(tmp_path.iterdir())
