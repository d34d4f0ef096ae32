"""Compare evaluations of the same mixtures: paired differences, as JSON, as a page and a figure.

`main` is the command `audiosep compare`.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from audiosep_jax import files
from audiosep_jax.cli import Parser, exit_code, local_path
from audiosep_jax.errors import InputError
from audiosep_jax.evaluation import figures, report, results
from audiosep_jax.evaluation.results import FACTS, Row

EXAMPLE = """example, two checkpoints:
  audiosep compare results/clap results/clip --output results/clap-clip
and three wordings of the queries (audiosep evaluate --query_column label, caption, reworded):
  audiosep compare results/label results/caption results/reworded --output results/wordings
writes comparison.json, comparison.md and comparison.png. Differences are to the first result."""

JSON_NAME, MARKDOWN_NAME, FIGURE_NAME = "comparison.json", "comparison.md", "comparison.png"


class Evaluation(NamedTuple):
    """Results that `audiosep evaluate` wrote to a folder."""

    name: str
    content: Mapping[str, Any]  # results.json
    rows: Sequence[Row]  # scored rows of results.csv, in the order of the list


# ---------------------------------------------------------------------- command


def main(argv: Sequence[str]) -> int:
    """Run the command; return 0, or 2 after one line on stderr, with nothing written."""
    return exit_code(lambda: _compare(_parser().parse_args(argv)))


def _compare(arguments: argparse.Namespace) -> None:
    folders, names = arguments.results, arguments.names or [""] * len(arguments.results)
    if len(names) != len(folders):
        raise InputError(f"--names gives {len(names)} names for {len(folders)} results")
    output = arguments.output
    files.check_writable(output / JSON_NAME)
    evaluations = [read_evaluation(*pair) for pair in zip(folders, names, strict=True)]
    content, drawn = compare(evaluations), []
    if not arguments.no_figures:
        figures.differences({x.name: _values(x, "sdri") for x in evaluations}, output / FIGURE_NAME)
        drawn = [FIGURE_NAME]
    files.write_json(output / JSON_NAME, content)
    files.write_text(output / MARKDOWN_NAME, markdown(content, drawn))
    for name in (JSON_NAME, MARKDOWN_NAME, *drawn):
        print(output / name)


def _parser() -> Parser:
    description = "Compare several evaluations of the same mixtures."
    parser = Parser("audiosep compare", description, EXAMPLE)
    add = parser.add_argument
    add("results", type=local_path, nargs="+", metavar="RESULTS", help="folder that evaluate wrote")
    add("--names", nargs="+", metavar="NAME", help="names of the results (default: the folders')")
    add("--output", type=local_path, required=True, metavar="DIR", help="folder for the comparison")
    add("--no_figures", action="store_true", help="draw no figure, which needs matplotlib")
    return parser


# ---------------------------------------------------------------------- numbers


def read_evaluation(folder: Path, name: str = "") -> Evaluation:
    """Results in a folder; InputError if there are none."""
    path = folder / results.JSON_NAME
    content = files.read_json_object(path) if path.is_file() else {}
    if not content.keys() >= {"protocol", "scores", "missing", "sample_rate_hz"}:
        raise InputError(f"{folder}: holds no results; run audiosep evaluate first")
    rows = []
    for line, cells in files.read_csv(folder / results.CSV_NAME, FACTS):
        try:
            scores = {x: float(cells[x]) for x in content["scores"] if not cells["reason"]}
        except (KeyError, ValueError) as error:
            where = f"{folder / results.CSV_NAME}: line {line}"
            raise InputError(f"{where}: a score is missing or no number ({error})") from error
        if scores:
            rows.append({**cells, **scores})
    return Evaluation(name or folder.name, content, rows)


def compare(evaluations: Sequence[Evaluation]) -> dict[str, Any]:
    """Content of comparison.json.

    For each score that all evaluations have: the mean of each, and its difference to the first one
    with a 95 % interval, from bootstrap draws of the mixtures. `spread` is how far the evaluations
    of one mixture are apart, in dB of SDRi, on average. InputError if their mixtures differ.
    """
    _check(evaluations)
    first = evaluations[0]
    aggregation = first.content["aggregation"]
    groups = results.groups_of(first.rows, aggregation)
    draws_DN = results.bootstrap([row["clip"] for row in first.rows], groups)
    shared = [
        x for x in first.content["scores"] if all(x in y.content["scores"] for y in evaluations)
    ]
    scores: dict[str, dict[str, Any]] = {}
    for name in shared:
        base_N = _values(first, name)
        mean, mean_D = (results.aggregate(base_N, groups, aggregation, w) for w in (None, draws_DN))
        scores[name] = {first.name: {"mean": float(mean[0])}}
        for other in evaluations[1:]:
            value_N = _values(other, name)
            value = results.aggregate(value_N, groups, aggregation)
            # Differences of aggregated values: a median of differences is something else.
            drawn_D = results.aggregate(value_N, groups, aggregation, draws_DN) - mean_D
            low, high = results.interval_of(drawn_D)
            scores[name][other.name] = {
                "mean": float(value[0]),
                "difference": float(value[0] - mean[0]),
                "low": low,
                "high": high,
                "better": float((value_N > base_N).mean()),
            }
    sdri_KN = np.stack([_values(evaluation, "sdri") for evaluation in evaluations])
    return {
        "protocol": first.content["protocol"],
        "title": first.content["title"],
        "count": len(first.rows),
        "aggregation": aggregation,
        "evaluations": [_about(evaluation) for evaluation in evaluations],
        "scores": scores,
        "spread": {
            "range_db": float(np.mean(np.ptp(sdri_KN, axis=0))),
            "deviation_db": float(np.mean(np.std(sdri_KN, axis=0))),
        },
    }


def _check(evaluations: Sequence[Evaluation]) -> None:
    if len(evaluations) < 2:
        raise InputError("a comparison needs at least two results")
    names = [evaluation.name for evaluation in evaluations]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"two results are called {name}; name them with --names")
    first = evaluations[0]
    for other in evaluations:
        if other.content["missing"]:
            raise InputError(f"{other.name}: some of its mixtures were not scored")
        same = [row["fingerprint"] for row in other.rows] == [x["fingerprint"] for x in first.rows]
        if not same or other.content["sample_rate_hz"] != first.content["sample_rate_hz"]:
            raise InputError(f"{other.name}: its mixtures are not those of {first.name}")


def _about(evaluation: Evaluation) -> dict[str, Any]:
    content = evaluation.content
    checkpoint = content["checkpoint"]
    return {
        "name": evaluation.name,
        "checkpoint": checkpoint and f"{checkpoint['source']} ({checkpoint['fingerprint']})",
        "baseline": content["baseline"],
        "query": content["query"] or content["query_column"] or content["query_kind"],
        "notes": content["notes"],
        "command": content["command"],
    }


def _values(evaluation: Evaluation, score: str) -> np.ndarray:
    return np.array([row[score] for row in evaluation.rows])


# ---------------------------------------------------------------------- page


def markdown(content: Mapping[str, Any], figures: Sequence[str] = ()) -> str:
    """Text of comparison.md; `figures` are the names of files beside it."""
    names = [x["name"] for x in content["evaluations"]]
    parts = [
        f"# {content['title']}: {', '.join(names)}",
        f"{content['count']:,} mixtures, the same for all. Differences are to {names[0]}, with "
        "95 % intervals from bootstrap draws of the mixtures.",
    ]
    for score, by_name in content["scores"].items():
        rows = [[name, *_differences(by_name[name])] for name in names]
        header = ["", report.name_of(score), "difference", "95 % interval", "better in"]
        parts += [f"## {report.name_of(score)}", report.table(header, rows)]
    spread = content["spread"]
    parts.append(
        f"The SDRi values of one mixture are {spread['range_db']:.2f} dB apart on average "
        f"(largest minus smallest; standard deviation {spread['deviation_db']:.2f} dB)."
    )
    parts += [f"![{name}]({name})" for name in figures]
    rows = [
        [x["name"], x["query"], x["checkpoint"], f"`{x['command']}`"]
        for x in content["evaluations"]
    ]
    header = ["", "query", "checkpoint", "command"]
    parts += ["## What was compared", report.table(header, rows)]
    return "\n\n".join(parts) + "\n"


def _differences(score: Mapping[str, Any]) -> list[Any]:
    if "difference" not in score:
        return [score["mean"], None, None, None]
    between = report.between(score, "+.2f")
    return [score["mean"], f"{score['difference']:+.2f}", between, f"{score['better']:.0%}"]
