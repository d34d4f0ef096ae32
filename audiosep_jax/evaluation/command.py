"""The command `audiosep evaluate`: score a separator, render mixtures, draw pairs, watch a run."""

import argparse
import dataclasses
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from audiosep_jax.cli import Parser, exit_code, local_path, shard
from audiosep_jax.errors import InputError
from audiosep_jax.evaluation.protocols import BASELINES, PROTOCOLS, Protocol

if TYPE_CHECKING:
    from audiosep_jax.evaluation.lists import Item
    from audiosep_jax.evaluation.results import Run
    from audiosep_jax.separation.separator import Separator

# numpy and JAX are imported where they are used: help and mistakes are fast.

PROG = "audiosep evaluate"
SCORE_EXAMPLE = f"""example:
  {PROG} --checkpoint runs/clap --protocol esc50 \\
      --metadata esc50_eval.csv --audio evaluation/data/esc50 --output results/esc50
writes results.json, results.csv, results.md and figures. --audio holds the rendered mixtures
(segment-<idx>.wav, mixture-<idx>.wav), or the clips of the list, which are then mixed.
The same command continues an evaluation that was interrupted.

protocols:
{{protocols}}

baselines:
{{baselines}}

other verbs, each with its own --help:
  {PROG} render   write the mixtures of a list as files
  {PROG} pairs    write a list of random pairs of clips
  {PROG} watch    score each checkpoint of a training run as it is written"""
RENDER_EXAMPLE = f"""example:
  {PROG} render --protocol esc50 --metadata esc50_eval.csv --audio ESC-50/audio --output rendered
Every file depends on its line of the list alone: any number of processes writes the same bytes."""
PAIRS_EXAMPLE = f"""example:
  {PROG} pairs --audio ESC-50 --folds 4 --num_pairs 500 --output pairs.csv
  {PROG} --protocol mixtures --metadata pairs.csv --audio ESC-50 --checkpoint runs/clap ..."""
WATCH_EXAMPLE = f"""example:
  {PROG} watch runs/clap --protocol esc50 --metadata esc50_eval.csv \\
      --audio evaluation/data/esc50 --output results/esc50
adds the scores to the TensorBoard of the run, and ends with its last step."""
NAMED = 3  # files of those missing that a message names


def main(argv: Sequence[str]) -> int:
    """Run the command; return 0, or 2 after one line on stderr."""
    words = list(argv)
    verb = words.pop(0) if words and words[0] in VERBS else "score"
    hint = "; the same command continues" if verb in ("score", "watch") else ""
    return exit_code(lambda: VERBS[verb](words), hint)


# ---------------------------------------------------------------------- score


def _score(words: Sequence[str]) -> None:
    parser = Parser(PROG, "Score a separator on a benchmark or on own mixtures.", _score_example())
    _add_list(parser)
    _add_scoring(parser)
    parser.add_argument("--checkpoint", default="", metavar="WHAT", help="as separate.py takes it")
    parser.add_argument("--shard", type=shard, default=(0, 1), metavar="I/N", help=SHARD_HELP)
    arguments = parser.parse_args(words)
    _check_list(arguments)
    _check_at_least(arguments, batch_size=1)
    if not arguments.checkpoint and arguments.baseline in ("", "random_query"):
        raise InputError("--checkpoint is needed, or a --baseline that has no model")
    _evaluate(arguments, _command(words))


def _evaluate(arguments: argparse.Namespace, command: str) -> None:
    # ------------------------------------------------------------------ the list and its files
    from audiosep_jax import files
    from audiosep_jax.evaluation import baselines, figures, mixtures, report, results, runner

    protocol, items = _listed(arguments)
    _check_files(items, arguments.allow_missing)

    # ------------------------------------------------------------------ the separator
    from audiosep_jax.cli import use_compilation_cache
    from audiosep_jax.evaluation.scores import score_functions

    use_compilation_cache()
    separator = _separator(arguments)
    baseline = arguments.baseline
    if baseline == "random_query":
        drawn = baselines.random_queries(items)
        items = [dataclasses.replace(x, query=q) for x, q in zip(items, drawn, strict=True)]
    elif not baseline and not arguments.no_wrong_query:
        items = _with_wrong_queries(items)
    run = _run(arguments, protocol, separator, bool(items[0].wrong_query), command)
    queries = [text for item in items for text in (item.query, item.wrong_query) if text]
    estimator = runner.make_estimator(separator, baseline, queries, run.sample_rate_hz)
    scores = score_functions(queries, speech=run.speech, clap_model=run.clap_model)

    # ------------------------------------------------------------------ score, batch by batch
    output, (index, count) = arguments.output, arguments.shard
    log = results.RowLog(output, run.about(items), arguments.shard)
    if arguments.overwrite:
        log.discard()
        results.discard(output)
    done = {n: row for n, row in log.read().items() if "reason" not in row or "silent" in row}
    mine = items[index::count]
    mixtures.check_unchanged(mine, done)
    examples = figures.Examples()
    keep = None if arguments.no_figures else examples.keep
    config = runner.RunConfig(arguments.batch_size, arguments.num_threads)
    with log:
        runner.score_items(mine, estimator, run.sample_rate_hz, log, done, config, scores, keep)

    # ------------------------------------------------------------------ results, if all is done
    found = log.read()
    if len(found) < len(items):
        print(f"{output}: {len(found):,} of {len(items):,} mixtures are done, by all shards")
        return
    rows = [found[item.row] for item in items]
    unscored = [row for row in rows if "reason" in row]
    missing = [row["reason"] for row in unscored if "silent" not in row]
    _check_usable([row["reason"] for row in unscored], len(rows), "mixtures", True)
    _check_usable(missing, len(rows), "mixtures", arguments.allow_missing)
    content = results.results_of(run, rows)
    results.write_csv(output / results.CSV_NAME, rows)
    files.write_json(output / results.JSON_NAME, content)
    drawn = []
    if not arguments.no_figures:
        try:
            drawn = figures.draw(content, rows, output)
            drawn += examples.draw(rows, items, estimator, run.sample_rate_hz, output)
        except InputError as error:  # matplotlib is not installed
            print(f"note: {error}")
    files.write_text(output / results.MARKDOWN_NAME, report.markdown(content, drawn))
    _print(content, output)


def _separator(arguments: argparse.Namespace) -> "Separator | None":
    """Separator of --checkpoint, if it is given."""
    if not arguments.checkpoint:
        return None
    from audiosep_jax.separation.options import load_separator

    return load_separator(arguments.checkpoint, arguments.text_model)


def _with_wrong_queries(items: "list[Item]") -> "list[Item]":
    """Items with a query for neither of their sounds; unchanged if the list has no such queries."""
    from audiosep_jax.evaluation.baselines import random_queries

    try:
        wrong = random_queries(items)
    except InputError as error:
        print(f"note: no score of a wrong query: {error}")
        return items
    return [dataclasses.replace(x, wrong_query=q) for x, q in zip(items, wrong, strict=True)]


def _run(
    arguments: argparse.Namespace,
    protocol: Protocol,
    separator: "Separator | None",
    wrong_query: bool,
    command: str,
) -> "Run":
    from audiosep_jax.evaluation.results import Run
    from audiosep_jax.model.resunet import ResUNetConfig

    model_hz = (separator.model if separator else ResUNetConfig()).sample_rate_hz
    checkpoint = None
    if separator:
        checkpoint = {
            "source": arguments.checkpoint,
            "step": separator.step,
            "fingerprint": separator.fingerprint,
            "sample_rate_hz": model_hz,
            "text_encoder": separator.text.encoder,
        }
    return Run(
        protocol,
        arguments.sample_rate_hz or protocol.sample_rate_hz or model_hz,
        baseline=arguments.baseline,
        checkpoint=checkpoint,
        metadata=arguments.metadata,
        query=arguments.query,
        query_column=arguments.query_column,
        speech=arguments.speech or protocol.speech,
        clap_model=arguments.clap_model if arguments.clap_score else None,
        wrong_query=wrong_query,
        command=command,
    )


def _listed(arguments: argparse.Namespace) -> "tuple[Protocol, list[Item]]":
    """Protocol and its mixtures."""
    from audiosep_jax.evaluation import lists

    protocol = PROTOCOLS[arguments.protocol]
    items = lists.items_of(
        protocol,
        lists.read_list(protocol, arguments.metadata, arguments.audio),
        arguments.audio,
        arguments.audio2 or arguments.audio,
        layout=arguments.layout,
        query_column=arguments.query_column,
        query=arguments.query or ("" if arguments.query_column else protocol.default_query),
        snr_db=arguments.snr_db,
    )
    return protocol, items


def _check_files(items: "Sequence[Item]", allow_missing: bool) -> None:
    from audiosep_jax.evaluation.mixtures import missing_files

    reasons = [f"{path}: no such file" for path in missing_files(items)]
    num_files = len({path for item in items for path in item.files})
    _check_usable(reasons, num_files, "files", allow_missing)


def _check_usable(reasons: Sequence[str], total: int, what: str, allow_missing: bool) -> None:
    """Raise InputError if none, or without --allow_missing not all, can be used."""
    if len(reasons) == total:
        raise InputError(f"none of the {total:,} {what} can be used, such as: {reasons[0]}")
    if reasons and not allow_missing:
        named = "; ".join(reasons[:NAMED]) + ("; ..." if len(reasons) > NAMED else "")
        share = f"{len(reasons):,} of {total:,} {what} cannot be used"
        raise InputError(f"{share}: {named}. --allow_missing scores the others and says so")


def _print(content: Mapping[str, Any], output: Path) -> None:
    for note in content["notes"]:
        print(f"note: {note}")
    print(f"{content['title']}, {content['count']:,} mixtures, dB with 95 % intervals:")
    for name, score in content["scores"].items():
        between = "" if score["low"] is None else f"  ({score['low']:.2f} to {score['high']:.2f})"
        print(f"  {name:<16} {score['mean']:7.2f}{between}")
    for name in ("results.json", "results.csv", "results.md"):
        print(output / name)


def _command(words: Sequence[str]) -> str:
    """Command as typed, without the options of a single process."""
    kept = list(words)
    while "--shard" in kept:
        del kept[kept.index("--shard") : kept.index("--shard") + 2]
    kept = [word for word in kept if not word.startswith("--shard=") and word != "--overwrite"]
    return shlex.join([*PROG.split(), *kept])


# ---------------------------------------------------------------------- watch, render, pairs


def _watch(words: Sequence[str]) -> None:
    parser = Parser(f"{PROG} watch", "Score each checkpoint of a training run.", WATCH_EXAMPLE)
    parser.add_argument("workdir", type=local_path, metavar="WORKDIR", help="of the training run")
    _add_list(parser)
    _add_scoring(parser)
    parser.add_argument(
        "--poll_seconds",
        type=float,
        default=30.0,
        help="seconds between looks for new checkpoints (default: 30)",
    )
    arguments = parser.parse_args(words)
    _check_list(arguments)
    _check_at_least(arguments, batch_size=1)
    if not arguments.workdir.is_dir():
        raise InputError(f"{arguments.workdir}: no such folder; give the workdir of a training run")
    if not arguments.poll_seconds > 0:
        raise InputError("--poll_seconds must be above 0")
    from audiosep_jax.evaluation.lists import list_fingerprint
    from audiosep_jax.evaluation.watch import watch

    command = _command(["watch", *words])

    def score(checkpoint: Path, place: Path) -> None:
        print(checkpoint, flush=True)
        values = {"checkpoint": str(checkpoint), "output": place, "shard": (0, 1)}
        _evaluate(argparse.Namespace(**vars(arguments) | values), command)

    names = ("protocol", "baseline", "sample_rate_hz", "speech", "clap_score", "clap_model")
    about = {name: vars(arguments)[name] for name in (*names, "no_wrong_query")}
    about["list"] = list_fingerprint(_listed(arguments)[1])
    watch(
        arguments.workdir,
        arguments.output,
        score,
        about,
        overwrite=arguments.overwrite,
        poll_seconds=arguments.poll_seconds,
    )


def _render(words: Sequence[str]) -> None:
    parser = Parser(f"{PROG} render", "Write the mixtures of a list as files.", RENDER_EXAMPLE)
    _add_list(parser)
    parser.add_argument("--shard", type=shard, default=(0, 1), metavar="I/N", help=SHARD_HELP)
    arguments = parser.parse_args(words)
    _check_list(arguments)
    from audiosep_jax.evaluation import mixtures
    from audiosep_jax.model.resunet import ResUNetConfig

    protocol, items = _listed(arguments)
    _check_files(items, allow_missing=False)
    mixtures.render(
        items,
        arguments.output,
        arguments.sample_rate_hz or protocol.sample_rate_hz or ResUNetConfig().sample_rate_hz,
        num_threads=arguments.num_threads,
        shard=arguments.shard,
        write_list=protocol.own,
    )
    print(arguments.output)


def _pairs(words: Sequence[str]) -> None:
    parser = Parser(f"{PROG} pairs", "Write a list of random pairs of clips.", PAIRS_EXAMPLE)
    add = parser.add_argument
    clips = "manifest, folder with the layout of ESC-50, or folder of class folders"
    add("--audio", type=local_path, metavar="PLACE", help=f"the clips: {clips}")
    add("--output", type=local_path, metavar="CSV", help="list to write")
    add("--num_pairs", type=int, default=500, help="number of pairs (default: 500)")
    add("--folds", type=int, nargs="+", default=[], help="folds of ESC-50 (default: all)")
    add("--snrs_db", type=float, nargs="+", default=[0.0], help="SNRs, in turn (default: 0)")
    add("--seed", type=int, default=0, help="seed of the draws (default: 0)")
    arguments = parser.parse_args(words)
    place = _needed(arguments, "audio", "the clips")
    if not place.exists():
        raise InputError(f"{place}: no such file or folder")
    _needed(arguments, "output", "the list to write")
    _check_at_least(arguments, num_pairs=1, seed=0)
    _check_snrs(arguments.snrs_db, "--snrs_db")
    from audiosep_jax.evaluation import mixtures

    mixtures.make_pairs(
        mixtures.clips_of(place, arguments.folds),
        place.parent if place.is_file() else place,
        arguments.output,
        num_pairs=arguments.num_pairs,
        snrs_db=arguments.snrs_db,
        seed=arguments.seed,
    )
    print(arguments.output)


VERBS: dict[str, Callable[[Sequence[str]], None]] = {
    "score": _score,
    "watch": _watch,
    "render": _render,
    "pairs": _pairs,
}


# ---------------------------------------------------------------------- options

SHARD_HELP = "process only every N-th mixture, starting from I (see docs/evaluation.md)"


def _add_list(parser: Parser) -> None:
    """Options that select mixtures."""
    add = parser.add_argument
    add("--protocol", choices=PROTOCOLS, help="benchmark, or mixtures for an own list")
    add("--metadata", type=local_path, metavar="CSV", help="list of the mixtures")
    add(
        "--audio",
        type=local_path,
        metavar="DIR",
        help="rendered mixtures, or the clips of the list",
    )
    add(
        "--audio2", type=local_path, metavar="DIR", help="the noises, if they are in another folder"
    )
    add("--output", type=local_path, metavar="DIR", help="folder to write to")
    add(
        "--layout",
        choices=("auto", "rendered", "pairs"),
        default="auto",
        help="content of --audio (default: rendered mixtures if any exist, otherwise pairs)",
    )
    snr = "SNR of pairs without one in the list (default: 0; for own lists the noise is unscaled)"
    add("--snr_db", type=float, help=snr)
    add("--query_column", default="", metavar="NAME", help="column of the queries")
    add("--query", default="", metavar="TEXT", help="one query for all mixtures")
    rate = "sample rate of scoring or rendering (default: the protocol's)"
    add("--sample_rate_hz", type=int, help=rate)
    add("--num_threads", type=int, default=4, help="threads that read and score (default: 4)")


def _add_scoring(parser: Parser) -> None:
    """Options of the scores."""
    add = parser.add_argument
    add(
        "--text_model",
        default="",
        metavar="DIR",
        help="text encoder, if it is not where training had it",
    )
    add("--baseline", choices=BASELINES, default="", help="score a baseline (see below) instead")
    add("--batch_size", type=int, default=1, help="clips at once, on all devices (default: 1)")
    add("--no_wrong_query", action="store_true", help="no score of a wrong query; half the time")
    add("--speech", action="store_true", help="also score PESQ, STOI and segmental SNR")
    add("--clap_score", action="store_true", help="also score CLAPScore, which needs no target")
    add("--clap_model", default="", metavar="DIR", help="CLAP of CLAPScore (default: published)")
    add("--no_figures", action="store_true", help="draw no figures, which need matplotlib")
    add("--allow_missing", action="store_true", help="score the others if files are missing")
    add("--overwrite", action="store_true", help="discard the results in the output folder")


def _score_example() -> str:
    protocols = "\n".join(f"  {x.name:<17} {x.title}" for x in PROTOCOLS.values())
    baselines = "\n".join(f"  {name:<17} {what}" for name, what in BASELINES.items())
    return SCORE_EXAMPLE.format(protocols=protocols, baselines=baselines)


def _check_list(arguments: argparse.Namespace) -> None:
    """Raise InputError for mistakes that are visible before anything is read."""
    for folder in (_needed(arguments, "audio", "the folder of the sounds"), arguments.audio2):
        if folder and not folder.is_dir():
            raise InputError(f"{folder}: no such folder")
    protocol = PROTOCOLS[_needed(arguments, "protocol", ", ".join(PROTOCOLS))]
    if not protocol.folder:
        _needed(arguments, "metadata", f"the CSV file that lists {protocol.name}")
    _needed(arguments, "output", "the folder to write to")
    _check_at_least(arguments, num_threads=1, sample_rate_hz=100)
    _check_snrs([arguments.snr_db or 0.0], "--snr_db")


def _needed(arguments: argparse.Namespace, name: str, what: str) -> Any:
    value = vars(arguments)[name]
    if not value:
        raise InputError(f"--{name} is needed: {what}")
    return value


def _check_at_least(arguments: argparse.Namespace, **limits: int) -> None:
    for name, limit in limits.items():
        value = vars(arguments)[name]
        if value is not None and value < limit:
            raise InputError(f"--{name} must be at least {limit}, not {value}")


def _check_snrs(snrs_db: Sequence[float], option: str) -> None:
    from audiosep_jax.evaluation.lists import MAX_SNR_DB

    if not all(abs(snr_db) <= MAX_SNR_DB for snr_db in snrs_db):  # nor NaN
        raise InputError(f"{option} must be in -{MAX_SNR_DB:g}..{MAX_SNR_DB:g} dB")
