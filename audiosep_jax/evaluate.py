"""Scores a separator on a benchmark or on one's own mixtures; `--help` shows an example."""

import argparse
import dataclasses
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from audiosep_jax.cli import Parser, exit_code, shard
from audiosep_jax.errors import InputError

if TYPE_CHECKING:
    from audiosep_jax.evaluation.lists import Item
    from audiosep_jax.evaluation.protocols import Protocol
    from audiosep_jax.evaluation.runner import Estimator

# JAX is imported where it is used: help and mistakes answer at once.

EXAMPLE = """examples:
  python -m audiosep_jax.evaluate --checkpoint runs/clap --protocol esc50 \\
      --metadata esc50_eval.csv --audio evaluation/data/esc50 --output results/esc50
writes results.json, results.csv, results.md and figures. --audio holds the rendered mixtures
(segment-<idx>.wav, mixture-<idx>.wav) or the clips that the list names, which are then mixed.
The same command again goes on where it was stopped.

  python -m audiosep_jax.evaluate --protocol mixtures --metadata mine.csv --audio . ...
scores own mixtures: a CSV with the columns target, query, and noise or mixture, and if wished
snr, id, class, target_start, noise_start, seconds.

  python -m audiosep_jax.evaluate --make_pairs pairs.csv --audio ESC-50 --folds 4 --num_pairs 500
writes such a list; --render DIR writes the mixtures of any list as files. --watch runs/clap in the
place of --checkpoint scores each checkpoint of a training as it is written."""

PROTOCOLS = (
    *("audioset", "vggsound", "audiocaps", "clotho", "music", "esc50"),
    *("dcase2024", "voicebank_demand", "mixtures"),
)
BASELINES = ("mixture", "silence", "irm", "icm", "random_query")
NAMED = 3  # files of those missing that a message names


def main(argv: Sequence[str]) -> int:
    """Exit code: 0, or 2 with one line on stderr."""
    return exit_code(lambda: _run(argv))


def _run(argv: Sequence[str]) -> None:
    arguments = _parser().parse_args(argv)
    _check(arguments)
    if arguments.make_pairs:
        _make_pairs(arguments)
    elif arguments.render:
        _render(arguments)
    elif arguments.watch:
        _watch(arguments, argv)
    else:
        _evaluate(arguments, argv)


def _evaluate(arguments: argparse.Namespace, argv: Sequence[str]) -> None:
    # ------------------------------------------------------------------ the list, and what is there
    from audiosep_jax.evaluation import choices, record, report, results, rows, runner

    protocol, items, _ = _listed(arguments)
    _check_files(items, arguments)

    # ------------------------------------------------------------------ the separator
    from absl import logging

    from audiosep_jax.compilation_cache import use_compilation_cache

    use_compilation_cache()
    logging.set_verbosity(logging.ERROR)  # what Orbax tells of a load
    separator = choices.separator_of(arguments)
    rate_hz = choices.sample_rate_of(arguments, protocol, separator)
    estimator, queries = choices.estimator_of(arguments, separator, items, rate_hz)
    items = [dataclasses.replace(x, query=q) for x, q in zip(items, queries, strict=True)]

    # ------------------------------------------------------------------ score, batch by batch
    scores = choices.scores_of(arguments, protocol, queries)
    about = record.about_of(arguments, protocol, items, separator, rate_hz)
    output, share = arguments.output, arguments.shard
    if arguments.overwrite:
        rows.discard(output, about, share)
        results.discard(output)
    done = {n: row for n, row in rows.read_all(output, about).items() if "reason" not in row}
    mine = items[share[0] :: share[1]]
    runner.check_unchanged(mine, done)
    config = runner.RunConfig(arguments.batch_size, arguments.num_threads)
    with rows.RowsFile(output / rows.file_name(share), about) as file:
        runner.score_items(mine, estimator, rate_hz, file, done, config, scores)

    # ------------------------------------------------------------------ results, where all is done
    found = rows.read_all(output, about)
    if len(found) < len(items):
        print(f"{output}: {len(found):,} of {len(items):,} mixtures are done, by all shards")
        return
    ordered = [found[item.row] for item in items]
    unscored = [row for row in ordered if "reason" in row]
    if len(unscored) == len(ordered):
        raise InputError(f"no mixture could be scored, such as: {unscored[0]['reason']}")
    if unscored and not arguments.allow_missing:
        raise InputError(_refusal([row["reason"] for row in unscored], len(items), "mixtures"))
    content = record.results_of(arguments, argv, protocol, separator, rate_hz, ordered)
    results.write_csv(output / results.CSV_NAME, ordered)
    results.write_json(output / results.JSON_NAME, content)
    figures = [] if arguments.no_figures else _figures(content, ordered, items, estimator, output)
    results.write_whole(output / results.MARKDOWN_NAME, report.markdown(content, figures))
    _print(content, output)


def _listed(arguments: argparse.Namespace) -> "tuple[Protocol, list[Item], list[Any]]":
    """Protocol, its mixtures and the rows of its list."""
    from audiosep_jax.evaluation import lists, protocols

    protocol = protocols.PROTOCOLS[arguments.protocol]
    rows = lists.read_list(protocol, arguments.metadata, arguments.audio)
    items = lists.items_of(
        protocol,
        rows,
        arguments.audio,
        arguments.audio2 or arguments.audio,
        layout=arguments.layout,
        query_column=arguments.query_column,
        query=arguments.query or ("" if arguments.query_column else protocol.default_query),
        snr_db=arguments.snr_db,
    )
    return protocol, items, rows


def _check_files(items: "Sequence[Item]", arguments: argparse.Namespace) -> None:
    from audiosep_jax.evaluation.runner import missing_files

    missing = missing_files(items)
    files = {path for item in items for path in item.files}
    if len(missing) == len(files):
        raise InputError(f"none of the {len(files):,} files is there, such as {missing[0]}")
    if missing and not arguments.allow_missing:
        raise InputError(_refusal([f"{path}: no such file" for path in missing], len(files)))


def _refusal(reasons: Sequence[str], total: int, what: str = "files") -> str:
    named = "; ".join(reasons[:NAMED]) + ("; ..." if len(reasons) > NAMED else "")
    share = f"{len(reasons):,} of {total:,} {what} cannot be used"
    return f"{share}: {named}. --allow_missing scores the others and says so"


def _figures(
    content: Mapping[str, Any],
    ordered: Sequence[Mapping[str, Any]],
    items: "Sequence[Item]",
    estimator: "Estimator",
    output: Path,
) -> list[str]:
    """Draws the figures, where matplotlib is installed; their names below `output`."""
    from audiosep_jax.evaluation import examples, figures

    try:
        drawn = figures.draw(content, [dict(row) for row in ordered], output)
    except InputError as error:
        print(f"note: {error}")
        return []
    rate_hz = content["sample_rate_hz"]
    return drawn + examples.draw(ordered, items, estimator, rate_hz, output)


def _watch(arguments: argparse.Namespace, argv: Sequence[str]) -> None:
    from audiosep_jax.evaluation.lists import list_fingerprint
    from audiosep_jax.evaluation.watch import watch

    def score(checkpoint: Path, place: Path) -> None:
        print(checkpoint, flush=True)
        values = {**vars(arguments), "checkpoint": str(checkpoint), "output": place}
        _evaluate(argparse.Namespace(**values), argv)

    _, items, _ = _listed(arguments)
    names = ("protocol", "baseline", "sample_rate_hz", "speech", "clap_score", "clap_model")
    about = {name: vars(arguments)[name] for name in names} | {"list": list_fingerprint(items)}
    watch(
        arguments.watch,
        arguments.output,
        score,
        about,
        overwrite=arguments.overwrite,
        poll_seconds=arguments.poll_seconds,
    )


def _print(content: Mapping[str, Any], output: Path) -> None:
    for note in content["notes"]:
        print(f"note: {note}")
    print(f"{content['title']}, {content['count']:,} mixtures, dB with 95 % intervals:")
    for name, score in content["scores"].items():
        between = "" if score["low"] is None else f"  ({score['low']:.2f} to {score['high']:.2f})"
        print(f"  {name:<15} {score['mean']:7.2f}{between}")
    for name in ("results.json", "results.csv", "results.md"):
        print(output / name)


def _render(arguments: argparse.Namespace) -> None:
    from audiosep_jax.evaluation import mixtures
    from audiosep_jax.model.resunet import ResUNetConfig

    protocol, items, rows = _listed(arguments)
    _check_files(items, arguments)
    rate_hz = arguments.sample_rate_hz or protocol.sample_rate_hz or ResUNetConfig().sample_rate_hz
    mixtures.render(
        protocol,
        items,
        rows,
        arguments.render,
        rate_hz,
        num_threads=arguments.num_threads,
        shard=arguments.shard,
    )
    print(arguments.render)


def _make_pairs(arguments: argparse.Namespace) -> None:
    from audiosep_jax.evaluation import mixtures

    place = arguments.audio
    mixtures.make_pairs(
        mixtures.clips_of(place, arguments.folds),
        place.parent if place.is_file() else place,
        arguments.make_pairs,
        num_pairs=arguments.num_pairs,
        snrs_db=arguments.snrs_db,
        seed=arguments.seed,
    )
    print(arguments.make_pairs)


def _check(arguments: argparse.Namespace) -> None:
    """InputError for what can be told before anything is read."""
    from audiosep_jax.evaluation.lists import MAX_SNR_DB

    if not arguments.audio:
        raise InputError("--audio is needed: the folder of the sounds")
    for folder in filter(None, (arguments.audio, arguments.audio2)):
        if not folder.is_dir() and not (arguments.make_pairs and folder.is_file()):
            raise InputError(f"{folder}: no such folder")
    for name in ("batch_size", "num_threads", "num_pairs"):
        if vars(arguments)[name] < 1:
            raise InputError(f"--{name} must be at least 1")
    if arguments.sample_rate_hz is not None and arguments.sample_rate_hz < 100:
        raise InputError("--sample_rate_hz must be at least 100")
    snrs_db = [*arguments.snrs_db, arguments.snr_db or 0.0]
    if not all(abs(snr_db) <= MAX_SNR_DB for snr_db in snrs_db):  # nor NaN
        raise InputError(f"--snr_db and --snrs_db must lie in -{MAX_SNR_DB:g}..{MAX_SNR_DB:g}")
    if arguments.seed < 0:
        raise InputError("--seed must be at least 0")
    if arguments.make_pairs:
        return
    if not arguments.protocol:
        raise InputError(f"--protocol is needed: {', '.join(PROTOCOLS)}")
    if arguments.render:
        if arguments.allow_missing:
            raise InputError("--render needs every file; leave out --allow_missing")
        return
    if not arguments.output:
        raise InputError("--output is needed: the folder for the results")
    if arguments.watch:
        _check_watch(arguments)
    elif not arguments.checkpoint and arguments.baseline in ("", "random_query"):
        raise InputError("--checkpoint is needed, or a --baseline that has no model")


def _check_watch(arguments: argparse.Namespace) -> None:
    if arguments.checkpoint or arguments.shard != (0, 1):
        raise InputError("--watch scores all checkpoints of a run, without --checkpoint or --shard")
    if not arguments.watch.is_dir():
        raise InputError(f"--watch {arguments.watch}: no such folder; give a training workdir")
    if not arguments.poll_seconds > 0:
        raise InputError("--poll_seconds must be above 0")


def _parser() -> Parser:
    description = "Score a separator on a benchmark or on own mixtures."
    parser = Parser("python -m audiosep_jax.evaluate", description, EXAMPLE)
    add = parser.add_argument
    add("--protocol", choices=PROTOCOLS, help="which benchmark")
    add("--metadata", type=Path, metavar="CSV", help="its list")
    add("--audio", type=Path, metavar="DIR", help="rendered mixtures, or the clips of the list")
    add("--audio2", type=Path, metavar="DIR", help="the noises, where they lie elsewhere")
    add("--output", type=Path, metavar="DIR", help="folder for the results")
    add("--checkpoint", default="", metavar="WHAT", help="as separate.py takes it")
    add("--text_model", default="", metavar="DIR", help="text encoder, if not that of training")
    add("--baseline", choices=BASELINES, default="", help="instead of the separation asked for")
    add("--layout", choices=("auto", "rendered", "pairs"), default="auto", help="of --audio")
    add(
        "--snr_db",
        type=float,
        help="of pairs whose list tells none (default: 0; of own mixtures, the noise as it is)",
    )
    add("--query_column", default="", metavar="NAME", help="column of the queries")
    add("--query", default="", metavar="TEXT", help="one query for all")
    add("--sample_rate_hz", type=int, help="to score at (default: the protocol's)")
    add("--batch_size", type=int, default=1, help="clips at once, on all devices together")
    add("--num_threads", type=int, default=4, help="that read and score (default: 4)")
    add("--shard", type=shard, default=(0, 1), metavar="I/N", help="do each N-th mixture")
    add("--speech", action="store_true", help="PESQ, STOI and segmental SNR as well")
    add("--clap_score", action="store_true", help="CLAPScore as well, which needs no target")
    add("--clap_model", default="", metavar="DIR", help="CLAP for it (default: the published one)")
    add("--no_figures", action="store_true", help="no pictures, for which matplotlib is needed")
    add("--watch", type=Path, metavar="WORKDIR", help="score each checkpoint of a run as it comes")
    add("--poll_seconds", type=float, default=30.0, help="of --watch (default: 30)")
    add("--allow_missing", action="store_true", help="score the others where files are missing")
    add("--overwrite", action="store_true", help="forget what the output folder holds")
    add("--render", type=Path, metavar="DIR", help="write the mixtures as files, and end")
    add("--make_pairs", type=Path, metavar="CSV", help="write a list of random pairs, and end")
    add("--num_pairs", type=int, default=500, help="of --make_pairs (default: 500)")
    add("--folds", type=int, nargs="+", default=[], help="of an ESC-50 folder, for --make_pairs")
    add("--snrs_db", type=float, nargs="+", default=[0.0], help="of --make_pairs, in turn")
    add("--seed", type=int, default=0, help="of --make_pairs (default: 0)")
    return parser


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    sys.exit(main(sys.argv[1:]))
