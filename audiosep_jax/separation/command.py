"""The command `audiosep separate`."""

import argparse
import contextlib
import dataclasses
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from audiosep_jax import files
from audiosep_jax.cli import discard, exit_code, naming, say
from audiosep_jax.errors import InputError, named
from audiosep_jax.separation.during import parse_spans
from audiosep_jax.separation.jobs import Job, finished_records, is_list, own_files, plan
from audiosep_jax.separation.options import (
    FILES,
    beside,
    check_options,
    load_separator,
    make_parser,
    names_a_file,
)
from audiosep_jax.separation.queries import (
    Part,
    Query,
    conditions,
    embed,
    labels_of,
    queries_of,
    read,
)

if TYPE_CHECKING:
    from audiosep_jax.separation.batch import Record, Settings, Task
    from audiosep_jax.separation.separator import Separator

# JAX, NumPy and libsndfile are imported where they are used, so that help and mistakes are fast.

LOG = "separated"  # name of the log of finished recordings, in the output folder
OPTIONS = ("stereo", "above_nyquist", "clip", "output_format", "subtype", "tile_seconds")


def main(argv: Sequence[str]) -> int:
    """Separate recordings as `argv` asks; return the exit code that `--help` explains."""
    hint = "; --resume continues with the recordings that are left"
    return exit_code(lambda: _separate(make_parser().parse_args(argv)), hint)


def _separate(arguments: argparse.Namespace) -> int:
    # ------------------------------------------------------------------ checks, cheapest first
    wanted, unwanted = queries_of(arguments.queries), queries_of(arguments.unwanted)
    is_file = names_a_file(arguments.output)
    output = arguments.output.parent if is_file else arguments.output
    with naming("--during"):
        spans = parse_spans(" ".join(arguments.during)) if arguments.during else ()
    jobs = plan(arguments.input, output, wanted, spans)
    many = len(jobs) > 1 or any(os.path.isdir(x) or is_list(x) for x in arguments.input)
    many = many or bool(arguments.cluster)
    check_options(arguments, output)
    listed = [part for job in jobs for query in job.queries for part in query]
    values = read(dict.fromkeys([*arguments.queries, *arguments.unwanted, *listed]))
    if is_file:
        jobs = [_with_file_name(arguments, jobs, values)]

    # ------------------------------------------------------------------ names of the results
    from audiosep_jax.audio.files import AudioReader
    from audiosep_jax.separation import batch

    read_paths = [*arguments.input, *(job.recording for job in jobs), *(x.value for x in values)]
    inputs = {os.path.realpath(path) for path in read_paths}
    with contextlib.ExitStack() as stack:
        log = None
        if many or arguments.resume:
            log = stack.enter_context(files.FinishedLog(output, LOG, arguments.shard))
        settings = batch.Settings(
            output,
            {name: getattr(arguments, name) for name in OPTIONS},
            residual=arguments.residual,
            suffix=arguments.output.suffix if is_file else None,
            beside=beside(arguments),
        )
        tasks = [batch.make_task(job, labels_of(job.queries, values), settings) for job in jobs]
        batch.check_distinct(tasks)
        tasks = tasks[arguments.shard[0] :: arguments.shard[1]]
        own = own_files(log) if log and arguments.resume else {}
        batch.protect(tasks, output, inputs, own, arguments.overwrite)
        if tasks and not many:
            tasks[0].reader = stack.enter_context(AudioReader(tasks[0].job.recording))
            batch.checked_paths(tasks[0].reader, tasks[0], settings)

        # -------------------------------------------------------------- load, separate, report
        separator = load_separator(arguments.checkpoint, arguments)
        _set_conditions(separator, tasks, values, unwanted)
        options = arguments.resume, arguments.cluster
        records, failures = _run(separator, tasks, settings, log, many, *options)
    if failures and not many:
        raise failures[0]
    if arguments.json:
        found = [batch.public_record(record, output) for record in records]
        files.write_json(arguments.json, found)
    for failure in failures:
        say("error:", str(failure))
    if failures:
        say(f"{len(failures)} of {len(failures) + len(records)} recordings were not separated")
    return 1 if failures else 0


def _with_file_name(
    arguments: argparse.Namespace, jobs: Sequence[Job], values: Mapping[Part, Sequence[Any]]
) -> Job:
    """The only job, with the name that --output gives to its only result."""
    path = arguments.output
    count = len(jobs) * (len(labels_of(jobs[0].queries, values)) + arguments.residual)
    if count != 1:
        raise InputError(f"--output {path}: names one file for {count} results; give a folder")
    format, subtype = FILES[path.suffix.lower()]
    if arguments.output_format not in (None, format):
        raise InputError(f"--output {path}: is no {arguments.output_format} file")
    arguments.output_format, arguments.subtype = format, arguments.subtype or subtype
    return dataclasses.replace(jobs[0], outputs=(PurePosixPath(path.stem),))


def _set_conditions(
    separator: "Separator",
    tasks: "Sequence[Task]",
    values: Mapping[Part, Sequence[Any]],
    unwanted: Sequence[Query],
) -> None:
    """Embed all queries, with their spans, and warn of those that mean nothing to the encoder."""
    for part in values:
        if part.kind == "text" and separator.is_unknown(part.value):
            say(f"warning: {part}: no word of it was in training, so its result means little")
    vectors, features = embed(separator, values), separator.model.condition_features
    for task in tasks:
        task.condition_NE = conditions(task.job.queries, vectors, features)
        task.unwanted_ME = conditions(unwanted, vectors, features)
        each = zip(task.job.queries, task.job.during, strict=True)
        task.during_N = [spans for query, spans in each for _ in labels_of([query], values)]


def _run(
    separator: "Separator",
    tasks: "Sequence[Task]",
    settings: "Settings",
    log: files.FinishedLog | None,
    many: bool,
    resume: bool,
    cluster: str,
) -> "tuple[list[Record], list[InputError]]":
    """Separate, report and log; return the records of all that is finished, and the failures."""
    from tqdm import tqdm

    from audiosep_jax.separation import batch

    weights = separator.fingerprint if log else ""
    keys = {task: batch.key_of(task, settings, weights) for task in tasks}
    finished = finished_records(log, settings.output) if log and resume else {}
    records = {task: finished[keys[task]] for task in tasks if keys[task] in finished}
    left = [task for task in tasks if task not in records]
    if records:
        say(f"{len(records)} of {len(tasks)} recordings are done already")
    failures, devices = [], batch.devices_to_use()
    form = "{percentage:3.0f}% |{bar}| {n:.1f} of {total} recordings, {remaining} left"
    # The bar counts parts of recordings too. `disable=None` shows it on terminals only.
    with tqdm(total=len(left), bar_format=form, disable=None, delay=2, leave=False) as bar:
        if cluster:
            results = batch.separate_on_cluster(separator, left, settings, cluster, bar.update)
        else:
            results = batch.separate_all(separator, left, settings, devices, bar.update)
        for task, result in results:
            if isinstance(result, InputError):
                failures.append(result)
                continue
            records[task] = {"key": keys[task], **result}
            if log:
                log.add(records[task])
            bar.clear()
            _report(result, settings.output, f"{task.job.name}: " if many else "")
    return [records[task] for task in tasks if task in records], failures


def _report(record: "Record", output: Path, prefix: str) -> None:
    """Print the paths on stdout, and on stderr how much of each query was found, and when."""
    from audiosep_jax.separation.files import when

    try:
        for name in record["files"]:
            path = os.fsencode(named(str(output / name)))  # it need not be UTF-8
            sys.stdout.buffer.write(path + b"\n")
        sys.stdout.flush()
    except OSError as error:  # the work continues, also if nobody reads the paths any more
        discard(sys.stdout)
        if not isinstance(error, BrokenPipeError):
            say(f"warning: paths of results cannot be printed ({error.strerror})")
    for result in record["results"]:
        found = f"presence {result['presence']:.2f}, {when(result['active'])}"
        say(f"{prefix}{result['query']}: {found}")
    if record["gain"] < 1:
        say(
            f"{prefix}all results are multiplied by {record['gain']:.3g} so that none clips; "
            "--output_format wav --subtype FLOAT keeps their level"
        )
