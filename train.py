"""Train a separator, or go on training it.

    python train.py --config configs/demo.py --config.num_steps=2000 --workdir runs/mine

The same command again resumes. Ctrl-C or SIGTERM saves before it ends. The exit code is 0 when the
run has finished, 75 when it was stopped and saved, 1 when it failed, and 2 for wrong input.
"""

import contextlib
import dataclasses
import errno
import gc
import itertools
import platform
import re
import sys
import time
import traceback
from pathlib import Path
from typing import Any, NoReturn

import jax
from absl import app, flags, logging

from audiosep_jax import files
from audiosep_jax.cli import say, use_compilation_cache
from audiosep_jax.data import cues
from audiosep_jax.data.batches import BadClips, ClipSampler
from audiosep_jax.data.pipeline import train_batches
from audiosep_jax.data.sources import DataConfig, build_source
from audiosep_jax.data.validation import validation_set
from audiosep_jax.encoders.hashed import words_of
from audiosep_jax.errors import InputError
from audiosep_jax.training import adapters, processes
from audiosep_jax.training.checkpoints import Checkpoints, saved_steps
from audiosep_jax.training.conditions import (
    captions_hash,
    check_captions,
    distinct_captions,
    make_conditions,
    target_queries,
)
from audiosep_jax.training.config import Config, from_file, shared_fields, take_overrides
from audiosep_jax.training.log import Progress, RunLog, Trace, code_version
from audiosep_jax.training.parallel import (
    parallel_eval_step,
    parallel_train_step,
    place_state,
    split_batch,
    step_flop,
)
from audiosep_jax.training.processes import STOPPED, RunFailed, StopSignals, failing_together
from audiosep_jax.training.start import (
    load_initial_weights,
    start_or_resume,
    state_shapes,
    with_frozen_network,
)
from audiosep_jax.training.steps import make_eval_step, make_train_step
from audiosep_jax.training.validation import validate, validate_and_log, write_example

FINISHED = 0  # exit code
_CONFIG = flags.DEFINE_string(
    "config",
    str(Path(__file__).parent / "configs" / "demo.py"),
    "Config file of the experiment; --config.FIELD=VALUE changes a field, such as --config.seed=1.",
)
_OVERRIDES: dict[str, str] = {}  # of --config.FIELD=VALUE
_LESS_MEMORY = (
    "less memory is needed with a smaller --config.batch_size, more devices, "
    "--config.model.dtype=bfloat16, --config.model.remat=True or --config.optim.accumulate_steps=2"
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run; default: runs/<config name>.")
flags.register_validator(
    "workdir",
    lambda path: path is None or bool(path and not re.match(r"\w+:/", path)),
    message="must be a local folder; mount a bucket, for example with gcsfuse",
)
_COORDINATOR = flags.DEFINE_string(
    "coordinator_address", "", "HOST:PORT of process 0, where no cluster provides it."
)
_NUM_PROCESSES = flags.DEFINE_integer(
    "num_processes",
    0,
    "Number of processes of this run; with 1 a cluster is ignored.",
    lower_bound=0,
)
_PROCESS_ID = flags.DEFINE_integer("process_id", -1, "Number of this process, from 0.")
_HEARTBEAT = flags.DEFINE_integer(
    "heartbeat_seconds", 60, "A process that is silent for longer counts as dead.", lower_bound=1
)
_START = flags.DEFINE_integer(
    "start_seconds", 300, "Seconds to wait for the others.", lower_bound=1
)


def main(argv: list[str]) -> int:
    """Run the experiment that the flags describe; return the exit code."""
    if argv[1:]:
        raise InputError(f"unexpected argument {argv[1]!r}; options look like --config.seed=1")
    config = from_file(_CONFIG.value, _OVERRIDES)
    workdir = Path(_WORKDIR.value or f"runs/{config.name}").expanduser()
    use_compilation_cache()
    with processes.connected(
        _COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value, _HEARTBEAT.value, _START.value
    ):
        return FINISHED if train(config, workdir) else STOPPED


def train(config: Config, workdir: Path) -> bool:
    """Train to the end, or until a signal stops it; return whether it came to the end.

    Every process of a run calls it. Process 0 alone uses the workdir.
    """
    config = with_frozen_network(config)
    devices, main, how = jax.device_count(), processes.is_main(), config.parallel
    parts = config.optim.accumulate_steps
    if config.batch_size % (devices * parts):
        among = f"{devices} devices" + (f" in optim.accumulate_steps={parts}" if parts > 1 else "")
        raise InputError(f"batch_size={config.batch_size} does not divide among {among}")

    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(StopSignals())
        # -------------------------------------------------------------- clips, captions, validation
        train_source = build_source(config.data, "train", config.model.sample_rate_hz)
        valid_source = build_source(config.data, "valid", config.model.sample_rate_hz)
        if main and (names := train_source.captions.unknown(itertools.chain(*config.data.alike))):
            say(f"data.alike: no training clip has the caption or class {', '.join(names)}")
        for source in (train_source, valid_source):
            check_captions(source, config.text.encoder)
        train_clips, valid_clips = ClipSampler(train_source), ClipSampler(valid_source)
        captions = distinct_captions(train_clips.captions, valid_clips.captions)
        if config.mixing.cue_probability:
            captions = sorted({*captions, *cues.SENTENCES})
        data, valid_data = train_source.fingerprint, valid_source.fingerprint
        code, valid = code_version(), config.valid
        facts = {"the data": data, "the validation data": valid_data, "the code": code["sources"]}
        facts["the captions"] = captions_hash(captions)
        processes.check_equal(shared_fields(config) | facts)
        conditions, text_fingerprint = make_conditions(config, captions)
        valid_seconds = valid.segment_seconds or config.data.segment_seconds
        mixed = (valid.num_mixtures, valid_seconds, valid.snr_db, valid.seed)
        about = {
            "config": dataclasses.asdict(config),
            "text_fingerprint": text_fingerprint,
            # Words that separation can use, where the text encoder knows no others.
            "words": words_of(captions) if config.text.encoder == "hashed" else [],
            "data_fingerprint": data,
            # Scores of equal ones are comparable.
            "valid_set": repr((valid_data, *mixed, config.mixing.declipped_peak))
            + " asked by cues" * bool(config.mixing.cue_probability),
            "code": code,
        }
        queries = target_queries(config)
        mixtures = validation_set(
            valid_clips,
            conditions,
            config.mixing,
            dataclasses.replace(config.data, segment_seconds=valid_seconds),
            seed=valid.seed,
            num_mixtures=valid.num_mixtures,
            gain_db=valid.snr_db,
        )

        # -------------------------------------------------------------- state, new or resumed
        checkpoints = state = None
        with failing_together():
            if main:
                # Read before the workdir is made, since they may be refused.
                new = config.init_from and not saved_steps(workdir)
                given = load_initial_weights(config) if new else None
                files.make_folder(workdir)
                files.check_writable(workdir / "metrics.jsonl")
                checkpoints = Checkpoints(workdir, config.checkpoint)
                stack.callback(checkpoints.close)
                state = start_or_resume(config, checkpoints, about, workdir, given)
                if int(state.step) < config.num_steps:
                    files.write_json(workdir / "config.json", about)
        state = place_state(processes.broadcast(state, state_shapes(config)), how)
        first_step = int(state.step)
        train_step = make_train_step(config.model, config.optim, config.loss)
        train_step = parallel_train_step(train_step, how)
        eval_step = parallel_eval_step(make_eval_step(config.model), how)
        local_processes = processes.gather(platform.node()).count(platform.node())

        def batches_after(step: int, data: DataConfig) -> Any:
            steps = itertools.count(step)

            def place(batch: Any) -> Any:  # in the stream's thread, batch after batch
                skipped_clips = batch.pop("bad_clips")
                if queries:
                    batch = queries.prepare(next(steps), batch)
                return split_batch(batch, how) | {"bad_clips": skipped_clips}

            stream = train_batches(
                *(train_clips, conditions, config.mixing, data, config.augment),
                seed=config.seed,
                batch_size=config.batch_size,
                first_step=step,
                process_index=jax.process_index(),
                process_count=jax.process_count(),
                local_processes=local_processes,
                place=place,
            )
            stack.enter_context(contextlib.closing(stream))
            return stream

        batches = batches_after(first_step, config.data)

        # -------------------------------------------------------------- logs
        log = RunLog(workdir, first_step, config.num_steps, write=main)
        stack.enter_context(contextlib.closing(log))
        for index in mixtures["bad_clips"]:
            log.say(f"validation skips {valid_source.name(index)}")
        for path in train_source.left_out:
            log.say(f"{path} is left out: it is no recording in a class folder")
        gc.freeze()  # objects that live to the end are not searched for garbage again
        size = sum(x.size for x in jax.tree.leaves(state.params))
        log.say(
            f"{config.name}: {size:,} parameters, {len(train_source):,} clips, {devices} x "
            f"{jax.devices()[0].device_kind}, steps {first_step} to {config.num_steps}"
        )
        bad_clips = BadClips(train_source, config.data.max_bad_share)
        progress = Progress(config, log, bad_clips, first_step, int(state.skipped_steps))
        trace = Trace(workdir / "profile", config.profile * main, first_step, log.say)
        stack.enter_context(contextlib.closing(trace))

        # -------------------------------------------------------------- loop
        step, scores, lost_worker = first_step, None, ""
        stop.save_from_now_on()
        for step in range(first_step + 1, config.num_steps + 1):
            with trace.step(step):
                with progress.waiting_for_data():
                    try:
                        batch = next(batches)
                    except RuntimeError as error:
                        lost_worker = _lost_worker(error)
                        stop.request()
                        # The stream is a function of the step. It begins again, without workers,
                        # for the steps that are left until all processes stop.
                        batches = batches_after(
                            step - 1, dataclasses.replace(config.data, num_workers=0)
                        )
                        batch = next(batches)
                skipped_clips = batch.pop("bad_clips")
                batch = queries.embed(batch) if queries else batch
                if step == first_step + 1:
                    progress.step_flop = step_flop(train_step, state, batch, parts)
                state, metrics = train_step(state, batch)
                progress.record(step, metrics, skipped_clips)
            stopping = stop.reached(step) or step == config.num_steps
            scores = None
            if step % valid.every_steps == 0 or step == config.num_steps:
                progress.catch_up()
                scores = validate_and_log(config, eval_step, state, mixtures, log, step)
            if stopping or scores or step % config.checkpoint.every_steps == 0:
                progress.catch_up()  # a checkpoint never holds a step that was not finite
                with failing_together():
                    if checkpoints:
                        sdri_db = float(scores["sdri"].mean()) if scores else None
                        started = time.perf_counter()
                        checkpoints.save(step, state, about, sdri_db)
                        log.scalars(step, {"checkpoint_seconds": time.perf_counter() - started})
                progress.start_clock()
            if stopping:
                break

        # -------------------------------------------------------------- end
        with failing_together():
            if checkpoints:
                checkpoints.close()
            if lost_worker:
                raise RunFailed(f"{lost_worker}; step {step} is saved and {processes.RESUME}")
        progress.exchange_bad_clips()
        if bad_clips.indices:
            log.say(f"{len(bad_clips.indices)} of {len(train_source):,} clips were skipped")
        finished = step >= config.num_steps
        if finished and scores is None:  # a run that had come to its end before
            scores, _ = validate(eval_step, state.variables(), mixtures, valid.batch_size, how=how)
        log.close()
        if main and finished and state.base is not None:
            words = tuple(about["words"])
            adapters.write_adapters(workdir / adapters.FILE, state.base, state.params, words)
        if main and scores is not None and finished:
            write_example(config, scores, mixtures, workdir)
        elif main:
            print(f"Stopped and saved at step {step}. The same command resumes.", flush=True)
    return finished


def _lost_worker(error: RuntimeError) -> str:
    """Describe the end of a data worker; raise other errors."""
    exit_code = re.search(r"Worker process was terminated .* exit code (-?\d+)", str(error))
    if not exit_code:
        raise error
    return (
        f"a data worker was killed (exit code {exit_code[1]}), most likely for lack of memory: use "
        "fewer --config.data.num_workers or --config.data.prefetch_megabytes"
    )


def _parse_flags(argv: list[str]) -> list[str]:
    """flags.FLAGS(argv), with one line instead of a traceback for a mistyped option."""
    _OVERRIDES.clear()
    try:
        overrides, others = take_overrides(argv)
        _OVERRIDES.update(overrides)
        return flags.FLAGS(others)
    except (flags.Error, InputError) as error:
        _fail(" ".join(str(error).split()), 2)
    except SystemExit:  # after --help, which absl ends with 1
        processes.leave(0)


def _run(argv: list[str]) -> int:
    logging.set_verbosity(logging.FATAL)  # Orbax's warnings are repeated in our error messages
    try:
        return main(argv)
    except InputError as error:
        full = isinstance(error.__cause__, OSError) and error.__cause__.errno == errno.ENOSPC
        _fail(str(error), 1 if full else 2)
    except (FloatingPointError, RunFailed) as error:
        _fail(str(error), 1)
    except KeyboardInterrupt:
        _fail("interrupted", 130)
    except Exception as error:
        if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
            _fail(f"{str(error).partition(chr(10))[0]}; {_LESS_MEMORY}", 1)
        traceback.print_exc()
        processes.leave(1)


def _fail(message: str, code: int) -> NoReturn:
    print(f"error: {message}", file=sys.stderr, flush=True)
    processes.leave(code)


def _hide_closed_loop(unraisable: Any) -> None:
    """Print an error that Python cannot raise, unless it is Orbax's after a save that failed."""
    if str(unraisable.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(unraisable)


if __name__ == "__main__":
    sys.unraisablehook = _hide_closed_loop
    app.run(_run, flags_parser=_parse_flags)
