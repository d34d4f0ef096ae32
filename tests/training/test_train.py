"""Runs of train.py in this process, and in processes of their own where they are killed."""

import contextlib
import dataclasses
import functools
import json
import os
import re
import resource
import shlex
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import numpy as np
import pytest
import soundfile
import tiny
import tiny_run
from absl import app, flags
from absl.testing import flagsaver
from tensorboardX.proto.event_pb2 import Event

import train
from audiosep_jax.audio import files as audio_files
from audiosep_jax.encoders import make_encoder
from audiosep_jax.errors import InputError
from audiosep_jax.separation.command import main as separate
from audiosep_jax.separation.separator import Separator
from audiosep_jax.training import trained
from audiosep_jax.training.checkpoints import FOLDER, Checkpoints, saved_steps
from audiosep_jax.training.conditions import distinct_captions
from audiosep_jax.training.config import Config, from_mapping
from audiosep_jax.training.log import code_version
from audiosep_jax.training.start import load_initial_weights
from audiosep_jax.training.steps import init_state
from benchmarks.roofline import step_flop

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
TINY = ("--config", str(ROOT / "tests" / "tiny.py"))
LAST_STEP = 12
SAVE = Checkpoints.save
CHILD_SECONDS = 600  # never needed but on a starved machine


@pytest.fixture(scope="module", autouse=True)
def _trace_once():
    """Share the traced steps among the runs in this process."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("make_train_step", "make_eval_step"):
            patch.setattr(train, name, functools.cache(vars(train)[name]))
        for name in ("parallel_train_step", "parallel_eval_step"):
            patch.setattr(train, name, functools.cache(vars(train)[name]))
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Workdir of an undisturbed run; tests must not change it."""
    workdir = tmp_path_factory.mktemp("finished")
    train.train(config(), workdir)
    return workdir


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    return shutil.copytree(finished, tmp_path / "copied")


def config(**changes: object) -> Config:
    """Config of tests/tiny.py with `section__field` or `field` changed."""
    values = tiny.get_config()
    for name, value in changes.items():
        section, _, field = name.rpartition("__")
        setattr(values[section] if section else values, field, value)
    return from_mapping(values.to_dict())


def rows(workdir: Path, key: str = "train/loss") -> dict[int, float]:
    """Value by step; a step that is logged twice fails."""
    found = [(row["step"], row[key]) for row in lines(workdir) if key in row]
    assert len(found) == len(dict(found))
    return dict(found)


def lines(workdir: Path) -> list[dict[str, float]]:
    """Every row of the log."""
    text = (workdir / "metrics.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


@functools.cache
def shapes():
    return jax.eval_shape(lambda: init_state(config().model, config().optim, jax.random.key(0)))


def state_at(workdir: Path, step: int):
    with contextlib.closing(Checkpoints(workdir)) as checkpoints:
        return checkpoints.restore_state(step, shapes())


def assert_same_state(a: Path, b: Path, step: int) -> None:
    for x, y in zip(
        jax.tree.leaves(state_at(a, step)), jax.tree.leaves(state_at(b, step)), strict=True
    ):
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


def files(folder: Path) -> dict[Path, tuple[int, bytes]]:
    """Every file below with its time and content."""
    return {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in folder.rglob("*") if p.is_file()}


def contents(folder: Path) -> dict[Path, bytes]:
    """Samples of every WAV, whose header may hold the time, and bytes of every other file."""
    return {
        path: audio_files.read(path)[0].tobytes() if path.suffix == ".wav" else data
        for path, (_, data) in files(folder).items()
    }


def command(*arguments: str) -> int:
    """Run train.py with these arguments in this process; return its exit code."""
    argv = ["train.py", *arguments]
    with flagsaver.flagsaver():
        flags.FLAGS.unparse_flags()
        try:
            return train._run(train._parse_flags(argv))
        except SystemExit as end:
            return int(end.code or 0)


class Pair:
    """train.py in two processes of one device each."""

    def __init__(
        self, workdir: Path, *arguments: str, program: str = "", second: tuple[str, ...] = ()
    ) -> None:
        """Start both, as `program` instead of train.py; `second` are arguments of process 1."""
        self.metrics = workdir / "metrics.jsonl"
        self.old_file = self.metrics.stat().st_ino if self.metrics.is_file() else None
        with socket.socket() as free:
            free.bind(("localhost", 0))
            address = f"--coordinator_address=localhost:{free.getsockname()[1]}"
        # The last of two equal flags counts.
        flags = os.environ["XLA_FLAGS"] + " --xla_force_host_platform_device_count=1"
        script = ["-c", program] if program else ["train.py"]
        command = [sys.executable, *script, *TINY, "--workdir", str(workdir), address]
        self.processes = [
            subprocess.Popen(
                [*command, "--num_processes=2", f"--process_id={index}", *arguments, *more],
                cwd=ROOT,
                env=os.environ | {"XLA_FLAGS": flags},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for index, more in enumerate(((), second))
        ]

    def wait_for_row(self, step: int) -> None:
        """Wait until process 0 has logged `step`."""
        deadline = time.monotonic() + CHILD_SECONDS
        while not self._has_row(step):
            ended = any(process.poll() is not None for process in self.processes)
            if ended or time.monotonic() > deadline:
                for process in self.processes:
                    process.kill()
                pytest.fail(f"no step {step}: {self.end()}")
            time.sleep(0.01)

    def _has_row(self, step: int) -> bool:
        if not self.metrics.is_file() or self.metrics.stat().st_ino == self.old_file:
            return False
        lines = self.metrics.read_text(encoding="utf-8").splitlines()
        return any(int(line.split(",")[0].split()[1]) >= step for line in lines if "," in line)

    def end(self) -> list[tuple[int, str]]:
        """(exit code, all output) of each."""
        try:
            outputs = [process.communicate(timeout=CHILD_SECONDS)[0] for process in self.processes]
        finally:
            for process in self.processes:
                process.kill()
        return [(p.returncode, text) for p, text in zip(self.processes, outputs, strict=True)]


# ------------------------------------------------------------------ what a run leaves


def test_metrics_have_their_names_and_their_steps(finished: Path) -> None:
    assert list(rows(finished)) == list(range(1, LAST_STEP + 1))
    gap = rows(finished, "valid/query_gap")[LAST_STEP]
    wrong = rows(finished, "valid/sdri_wrong_query")[LAST_STEP]
    assert gap == pytest.approx(rows(finished, "valid/sdri")[LAST_STEP] - wrong, abs=1e-6)
    for name in ("valid/sdri", "valid/si_sdr", "valid/si_sdri", "valid/sdri_wrong_query"):
        assert list(rows(finished, name)) == [8, 12]
    steps, clips = rows(finished, "steps_per_second"), rows(finished, "clips_per_second")
    assert len(steps) >= 9
    assert {step: value * 8 for step, value in steps.items()} == pytest.approx(clips)
    tflops = rows(finished, "model_tflops")
    flops = {step: 1e12 * tflops[step] / value for step, value in steps.items()}
    assert flops == pytest.approx(dict.fromkeys(flops, flops[LAST_STEP]))
    # Element-wise work, which the roofline leaves out, counts for much in so small a network.
    assert 1 < flops[LAST_STEP] / step_flop(config().model, 8, 2000) < 4
    assert all(0 <= share <= 1 for share in rows(finished, "data_wait_share").values())
    assert 0.05 < rows(finished, "host_peak_gb")[LAST_STEP] < 50
    assert len(rows(finished, "checkpoint_seconds")) == 3
    for name in ("gradient_norm", "update_norm", "parameter_norm", "learning_rate", "sdri"):
        assert len(rows(finished, f"train/{name}")) == LAST_STEP


def test_the_first_loss_is_that_of_the_step_on_the_first_batch(
    finished: Path, tmp_path: Path
) -> None:
    settings = config()
    source = train.build_source(settings.data, "train", settings.model.sample_rate_hz)
    clips = train.ClipSampler(source)
    conditions, _ = train.make_conditions(settings, distinct_captions(clips.captions))
    batches = train.train_batches(
        *(clips, conditions, settings.mixing, settings.data),
        seed=settings.seed,
        batch_size=8,
        first_step=0,
    )
    with contextlib.closing(batches):
        batch = next(batches)
    del batch["bad_clips"]
    with contextlib.closing(Checkpoints(tmp_path, settings.checkpoint)) as checkpoints:
        state = train.place_state(train.start_or_resume(settings, checkpoints, {}, tmp_path))
    body = train.make_train_step(settings.model, settings.optim, settings.loss)
    step = train.parallel_train_step(body)
    _, metrics = step(state, train.split_batch(batch))
    assert rows(finished)[1] == float(metrics["loss"])


def test_checkpoints_tell_config_and_code(finished: Path) -> None:
    with contextlib.closing(Checkpoints(finished)) as checkpoints:
        about = checkpoints.about(LAST_STEP)
    assert from_mapping(about["config"]) == config()
    assert about["code"] == code_version()
    assert {"dog", "rain"} & {*about["words"]}  # with which separation knows strange queries


@pytest.mark.smoke
def test_training_lowers_the_loss_of_the_same_batches(finished: Path) -> None:
    losses = list(rows(finished).values())
    assert np.mean(losses[-3:]) < np.mean(losses[:2])


def test_tensorboard_has_curves_pictures_and_sounds(finished: Path) -> None:
    (path,) = (finished / "tensorboard").iterdir()
    data, position, seen = path.read_bytes(), 0, {}
    while position < len(data):
        (length,) = struct.unpack_from("<Q", data, position)
        event = Event.FromString(data[position + 12 : position + 12 + length])
        position += 16 + length
        for value in event.summary.value:
            seen.setdefault(value.WhichOneof("value"), set()).add((value.tag, event.step))
    assert {("train/loss", 5), ("valid/sdri", 8)} <= seen["simple_value"]
    assert len(seen["image"]) == 2 * 2  # two examples at two validations
    assert len(seen["audio"]) == 2 * 2 * 3


def test_the_command_that_is_printed_names_the_files_that_are_written(
    copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(copied / "example")
    spaced = copied.rename(copied.with_name("a run"))
    train.train(config(), spaced)
    (line,) = (line for line in capsys.readouterr().out.splitlines() if "separate.py" in line)
    words = shlex.split(line)
    mixture = spaced / "example" / "mixture.wav"
    assert words[:4] == ["python", "separate.py", str(mixture), "--text"]
    assert words[5:] == ["--checkpoint", str(spaced)]
    mixture_S, rate_hz = audio_files.read(mixture)
    target_S, _ = audio_files.read(mixture.with_name("target.wav"))
    source = train.build_source(config().data, "valid", 8000)
    assert words[4] in set(distinct_captions(train.ClipSampler(source).captions))
    assert (rate_hz, mixture_S.shape, target_S.shape) == (8000, (1, 2000), (1, 2000))
    snr_db = 10 * np.log10(np.sum(target_S**2) / np.sum((mixture_S - target_S) ** 2))
    assert snr_db == pytest.approx(0, abs=1e-3)


# ------------------------------------------------------------------ stop and go on


@pytest.mark.smoke
def test_a_signal_saves_its_step_and_the_resumed_run_equals_the_whole_one(
    finished: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    record = train.Progress.record

    def record_and_signal(self, step, *arguments):
        record(self, step, *arguments)
        if step == 6:
            os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        patch.setattr(train.Progress, "record", record_and_signal)
        assert not train.train(config(), tmp_path)
    assert saved_steps(tmp_path) == [4, 6]
    assert "Stopped and saved at step 6. The same command resumes." in capsys.readouterr().out
    assert list(rows(tmp_path)) == list(range(1, 7))
    assert signal.getsignal(signal.SIGTERM) == before
    assert train.train(config(), tmp_path)
    assert rows(tmp_path) == rows(finished)
    assert rows(tmp_path, "train/learning_rate") == rows(finished, "train/learning_rate")
    assert len(set(rows(finished, "train/learning_rate").values())) == LAST_STEP
    assert rows(tmp_path, "valid/sdri") == rows(finished, "valid/sdri")
    assert_same_state(tmp_path, finished, LAST_STEP)


def test_a_signal_during_the_last_save_still_leaves_a_finished_run(
    copied: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(copied / FOLDER / "00000012")

    def save_and_signal(self, *arguments):
        SAVE(self, *arguments)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Checkpoints, "save", save_and_signal)
    assert train.train(config(), copied)
    assert saved_steps(copied) == [8, 12]
    assert "Trained:" in capsys.readouterr().out


def test_a_larger_number_of_steps_goes_on_and_other_free_fields_may_change(copied: Path) -> None:
    old = rows(copied)
    train.train(config(num_steps=14, name="other", valid__num_mixtures=4), copied)
    assert list(rows(copied)) == list(range(1, 15))
    assert {step: rows(copied)[step] for step in old} == old
    assert saved_steps(copied)[-1] == 14


def test_the_same_command_after_the_end_changes_nothing(copied: Path) -> None:
    before = contents(copied)
    train.train(config(), copied)
    after = contents(copied)
    assert {p: after[p] for p in before} == before
    assert all(p.parent.name == "tensorboard" for p in after.keys() - before.keys())
    train.train(config(num_steps=10), copied)  # it has come further than that
    assert {p: contents(copied)[p] for p in before} == before


def test_two_processes_of_which_one_is_killed_and_one_terminated_end_as_if_they_had_not_been(
    tmp_path: Path, finished: Path
) -> None:
    often = (
        *("--config.num_steps=100000", "--config.checkpoint.every_steps=2"),
        *("--config.checkpoint.keep_every_steps=4", "--heartbeat_seconds=30"),
    )
    unvalidated = "--config.valid.every_steps=100000"  # one program less to compile
    pair = Pair(tmp_path, *often, unvalidated)
    pair.wait_for_row(3)
    pair.processes[1].kill()
    (code, output), (killed, _) = pair.end()
    assert code in (1, -signal.SIGABRT), output  # whoever notices first: this process, or JAX
    assert killed == -signal.SIGKILL
    lost = r"(?m)^error: the connection to another process broke .*; the same command resumes from"
    assert code != 1 or re.search(lost, output), output
    assert "Traceback" not in output
    killed_at = max(rows(tmp_path))

    validating = "--config.valid.every_steps=4"
    pair = Pair(tmp_path, *often, "--config.parallel=shard_map", validating)
    pair.wait_for_row(max(9, killed_at + 1))
    pair.processes[1].send_signal(signal.SIGTERM)
    (code, output), (other_code, other_output) = pair.end()
    assert (code, other_code) == (train.STOPPED, train.STOPPED), output + other_output
    last = saved_steps(tmp_path)[-1]
    assert output.rstrip().endswith(f"Stopped and saved at step {last}. The same command resumes.")
    assert "step" not in other_output
    assert list(rows(tmp_path)) == list(range(1, last + 1))

    train.train(config(checkpoint__keep_every_steps=4), tmp_path)  # on eight devices
    expected = rows(finished)
    found = rows(tmp_path)
    assert {step: found[step] for step in expected} == pytest.approx(expected, rel=1e-3)
    a, b = (
        np.concatenate([np.ravel(x) for x in jax.tree.leaves(state_at(run, LAST_STEP).params)])
        for run in (tmp_path, finished)
    )
    # The order of sums depends on the layout; a step moves parameters by up to 1e-2.
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-4)


COUNTING = """
import sys
import jax

calls, original = [], jax.pmap

def pmap(body, *arguments, **named):
    def call(*operands):
        calls.append(body.__name__)
        return step(*operands)

    step = original(body, *arguments, **named)
    call.lower = step.lower
    return call

jax.pmap = pmap
import train

sys.argv[0] = "train.py"
code = train._run(train._parse_flags(sys.argv))
print("pmapped calls:", *calls, flush=True)
sys.exit(code)
"""


def test_all_processes_make_the_same_pmapped_calls_also_for_a_finished_run(copied: Path) -> None:
    ends = Pair(copied, program=COUNTING).end()
    assert [code for code, _ in ends] == [train.FINISHED] * 2, ends
    found = [re.findall(r"pmapped calls: (.*)", output)[-1] for _, output in ends]
    assert found == ["eval_step"] * 2


def test_what_differs_or_fails_in_process_0_is_told_by_both_with_code_2(
    tmp_path: Path, finished: Path
) -> None:
    ends = Pair(tmp_path, second=("--config.seed=1",)).end()
    line = "error: the processes differ, so none of them starts: seed is 0 in process 0 and 1 in"
    assert [(code, line in output) for code, output in ends] == [(2, True)] * 2, ends
    ends = Pair(finished, "--config.seed=1").end()
    line = f"error: {finished} holds another run: seed is 0 there and 1 here;"
    assert [(code, line in output) for code, output in ends] == [(2, True)] * 2, ends


# ------------------------------------------------------------------ what ends a run


def test_a_loss_that_is_not_finite_stops_with_its_step_and_is_not_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    original = train.train_batches

    def poisoned(*arguments, **named):
        for number, batch in enumerate(original(*arguments, **named), start=1):
            yield batch | {"mixture": batch["mixture"] * (np.nan if number == 3 else 1)}

    monkeypatch.setattr(train, "train_batches", poisoned)
    code = command(*TINY, "--workdir", str(tmp_path), "--config.checkpoint.every_steps=1")
    error = capsys.readouterr().err.splitlines()[-1]
    assert (code, error) == (
        1,
        "error: loss is nan at step 3: training stopped after 1 skipped steps; "
        "optim.max_skipped_steps=1 lets it skip this one",
    )
    assert saved_steps(tmp_path) == [1, 2]
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(state_at(tmp_path, 2)))


def test_a_checkpoint_that_cannot_be_written_ends_the_run_with_one_line_and_it_resumes(
    tmp_path: Path,
    finished: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    save = Checkpoints.save

    def save_on_a_full_disk(self, step, *arguments):
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft if step < 8 else 0, hard))
        try:
            save(self, step, *arguments)
            self.wait()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", save_on_a_full_disk)
        code = command(*TINY, "--workdir", str(tmp_path))
    assert code == 1
    assert capsys.readouterr().err.splitlines()[-1] == (
        f"error: {tmp_path / FOLDER}: a checkpoint could not be written (File too large); "
        "that of step 4 is the newest"
    )
    assert saved_steps(tmp_path) == [4]
    assert command(*TINY, "--workdir", str(tmp_path)) == train.FINISHED
    assert_same_state(tmp_path, finished, LAST_STEP)


def test_a_killed_data_worker_saves_the_state_and_the_run_goes_on_from_there(
    tmp_path: Path,
    finished: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    original, streams = train.train_batches, []

    def killed(*arguments, **named):
        streams.append(named["first_step"])
        for number, batch in enumerate(original(*arguments, **named), start=1):
            if len(streams) == 1 and number == 6:
                raise RuntimeError("Worker process was terminated unexpectedly with exit code -9.")
            yield batch

    with monkeypatch.context() as patch:
        patch.setattr(train, "train_batches", killed)
        code = command(*TINY, "--workdir", str(tmp_path))
    assert code == 1
    assert streams == [0, 5]
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: a data worker was killed (exit code -9), most likely for lack")
    assert "step 6 is saved and the same command resumes" in error
    assert saved_steps(tmp_path) == [4, 6]
    assert command(*TINY, "--workdir", str(tmp_path)) == train.FINISHED
    assert_same_state(tmp_path, finished, LAST_STEP)


def test_other_errors_of_the_data_are_raised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_, **__):
        raise RuntimeError("a bug")
        yield

    monkeypatch.setattr(train, "train_batches", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        train.train(config(), tmp_path)


def test_a_step_that_was_not_finite_can_be_skipped_by_the_next_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = train.train_batches

    def poisoned(*arguments, **named):
        for step, batch in enumerate(original(*arguments, **named), named["first_step"] + 1):
            yield batch | {"mixture": batch["mixture"] * (np.nan if step == 3 else 1)}

    monkeypatch.setattr(train, "train_batches", poisoned)
    arguments = (*TINY, "--workdir", str(tmp_path), "--config.checkpoint.every_steps=1")
    assert command(*arguments) == 1
    assert command(*arguments, "--config.optim.max_skipped_steps=1") == train.FINISHED
    assert int(state_at(tmp_path, LAST_STEP).skipped_steps) == 1
    (row,) = (row for row in lines(tmp_path) if row["step"] == 3 and "train/loss" in row)
    assert row["train/loss"] is None
    assert row["train/skipped"] == 1


@pytest.mark.parametrize("item", ["model", "training", "about", "metrics"])
def test_a_damaged_newest_checkpoint_is_passed_over_and_trained_again(
    item: str, copied: Path, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in (copied / FOLDER / f"{LAST_STEP:08d}" / item).rglob("*"):
        if path.is_file():
            path.write_bytes(b"")
    readable = LAST_STEP if item == "training" else 8  # separation needs no optimiser
    assert trained.read(copied).step == readable
    assert command(*TINY, "--workdir", str(copied)) == train.FINISHED
    (line,) = (x for x in capsys.readouterr().err.splitlines() if "is used instead" in x)
    assert f"{LAST_STEP:08d}/{item}: cannot be read" in line
    assert "the checkpoint of step 8 is used instead" in line
    assert_same_state(copied, finished, LAST_STEP)
    assert rows(copied) == rows(finished)


def test_the_best_checkpoint_is_chosen_among_scores_of_one_validation_set(tmp_path: Path) -> None:
    def run(num_steps: int, **changes: object) -> None:
        often = {"checkpoint__keep_latest": 9, "valid__every_steps": 1, "valid__num_examples": 0}
        train.train(config(num_steps=num_steps, **often, **changes), tmp_path)

    run(2)
    run(3, valid__snr_db=-20)
    run(5)
    scores = rows(tmp_path, "valid/sdri")
    assert scores[3] > max(scores[step] for step in (1, 2, 4, 5)), "of easier mixtures"
    with contextlib.closing(Checkpoints(tmp_path)) as checkpoints:
        assert checkpoints.best_step() == max((1, 2, 4, 5), key=lambda step: scores[step])
    run(6, resume="changed", data__segment_seconds=0.125)  # which validation follows
    with contextlib.closing(Checkpoints(tmp_path)) as checkpoints:
        assert checkpoints.best_step() == 6


def test_an_unknown_field_of_a_stored_config_is_named_with_its_checkpoint(copied: Path) -> None:
    path = copied / FOLDER / f"{LAST_STEP:08d}" / "about" / "metadata"
    about = json.loads(path.read_text(encoding="utf-8"))
    about["config"]["checkpoint"]["on_error"] = "stop"  # which no longer exists
    del about["checksums"]  # as in older versions
    path.write_text(json.dumps(about), encoding="utf-8")
    train.train(config(), copied)
    about["config"]["optim"]["nesterov"] = True
    path.write_text(json.dumps(about), encoding="utf-8")
    with pytest.raises(InputError, match=rf"^{path.parents[1]}: .*optim\.nesterov"):
        train.train(config(), copied)


def test_the_config_lies_beside_the_logs(finished: Path) -> None:
    about = json.loads((finished / "config.json").read_text(encoding="utf-8"))
    assert from_mapping(about["config"]) == config()
    assert about["code"] == code_version()


def write_manifest(folder: Path, captions: list[str], name: str = "train.json") -> Path:
    """Write a manifest of noise bursts of 0.3 s at 8 kHz, one for each caption."""
    rng = np.random.default_rng(0)
    folder.mkdir(exist_ok=True)
    for i in range(len(captions)):
        soundfile.write(folder / f"{i}.wav", rng.uniform(-0.5, 0.5, 2400), 8000)
    data = [{"wav": f"{i}.wav", "caption": caption} for i, caption in enumerate(captions)]
    (folder / name).write_text(json.dumps({"data": data}), encoding="utf-8")
    return folder / name


def manifest_config(manifest: Path, valid: Path | None = None, **changes: object) -> Config:
    return config(
        data__source="manifest",
        data__root=str(manifest),
        data__valid_root=str(valid or manifest),
        data__min_seconds=0.2,
        **changes,
    )


CAPTIONS = ["a bell", "a dog", "rain", "wind", "a bell", "a cat"]


@pytest.fixture
def half_bad(tmp_path: Path) -> tuple[Path, Path]:
    """Manifest with a text file and a clip too short, and a whole manifest for validation."""
    valid = write_manifest(tmp_path / "valid", CAPTIONS)
    manifest = write_manifest(tmp_path / "data", CAPTIONS)
    (manifest.parent / "1.wav").write_text("no audio", encoding="utf-8")
    soundfile.write(manifest.parent / "2.wav", np.zeros(800), 8000)
    return manifest, valid


def test_bad_clips_are_skipped_counted_and_named(
    half_bad: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = manifest_config(*half_bad, num_steps=2, data__max_bad_share=0.4)
    train.train(settings, tmp_path / "run")
    told = capsys.readouterr().out
    folder = half_bad[0].parent
    assert told.count(f"skipping {folder / '1.wav'}: ") == 1
    assert f"skipping {folder / '2.wav'}: 0.1 s is shorter than min_seconds=0.2" in told
    assert "2 of 6 clips were skipped" in told
    assert list(rows(tmp_path / "run")) == [1, 2]


def test_too_many_bad_clips_end_the_run_and_its_threads(
    half_bad: tuple[Path, Path], tmp_path: Path
) -> None:
    threads = set(threading.enumerate())
    settings = manifest_config(*half_bad, data__max_bad_share=0.2)
    with pytest.raises(InputError, match=r"2 of 6 clips .33.3%. are unusable, more than data.max_"):
        train.train(settings, tmp_path / "run")
    left = {t for t in set(threading.enumerate()) - threads if not t.daemon}
    for thread in left:
        thread.join(5)
    assert not [thread for thread in left if thread.is_alive()]


def test_a_command_with_too_many_bad_clips_ends_with_2(
    half_bad: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest, valid = half_bad
    code = command(
        *(*TINY, "--workdir", str(tmp_path / "run"), "--config.data.source=manifest"),
        *(f"--config.data.root={manifest}", f"--config.data.valid_root={valid}"),
        *("--config.data.min_seconds=0.2", "--config.data.max_bad_share=0.2"),
    )
    assert code == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: 2 of 6 clips (33.3%) are unusable")


def test_a_bug_is_a_trace_and_exit_code_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_):
        raise TypeError("a bug")

    monkeypatch.setattr(train, "train", broken)
    assert command(*TINY) == 1
    assert capsys.readouterr().err.splitlines()[-1] == "TypeError: a bug"


@pytest.mark.parametrize("kind", [jax.errors.JaxRuntimeError, MemoryError])
def test_too_little_memory_is_one_line_that_says_what_takes_less(
    kind: type[Exception], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def large(*_):
        raise kind("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 9 bytes.\nmore")

    monkeypatch.setattr(train, "train", large)
    assert command(*TINY) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: RESOURCE_EXHAUSTED: Out of memory while trying to allocate 9 b")
    assert line.endswith("--config.model.remat=True or --config.optim.accumulate_steps=2")


# ------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 1}, "seed is 0 there and 1 here"),
        ({"batch_size": 16}, "batch_size is 8 there and 16 here"),
        ({"optim__learning_rate": 0.5}, "optim.learning_rate is 0.01 there and 0.5 here"),
        ({"model__stem_channels": 8}, "model.stem_channels is 4 there and 8 here"),
        ({"mixing__max_gain_db": 5}, "mixing.max_gain_db is 10 there and 5 here"),
        ({"data__segment_seconds": 0.5}, "data.segment_seconds is 0.25 there and 0.5 here"),
    ],
)
def test_a_workdir_of_another_config_is_refused_untouched(
    copied: Path, change: dict[str, object], message: str
) -> None:
    before = files(copied)
    with pytest.raises(InputError) as caught:
        train.train(config(**change), copied)
    assert f"{copied} holds another run: {message};" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert files(copied) == before


def test_a_changed_config_goes_on_when_asked_and_is_recorded(copied: Path) -> None:
    with pytest.raises(InputError, match=r"or go on with the changed one by --config\.resume=cha"):
        train.train(config(num_steps=14, optim__learning_rate=0.5), copied)
    values = {"num_steps": 14, "optim__learning_rate": 0.5, "batch_size": 16}
    train.train(config(resume="changed", **values), copied)
    changes = {"batch_size": [8, 16], "optim.learning_rate": [0.01, 0.5]}
    with contextlib.closing(Checkpoints(copied)) as checkpoints:
        assert checkpoints.about(14)["history"] == [{"step": LAST_STEP, "changes": changes}]
    before, after = rows(copied, "train/learning_rate"), rows(copied, "train/update_norm")
    assert before[13] == pytest.approx(50 * before[12], rel=0.1)  # the schedule goes on, too
    assert after[13] > 10 * after[12]
    train.train(
        config(num_steps=15, **{k: v for k, v in values.items() if k != "num_steps"}), copied
    )
    with contextlib.closing(Checkpoints(copied)) as checkpoints:
        assert len(checkpoints.about(15)["history"]) == 1


def test_what_has_another_shape_cannot_go_on(copied: Path) -> None:
    with pytest.raises(InputError, match="is of another architecture"):
        train.train(config(num_steps=14, resume="changed", model__stem_channels=8), copied)


def test_shard_map_goes_on_where_pmap_has_stopped(copied: Path, finished: Path) -> None:
    shutil.rmtree(copied / FOLDER / "00000012")
    train.train(config(parallel="shard_map", model__remat=True), copied)
    assert rows(copied) == pytest.approx(rows(finished), rel=1e-4)
    assert rows(copied, "valid/sdri") == pytest.approx(rows(finished, "valid/sdri"), abs=1e-2)


def test_changed_captions_are_refused_and_a_moved_data_set_is_not(tmp_path: Path) -> None:
    manifest = write_manifest(tmp_path / "data", CAPTIONS)
    workdir = tmp_path / "run"
    train.train(manifest_config(manifest, num_steps=1), workdir)
    before = files(workdir)
    changed = write_manifest(tmp_path / "changed", [*CAPTIONS[:-1], "a lion"])
    with pytest.raises(InputError, match=r"data_fingerprint is '\w+' there and '\w+' here"):
        train.train(manifest_config(changed, num_steps=2), workdir)
    assert files(workdir) == before
    moved = shutil.copytree(manifest.parent, tmp_path / "moved") / manifest.name
    train.train(manifest_config(moved, num_steps=2), workdir)
    assert list(rows(workdir)) == [1, 2]


def test_another_text_encoder_is_refused(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = make_encoder(config().text)
    monkeypatch.setattr(type(encoder), "fingerprint", "hashed-2")
    with pytest.raises(
        InputError, match="text_fingerprint is 'hashed-1' there and 'hashed-2' here"
    ):
        train.train(config(), copied)


def test_given_weights_of_another_architecture_are_refused_before_the_workdir_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_run.save_run(tmp_path / "other")
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(InputError, match=r"init_from=.*other: model\.\w+ is .* there and .* here"):
        train.train(config(init_from="~/other"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_given_weights_without_a_head_get_a_new_one(tmp_path, monkeypatch, capsys):
    tiny_run.save_run(tmp_path / "old", config=tiny.get_config())
    monkeypatch.setenv("HOME", str(tmp_path))
    old = trained.read(tmp_path / "old").variables
    wanted = config(init_from="~/old", model__activity="gate")
    new = load_initial_weights(wanted)
    assert "init_from=~/old: has no head for the activity; a new one" in capsys.readouterr().err
    assert not new["params"]["base"].pop("activity")["logit"]["kernel"].any()
    assert new["params"]["film"].pop("activity")
    jax.tree.map(np.testing.assert_array_equal, old, new)
    with_head = tiny.get_config()
    with_head.model.activity = "report"
    tiny_run.save_run(tmp_path / "new", config=with_head)
    found = load_initial_weights(dataclasses.replace(wanted, init_from="~/new"))
    jax.tree.map(np.testing.assert_array_equal, found, trained.read(tmp_path / "new").variables)
    with pytest.raises(InputError, match="activity is 'report' there and 'none' here"):
        load_initial_weights(config(init_from="~/new"))


def test_given_weights_keep_their_first_slots_or_get_new_ones(tmp_path):
    with_slots = tiny.get_config()
    with_slots.model.slots, with_slots.text.encoder = 2, "none"
    tiny_run.save_run(tmp_path / "blind", config=with_slots)
    old = trained.read(tmp_path / "blind").variables
    found = load_initial_weights(config(init_from=str(tmp_path / "blind")))
    given = {name: x for name, x in old["params"].items() if name != "slots"}
    jax.tree.map(np.testing.assert_array_equal, found["params"], given)
    fewer = load_initial_weights(config(init_from=str(tmp_path / "blind"), model__slots=1))
    np.testing.assert_array_equal(fewer["params"]["slots"], old["params"]["slots"][:1])
    more = load_initial_weights(config(init_from=str(tmp_path / "blind"), model__slots=3))
    assert more["params"].pop("slots").shape == (3, 512)
    jax.tree.map(np.testing.assert_array_equal, more["params"], given)


@pytest.mark.slow
def test_slots_learn_without_captions_and_separate(tmp_path, capsys):
    workdir = tmp_path / "run"
    blind = {"model__slots": 2, "text__encoder": "none", "loss__assign": "one_each"}
    assert train.train(config(**blind), workdir)
    assert "--blind 2" in capsys.readouterr().out
    assert rows(workdir, "valid/sdri")
    assert not rows(workdir, "valid/query_gap")
    separator = Separator.load(workdir)
    mixture_S, rate_hz = audio_files.read_mono(workdir / "example" / "mixture.wav")
    by_slot = separator.separate_conditions(mixture_S, rate_hz, separator.slots(2))
    command = [str(workdir / "example" / "mixture.wav"), "--blind", "2", "--residual"]
    options = ["--checkpoint", str(workdir), "--output", str(tmp_path), "--overwrite"]
    assert separate([*command, *options, "--engine", "jax"]) == 0
    paths = [tmp_path / f"mixture - {name}.wav" for name in ("part 1", "part 2", "residual")]
    parts = [audio_files.read_mono(path)[0] for path in paths]
    np.testing.assert_allclose(parts[:2], by_slot, atol=1e-5)
    np.testing.assert_allclose(np.sum(parts, axis=0), mixture_S, atol=1e-5)
    for words, message in (
        ("--blind 3", "find 2 parts"),
        ("--text dog", "trained without queries; ask for their parts by --blind"),
    ):
        assert separate([command[0], *words.split(), *options]) == 2
        assert message in capsys.readouterr().err


def test_groups_that_name_no_clip_are_reported(tmp_path, capsys):
    manifest = write_manifest(tmp_path, ["a bell", "a bell"])
    alike = (("A bell", "no such"), ("neither",))
    with pytest.raises(InputError, match="no clip with another caption"):
        train.train(manifest_config(manifest, data__alike=alike), tmp_path / "run")
    assert "no training clip has the caption or class no such, neither" in capsys.readouterr().err


MISTAKES = {
    "unknown field": (
        ["--config.model.hop=1"],
        "unknown config field model.hop; did you mean model.hop_samples? The fields of section",
    ),
    "seed beyond JAX": (["--config.seed=99999999999999999999"], "seed=99999999999999999999 must"),
    "unknown flag": (["--wrkdir=x"], "wrkdir"),
    "not a number": (["--config.optim.learning_rate=fast"], "learning_rate"),
    "value out of range": (["--config.optim.learning_rate=-1.0"], "optim.learning_rate=-1.0"),
    "stray word": (["demo"], "unexpected argument 'demo'"),
    "two config files": (["--config=nowhere.py"], "--config is given twice; give one file"),
    "no data set named": (["--config.data.source=esc50"], "set data.root"),
    "no data set folder": (
        ["--config.data.source=esc50", "--config.data.root=nowhere"],
        "nowhere: no such file or folder",
    ),
    "row without caption": (
        ["--config.data.source=manifest", "--config.data.root=list.json"],
        'list.json: row 2 (data[1]) has no "caption"',
    ),
    "one caption for all": (
        [
            *("--config.data.source=manifest", "--config.data.root=alike.json"),
            "--config.data.valid_root=good.json",
        ],
        "no clip with another caption to mix with",
    ),
    "workdir below a file": (
        ["--workdir=list.json/run"],
        "list.json/run: the folder cannot be created",
    ),
    "a bucket": (
        ["--workdir=gs://bucket/run"],
        "workdir=gs://bucket/run: must be a local folder; mount",
    ),
    "a mistyped bucket": (["--workdir=gs:/bucket"], "workdir=gs:/bucket: must be a local folder"),
    "an unset variable": (["--workdir="], "workdir=: must be a local folder"),
    "rows for no device": (["--config.batch_size=12"], "batch_size=12 does not divide among 8"),
    "rows for no part": (
        ["--config.optim.accumulate_steps=2"],
        "batch_size=8 does not divide among 8 devices in optim.accumulate_steps=2",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_and_exit_code_2_and_writes_nothing(
    mistake: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    write_manifest(tmp_path, CAPTIONS, "good.json")
    write_manifest(tmp_path, ["a bell", "a bell"], "alike.json")
    listed = [{"wav": "0.wav", "caption": "a bell"}, {"wav": "1.wav"}]
    (tmp_path / "list.json").write_text(json.dumps({"data": listed}), encoding="utf-8")
    before = files(tmp_path)
    arguments, message = MISTAKES[mistake]
    workdir = [] if "workdir" in arguments[0] else ["--workdir=run"]
    code = command(*TINY, *workdir, *arguments)
    (line,) = capsys.readouterr().err.splitlines()
    assert code == 2, line
    assert line.startswith("error: ")
    assert message in line
    assert files(tmp_path) == before
    assert not (tmp_path / "run").exists()


def test_help_is_no_failure(capsys: pytest.CaptureFixture[str]) -> None:
    app.define_help_flags()
    assert command("--help") == 0
    assert capsys.readouterr().err == ""


def test_without_a_workdir_the_config_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    seen = []
    monkeypatch.setattr(train, "train", lambda *arguments: seen.append(arguments))
    assert command(*TINY, "--config.seed=3") == train.STOPPED
    assert seen == [(dataclasses.replace(config(), seed=3), Path("runs/tiny"))]
    monkeypatch.setenv("HOME", "/home/user")
    command(*TINY, "--workdir=~/run")  # which a shell passes on as it is
    assert seen[1][1] == Path("/home/user/run")
