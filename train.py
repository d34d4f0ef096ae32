"""Train a separator, or go on training it.

    python train.py --config configs/demo.py --config.num_steps=2000 --workdir runs/mine

The same command again resumes. Ctrl-C or SIGTERM saves before it ends.
"""

import contextlib
import dataclasses
import os
import shlex
import sys
from pathlib import Path
from typing import Any, NoReturn

import jax
import numpy as np
from absl import app, flags, logging

from audiosep_jax.audio import files as audio_files
from audiosep_jax.compilation_cache import use_compilation_cache
from audiosep_jax.data.pipeline import BadClips, check_captions, train_batches, validation_set
from audiosep_jax.data.sources import build_source, source_fingerprint
from audiosep_jax.errors import InputError
from audiosep_jax.training import processes
from audiosep_jax.training.checkpoints import Checkpoints, NotWritten, Outcome, saved_steps
from audiosep_jax.training.code_version import code_version
from audiosep_jax.training.conditions import captions_hash, distinct_captions, make_conditions
from audiosep_jax.training.config import Config, from_file, shared_fields, take_overrides
from audiosep_jax.training.hybrid import hybrid_batches, make_audio_encoder
from audiosep_jax.training.log import RunLog
from audiosep_jax.training.processes import Launch, PeerLost, Peers, with_votes
from audiosep_jax.training.progress import Progress, Trace
from audiosep_jax.training.start import given_variables, make_workdir, start_or_resume, state_shapes
from audiosep_jax.training.steps import (
    AXIS,
    TrainState,
    make_eval_step,
    make_train_step,
    parallel_eval_step,
    parallel_train_step,
    place_state,
    split_batch,
)
from audiosep_jax.training.stop_signals import StopSignals
from audiosep_jax.training.validation import validate

_CONFIG = flags.DEFINE_string(
    "config",
    str(Path(__file__).parent / "configs" / "demo.py"),
    "Config file of the experiment; --config.FIELD=VALUE changes a field, such as --config.seed=1.",
)
_OVERRIDES: dict[str, str] = {}  # of --config.FIELD=VALUE
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Where checkpoints and logs go; default: runs/<config name>."
)
_LAUNCH = Launch()
_COORDINATOR = flags.DEFINE_string(
    "coordinator_address", "", "HOST:PORT of process 0, where no cluster tells it."
)
_NUM_PROCESSES = flags.DEFINE_integer(
    "num_processes", 0, "Processes of this run; 1: alone, whatever the cluster says."
)
_PROCESS_ID = flags.DEFINE_integer("process_id", -1, "Which of them this is, from 0.")
_HEARTBEAT = flags.DEFINE_float(
    "heartbeat_seconds", _LAUNCH.heartbeat_seconds, "A process silent for longer counts as gone."
)
_START = flags.DEFINE_integer(
    "start_seconds", _LAUNCH.start_seconds, "How long to wait for the other processes at the start."
)


def main(argv: list[str]) -> None:
    """The run that the flags describe."""
    if argv[1:]:
        raise InputError(f"unexpected argument {argv[1]!r}; options look like --config.seed=1")
    config = from_file(_CONFIG.value, _OVERRIDES)
    launch = Launch(
        *(_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value),
        heartbeat_seconds=_HEARTBEAT.value,
        start_seconds=_START.value,
    )
    use_compilation_cache()
    with processes.start(launch) as peers:
        train(config, Path(_WORKDIR.value or f"runs/{config.name}"), peers)


def train(config: Config, workdir: Path, peers: Peers | None = None) -> None:
    """Data, state, loop: the whole story of a run, told by each of its processes."""
    peers = peers or Peers()
    devices = jax.device_count()
    parts = config.optim.accumulate_steps
    if config.batch_size % (devices * parts):
        among = f"{devices} devices" + (f" in optim.accumulate_steps={parts}" if parts > 1 else "")
        raise InputError(f"batch_size={config.batch_size} does not divide among {among}")

    # ------------------------------------------------------------ clips, captions, validation set
    train_source = build_source(config.data, "train", config.model.sample_rate_hz)
    valid_source = build_source(config.data, "valid", config.model.sample_rate_hz)
    captions = distinct_captions(train_source, valid_source)
    data_fingerprint = source_fingerprint(train_source)
    code = code_version()
    peers.agree(
        shared_fields(config)
        | {"the data": data_fingerprint, "the validation data": source_fingerprint(valid_source)}
        | {"the captions": captions_hash(captions), "the code": code["sources"]}
        | {"the number of devices": jax.local_device_count()}
    )
    conditions, text_fingerprint = make_conditions(config, captions, peers)
    about = {
        "config": dataclasses.asdict(config),
        "text_fingerprint": text_fingerprint,
        "data_fingerprint": data_fingerprint,
        "code": code,
    }
    audio_encoder = make_audio_encoder(config.text)
    check_captions(train_source, conditions)
    valid = config.valid
    valid_seconds = valid.segment_seconds or config.data.segment_seconds
    valid_data = dataclasses.replace(config.data, segment_seconds=valid_seconds)
    mixtures = validation_set(
        valid_source,
        conditions,
        config.mixing,
        valid_data,
        seed=valid.seed,
        num_mixtures=valid.num_mixtures,
        gain_db=valid.snr_db,
    )

    # ------------------------------------------------------------------ state, new or resumed
    given = None
    if peers.is_main and config.init_from and not saved_steps(workdir):
        given = given_variables(config)  # before the workdir is made: it may be refused
    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(StopSignals())
        checkpoints = state = None
        if peers.is_main:
            make_workdir(workdir)
            checkpoints = Checkpoints(workdir, config.checkpoint)
            stack.callback(checkpoints.close)
            state = start_or_resume(config, checkpoints, about, workdir, given)
        state = place_state(peers.share(state, state_shapes(config)))
        first_step = int(state.step)
        body = with_votes(make_train_step(config.model, config.optim, config.loss), AXIS)
        train_step = parallel_train_step(body)
        eval_step = parallel_eval_step(make_eval_step(config.model))
        batches = train_batches(
            train_source,
            conditions,
            config.mixing,
            config.data,
            config.augment,
            seed=config.seed,
            batch_size=config.batch_size,
            first_step=first_step,
            process_index=peers.index,
            process_count=peers.count,
        )
        stack.enter_context(contextlib.closing(batches))
        if audio_encoder:
            batches = hybrid_batches(
                batches,
                audio_encoder,
                seed=config.seed,
                first_step=first_step,
                use_text_ratio=config.text.use_text_ratio,
                sample_rate_hz=config.model.sample_rate_hz,
            )
        log = RunLog(workdir, first_step, config.num_steps, write=peers.is_main)
        stack.enter_context(contextlib.closing(log))
        for index in mixtures["bad_clips"]:
            log.say(f"validation does without {valid_source.name(index)}")
        size = sum(x.size for x in jax.tree.leaves(state.params))
        log.say(
            f"{config.name}: {size:,} parameters, {len(train_source):,} clips, {devices} x "
            f"{jax.devices()[0].device_kind}, steps {first_step} to {config.num_steps}"
        )
        bad_clips = BadClips(train_source, config.data.max_bad_share)
        progress = Progress(config, log, bad_clips, first_step, int(state.skipped_steps))
        profiled = config.profile if peers.is_main else 0
        trace = Trace(workdir / "profile", profiled, first_step, log.say)
        stack.enter_context(contextlib.closing(trace))

        # ------------------------------------------------------------------ loop
        step = first_step
        for step in range(first_step + 1, config.num_steps + 1):
            with trace.step(step):
                with progress.waiting_for_data():
                    batch = next(batches)
                batch["stop"] = np.full(len(batch["mixture"]), bool(stop))
                state, metrics = train_step(state, split_batch(batch))
                progress.record(step, metrics)
            # Of several processes each stops where the votes of the step before tell all to.
            stopping = step == config.num_steps or (
                progress.stop if peers.count > 1 else bool(stop)
            )
            sdri_db = None
            if step % valid.every_steps == 0 or step == config.num_steps:
                progress.catch_up()
                sdri_db = _validate(config, eval_step, state, mixtures, log, step)
                progress.start_clock()
            if stopping or sdri_db is not None or step % config.checkpoint.every_steps == 0:
                progress.catch_up()  # a checkpoint never holds a step whose loss was not finite
                if checkpoints and stopping:
                    checkpoints.finish()  # so that nothing comes before this one
                if checkpoints:
                    checkpoints.offer(step, state, about, sdri_db)
            if checkpoints:
                _tell(checkpoints.outcomes(), config, log, step, last=stopping)
            if stopping:
                break
        if checkpoints:
            checkpoints.finish()
            _tell(checkpoints.outcomes(), config, log, step, last=True)
        peers.meet("written")
        if bad_clips.indices:
            log.say(f"{len(bad_clips.indices)} of {len(train_source):,} clips were skipped")
        log.close()
        if step < config.num_steps and peers.is_main:
            print(f"Stopped and saved at step {step}. The same command resumes.", flush=True)
        elif peers.is_main:
            _show_what_next(config, eval_step, state, mixtures, workdir)


def _tell(outcomes: list[Outcome], config: Config, log: RunLog, step: int, *, last: bool) -> None:
    """Logs what has become of checkpoints; raises where one could not be written, if it shall.

    It always shall for that of the `last` step: nothing could be resumed from there.
    """
    for outcome in outcomes:
        if outcome.error and (
            config.checkpoint.on_error == "stop" or (last and outcome.step == step)
        ):
            raise outcome.error
        if outcome.error:
            log.say(f"{outcome.error}; training goes on")
        elif outcome.skipped:
            log.say(f"no checkpoint of step {outcome.step}: an earlier one is still being written")
        else:
            log.scalars(step, {"checkpoint_seconds": outcome.seconds})


def _validate(
    config: Config, eval_step: Any, state: TrainState, mixtures: Any, log: RunLog, step: int
) -> float:
    """Mean SDRi in dB; logs it, that of wrong queries, and the examples."""
    valid, variables = config.valid, state.variables()
    scores, estimates_NS = validate(
        eval_step, variables, mixtures, valid.batch_size, num_estimates=valid.num_examples
    )
    wrong, _ = validate(
        eval_step, variables, mixtures, valid.batch_size, condition="wrong_condition"
    )
    sdri_db = float(scores["sdri"].mean())
    values = {
        "valid/sdri": sdri_db,
        "valid/si_sdr": float(scores["si_sdr"].mean()),
        "valid/sdri_wrong_query": float(wrong["sdri"].mean()),
    }
    log.scalars(step, values)
    told = ", ".join(
        f"{name.removeprefix('valid/')} {value:.2f} dB" for name, value in values.items()
    )
    log.say(f"step {step}: {told}")
    for i, estimate_S in enumerate(estimates_NS):
        sounds = {"mixture": mixtures["mixture"][i], "target": mixtures["target"][i]}
        name = f"{i} {mixtures['caption'][i]}"
        log.example(step, name, {**sounds, "estimate": estimate_S}, config.model)
    return sdri_db


def _show_what_next(
    config: Config, eval_step: Any, state: TrainState, mixtures: Any, workdir: Path
) -> None:
    """Writes the validation mixture of median score, and the command that separates it."""
    scores, _ = validate(eval_step, state.variables(), mixtures, config.valid.batch_size)
    row = int(np.argsort(scores["sdri"])[len(scores["sdri"]) // 2])
    rate_hz = config.model.sample_rate_hz
    for kind in ("mixture", "target"):
        audio_files.write(workdir / "example" / f"{kind}.wav", mixtures[kind][row][None], rate_hz)
    print(f"Trained: {workdir}. A held-out mixture and its target: {workdir / 'example'}. Try:\n")
    mixture, caption = workdir / "example" / "mixture.wav", mixtures["caption"][row]
    command = ["python", "separate.py", mixture, "--text", caption, "--checkpoint", workdir]
    print(f"    {shlex.join(map(str, command))}\n", flush=True)


def _parse_flags(argv: list[str]) -> list[str]:
    """flags.FLAGS(argv), with one line instead of a trace for what was mistyped."""
    try:
        overrides, others = take_overrides(argv)
        _OVERRIDES.clear()
        _OVERRIDES.update(overrides)
        return flags.FLAGS(others)
    except (flags.Error, InputError) as error:
        _fail(" ".join(str(error).split()), 2)


def _run(argv: list[str]) -> None:
    logging.set_verbosity(logging.FATAL)  # what Orbax warns of is told in our words
    try:
        main(argv)
    except InputError as error:
        _fail(str(error), 2)
    except NotWritten as error:
        _fail(f"{error}; make room, and the same command resumes", 1)
    except (FloatingPointError, PeerLost) as error:
        _fail(str(error), 1)
    except KeyboardInterrupt:
        _fail("interrupted", 130)


def _fail(message: str, code: int) -> NoReturn:
    print(f"error: {message}", file=sys.stderr, flush=True)
    if jax.distributed.is_initialized():
        os._exit(code)  # otherwise JAX waits here for the other processes
    sys.exit(code)


if __name__ == "__main__":
    app.run(_run, flags_parser=_parse_flags)
