"""The command `audiosep evaluate`: score a separator, watch a run, render mixtures, draw pairs."""

import argparse
import dataclasses
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from audiosep_jax.cli import Parser, add_cluster, exit_code, local_path, number, place, say, shard
from audiosep_jax.encoders import KINDS
from audiosep_jax.errors import InputError
from audiosep_jax.evaluation.lists import MAX_SNR_DB
from audiosep_jax.evaluation.protocols import BASELINES, PROTOCOLS, Protocol
from audiosep_jax.separation.options import add_loading, load_separator

if TYPE_CHECKING:
    from audiosep_jax.evaluation.lists import Item

# numpy and JAX are imported where they are used: help and mistakes are fast.

PROG = "audiosep evaluate"
EXAMPLES = {
    "score": f"""example:
  {PROG} --checkpoint runs/clap --protocol esc50 \\
      --metadata esc50_eval.csv --audio evaluation/data/esc50 --output results/esc50
writes results.json, results.csv, results.md and figures. --audio holds the rendered mixtures
(segment-<idx>.wav, mixture-<idx>.wav), or the clips of the list, which are then mixed.
The same command continues an evaluation that was interrupted. Paths of list, sounds and results may
be URLs, such as s3://bucket/esc50.

protocols:
{{protocols}}

baselines:
{{baselines}}

other verbs, each with its own --help:
  watch    score each checkpoint of a training run as it is written
  render   write the mixtures of a list as files
  pairs    write a list of random pairs of clips""",
    "watch": f"""example, adds scores to the TensorBoard of a run until its last step:
  {PROG} watch runs/clap --protocol esc50 --metadata esc50_eval.csv \\
      --audio evaluation/data/esc50 --output results/esc50""",
    "render": f"""example:
  {PROG} render --protocol esc50 --metadata esc50.csv --audio ESC-50/audio --output rendered""",
    "pairs": f"""example, writes a list for --protocol mixtures:
  {PROG} pairs --audio ESC-50 --folds 4 --num_pairs 500 --output pairs.csv""",
}


def main(argv: Sequence[str]) -> int:
    """Run the command; return 0, or 2 after one line on stderr."""
    named = bool(argv) and not argv[0].startswith("-")
    verb, words = (argv[0], argv[1:]) if named else ("score", argv)

    def run() -> None:
        if verb not in VERBS:
            raise InputError(f"unknown verb {verb!r}; known: {', '.join(VERBS)}")
        VERBS[verb](words)

    return exit_code(run, "; the same command continues" if verb in ("score", "watch") else "")


# ---------------------------------------------------------------------- score


def _score(words: Sequence[str]) -> None:
    parser = _parser("score", "Score a separator on a benchmark or on own mixtures.")
    _add_list(parser)
    _add_scoring(parser)
    parser.add_argument("--checkpoint", default="", metavar="WHAT", help="as separate.py takes it")
    estimates = "score the files that another system wrote for the mixtures, instead of separating"
    parser.add_argument("--estimates", type=_folder, metavar="DIR", help=estimates)
    _add_shard(parser)
    arguments = parser.parse_args(words)
    if arguments.estimates and (arguments.checkpoint or arguments.baseline):
        raise InputError("--estimates cannot be used with --checkpoint or --baseline")
    checkpoint, needs_one = arguments.checkpoint, arguments.baseline in ("", "random_query")
    if needs_one and not checkpoint and not arguments.estimates:
        raise InputError("--checkpoint is needed, --estimates, or a --baseline that has no model")
    protocol, items = _listed(arguments)
    from audiosep_jax.evaluation.scoring import evaluate

    separator = load_separator(checkpoint, arguments) if checkpoint else None
    evaluate(arguments, protocol, items, separator, _command(words))


def _listed(arguments: argparse.Namespace) -> "tuple[Protocol, list[Item]]":
    """Protocol and its mixtures, whose files exist."""
    from audiosep_jax import files
    from audiosep_jax.evaluation import lists, scoring

    protocol = PROTOCOLS[arguments.protocol]
    if arguments.metadata is None and not protocol.folder:
        raise InputError(f"--metadata is needed: the CSV file that lists {protocol.name}")
    files.check_writable(arguments.output / "x")
    if arguments.query_kind:
        if protocol.name != "mixtures":
            raise InputError("--query_kind is for --protocol mixtures; others state their own")
        about = f"{arguments.query_kind} of the list"
        protocol = dataclasses.replace(protocol, kind=arguments.query_kind, query_kind=about)
    needs_enrolments = bool(protocol.sources) and protocol.kind == "voice"
    if needs_enrolments != bool(arguments.enrolments):
        need = "needs" if needs_enrolments else "has no use for"
        raise InputError(f"--protocol {protocol.name} {need} --enrolments")
    rows = lists.read_list(protocol, arguments.metadata, arguments.audio, arguments.enrolments)
    known = (*protocol.columns, *lists.OPTIONAL_COLUMNS, arguments.query_column, "")
    unused = [name for name in rows[0].cells if name not in known]
    if protocol.own and unused:
        print(f"note: columns of the list that are not used: {', '.join(unused)}")
    items = lists.items_of(
        protocol,
        rows,
        arguments.audio,
        arguments.audio2 or arguments.audio,
        query_column=arguments.query_column,
        query=arguments.query or ("" if arguments.query_column else protocol.default_query),
        snr_db=arguments.snr_db,
    )
    for option in ("snr_db", "audio2"):
        if vars(arguments)[option] is not None and all(item.mixture for item in items):
            raise InputError(f"--{option} cannot be used: no mixture of the list has to be mixed")
    paths = {path for item in items for path in item.files}
    missing = sorted(f"{path}: no such file" for path in paths if not path.is_file())
    scoring.check_usable(missing, len(paths), "files", vars(arguments).get("allow_missing"))
    return protocol, items


def _command(words: Sequence[str]) -> str:
    """Command as typed, without the options that say where and how it runs."""
    kept = [word for word in words if word != "--overwrite"]
    for option in ("--shard", "--cluster"):
        while option in kept:
            del kept[kept.index(option) : kept.index(option) + 2]
        kept = [word for word in kept if not word.startswith(f"{option}=")]
    return shlex.join([*PROG.split(), *kept])


# ---------------------------------------------------------------------- watch, render, pairs


def _watch(words: Sequence[str]) -> None:
    parser = _parser("watch", "Score each checkpoint of a training run.")
    parser.add_argument("workdir", type=_folder, metavar="WORKDIR", help="of the training run")
    _add_list(parser)
    _add_scoring(parser)
    poll = "seconds between looks for new checkpoints (default: 30)"
    parser.add_argument("--poll_seconds", type=number(float, 0.001, 1e9), default=30.0, help=poll)
    arguments = parser.parse_args(words)
    protocol, items = _listed(arguments)
    from audiosep_jax.evaluation.lists import list_fingerprint
    from audiosep_jax.evaluation.scoring import evaluate
    from audiosep_jax.evaluation.watch import watch

    damaged = []

    def score(checkpoint: Path, place: Path) -> bool:
        try:
            separator = load_separator(str(checkpoint), arguments)
        except InputError as error:
            if checkpoint.is_dir():  # otherwise training has removed it
                say("skipped:", str(error))
                damaged.append(checkpoint.name)
            return False
        print(checkpoint, flush=True)
        values: dict[str, Any] = {"checkpoint": str(checkpoint), "estimates": None}
        values |= {"output": place, "shard": (0, 1)}
        options = argparse.Namespace(**vars(arguments) | values)
        evaluate(options, protocol, items, separator, _command(["watch", *words]))
        return True

    names = ("protocol", "baseline", "sample_rate_hz", "speech", "clap_score")
    about = {name: vars(arguments)[name] for name in (*names, "no_wrong_query")}
    about["list"] = list_fingerprint(items)
    options = {"overwrite": arguments.overwrite, "poll_seconds": arguments.poll_seconds}
    watch(arguments.workdir, arguments.output, score, about, **options)
    if damaged:
        raise InputError(f"{arguments.workdir}: not scored, cannot be read: {', '.join(damaged)}")


def _render(words: Sequence[str]) -> None:
    parser = _parser("render", "Write the mixtures of a list as files.")
    _add_list(parser)
    _add_shard(parser)
    arguments = parser.parse_args(words)
    protocol, items = _listed(arguments)
    from audiosep_jax.evaluation import absence, mixtures, runner, scoring

    items = scoring.with_queries(items)
    if protocol.absence:
        items = absence.recordings(items, arguments.seconds)
    mixtures.render(
        items,
        arguments.output,
        runner.scoring_rate(arguments.sample_rate_hz, protocol, None),
        num_threads=arguments.num_threads,
        shard=arguments.shard,
    )
    print(arguments.output)


def _pairs(words: Sequence[str]) -> None:
    parser = _parser("pairs", "Write a list of random pairs of clips.")
    add = parser.add_argument
    place = "manifest, folder with the layout of ESC-50, or folder of class folders"
    add("--audio", type=local_path, required=True, metavar="PLACE", help=place)
    add("--output", type=local_path, required=True, metavar="CSV", help="list to write")
    add("--num_pairs", type=number(int, 1), default=500, help="number of pairs (default: 500)")
    add("--folds", type=int, nargs="+", default=[], help="folds of ESC-50 (default: all)")
    add("--snrs_db", type=_SNR, nargs="+", default=[0.0], help="SNRs, in turn (default: 0)")
    add("--seed", type=number(int, 0), default=0, help="seed of the draws (default: 0)")
    arguments = parser.parse_args(words)
    if not arguments.audio.exists():
        raise InputError(f"--audio {arguments.audio}: no such file or folder")
    if arguments.output.exists():
        raise InputError(f"--output {arguments.output}: exists; remove it or choose another name")
    from audiosep_jax.evaluation import mixtures

    mixtures.make_pairs(
        mixtures.clips_of(arguments.audio, arguments.folds),
        arguments.audio.parent if arguments.audio.is_file() else arguments.audio,
        arguments.output,
        num_pairs=arguments.num_pairs,
        snrs_db=arguments.snrs_db,
        seed=arguments.seed,
    )
    print(arguments.output)


VERBS = {"score": _score, "watch": _watch, "render": _render, "pairs": _pairs}


# ---------------------------------------------------------------------- options


def _folder(text: str) -> Path:
    path = place(text)
    if not path.is_dir():
        raise argparse.ArgumentTypeError(f"{path}: no such folder")
    return path


_SNR = number(float, -MAX_SNR_DB, MAX_SNR_DB)


def _parser(verb: str, description: str) -> Parser:
    protocols = "\n".join(f"  {x.name:<17} {x.title}" for x in PROTOCOLS.values())
    baselines = "\n".join(f"  {name:<17} {what}" for name, what in BASELINES.items())
    example = EXAMPLES[verb].format(protocols=protocols, baselines=baselines)
    return Parser(PROG if verb == "score" else f"{PROG} {verb}", description, example)


def _add_list(parser: Parser) -> None:
    """Options that select mixtures."""
    add = parser.add_argument
    folder: dict[str, Any] = {"type": _folder, "metavar": "DIR"}
    add("--protocol", choices=PROTOCOLS, required=True, help="benchmark; `mixtures` for own lists")
    add("--metadata", type=place, metavar="CSV", help="list of the mixtures")
    add("--audio", required=True, **folder, help="rendered mixtures, or the clips of the list")
    add("--audio2", **folder, help="the noises, if they are in another folder")
    add("--output", type=place, required=True, metavar="DIR", help="folder to write to")
    snr = "SNR of pairs without one in the list (default: 0; for own lists the noise is unscaled)"
    add("--snr_db", type=_SNR, help=snr)
    seconds = "absence: lengths of the recordings (default: 5 15 60)"
    lengths = number(float, 0.1, 86_400)
    add("--seconds", type=lengths, nargs="+", default=[5.0, 15.0, 60.0], help=seconds)
    add("--query_column", default="", metavar="NAME", help="column of the queries")
    what = "what the queries are, such as voice for recordings of speakers (default: sentences)"
    kinds = [name for name, kind in KINDS.items() if kind.is_file]
    add("--query_kind", choices=kinds, default="", help=what)
    enrolments = "libri2mix, wsj0_2mix: list of the recording that asks for each speaker"
    add("--enrolments", type=local_path, metavar="TXT", help=enrolments)
    add("--query", type=str.strip, default="", metavar="TEXT", help="one query for all mixtures")
    rate = "sample rate of scoring or rendering (default: the protocol's)"
    add("--sample_rate_hz", type=number(int, 100, 768_000), help=rate)
    threads = "threads that read and score (default: 4)"
    add("--num_threads", type=number(int, 1), default=4, help=threads)


def _add_scoring(parser: Parser) -> None:
    """Options of the scores."""
    add = parser.add_argument
    add_loading(parser)
    add_cluster(parser)
    add("--baseline", choices=BASELINES, default="", help="score a baseline instead")
    wrong = "skip the separation with a wrong query, which doubles the time"
    add("--no_wrong_query", action="store_true", help=wrong)
    add("--speech", action="store_true", help="also score PESQ, STOI and segmental SNR")
    clap = "also score CLAPScore, which needs no target, with this CLAP (default: the usual one)"
    add("--clap_score", nargs="?", const="", metavar="DIR", help=clap)
    add("--no_figures", action="store_true", help="draw no figures, which need matplotlib")
    add("--allow_missing", action="store_true", help="score the others if files are missing")
    add("--overwrite", action="store_true", help="discard the results in the output folder")


def _add_shard(parser: Parser) -> None:
    shards = "process only every N-th mixture, starting from I"
    parser.add_argument("--shard", type=shard, default=(0, 1), metavar="I/N", help=shards)
