"""Separate what sentences describe from recordings; `--help` shows examples."""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from audiosep_jax.errors import InputError
from audiosep_jax.separation.jobs import Job, Ledger, all_parts, is_list, plan, share
from audiosep_jax.separation.options import check_options, make_parser
from audiosep_jax.separation.queries import conditions, embed, queries_of, read_files

if TYPE_CHECKING:
    from audiosep_jax.separation.batch import Settings, Task

# Numpy, libsndfile and JAX are imported where they are used: help and mistakes answer at once.

TEXT_MODEL = "--text_model DIR"
SPANS_SHOWN = 6


def main(argv: Sequence[str]) -> int:
    """Exit code, as `--help` says."""
    try:
        return _separate(make_parser().parse_args(argv))
    except InputError as error:
        _say("error:", str(error))
        return 2
    except KeyboardInterrupt:
        _say("stopped; --resume goes on with what is left")
        return 130


def _separate(arguments: argparse.Namespace) -> int:
    source, output = arguments.input, arguments.output

    # ------------------------------------------------------------------ checks, cheapest first
    queries, unwanted = queries_of(arguments.queries), queries_of(arguments.unwanted)
    jobs = plan(source, output, queries)
    check_options(arguments)
    many = os.path.isdir(source) or is_list(source)
    material = read_files(arguments.queries)
    if not many:
        _check_recording(jobs[0])
    settings = _settings(arguments)

    # ------------------------------------------------------------------ load
    from absl import logging

    logging.set_verbosity(logging.ERROR)  # what Orbax tells of a load
    from audiosep_jax.cli import use_compilation_cache
    from audiosep_jax.separation import batch
    from audiosep_jax.separation.separator import Separator

    use_compilation_cache()
    separator = Separator.from_pretrained(
        arguments.checkpoint,
        text_model=arguments.text_model,
        option="--checkpoint DIR",
        text_option=TEXT_MODEL,
    )
    vectors = embed(separator, [*all_parts(jobs), *arguments.unwanted], material)
    unwanted_ME = conditions(unwanted, vectors, separator.model.condition_features)[1]

    # ------------------------------------------------------------------ what there is to do
    tasks: list[batch.Task] = []
    for job in jobs:
        labels, condition_NE = conditions(job.queries, vectors, unwanted_ME.shape[1])
        tasks.append(batch.make_task(job, labels, condition_NE, unwanted_ME, settings, output))
    batch.check_distinct(tasks)
    read = [*(str(job.recording) for job in jobs), *(part.value for part in material)]
    inputs = {os.path.realpath(path) for path in read}
    tasks = share(tasks, *arguments.shard)
    ledger = Ledger(output, *arguments.shard) if many or arguments.resume else None
    weights = separator.fingerprint if ledger else ""
    keys = {id(task): batch.key_of(task, settings, weights, output) for task in tasks}
    finished = ledger.finished() if ledger and arguments.resume else {}
    records = [finished[keys[id(task)]] for task in tasks if keys[id(task)] in finished]
    tasks = [task for task in tasks if keys[id(task)] not in finished]
    if records:
        _say(f"{len(records)} of {len(records) + len(tasks)} recordings are done already")

    # ------------------------------------------------------------------ separate
    failures = []
    with _progress_bar(batch.total_seconds(tasks)) as bar:
        results = batch.separate_all(
            separator,
            tasks,
            settings,
            output,
            devices=batch.devices_to_use(),
            progress=bar.update,
            inputs=inputs,
        )
        for task, result in results:
            if isinstance(result, batch.Failure):
                failures.append(result)
                continue
            record = {"key": keys[id(task)], **result}
            if ledger:
                ledger.add(record)
            records.append(record)
            bar.clear()
            _report(task, record, output, many)
    if failures and not many:
        raise InputError(failures[0].message)
    if arguments.json:
        path = _of_shard(arguments.json, *arguments.shard)
        _write_json(path, [batch.whole_record(record, output) for record in records])
    for failure in failures:
        _say("error:", failure.message)
    if failures:
        _say(f"{len(failures)} of {len(failures) + len(records)} recordings were not separated")
    return 1 if failures else 0


def _settings(arguments: argparse.Namespace) -> "Settings":
    """The options of every job; InputError where they contradict each other."""
    from audiosep_jax import plots
    from audiosep_jax.separation.batch import Settings

    if arguments.plot:
        try:
            plots.check_figure(f"x.{arguments.plot}")
        except InputError as error:
            raise InputError(f"--plot: {str(error).partition(': ')[2]}") from error
    return Settings(
        residual=arguments.residual,
        stereo=arguments.stereo,
        above_nyquist=arguments.above_nyquist,
        clip=arguments.clip,
        output_format=arguments.output_format and arguments.output_format.upper(),
        subtype=arguments.subtype,
        tile_seconds=arguments.tile_seconds,
        plot=arguments.plot,
    )


def _check_recording(job: Job) -> None:
    """InputError where the one recording cannot be used, before anything is loaded."""
    from audiosep_jax.audio.files import AudioReader

    with AudioReader(job.recording):
        pass


def _of_shard(path: Path, index: int, count: int) -> Path:
    """`found.json` as `found.0-of-8.json` where several processes write one each."""
    return path.with_suffix(f".{index}-of-{count}{path.suffix}") if count > 1 else path


def _write_json(path: Path, records: Sequence[dict[str, Any]]) -> None:
    """All records as one list, whole or not at all."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(json.dumps(records, indent=1) + "\n")
        os.replace(part, path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise InputError(f"--json {path}: cannot be written ({error.strerror})") from error


def _report(task: "Task", record: dict[str, Any], output: Path, many: bool) -> None:
    """Paths on standard output; on the other, how much of what was asked for is there, and when."""
    try:
        for name in record["files"]:
            # A path need not be valid text.
            sys.stdout.buffer.write(os.fsencode(output / name) + b"\n")
        sys.stdout.flush()
    except BrokenPipeError:  # nobody reads the paths any more; the work goes on
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    for result in record["results"]:
        where = f"{task.job.name}: " if many else ""
        times = [f"{start:.1f}-{end:.1f}" for start, end in result["active"]]
        more = f" and {len(times) - SPANS_SHOWN} more" if len(times) > SPANS_SHOWN else ""
        heard = f"at {', '.join(times[:SPANS_SHOWN])} s{more}" if times else "nowhere"
        _say(f"{where}{result['query']}: presence {result['presence']:.2f}, {heard}")


def _say(*words: str) -> None:
    """One line on standard error."""
    line = " ".join(" ".join(words).split())
    line = line.encode(sys.stderr.encoding or "utf-8", "backslashreplace").decode(
        sys.stderr.encoding or "utf-8"
    )
    print("".join(x if x.isprintable() else "?" for x in line), file=sys.stderr)


def _progress_bar(seconds: float) -> Any:
    """Over the seconds of all recordings, on a terminal."""
    from tqdm import tqdm

    form = "{percentage:3.0f}% |{bar}| {n:.0f} of {total:.0f} s of audio, {remaining} left"
    return tqdm(total=seconds, bar_format=form, disable=None, delay=2, leave=False)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
