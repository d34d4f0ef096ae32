"""recordings: audio becomes whole, checked, exactly placed records, or one line that says why."""

import numpy as np
import prepared_examples as examples
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from audiosep_jax.audio import files as audio_files
from audiosep_jax.audio.files import AudioError
from audiosep_jax.data.synthetic import SyntheticSource
from audiosep_jax.preparing import recordings as recordings_lib
from audiosep_jax.preparing.recordings import Recording, expected, find, record_lengths, records

RATE_HZ = examples.RATE_HZ


def cut(tmp_path, path, rate_hz=RATE_HZ, min_seconds=0.1, **fields):
    recording = Recording("x", "train", ("noise",), (str(path),), **fields)
    return list(records(recording, rate_hz, min_seconds, tmp_path))


def refused(tmp_path, path, **options):
    with pytest.raises(AudioError) as caught:
        cut(tmp_path, path, **options)
    assert str(tmp_path) not in str(caught.value)  # the same wherever the file lies
    assert "\n" not in str(caught.value)
    return str(caught.value)


@given(st.integers(1, 10**5), st.integers(50, 10**6))
def test_lengths_are_even_and_as_few_as_possible(num_samples, most):
    lengths = record_lengths(num_samples, most)
    assert sum(lengths) == num_samples
    assert max(lengths) <= most
    assert max(lengths) - min(lengths) <= 1
    assert (len(lengths) - 1) * most < num_samples


def test_sixteen_bits_at_the_same_rate_stay_as_they_are(tmp_path):
    path = examples.save(tmp_path / "a.wav", seconds=2.0, peak=1.0)
    [(start, pcm_S)] = cut(tmp_path, path)
    stored_S, _ = soundfile.read(path, dtype="int16")
    assert start == 0
    np.testing.assert_array_equal(pcm_S, stored_S)


@pytest.mark.parametrize("spool_bytes", [64 << 20, 1000])
def test_a_long_recording_is_cut_where_it_says(tmp_path, monkeypatch, spool_bytes):
    monkeypatch.setattr(recordings_lib, "_SPOOL_BYTES", spool_bytes)
    monkeypatch.setattr(audio_files, "_READ_FRAMES", 10_007)
    path = examples.save(tmp_path / "a.wav", seconds=40.0, rate_hz=11025, num_channels=2)
    audio_CS, rate_hz = audio_files.read(path)
    whole_S = audio_files.resample(audio_CS.mean(axis=0, keepdims=True), rate_hz, RATE_HZ)[0]
    parts = cut(tmp_path, path)
    assert [round(start, 4) for start, _ in parts] == [0, 13.3332, 26.6666]
    for start, pcm_S in parts:
        begin = round(start * RATE_HZ)
        expected_S = np.rint(whole_S[begin : begin + len(pcm_S)] * 32768)
        np.testing.assert_array_equal(pcm_S, expected_S)
    assert sum(len(pcm_S) for _, pcm_S in parts) == len(whole_S)
    assert [path.name for path in tmp_path.iterdir()] == ["a.wav"]


def test_what_overshoots_is_turned_down_not_clipped(tmp_path):
    path, audio_S = tmp_path / "a.wav", np.sin(np.arange(4000) / 7).astype("f4") * 1.7
    soundfile.write(path, audio_S, RATE_HZ, subtype="FLOAT")
    [(_, pcm_S)] = cut(tmp_path, path)
    assert np.abs(pcm_S.astype(int)).max() == 32767
    expected_S = audio_S * 32767 / np.abs(audio_S).max()
    np.testing.assert_allclose(pcm_S, expected_S, atol=0.51)


def test_a_synthetic_clip_is_the_sources(tmp_path):
    recording = Recording("x", "train", ("x",), synthetic=(5, 3))
    [(_, pcm_S)] = records(recording, RATE_HZ, 1.0, tmp_path)
    np.testing.assert_array_equal(pcm_S, np.rint(SyntheticSource(9, 5, RATE_HZ).load(3) * 32768))


def test_lengths_are_checked_against_the_annotation(tmp_path):
    path = examples.save(tmp_path / "a.wav", seconds=9.0)
    assert len(cut(tmp_path, path, seconds=expected(9.4))) == 1
    for seconds in (10.0, 8.0):
        told = "lasts 9.00 s; its annotation says"
        assert told in refused(tmp_path, path, seconds=expected(seconds))
    assert "at most 8.5 s" in refused(tmp_path, path, seconds=(0.0, 8.5))
    assert "shorter than min_seconds=10" in refused(tmp_path, path, min_seconds=10)
    assert expected(100.0) == (98.0, 102.0)
    assert expected(0.2) == (0.0, 0.7)


def test_broken_files_are_refused(tmp_path):
    path = examples.save(tmp_path / "a.wav")
    path.write_bytes(path.read_bytes()[:-1])
    assert refused(tmp_path, path).startswith("is truncated")
    flac = examples.save(tmp_path / "b.flac", seconds=3.0)
    flac.write_bytes(flac.read_bytes()[: flac.stat().st_size // 2])
    assert refused(tmp_path, flac)
    silent = examples.save(tmp_path / "c.wav", peak=0.0)
    assert refused(tmp_path, silent) == "is silent"
    assert refused(tmp_path, tmp_path / "none.wav") == "no such file: none.wav"


def test_the_first_place_that_is_there_is_taken(tmp_path):
    for name in ("b.flac", "b.wav", "c.mp3"):
        (tmp_path / name).touch()
    (tmp_path / "a.wav").mkdir()
    places = tuple(str(tmp_path / name) for name in ("a", "a.wav", "b", "c.mp3"))
    recording = Recording("x", "train", (), places)
    assert find(recording) == tmp_path / "b.wav"
    assert find(Recording("x", "train", (), places[:2])) is None
    (tmp_path / "d.WAV").touch()
    assert find(Recording("x", "train", (), (str(tmp_path / "d"),))) == tmp_path / "d.WAV"
