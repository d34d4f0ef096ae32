"""What a run tells while it trains, and what stops it."""

import gzip
import json

import jax
import numpy as np
import pytest
import tiny

from audiosep_jax.data.pipeline import BadClips
from audiosep_jax.training.config import from_mapping
from audiosep_jax.training.log import RunLog
from audiosep_jax.training.progress import Progress, Trace


class NoClips:
    def __len__(self):
        return 10


def make_progress(tmp_path, skipped_steps=0, **optim):
    values = tiny.get_config()
    values.optim.update(optim)
    values.device_peak_tflops = 2.0
    config = from_mapping(values.to_dict())
    log = RunLog(tmp_path, 0, 100)
    return Progress(config, log, BadClips(NoClips(), 0.5), 0, skipped_steps)


def metrics(**changes):
    names = ("loss", "sdri", "gradient_norm", "parameter_norm", "skipped")
    return {
        **{name: np.float32(name != "skipped") for name in names},
        "votes": {"stop": np.False_, "bad_clips": np.full((8, 1, 2), -1)},
        **changes,
    }


NAN = {"loss": np.float32("nan"), "skipped": np.int32(1)}


def test_a_step_that_is_skipped_ends_the_run_unless_it_may_be(tmp_path):
    progress = make_progress(tmp_path)
    progress.record(3, metrics(**NAN))
    with pytest.raises(FloatingPointError, match=r"^loss is nan at step 3: training stopped$"):
        progress.record(4, metrics())


def test_skipped_steps_are_named_and_counted_over_resumes_up_to_the_limit(tmp_path, capsys):
    progress = make_progress(tmp_path, skipped_steps=1, max_skipped_steps=2)
    progress.record(3, metrics(**NAN))
    progress.record(4, metrics())
    assert "step 3 is skipped: loss is nan (2 of at most 2)" in capsys.readouterr().out
    gradient = {"gradient_norm": np.float32("inf"), "skipped": np.int32(1)}
    progress.record(5, metrics(**gradient))
    with pytest.raises(
        FloatingPointError,
        match=r"gradient_norm is inf at step 5: training stopped \(3 steps were skipped, optim",
    ):
        progress.catch_up()


def test_parameters_that_overflow_end_the_run_though_the_loss_was_finite(tmp_path):
    progress = make_progress(tmp_path, max_skipped_steps=9)
    progress.record(1, metrics(parameter_norm=np.float32("inf")))
    with pytest.raises(FloatingPointError, match=r"^parameter_norm is inf at step 1: training"):
        progress.catch_up()


def test_a_vote_to_stop_is_known_when_the_step_is_read(tmp_path):
    progress = make_progress(tmp_path)
    votes = {"stop": np.True_, "bad_clips": np.full((8, 1, 2), -1)}
    progress.record(1, metrics(votes=votes))
    assert not progress.stop
    progress.record(2, metrics())
    assert progress.stop


def test_the_share_of_the_peak_is_that_of_all_devices(tmp_path):
    progress = make_progress(tmp_path)
    speeds = progress._speeds(3.0)
    assert speeds["clips_per_second"] == 24
    assert speeds["peak_share"] == pytest.approx(speeds["model_tflops"] / (2.0 * 8))


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
