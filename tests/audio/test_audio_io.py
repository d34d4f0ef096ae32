"""Audio files: every format and rate is read as it is, and every broken file is named."""

import gc
import io
import os
import resource
import shutil
import struct
import subprocess
import threading
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from audiosep_jax.audio import files as audio_files
from audiosep_jax.audio import writing
from audiosep_jax.audio.files import AudioError
from audiosep_jax.errors import InputError

RATE_HZ = 22050
CASES = Path(__file__).resolve().parents[1] / "cases"


def sines(num_samples=6000, num_channels=2, rate_hz=RATE_HZ, amplitude=0.5):
    time_S = np.arange(num_samples) / rate_hz
    rows = [np.sin(2 * np.pi * 300 * (k + 1) * time_S) for k in range(num_channels)]
    return (amplitude * np.stack(rows)).astype(np.float32)


def save(path, audio_CS, **options):
    soundfile.write(path, audio_CS.T, options.pop("rate_hz", RATE_HZ), **options)
    return path


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


def fails(path):
    """The one-line message of the AudioError that reading `path` raises."""
    with pytest.raises(AudioError) as caught:
        audio_files.read(path)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message


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


# ---------------------------------------------------------------------- headers that are wrong


def encoded(suffix, num_samples=50_000, seed=0, **options):
    """Content of a file of noise."""
    audio_SC = 0.1 * np.random.default_rng(seed).standard_normal((num_samples, 2))
    file = io.BytesIO()
    options = {"format": suffix.upper()} | options
    soundfile.write(file, audio_SC, options.pop("rate_hz", RATE_HZ), **options)
    return file.getvalue()


def without_first_frame(content):
    """An MP3 as pipes leave it: the frame that states the length is missing."""
    return content[content.index(content[:2], 10) :]


@pytest.mark.parametrize("name", ["sox.mp3", "vbr_noxing.mp3"])
def test_reads_all_of_an_mp3_that_states_no_length(name):
    """Its length is not the header's estimate, which is 43 % of the second file."""
    with audio_files.AudioReader(CASES / name) as recording:
        assert (recording.num_samples, recording.num_channels) == (222_336, 2)
        blocks = list(recording.blocks(10_000))
    audio_CS = np.concatenate(blocks, axis=1)
    assert audio_CS.shape == (2, 222_336)
    np.testing.assert_array_equal(audio_files.read(CASES / name)[0], audio_CS)
    rms_K = [np.sqrt(np.mean(x**2)) for x in np.split(audio_CS, 4, axis=1)]
    assert min(rms_K) > 0.01  # sound to the end


def test_an_mp3_without_its_first_frame_is_read_to_the_end(tmp_path):
    whole = encoded("mp3")
    (tmp_path / "a.mp3").write_bytes(whole)
    (tmp_path / "b.mp3").write_bytes(without_first_frame(whole))
    (tmp_path / "c.mp3").write_bytes(b"ID3\4\0\0\0\0\2\0" + bytes(256) + without_first_frame(whole))
    assert audio_files.read(tmp_path / "a.mp3")[0].shape == (2, 50_000)
    for name in ("b.mp3", "c.mp3"):
        read_CS, _ = audio_files.read(tmp_path / name)
        assert read_CS.shape[1] % 576 == 0
        assert 50_000 <= read_CS.shape[1] <= 50_000 + 3 * 1152


@pytest.mark.parametrize(
    ("before", "behind"),
    [
        (b"", bytes(3000)),  # decoders give up in so much padding
        (bytes(3000), b""),
        (b"", b"APETAGEX" + struct.pack("<IIII", 2000, 500, 1, 0) + bytes(8) + b"\xff\xfb" * 250),
        (b"ID3\4\0\0\0\0\2\0" + b"\xff\xfb" * 128, b"TAG" + bytes(125)),
        (b"", "half a frame"),
    ],
)
def test_only_the_frames_of_an_mp3_are_decoded(tmp_path, before, behind):
    whole = without_first_frame(encoded("mp3"))
    (tmp_path / "a.mp3").write_bytes(whole)
    expected_CS, _ = audio_files.read(tmp_path / "a.mp3")
    behind = whole[:100] if behind == "half a frame" else behind
    (tmp_path / "b.mp3").write_bytes(before + whole + behind)
    np.testing.assert_array_equal(audio_files.read(tmp_path / "b.mp3")[0], expected_CS)


def test_an_mp3_that_breaks_off_is_read_to_its_last_whole_frame(tmp_path):
    content = without_first_frame(encoded("mp3"))
    (tmp_path / "a.mp3").write_bytes(content)
    (tmp_path / "b.mp3").write_bytes(content[: len(content) // 2])
    whole_CS, _ = audio_files.read(tmp_path / "a.mp3")
    half_CS, _ = audio_files.read(tmp_path / "b.mp3")
    assert half_CS.shape[1] == pytest.approx(whole_CS.shape[1] / 2, abs=2 * 1152)
    np.testing.assert_array_equal(half_CS, whole_CS[:, : half_CS.shape[1]])


def test_a_truncated_mp3_that_states_its_length_is_named(tmp_path):
    content = encoded("mp3")
    (tmp_path / "a.mp3").write_bytes(content[: len(content) // 2])
    message = fails(tmp_path / "a.mp3")
    assert "truncated or damaged" in message
    assert "of 50000 samples" in message
    assert "ffmpeg -i" in message


def test_readers_of_mp3_files_leave_no_threads_and_no_descriptors():
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    for _ in range(3):
        with audio_files.AudioReader(CASES / "sox.mp3") as recording:
            recording.read(100)
    for thread in threading.enumerate():
        if thread is not threading.main_thread() and "feed" in thread.name:
            thread.join(10)
    assert not [x for x in threading.enumerate() if "feed" in x.name]
    after = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    assert after <= before


def test_an_ogg_without_a_last_page_is_whole():
    audio_CS, _ = audio_files.read(CASES / "ogg_whole_no_eos.ogg")
    assert audio_CS.shape == (2, 220_500)


@pytest.mark.parametrize("lengths", [(36, 0), (0, 0), (8, 0), (5036, 0)])
@pytest.mark.parametrize("extra", [b"", b"LIST\4\0\0\0INFO"])
def test_reads_all_of_a_wav_whose_writer_died(tmp_path, lengths, extra):
    content = encoded("wav", subtype="PCM_16")
    at = content.index(b"data")
    riff, data = (struct.pack("<I", x) for x in lengths)
    path = tmp_path / "a.wav"
    path.write_bytes(b"RIFF" + riff + content[8:at] + extra + b"data" + data + content[at + 8 :])
    (tmp_path / "b.wav").write_bytes(content)
    np.testing.assert_array_equal(
        audio_files.read(path)[0], audio_files.read(tmp_path / "b.wav")[0]
    )


def test_an_unfinished_wav_of_silence_opens_at_once(tmp_path):
    """Its zeros look like empty chunks; walking them would take hours on a long file."""
    content = encoded("wav", 1, subtype="PCM_16")[:-4]
    at = content.index(b"data")
    path = tmp_path / "a.wav"
    with path.open("wb") as file:
        file.write(content[:4] + struct.pack("<I", 36) + content[8 : at + 4] + bytes(4))
        file.truncate(400_000_000)
    with audio_files.AudioReader(path) as recording:
        assert recording.num_samples == (400_000_000 - len(content)) // 4


def test_reads_all_of_other_files_whose_writers_died(tmp_path):
    whole = {kind: encoded(kind, subtype="PCM_16") for kind in ("au", "rf64")}
    sizes = whole["rf64"].index(b"ds64") + 8
    died = {
        "au": whole["au"][:8] + bytes(4) + whole["au"][12:],
        "rf64": whole["rf64"][:sizes] + bytes(24) + whole["rf64"][sizes + 24 :],
    }
    for kind, content in died.items():
        (tmp_path / f"a.{kind}").write_bytes(content)
        (tmp_path / f"b.{kind}").write_bytes(whole[kind])
        audio_CS, _ = audio_files.read(tmp_path / f"a.{kind}")
        np.testing.assert_array_equal(audio_CS, audio_files.read(tmp_path / f"b.{kind}")[0])
        assert audio_CS.shape == (2, 50_000)


def test_an_empty_wav_with_more_chunks_stays_empty(tmp_path):
    content = encoded("wav", 0, subtype="PCM_16")
    (tmp_path / "a.wav").write_bytes(content + b"LIST" + struct.pack("<I", 400) + bytes(400))
    assert "contains no samples" in fails(tmp_path / "a.wav")


@pytest.mark.parametrize("suffix", ["wav", "flac", "aiff", "au", "caf", "w64"])
def test_recordings_behind_one_another_are_refused(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(encoded(suffix) + encoded(suffix, seed=1))
    assert "only the first can be read; split the file" in fails(path)


def test_a_second_sound_in_a_wav_and_a_chain_of_two_codecs_are_refused(tmp_path):
    content = encoded("wav")
    (tmp_path / "a.wav").write_bytes(content + content[content.index(b"data") :])
    options = {"subtype": "OPUS", "rate_hz": 48_000}
    (tmp_path / "a.ogg").write_bytes(encoded("ogg") + encoded("ogg", **options))
    for name in ("a.wav", "a.ogg"):
        assert "only the first can be read; split the file" in fails(tmp_path / name)


@pytest.mark.parametrize("name", ["mp3_concat.mp3", "ogg_chained.ogg"])
def test_streams_behind_one_another_need_ffmpeg(name, monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert "holds several recordings, one behind another; install ffmpeg" in fails(CASES / name)


needs_ffmpeg = pytest.mark.skipif(
    shutil.which("ffmpeg") is None and os.environ.get("CI") != "true",
    reason="ffmpeg is not installed",
)


@needs_ffmpeg
@pytest.mark.parametrize(
    ("name", "num_samples"), [("mp3_concat.mp3", 443_567), ("ogg_chained.ogg", 441_128)]
)
def test_reads_streams_behind_one_another(name, num_samples):
    audio_CS, rate_hz = audio_files.read(CASES / name)
    assert (audio_CS.shape, rate_hz) == ((2, num_samples), 44100)
    halves = np.split(audio_CS[:, : num_samples // 2 * 2], 2, axis=1)
    assert min(np.sqrt(np.mean(x**2)) for x in halves) > 0.01


@needs_ffmpeg
def test_reads_a_file_that_was_put_behind_itself(tmp_path):
    for suffix, options in (("ogg", {"subtype": "VORBIS"}), ("mp3", {})):
        path = tmp_path / f"a.{suffix}"
        path.write_bytes(2 * encoded(suffix, **options))
        assert audio_files.read(path)[0].shape[1] == pytest.approx(100_000, abs=4000)


@needs_ffmpeg
def test_streams_of_several_rates_and_with_tags_between_them_are_all_read(tmp_path):
    high = encoded("mp3", 44_100, rate_hz=44_100)
    low = encoded("mp3", 22_050, rate_hz=22_050)
    tagged = high + b"TAG" + bytes(125)
    contents = [high + low, without_first_frame(high) + without_first_frame(low), tagged + tagged]
    for content in contents:
        (tmp_path / "a.mp3").write_bytes(content)
        audio_CS, rate_hz = audio_files.read(tmp_path / "a.mp3")
        assert audio_CS.shape[1] / rate_hz == pytest.approx(2, abs=0.15)
        assert np.abs(audio_CS[:, -rate_hz // 5 :]).max() > 0.1


# ---------------------------------------------------------------------- videos


@pytest.fixture
def video(tmp_path):
    """One second of picture and sound in Matroska, the sound as PCM."""
    sound, path = save(tmp_path / "a.wav", sines(RATE_HZ), subtype="PCM_16"), tmp_path / "a.mkv"
    make_video(path, "-i", sound)
    return path


def make_video(path, *sound, codec="pcm_s16le"):
    picture = ["-f", "lavfi", "-i", "color=size=16x16:rate=5:duration=1"]
    command = ["ffmpeg", "-v", "error", *picture, *sound, "-c:a", codec, path]
    subprocess.run(command, check=True)


@needs_ffmpeg
def test_reads_the_sound_of_a_video(video):
    with audio_files.AudioReader(video) as recording:
        assert audio_files.writable_format(recording) == ("WAV", "FLOAT")
        assert recording.num_samples == RATE_HZ
        audio_CS = recording.read(RATE_HZ)
    np.testing.assert_allclose(audio_CS, sines(RATE_HZ), rtol=0, atol=4e-5)


@needs_ffmpeg
def test_sound_that_starts_late_keeps_its_time(tmp_path):
    sound, path = save(tmp_path / "a.wav", sines(RATE_HZ), subtype="PCM_16"), tmp_path / "a.mkv"
    make_video(path, "-itsoffset", "0.5", "-i", sound)
    audio_CS, _ = audio_files.read(path)
    late = RATE_HZ // 2
    assert audio_CS.shape == (2, RATE_HZ + late)
    assert not audio_CS[:, :late].any()
    np.testing.assert_allclose(audio_CS[:, late:], sines(RATE_HZ), rtol=0, atol=4e-5)


@needs_ffmpeg
def test_late_sound_of_a_transport_stream_keeps_its_time(tmp_path):
    """Its times count from those of the picture."""
    sound, path = save(tmp_path / "a.wav", sines(RATE_HZ), subtype="PCM_16"), tmp_path / "a.ts"
    make_video(path, "-itsoffset", "0.5", "-i", sound, codec="aac")
    audio_CS, _ = audio_files.read(path)
    assert np.flatnonzero(audio_CS.any(0))[0] == pytest.approx(RATE_HZ / 2, abs=0.06 * RATE_HZ)


@needs_ffmpeg
def test_truncated_and_joined_films_are_named(tmp_path):
    sound = save(tmp_path / "a.wav", sines(RATE_HZ), subtype="PCM_16")
    at_end, at_start, other = (tmp_path / name for name in ("end.mp4", "start.mp4", "a.mkv"))
    make_video(at_end, "-i", sound, codec="aac")
    make_video(at_start, "-i", sound, "-movflags", "+faststart", codec="aac")
    make_video(other, "-i", sound)
    for path, words in ((at_end, "the index at the end of an MP4"), (at_start, "is truncated")):
        content = path.read_bytes()
        path.write_bytes(2 * content)
        assert "only the first can be read" in fails(path)
        path.write_bytes(content[: len(content) * 6 // 10])
        assert words in fails(path)
    other.write_bytes(2 * other.read_bytes())
    assert "only the first can be read" in fails(other)


@needs_ffmpeg
def test_a_caf_of_a_writer_that_could_not_seek_back(tmp_path):
    content = encoded("caf", subtype="PCM_16")
    at = content.index(b"data") + 4
    (tmp_path / "a.caf").write_bytes(content[:at] + b"\xff" * 8 + content[at + 8 :])
    (tmp_path / "b.caf").write_bytes(content)
    audio_CS, _ = audio_files.read(tmp_path / "a.caf")
    np.testing.assert_array_equal(audio_CS, audio_files.read(tmp_path / "b.caf")[0])


@pytest.mark.parametrize("field", [8, 12, "VBRI"])
def test_a_first_frame_that_states_a_wrong_length_is_not_believed(tmp_path, field):
    """Numbers of frames and bytes that do not fit a constant rate, none, or another kind of tag."""
    content = encoded("mp3", bitrate_mode="CONSTANT", compression_level=0.5)
    (tmp_path / "a.mp3").write_bytes(without_first_frame(content))
    expected_CS, _ = audio_files.read(tmp_path / "a.mp3")
    at = content.index(b"Info")
    wrong = [content.replace(b"Info", b"VBRI", 1)]
    if field != "VBRI":
        stated = int.from_bytes(content[at + field : at + field + 4])
        values = [stated // 2, 0] if field == 8 else [stated // 2]
        wrong = [
            content[: at + field] + struct.pack(">I", value) + content[at + field + 4 :]
            for value in values
        ]
    for whole in wrong:
        (tmp_path / "b.mp3").write_bytes(whole)
        np.testing.assert_array_equal(audio_files.read(tmp_path / "b.mp3")[0], expected_CS)


@needs_ffmpeg
@pytest.mark.parametrize(("layout", "channels"), [("3.0", 3), ("5.1", 6), ("6.1", 7), ("7.1", 8)])
def test_the_channels_of_an_ogg_have_the_order_of_other_formats(tmp_path, layout, channels):
    """ffmpeg agrees, in both directions; tones tell the channels apart (the fourth is low)."""
    time_S = np.arange(RATE_HZ) / RATE_HZ
    hz_C = np.where(np.arange(channels) == 3, 60, 300 * (1 + np.arange(channels)))
    tones_CS = (0.1 * np.sin(2 * np.pi * hz_C[:, None] * time_S)).astype(np.float32)
    convert = ["ffmpeg", "-v", "error", "-channel_layout", layout, "-i", "a.wav"]
    convert += ["-c:a", "libvorbis", "b.ogg"]
    save(tmp_path / "a.wav", tones_CS)
    subprocess.run(convert, cwd=tmp_path, check=True)
    audio_files.write(tmp_path / "c.ogg", tones_CS, RATE_HZ, format="OGG", subtype="VORBIS")
    subprocess.run(["ffmpeg", "-v", "error", "-i", "c.ogg", "d.wav"], cwd=tmp_path, check=True)
    for name in ("b.ogg", "c.ogg", "d.wav"):
        audio_CS, _ = audio_files.read(tmp_path / name)
        spectrum_CF = np.abs(np.fft.rfft(audio_CS[:, :RATE_HZ]))
        np.testing.assert_allclose(spectrum_CF.argmax(1), hz_C, atol=1)


@needs_ffmpeg
def test_an_mp3_in_a_wav_is_counted(tmp_path):
    """The WAV states an estimate."""
    save(tmp_path / "a.wav", sines(5 * RATE_HZ))
    command = ["ffmpeg", "-v", "error", "-i", "a.wav", "-c:a", "libmp3lame", "b.wav"]
    subprocess.run(command, cwd=tmp_path, check=True)
    with audio_files.AudioReader(tmp_path / "b.wav") as recording:
        assert recording.num_samples == recording.read_rest().shape[1]
        assert 5 * RATE_HZ <= recording.num_samples < 5 * RATE_HZ + 3 * 1152


@needs_ffmpeg
def test_a_full_temporary_folder_is_named(video, monkeypatch):
    script = "#!/bin/sh\necho 'av_interleaved_write_frame(): No space left on device' >&2; exit 1\n"
    (video.parent / "ffmpeg").write_text(script)
    (video.parent / "ffmpeg").chmod(0o755)
    monkeypatch.setenv("PATH", str(video.parent), prepend=os.pathsep)
    assert "no space left in" in fails(video)


@needs_ffmpeg
def test_reads_the_late_sound_of_a_film(shared):
    path = shared / "cases" / "delay.mkv"
    audio_CS, _ = audio_files.read(path)
    assert audio_CS.shape == (2, 242_550)
    assert not audio_CS[:, :22_050].any()
    assert audio_CS[:, 22_050:23_000].any()


@needs_ffmpeg
def test_a_gap_in_the_sound_keeps_its_time(tmp_path):
    """Screen recorders send no packets while nothing plays."""
    sound, path = save(tmp_path / "a.wav", sines(3 * RATE_HZ), subtype="PCM_16"), tmp_path / "a.mkv"
    make_video(path, "-i", sound, "-af", "aselect='not(between(t,1,1.999))'")
    audio_CS, _ = audio_files.read(path)
    millisecond = RATE_HZ // 1000 + 1  # Matroska's times are whole ones
    assert audio_CS.shape[1] == pytest.approx(3 * RATE_HZ, abs=millisecond)
    assert len(np.flatnonzero(~audio_CS.any(axis=0))) > 0.9 * RATE_HZ
    expected_CS, end_CS = sines(3 * RATE_HZ), audio_CS[:, 52_000:62_000]
    shifts = range(-2 * millisecond, 2 * millisecond)
    errors = [np.abs(end_CS - expected_CS[:, 52_000 + x : 62_000 + x]).max() for x in shifts]
    assert min(errors) < 4e-5


@needs_ffmpeg
def test_a_film_without_sound_is_named():
    assert fails(CASES / "mute_film.mp4").endswith("is a film without sound")


@needs_ffmpeg
def test_says_what_a_video_needs(video, monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert "install ffmpeg" in fails(video)


@needs_ffmpeg
def test_a_damaged_video_is_named(video):
    video.write_bytes(video.read_bytes()[:60])
    assert "cannot be read as audio" in fails(video)


@needs_ffmpeg
@pytest.mark.parametrize("name", ["a.m3u8", "a.mp4", "a.wav", "a.mkv", "a.mp3", "a.txt"])
@pytest.mark.parametrize("form", ["plain", "ffconcat", "hls"])
def test_a_list_of_files_is_refused_whatever_its_name(tmp_path, name, form):
    """ffmpeg itself would read the recording that is named in it."""
    save(tmp_path / "other.wav", sines(RATE_HZ))
    text = {
        "ffconcat": "ffconcat version 1.0\nfile other.wav\n",
        "hls": "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nother.wav\n#EXT-X-ENDLIST\n",
    }.get(form, f"{tmp_path}/other.wav\n")
    (tmp_path / name).write_text(text)
    assert "cannot be read as audio" in fails(tmp_path / name)
    if form == "ffconcat":
        command = ["ffmpeg", "-v", "error", "-i", tmp_path / name, "-f", "null", "-"]
        assert subprocess.run(command, check=False).returncode == 0


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
