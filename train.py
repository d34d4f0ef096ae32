"""Train a separator, or go on training it.

    python train.py --config configs/demo.py --config.num_steps=2000 --workdir runs/mine

The same command again resumes. Ctrl-C or SIGTERM saves before it ends.
"""

import contextlib
import dataclasses
import shlex
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import jax
import numpy as np
from absl import app, flags, logging
from ml_collections import config_flags

from audiosep_jax import audio_io
from audiosep_jax.checkpoints import Checkpoints
from audiosep_jax.config import Config, from_mapping, material_difference
from audiosep_jax.data.pipeline import BadClips, check_captions, train_batches, validation_set
from audiosep_jax.data.sources import Source, build_source, source_fingerprint
from audiosep_jax.errors import InputError
from audiosep_jax.evaluation.validation import validate
from audiosep_jax.hybrid import hybrid_batches, make_audio_encoder
from audiosep_jax.run_log import RunLog
from audiosep_jax.steps import (
    TrainState,
    init_state,
    make_eval_step,
    make_train_step,
    parallel_eval_step,
    parallel_train_step,
    place_state,
    split_batch,
    state_from_variables,
)
from audiosep_jax.text.encoder import check_dimensions, make_encoder
from audiosep_jax.text.table import caption_table

_CONFIG = config_flags.DEFINE_config_file(
    "config",
    str(Path(__file__).parent / "configs" / "demo.py"),
    "Experiment file; --config.field=value after it overrides a field.",
)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Where checkpoints and logs go; default: runs/<config name>."
)


def main(argv: list[str]) -> None:
    """The run that the flags describe."""
    if argv[1:]:
        raise InputError(f"unexpected argument {argv[1]!r}; options look like --config.seed=1")
    try:
        config = from_mapping(_CONFIG.value.to_dict())
    except OSError as error:
        path = config_flags.get_config_filename(flags.FLAGS["config"])
        raise InputError(f"--config={path}: cannot be read") from error
    train(config, Path(_WORKDIR.value or f"runs/{config.name}"))


def train(config: Config, workdir: Path) -> None:
    """Data, state, loop: the whole story of a run."""
    devices, hosts = jax.device_count(), jax.process_count()
    if config.batch_size % devices:
        raise InputError(f"batch_size={config.batch_size} does not divide among {devices} devices")

    # ------------------------------------------------------------ clips, captions, validation set
    train_source = build_source(config.data, "train", config.model.sample_rate_hz)
    valid_source = build_source(config.data, "valid", config.model.sample_rate_hz)
    encoder = make_encoder(config.text)
    captions = [*_captions(train_source), *_captions(valid_source)]
    conditions = caption_table(encoder, captions)
    check_dimensions(conditions, config.model.condition_features)
    about = {
        "config": dataclasses.asdict(config),
        "text_fingerprint": encoder.fingerprint,
        "data_fingerprint": source_fingerprint(train_source),
    }
    del encoder  # and with it its weights, which a device holds
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
    _make_workdir(workdir)
    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(_stop_signals())
        checkpoints = stack.enter_context(
            contextlib.closing(Checkpoints(workdir, config.checkpoint))
        )
        state, first_step = _start_or_resume(config, checkpoints, about, workdir)
        train_step = parallel_train_step(make_train_step(config.model, config.optim, config.loss))
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
            process_index=jax.process_index(),
            process_count=hosts,
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
        log = RunLog(workdir, first_step, config.num_steps, write=jax.process_index() == 0)
        stack.enter_context(contextlib.closing(log))
        bad_clips = BadClips(train_source, config.data.max_bad_share)
        for index in mixtures["bad_clips"]:
            log.say(f"validation does without {valid_source.name(index)}")
        size = sum(x.size for x in jax.tree.leaves(state.params))
        log.say(
            f"{config.name}: {size:,} parameters, {len(train_source):,} clips, "
            f"{devices} x {jax.devices()[0].device_kind}, steps {first_step} to {config.num_steps}"
        )

        # ------------------------------------------------------------------ loop
        progress = _Progress(config, log, first_step)
        step = first_step
        for step in range(first_step + 1, config.num_steps + 1):
            batch = next(batches)
            for line in bad_clips.update(batch.pop("bad_clips")):
                log.say(line)
            state, metrics = train_step(state, split_batch(batch))
            progress.record(step, metrics)
            stopping = bool(stop) or step == config.num_steps
            sdri_db = None
            if step % valid.every_steps == 0 or step == config.num_steps:
                progress.catch_up()
                sdri_db = _validate(config, eval_step, state, mixtures, log, step)
            if stopping or sdri_db is not None or step % config.checkpoint.every_steps == 0:
                progress.catch_up()  # a checkpoint never holds a step whose loss was not finite
                checkpoints.save(step, state, about, sdri_db)
                progress.start_clock()
            if stopping:
                break
        checkpoints.wait()
        if bad_clips.indices:
            log.say(f"{len(bad_clips.indices)} of {len(train_source):,} clips were skipped")
        log.close()
        if step < config.num_steps:
            print(f"Stopped and saved at step {step}. The same command resumes.", flush=True)
        else:
            _show_what_next(config, eval_step, state, mixtures, workdir)


def _captions(source: Source) -> Iterator[str]:
    for index in range(len(source)):
        yield from source.captions(index)


def _make_workdir(workdir: Path) -> None:
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        probe = workdir / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise InputError(f"{workdir}: cannot be written to ({error.strerror})") from error


def _start_or_resume(
    config: Config, checkpoints: Checkpoints, about: dict[str, Any], workdir: Path
) -> tuple[TrainState, int]:
    """(state on all devices, its step): the newest checkpoint's, or a fresh one."""
    # Unoptimised: LLVM would spend most of a minute on random numbers that are drawn once.
    options = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
    init = jax.jit(init_state, static_argnums=(0, 1), compiler_options=options)
    key = jax.random.key(config.seed)
    step = checkpoints.latest_step()
    if step is None and config.init_from:
        variables = _given_variables(config)
        return place_state(state_from_variables(variables, config.optim)), 0
    if step is None:
        return place_state(init(config.model, config.optim, key)), 0
    there = checkpoints.about(step)
    difference = material_difference(from_mapping(there["config"]), config)
    for name in ("text_fingerprint", "data_fingerprint"):
        if there[name] != about[name] and difference is None:
            difference = f"{name} is {there[name]} there and {about[name]} here"
    if difference:
        raise InputError(
            f"{workdir} holds another run: {difference}; choose another --workdir, or that config"
        )
    template = init.eval_shape(config.model, config.optim, key)
    return checkpoints.restore_state(step, template), step


def _given_variables(config: Config) -> dict[str, Any]:
    """Weights to begin with; InputError where they are of another network than the config's."""
    from audiosep_jax import trained  # with the hub's client, which takes a second

    given = trained.read(config.init_from, option="--config.init_from=PATH")
    there = dataclasses.replace(given.model, dtype=config.model.dtype)
    difference = material_difference(Config(model=there), Config(model=config.model))
    if difference:
        raise InputError(f"init_from={config.init_from}: {difference}")
    return given.variables


class _Progress:
    """Reads each step's metrics while the next is under way; logs, and stops on a bad loss."""

    def __init__(self, config: Config, log: RunLog, first_step: int) -> None:
        self.config, self.log = config, log
        self.pending: tuple[int, dict[str, jax.Array]] | None = None
        self.logged_step = first_step
        self.start_clock(first_step)

    def start_clock(self, step: int | None = None) -> None:
        """Leaves what was not training out of the speeds."""
        self.clock_step = self.logged_step if step is None else step
        self.clock = time.perf_counter()

    def record(self, step: int, metrics: dict[str, jax.Array]) -> None:
        self.catch_up()
        self.pending = (step, metrics)

    def catch_up(self) -> None:
        if self.pending is None:
            return
        step, metrics = self.pending
        self.pending = None
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        for name in ("loss", "parameter_norm"):  # a finite loss may have gradients that are not
            if not np.isfinite(values[name]):
                raise FloatingPointError(
                    f"{name} is {values[name]} at step {step}: training stopped"
                )
        self.log.bar.update(step - self.log.bar.n)
        self.logged_step = step
        if step % self.config.log_every_steps == 0:
            self._log(step, values)

    def _log(self, step: int, values: dict[str, float]) -> None:
        seconds = max(time.perf_counter() - self.clock, 1e-9)
        steps_per_second = (step - self.clock_step) / seconds
        clips_per_second = steps_per_second * self.config.batch_size
        self.start_clock(step)
        rows = {f"train/{name}": value for name, value in values.items()}
        if steps_per_second:
            rows |= {"steps_per_second": steps_per_second, "clips_per_second": clips_per_second}
        self.log.scalars(step, rows)
        self.log.bar.set_postfix(
            loss=f"{values['loss']:.4f}",
            sdri=f"{values['sdri']:.1f}dB",
            clips=f"{clips_per_second:.0f}/s",
        )


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
        audio_io.write(workdir / "example" / f"{kind}.wav", mixtures[kind][row][None], rate_hz)
    print(f"Trained: {workdir}. A held-out mixture and its target: {workdir / 'example'}. Try:\n")
    mixture, caption = workdir / "example" / "mixture.wav", mixtures["caption"][row]
    command = ["python", "separate.py", mixture, "--text", caption, "--checkpoint", workdir]
    print(f"    {shlex.join(map(str, command))}\n", flush=True)


class _stop_signals:
    """While entered, SIGINT and SIGTERM append to the list it gives; a second one acts at once."""

    def __enter__(self) -> list[int]:
        self.received: list[int] = []
        self.previous = {
            number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)
        }
        return self.received

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received:
            raise KeyboardInterrupt
        self.received.append(number)
        print("\nstopping after this step, and saving ...", file=sys.stderr, flush=True)

    def __exit__(self, *_: object) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)


def _parse_flags(argv: list[str]) -> list[str]:
    """flags.FLAGS(argv), with one line instead of a trace for what was mistyped."""
    try:
        return flags.FLAGS(argv)
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        _fail(" ".join(str(error).split()), 2)


def _run(argv: list[str]) -> None:
    logging.set_verbosity(logging.ERROR)  # Orbax warns at every save without a score
    try:
        main(argv)
    except InputError as error:
        _fail(str(error), 2)
    except FloatingPointError as error:
        _fail(str(error), 1)
    except KeyboardInterrupt:
        _fail("interrupted", 130)


def _fail(message: str, code: int) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    app.run(_run, flags_parser=_parse_flags)
