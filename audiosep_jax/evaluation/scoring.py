"""Score the mixtures of a list as the options of `audiosep evaluate` ask, and write the results."""

import argparse
import dataclasses
import functools
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from audiosep_jax import files
from audiosep_jax.cli import use_compilation_cache
from audiosep_jax.errors import InputError, named
from audiosep_jax.evaluation import absence, figures, mixtures, report, results, runner
from audiosep_jax.evaluation.baselines import random_queries
from audiosep_jax.evaluation.lists import WRONG_QUERY, Item
from audiosep_jax.evaluation.protocols import PROTOCOLS, Protocol
from audiosep_jax.evaluation.results import Row, RowLog, Run
from audiosep_jax.evaluation.runner import Estimator
from audiosep_jax.evaluation.scores import score_functions
from audiosep_jax.separation.separator import Separator

NAMED = 3  # unusable files that a message names


def evaluate(
    arguments: argparse.Namespace,
    protocol: Protocol,
    items: list[Item],
    separator: Separator | None,
    command: str,
) -> None:
    """Score the mixtures, or those of this shard; write the results when all are scored."""
    use_compilation_cache()
    wrong = not arguments.no_wrong_query
    items = with_queries(items, arguments.baseline, arguments.estimates, wrong=wrong)
    if protocol.absence:
        items = absence.recordings(items, arguments.seconds)
    rate_hz = runner.scoring_rate(arguments.sample_rate_hz, protocol, separator)
    run = _run(arguments, protocol, items, rate_hz, separator, command)
    estimator = runner.make_estimator(separator, run.baseline, items, rate_hz, arguments.estimates)
    row_of = functools.partial(absence.scored_row, estimator)
    if not protocol.absence:
        scores = score_functions([item.query for item in items], **run.extras)
        row_of = functools.partial(runner.scored_row, estimator, scores)
    log = RowLog(arguments.output, run.about(items), arguments.shard)
    _score_rows(arguments, items, row_of, log)
    found = log.read()
    if len(found) < len(items):
        done = f"{len(found):,} of {len(items):,} mixtures are done, by all shards"
        print(named(f"{arguments.output}: {done}"))
    else:
        _write_results(arguments, run, items, [found[item.row] for item in items], estimator)


def _run(
    arguments: argparse.Namespace,
    protocol: Protocol,
    items: list[Item],
    rate_hz: int,
    separator: Separator | None,
    command: str,
) -> Run:
    """Settings of the evaluation, with what is scored: a separator, estimates or a baseline."""
    about: dict[str, Any] | None = None
    if separator:
        about = {
            "source": " + ".join(filter(None, (arguments.checkpoint, arguments.adapter))),
            "step": separator.step,
            "fingerprint": separator.fingerprint,
            "sample_rate_hz": separator.model.sample_rate_hz,
            "text_encoder": separator.text.encoder,
        }
    elif arguments.estimates:
        about = {
            "source": named(str(arguments.estimates)),
            "step": None,
            "fingerprint": mixtures.estimates_fingerprint(items, arguments.estimates),
            "sample_rate_hz": rate_hz,
        }
    return Run(
        protocol,
        rate_hz,
        baseline=arguments.baseline,
        checkpoint=about,
        metadata=arguments.metadata,
        query=arguments.query,
        query_column=arguments.query_column,
        extras={
            "speech": arguments.speech or protocol.speech,
            "clap_model": arguments.clap_score,
        },
        command=command,
    )


def _score_rows(
    arguments: argparse.Namespace, items: list[Item], row_of: Callable[[Item], Row], log: RowLog
) -> None:
    """Add to the log the rows of this shard that it does not have yet."""
    if arguments.overwrite:
        log.discard()
        for name in (results.JSON_NAME, results.CSV_NAME, results.MARKDOWN_NAME):
            files.remove(arguments.output / name)
    done = {n: row for n, row in log.read().items() if "reason" not in row or "silent" in row}
    index, count = arguments.shard
    mine = items[index::count]
    mixtures.check_unchanged(mine, done)
    options = {"num_threads": arguments.num_threads, "cluster": arguments.cluster}
    with log:
        runner.score_items(mine, row_of, log, done, **options)


def _write_results(
    arguments: argparse.Namespace,
    run: Run,
    items: list[Item],
    rows: list[Row],
    estimator: Estimator,
) -> None:
    """Write the tables and the figures of all rows, and print the scores."""
    unscored = [row for row in rows if "reason" in row]
    missing = [row["reason"] for row in unscored if "silent" not in row]
    check_usable([row["reason"] for row in unscored], len(rows), "mixtures", True)
    check_usable(missing, len(rows), "mixtures", arguments.allow_missing)
    summarize = absence.summary if run.protocol.absence else results.summary
    content, output = results.results_of(run, rows, summarize), arguments.output
    results.write_csv(output / results.CSV_NAME, rows)
    files.write_json(output / results.JSON_NAME, content)
    drawn = []
    no_figures = arguments.no_figures or run.protocol.absence
    if not no_figures and importlib.util.find_spec("matplotlib") is None:
        print("note: no figures, which need matplotlib: pip install 'audiosep-jax[plot]'")
    elif not no_figures:
        drawn = figures.draw(content, rows, output)
        drawn += figures.draw_examples(rows, items, estimator, output)
    files.write_text(output / results.MARKDOWN_NAME, report.markdown(content, drawn))
    _print(content, output)


def with_queries(
    items: list[Item], baseline: str = "", estimates: Path | None = None, *, wrong: bool = True
) -> list[Item]:
    """Items with wrong queries: in place of the right ones, or beside them if the list has some."""
    if baseline == "random_query":
        pairs = zip(items, random_queries(items), strict=True)
        return [dataclasses.replace(x, query=query, wrong_query="") for x, query in pairs]
    if items[0].kind == "blind" and not estimates:
        return items  # whose second query is for the other part
    none = estimates and not (estimates / WRONG_QUERY).is_dir()
    if none or baseline or not wrong:
        return [dataclasses.replace(item, wrong_query="") for item in items]
    if all(item.wrong_query for item in items):
        return items
    try:
        pairs = zip(items, random_queries(items), strict=True)
    except InputError as error:
        print(f"note: no score of a wrong query: {error}")
        return [dataclasses.replace(item, wrong_query="") for item in items]
    return [dataclasses.replace(item, wrong_query=query) for item, query in pairs]


def check_usable(reasons: Sequence[str], total: int, what: str, allow_missing: bool | None) -> None:
    """Raise InputError if none can be used, or not all without --allow_missing.

    `allow_missing` is None for a verb without this option.
    """
    if len(reasons) == total:
        raise InputError(f"none of the {total:,} {what} can be used, such as: {reasons[0]}")
    if reasons and not allow_missing:
        named = "; ".join(reasons[:NAMED]) + ("; ..." if len(reasons) > NAMED else "")
        hint = "" if allow_missing is None else ". --allow_missing scores the others and says so"
        raise InputError(f"{len(reasons):,} of {total:,} {what} cannot be used: {named}{hint}")


def _print(content: Mapping[str, Any], output: Path) -> None:
    for note in content["notes"]:
        print(f"note: {note}")
    unit = "" if PROTOCOLS[content["protocol"]].absence else "dB "
    print(f"{content['title']}, {content['count']:,} mixtures, {unit}with 95 % intervals:")
    for name, score in content["scores"].items():
        interval = f"  ({report.between(score)})" if report.between(score) else ""
        print(f"  {name:<16} {score['mean']:7.2f}{interval}")
    names = ("results.json", "results.csv", "results.md")
    print(*(named(str(output / name)) for name in names), sep="\n")
