"""Headers that are wrong, streams behind one another, and videos: every sample, or the reason."""

import os
import shutil
import struct
import subprocess
import threading
from pathlib import Path

import numpy as np
import pytest
from audio_examples import RATE_HZ, encoded, fails, save, sines

from audiosep_jax.audio import files as audio_files

CASES = Path(__file__).resolve().parents[1] / "cases"
needs_ffmpeg = pytest.mark.skipif(
    shutil.which("ffmpeg") is None and os.environ.get("CI") != "true",
    reason="ffmpeg is not installed",
)


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
