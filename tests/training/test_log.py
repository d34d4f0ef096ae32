"""The reports of a run: rows, curves, pictures and sounds, lines and a bar, and a trace."""

import contextlib
import gzip
import importlib.metadata
import io
import json
import os
import resource
import struct
import subprocess
import sys
from unittest.mock import Mock

import jax
import numpy as np
import pytest
import soundfile
import tiny
from PIL import Image
from separator_examples import TINY
from tensorboardX.proto.event_pb2 import Event

from audiosep_jax.data.batches import BadClips
from audiosep_jax.data.source import Source
from audiosep_jax.errors import InputError
from audiosep_jax.plots import spectrogram_picture
from audiosep_jax.training import log as log_module
from audiosep_jax.training.config import from_mapping
from audiosep_jax.training.log import (
    METRICS_FILE,
    PACKAGE,
    Progress,
    RunLog,
    Trace,
    code_version,
    source_hash,
)
from audiosep_jax.training.processes import RunFailed


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


def test_resuming_drops_damaged_and_foreign_lines_between_whole_ones(tmp_path):
    (tmp_path / METRICS_FILE).write_text(
        '{"step": 10}\n\x00\x00\n{"loss": 1}\n{"step": "a"}\n{"step": 20}\n'
    )
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


@contextlib.contextmanager
def file_size_limit(limit):
    """No file of this process can grow beyond the limit, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_is_one_line_and_the_run_goes_on_from_there(tmp_path):
    log = RunLog(tmp_path, 0, 100)
    log.scalars(1, {"train/loss": 1.0})
    size = (tmp_path / METRICS_FILE).stat().st_size
    with file_size_limit(size + 5), pytest.raises(RunFailed) as caught:  # part of a row
        log.scalars(2, {"train/loss": 1.0})
    log.close()
    assert str(caught.value) == f"{tmp_path / METRICS_FILE}: cannot be written (File too large)"
    write(tmp_path, 1, [2, 3])
    assert [row["step"] for row in rows(tmp_path)] == [1, 2, 3]


def test_a_full_disk_does_not_stop_the_events_silently(tmp_path):
    log = RunLog(tmp_path, 0, 100)
    with file_size_limit(0), pytest.raises(RunFailed, match="tensorboard: cannot be written"):
        log.example(1, "x", {"target": np.zeros(100, np.float32)}, TINY)
    log.close()


def test_a_value_that_is_not_finite_is_null(tmp_path):
    log = RunLog(tmp_path, 0, 100)
    log.scalars(1, {"a": np.nan, "b": np.inf, "c": 1.0})
    log.close()
    assert rows(tmp_path) == [{"step": 1, "a": None, "b": None, "c": 1.0}]


def test_a_line_is_in_the_file_of_the_output_at_once(tmp_path):
    program = """
import os, sys
from pathlib import Path
from audiosep_jax.training.log import RunLog
log = RunLog(Path(sys.argv[1]), 0, 3)
log.say("step 1: sdri 3.00 dB")
os._exit(0)  # without any flush
"""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}
    with (tmp_path / "out").open("w") as out:
        command = [sys.executable, "-c", program, str(tmp_path)]
        subprocess.run(command, stdout=out, env=environment, check=True, timeout=300)
    assert "step 1: sdri 3.00 dB" in (tmp_path / "out").read_text()


def test_a_bar_in_a_file_is_written_every_half_minute(tmp_path, capsys):
    log = RunLog(tmp_path, 0, 1000)
    for _ in range(100):
        log.bar.update(1)
        log.bar.set_postfix({"loss": 1}, refresh=False)
    written = capsys.readouterr().err
    log.close()
    assert written.count("step") == 1, written
    assert log.bar.mininterval == 30


def test_a_workdir_that_cannot_be_written_to_is_an_input_error_without_a_bar(tmp_path, capsys):
    (tmp_path / METRICS_FILE).mkdir()
    with pytest.raises(InputError, match="cannot be read"):
        RunLog(tmp_path, 0, 100)
    assert capsys.readouterr().err == ""


# ------------------------------------------------------------------ progress


class NoClips(Source):
    def __len__(self):
        return 10

    def name(self, index):
        return f"clip {index}"

    def load(self, index):
        return np.zeros(1)


def make_progress(tmp_path, skipped_steps=0, log_every_steps=1, **optim):
    values = tiny.get_config()
    values.optim.update(optim)
    values.log_every_steps = log_every_steps
    values.device_peak_tflops = 2.0
    config = from_mapping(values.to_dict())
    log = RunLog(tmp_path, 0, 100)
    return Progress(config, log, BadClips(NoClips(), 0.5), 0, skipped_steps)


def metrics(**changes):
    names = ("loss", "sdri", "gradient_norm", "parameter_norm", "learning_rate", "skipped")
    return {
        **{name: np.float32(name != "skipped") for name in names},
        **changes,
    }


NONE = np.full((8, 2), -1)  # bad clips
NAN = {"loss": np.float32("nan"), "skipped": np.int32(1)}


def test_a_step_that_is_skipped_ends_the_run_unless_it_may_be(tmp_path):
    progress = make_progress(tmp_path)
    progress.record(3, metrics(**NAN), NONE)
    with pytest.raises(
        FloatingPointError,
        match=r"^loss is nan at step 3: training stopped after 1 skipped steps; optim\.max_sk",
    ):
        progress.record(4, metrics(), NONE)


def test_skipped_steps_are_named_and_counted_over_resumes_up_to_the_limit(tmp_path, capsys):
    progress = make_progress(tmp_path, skipped_steps=1, max_skipped_steps=2)
    progress.record(3, metrics(**NAN), NONE)
    progress.record(4, metrics(), NONE)
    assert "step 3 is skipped: loss is nan (2 of at most 2)" in capsys.readouterr().out
    gradient = {"gradient_norm": np.float32("inf"), "skipped": np.int32(1)}
    progress.record(5, metrics(**gradient), NONE)
    with pytest.raises(
        FloatingPointError,
        match=r"gradient_norm is inf at step 5: training stopped after 3 skipped steps; optim",
    ):
        progress.catch_up()


def test_parameters_that_overflow_end_the_run_though_the_loss_was_finite(tmp_path):
    progress = make_progress(tmp_path, max_skipped_steps=9)
    progress.record(1, metrics(parameter_norm=np.float32("inf")), NONE)
    with pytest.raises(FloatingPointError, match=r"^parameter_norm is inf at step 1: training"):
        progress.catch_up()


def test_rows_are_means_over_the_interval_of_the_steps_that_were_finite(tmp_path):
    progress = make_progress(tmp_path, log_every_steps=4, max_skipped_steps=1)
    for step, loss in enumerate([1.0, np.nan, 3.0, 5.0], start=1):
        skipped = {"skipped": np.int32(1)} if np.isnan(loss) else {}
        values = metrics(loss=loss, learning_rate=0.1 * step, **skipped)
        progress.record(step, values, NONE)
    progress.catch_up()
    progress.log.close()
    (row,) = rows(tmp_path)
    assert row["step"] == 4
    assert row["train/loss"] == 3.0
    assert row["train/skipped"] == 0.25
    assert row["train/learning_rate"] == pytest.approx(0.4)
    assert row["epoch"] == pytest.approx(4 * 8 / 10)


def test_the_bar_shows_epoch_wait_memory_and_bad_clips(tmp_path):
    progress = make_progress(tmp_path)
    progress.bad_clips.indices.add(3)
    progress.record(5, metrics(), NONE)
    progress.catch_up()
    for name in ("loss=1.0000", "sdri=1.0dB", "epoch=4.00", "data_wait=", "memory=", "bad_clips=1"):
        assert name in progress.log.bar.postfix
    progress.log.close()


def test_bad_clips_of_all_processes_are_named_once(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(log_module, "gather", lambda mine: [mine, [7]])
    progress = make_progress(tmp_path)
    for step in (1, 2):
        progress.record(step, metrics(), np.array([[4, -1]]))
    progress.catch_up()
    told = capsys.readouterr().out
    assert (told.count("skipping clip 4"), told.count("skipping clip 7")) == (1, 1)
    assert progress.bad_clips.indices == {4, 7}


def test_the_share_of_the_peak_is_that_of_all_devices(tmp_path):
    progress = make_progress(tmp_path)
    speeds = progress._speeds(3.0)
    assert speeds == {"steps_per_second": 3, "clips_per_second": 24}  # operations are not known
    progress.step_flop = 0.1e12  # on each of eight devices
    speeds = progress._speeds(3.0)
    assert speeds["model_tflops"] == pytest.approx(3 * 8 * 0.1)
    assert speeds["peak_share"] == pytest.approx(3 * 0.1 / 2.0)


def test_a_trace_holds_the_steps_that_were_asked_for(tmp_path):
    told = []
    trace = Trace(tmp_path, 2, 100, told.append)
    for step in range(101, 116):
        with trace.step(step):
            jax.block_until_ready(jax.numpy.ones(3) + step)
    trace.close()
    assert told == [f"trace of steps 111 to 112: {tmp_path}"]
    assert list(tmp_path.rglob("*.xplane.pb"))
    (path,) = tmp_path.rglob("*.trace.json.gz")
    events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    steps = {event["args"]["step_num"] for event in events if event.get("name") == "train"}
    assert {int(step) for step in steps} == {111, 112}


def test_without_steps_there_is_no_trace(tmp_path):
    trace = Trace(tmp_path / "profile", 0, 0, print)
    for step in range(1, 20):
        with trace.step(step):
            pass
    trace.close()
    assert not (tmp_path / "profile").exists()


# ------------------------------------------------------------------ code version


def test_the_hash_follows_contents_and_names_of_sources_only(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.py").write_text("1")
    before = source_hash(tmp_path)
    (tmp_path / "notes.txt").write_text("1")
    assert source_hash(tmp_path) == before
    (tmp_path / "a" / "x.py").write_text("2")
    changed = source_hash(tmp_path)
    (tmp_path / "a" / "x.py").rename(tmp_path / "a" / "y.py")
    assert len({before, changed, source_hash(tmp_path)}) == 3


def test_this_package_is_told_by_its_version_and_sources():
    version = code_version()
    assert version["sources"] == source_hash(PACKAGE)
    assert set(version) == {"version", "commit", "sources"}


def test_a_checkout_that_is_not_installed_has_a_version(monkeypatch):
    missing = importlib.metadata.PackageNotFoundError("audiosep-jax")
    monkeypatch.setattr(importlib.metadata, "version", Mock(side_effect=missing))
    assert code_version()["version"] == "not installed"
