"""What a run writes: one JSON line a row, curves, pictures and sounds; and how it goes on."""

import io
import json
import resource
import struct

import numpy as np
import pytest
import soundfile
from PIL import Image
from separator_examples import TINY
from tensorboardX.proto.event_pb2 import Event

from audiosep_jax.errors import InputError
from audiosep_jax.plots import spectrogram_picture
from audiosep_jax.training.log import METRICS_FILE, RunLog


def rows(workdir):
    return [json.loads(line) for line in (workdir / METRICS_FILE).read_text().splitlines()]


def events(workdir):
    """Every event below the workdir, its checksums passed over (TFRecord framing)."""
    found = []
    for path in sorted((workdir / "tensorboard").iterdir()):
        data, position = path.read_bytes(), 0
        while position < len(data):
            (length,) = struct.unpack_from("<Q", data, position)
            found.append(Event.FromString(data[position + 12 : position + 12 + length]))
            position += length + 16
    return found


def values(workdir, kind):
    """(step, tag, value) of every summary of a kind."""
    return [
        (event.step, value.tag, getattr(value, kind))
        for event in events(workdir)
        for value in event.summary.value
        if value.HasField(kind)
    ]


def write(workdir, first_step, steps):
    log = RunLog(workdir, first_step, 100)
    for step in steps:
        log.scalars(step, {"train/loss": np.float32(step) / 2})
    log.close()


def test_rows_and_curves(tmp_path):
    write(tmp_path, 0, [10, 20])
    assert rows(tmp_path) == [{"step": 10, "train/loss": 5.0}, {"step": 20, "train/loss": 10.0}]
    curve = [(10, "train/loss", 5.0), (20, "train/loss", 10.0)]
    assert values(tmp_path, "simple_value") == curve


def test_rows_are_on_disk_at_once(tmp_path):
    log = RunLog(tmp_path, 0, 100)
    log.scalars(1, {"train/loss": 2.0})
    assert rows(tmp_path) == [{"step": 1, "train/loss": 2.0}]
    log.close()


def test_resuming_drops_what_will_be_written_again(tmp_path):
    write(tmp_path, 0, [10, 20, 30, 40])
    write(tmp_path, 20, [30, 50])
    assert [row["step"] for row in rows(tmp_path)] == [10, 20, 30, 50]
    purges = [e.step for e in events(tmp_path) if e.session_log.status == e.session_log.START]
    assert purges[-1] == 21


def test_resuming_drops_a_line_cut_off_by_a_crash(tmp_path):
    write(tmp_path, 0, [10, 20])
    with (tmp_path / METRICS_FILE).open("a") as file:
        file.write('{"step": 15, "train/lo')
    write(tmp_path, 20, [30])
    assert [row["step"] for row in rows(tmp_path)] == [10, 20, 30]
    assert sorted(path.name for path in tmp_path.iterdir()) == [METRICS_FILE, "tensorboard"]


def test_resuming_after_a_crash_that_lost_the_newline(tmp_path):
    (tmp_path / METRICS_FILE).write_text('{"step": 10}\n\x00\x00\n{"step": 20}')
    write(tmp_path, 20, [30])
    assert [row["step"] for row in rows(tmp_path)] == [10, 20, 30]


def test_example_has_picture_and_sounds(tmp_path):
    rng = np.random.default_rng(0)
    sounds = {name: rng.uniform(-1, 1, 400).astype(np.float32) for name in ("mixture", "estimate")}
    sounds["estimate"] *= 2  # above full scale: both are turned down by as much
    log = RunLog(tmp_path, 0, 100)
    log.example(7, "example_0", sounds, TINY)
    log.close()
    [(step, tag, image)] = values(tmp_path, "image")
    assert (step, tag) == (7, "example_0/mixture_above_estimate")  # the board allows no spaces
    picture = np.asarray(Image.open(io.BytesIO(image.encoded_image_string)))
    np.testing.assert_array_equal(
        picture, spectrogram_picture(list(sounds.values()), TINY.sample_rate_hz)
    )
    audios = {tag: audio for _, tag, audio in values(tmp_path, "audio")}
    assert set(audios) == {"example_0/mixture", "example_0/estimate"}
    peak = np.abs(sounds["estimate"]).max()
    for name, audio_S in sounds.items():
        data, rate = soundfile.read(io.BytesIO(audios[f"example_0/{name}"].encoded_audio_string))
        assert rate == TINY.sample_rate_hz
        np.testing.assert_allclose(data, audio_S / peak, rtol=0, atol=2 / 32768)


def test_quiet_sounds_stay_quiet(tmp_path):
    log = RunLog(tmp_path, 0, 100)
    log.example(1, "x", {"target": np.full(100, 0.25, np.float32)}, TINY)
    log.close()
    [(_, _, audio)] = values(tmp_path, "audio")
    data, _ = soundfile.read(io.BytesIO(audio.encoded_audio_string))
    np.testing.assert_allclose(data, 0.25, atol=1e-4)


def test_other_processes_write_nothing(tmp_path, capsys):
    log = RunLog(tmp_path, 0, 100, write=False)
    log.scalars(1, {"train/loss": 1.0})
    log.example(1, "x", {"target": np.zeros(100, np.float32)}, TINY)
    log.say("hello")
    log.close()
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr() == ("", "")


def test_what_a_full_disk_refuses_is_written_when_there_is_room_again(tmp_path, capsys):
    log = RunLog(tmp_path, 0, 100)
    log.scalars(1, {"train/loss": 1.0})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    size = (tmp_path / METRICS_FILE).stat().st_size
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 5, hard))  # room for part of a row
    try:
        for step in (2, 3):
            log.scalars(step, {"train/loss": 1.0})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert capsys.readouterr().out.count(f"{METRICS_FILE}: File too large; rows are kept") == 1
    log.scalars(4, {"train/loss": 1.0})
    log.close()
    assert [row["step"] for row in rows(tmp_path)] == [1, 2, 3, 4]
    assert [step for step, _, _ in values(tmp_path, "simple_value")] == [1, 2, 3, 4]


def test_a_workdir_that_cannot_be_written_to_is_an_input_error(tmp_path):
    (tmp_path / METRICS_FILE).mkdir()
    with pytest.raises(InputError, match="cannot be written to"):
        RunLog(tmp_path, 0, 100)
