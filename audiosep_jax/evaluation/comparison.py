"""Several evaluations of the same mixtures side by side, with the differences of each mixture."""

import csv
import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from audiosep_jax.errors import InputError
from audiosep_jax.evaluation import report, results
from audiosep_jax.evaluation.rows import Row

JSON_NAME, MARKDOWN_NAME = "comparison.json", "comparison.md"


@dataclasses.dataclass(frozen=True, eq=False)
class Evaluation:
    """What `evaluate` left in a folder."""

    name: str
    content: Mapping[str, Any]  # results.json
    rows: Sequence[Row]  # results.csv, in the order of the list


def read_evaluation(folder: Path, name: str = "") -> Evaluation:
    """The results in a folder; InputError where there are none."""
    try:
        content = json.loads((folder / results.JSON_NAME).read_text(encoding="utf-8"))
        with (folder / results.CSV_NAME).open(newline="", encoding="utf-8") as file:
            rows = [_typed(row) for row in csv.DictReader(file)]
    except OSError as error:
        raise InputError(f"{folder}: holds no results ({error.strerror}); run evaluate") from error
    except ValueError as error:
        raise InputError(f"{folder}: its results cannot be read") from error
    return Evaluation(name or folder.name, content, rows)


def compare(evaluations: Sequence[Evaluation]) -> dict[str, Any]:
    """All that comparison.json tells.

    Of each score the evaluations share: each one's mean, and the mean of the differences to the
    first with its 95 % interval, from draws of mixtures that all evaluations have in common. And
    `spread`: how far the evaluations of one mixture lie apart, in dB of SDRi, on average.

    Raises:
        InputError: fewer than two, or not of the same mixtures.
    """
    _check(evaluations)
    first = evaluations[0]
    aggregation = first.content["aggregation"]
    groups = results.groups_of(first.rows, aggregation)
    draws_DN = results.bootstrap([row["clip"] for row in first.rows], groups)
    shared = [
        name
        for name in first.content["scores"]
        if all(name in other.content["scores"] for other in evaluations)
    ]
    values = {
        name: np.array([[row[name] for row in one.rows] for one in evaluations]) for name in shared
    }

    def one(name: str, k: int) -> dict[str, Any]:
        value_N, difference_N = values[name][k], values[name][k] - values[name][0]
        mean = results.aggregate(value_N, groups, aggregation)[0]
        if k == 0:
            return {"mean": float(mean)}
        # Of aggregated values, not of differences: a median of differences is another thing.
        drawn_D = results.aggregate(value_N, groups, aggregation, draws_DN)
        drawn_D = drawn_D - results.aggregate(values[name][0], groups, aggregation, draws_DN)
        low, high = results.interval_of(drawn_D)
        base = results.aggregate(values[name][0], groups, aggregation)[0]
        return {
            "mean": float(mean),
            "difference": float(mean - base),
            "low": None if np.isnan(low) else low,
            "high": None if np.isnan(high) else high,
            "better": float(np.mean(difference_N > 0)),
        }

    return {
        "protocol": first.content["protocol"],
        "title": first.content["title"],
        "count": len(first.rows),
        "aggregation": aggregation,
        "evaluations": [_about(evaluation) for evaluation in evaluations],
        "scores": {
            name: {evaluation.name: one(name, k) for k, evaluation in enumerate(evaluations)}
            for name in shared
        },
        "spread": _spread(values["sdri"]),
    }


def markdown(content: Mapping[str, Any], figures: Sequence[str] = ()) -> str:
    """comparison.md."""
    names = [x["name"] for x in content["evaluations"]]
    parts = [
        f"# {content['title']}: {', '.join(names)}",
        f"{content['count']:,} mixtures, the same for all; differences are to {names[0]}, with "
        "95 % intervals of draws of mixtures.",
    ]
    for score, by_name in content["scores"].items():
        rows = [[name, *_differences(by_name[name])] for name in names]
        header = ["", report.name_of(score), "difference", "95 % interval", "better in"]
        parts += [f"## {report.name_of(score)}", report.table(header, rows)]
    spread = content["spread"]
    parts.append(
        f"From one to another, the SDRi of the same mixture lies {spread['range_db']:.2f} dB apart "
        f"on average (largest minus smallest; standard deviation {spread['deviation_db']:.2f} dB)."
    )
    parts += [f"![{name}]({name})" for name in figures]
    rows = [[x["name"], x["query"], x["checkpoint"], f"`{x['command']}`"] for x in _told(content)]
    parts += ["## What was compared", report.table(["", "query", "checkpoint", "command"], rows)]
    return "\n\n".join(parts) + "\n"


def _told(content: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [dict(x) for x in content["evaluations"]]


def _differences(score: Mapping[str, Any]) -> list[Any]:
    if "difference" not in score:
        return [score["mean"], None, None, None]
    low, high = score["low"], score["high"]
    between = None if low is None else f"{low:+.2f} to {high:+.2f}"
    return [score["mean"], f"{score['difference']:+.2f}", between, f"{score['better']:.0%}"]


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


def _spread(sdri_KN: np.ndarray) -> dict[str, float]:
    return {
        "range_db": float(np.mean(np.ptp(sdri_KN, axis=0))),
        "deviation_db": float(np.mean(np.std(sdri_KN, axis=0))),
    }


def _check(evaluations: Sequence[Evaluation]) -> None:
    if len(evaluations) < 2:
        raise InputError("a comparison needs two results at least")
    names = [evaluation.name for evaluation in evaluations]
    if len(set(names)) < len(names):
        raise InputError(f"two results are called {_first_twice(names)}; name them with --names")
    first = evaluations[0]
    for other in evaluations:
        if other.content["missing"]:
            raise InputError(f"{other.name}: some of its mixtures were not scored")
        same = [row["fingerprint"] for row in other.rows] == [x["fingerprint"] for x in first.rows]
        if not same or other.content["sample_rate_hz"] != first.content["sample_rate_hz"]:
            raise InputError(f"{other.name}: is not of the same mixtures as {first.name}")


def _first_twice(names: Sequence[str]) -> str:
    return next(name for i, name in enumerate(names) if name in names[:i])


def _typed(row: Mapping[str, str]) -> Row:
    """A line of results.csv: scores as numbers, facts as they are."""
    return {
        name: value if name in results.FACTS else float(value) if value else float("nan")
        for name, value in row.items()
    }
