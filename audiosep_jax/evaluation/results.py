"""From the scores of mixtures to the numbers of a benchmark, and the files that hold them."""

import csv
import io
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from audiosep_jax.errors import InputError
from audiosep_jax.evaluation.protocols import Aggregation
from audiosep_jax.evaluation.rows import Row

JSON_NAME, CSV_NAME, MARKDOWN_NAME = "results.json", "results.csv", "results.md"
# Columns of a row that are no scores.
FACTS = ("row", "id", "query", "label", "clip", "snr_db", "num_samples", "fingerprint", "reason")
NUM_DRAWS, DRAWS_SEED, CONFIDENCE = 1000, 2023, 0.95
DIGITS = 6


def score_names(rows: Sequence[Row]) -> list[str]:
    """All scores that some row has, in order of first sight."""
    return list(dict.fromkeys(name for row in rows for name in row if name not in FACTS))


def summary(rows: Sequence[Row], aggregation: Aggregation) -> dict[str, Any]:
    """`scores`: mean and its 95 % interval by score; `classes`: count and values by class.

    The interval is of the bootstrap, 1,000 draws with a fixed seed. Mixtures of one target clip,
    such as the five captions of AudioCaps, are drawn together.
    """
    scored = [row for row in sorted(rows, key=lambda row: row["row"]) if "reason" not in row]
    names = score_names(scored)
    values = {name: np.array([row.get(name, np.nan) for row in scored]) for name in names}
    groups = groups_of(scored, aggregation)
    draws_DN = bootstrap([row["clip"] for row in scored], groups)
    scores = {}
    for name in names:
        low, high = interval_of(aggregate(values[name], groups, aggregation, draws_DN))
        mean = aggregate(values[name], groups, aggregation)[0]
        scores[name] = {"mean": _rounded(mean), "low": _rounded(low), "high": _rounded(high)}
    return {"scores": scores, "classes": _classes(scored, values, aggregation)}


def aggregate(
    values_N: np.ndarray,
    groups: Sequence[np.ndarray],
    aggregation: Aggregation,
    weights_DN: np.ndarray | None = None,
) -> np.ndarray:
    """The number of a benchmark out of those of its mixtures, `(D,)`.

    Args:
        groups: indices of the mixtures of each class.
        weights_DN: how often each mixture counts in each of D draws; once, and D is 1, if None.
    """
    middle = _median if aggregation == "mean of class medians" else _mean
    weights_DN = np.ones((1, len(values_N)), np.int32) if weights_DN is None else weights_DN
    return np.mean([middle(values_N[g], weights_DN[:, g]) for g in groups], axis=0)


def bootstrap(
    clips: Sequence[str], groups: Sequence[np.ndarray], num_draws: int = NUM_DRAWS
) -> np.ndarray:
    """Weights `(draws, N)`: how often each mixture counts in each draw, classes by themselves.

    Mixtures of one clip are drawn together.
    """
    rng = np.random.default_rng(np.random.SeedSequence(DRAWS_SEED))
    weights = np.zeros((num_draws, len(clips)), np.int32)
    for group in groups:
        _, cluster_of = np.unique([clips[i] for i in group], return_inverse=True)
        num_clusters = int(cluster_of.max()) + 1
        share = np.full(num_clusters, 1 / num_clusters)
        weights[:, group] = rng.multinomial(num_clusters, share, size=num_draws)[:, cluster_of]
    return weights


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes a file whole; NaN, which JSON has not, as null."""
    text = json.dumps(content, indent=2, allow_nan=False, ensure_ascii=False)
    write_whole(path, text + "\n")


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    """One line for each mixture, scored or not, in the order of the list."""
    names = score_names(rows)
    columns = [*FACTS[:-2], *names, *FACTS[-2:]]
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, columns, restval="", lineterminator="\n")
    writer.writeheader()
    for row in sorted(rows, key=lambda row: row["row"]):
        writer.writerow({k: _rounded(v) if k in names else v for k, v in row.items()})
    write_whole(path, buffer.getvalue())


def discard(folder: Path) -> None:
    """Removes the results of an earlier run."""
    for name in (JSON_NAME, CSV_NAME, MARKDOWN_NAME):
        (folder / name).unlink(missing_ok=True)


def write_whole(path: Path, text: str) -> None:
    """Writes a text file in one go; InputError where that fails."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(text, encoding="utf-8")
        os.replace(part, path)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror})") from error


def groups_of(rows: Sequence[Row], aggregation: Aggregation) -> list[np.ndarray]:
    """Indices of each class in order of its name, or of all where classes do not matter."""
    if aggregation == "mean":
        return [np.arange(len(rows))] if rows else []
    return list(_by_class(rows).values())


def _by_class(rows: Sequence[Row]) -> dict[str, np.ndarray]:
    labels = np.array([row["label"] for row in rows])
    return {label: np.flatnonzero(labels == label) for label in sorted(set(labels.tolist()))}


def _classes(
    rows: Sequence[Row], values: Mapping[str, np.ndarray], aggregation: Aggregation
) -> dict[str, Any]:
    classes = _by_class(rows)
    if len(classes) > len(rows) / 2:  # captions, most of them of one mixture alone
        return {}
    middle = _median if aggregation == "mean of class medians" else _mean

    def once(index: np.ndarray) -> np.ndarray:
        return np.ones((1, len(index)), np.int32)

    return {
        label: {"count": len(index)}
        | {name: _rounded(float(middle(x[index], once(index))[0])) for name, x in values.items()}
        for label, index in classes.items()
    }


def _mean(values_N: np.ndarray, weights_DN: np.ndarray) -> np.ndarray:
    return weights_DN @ values_N / np.sum(weights_DN, axis=1)


def _median(values_N: np.ndarray, weights_DN: np.ndarray) -> np.ndarray:
    """Medians of values that count several times; the mean of the middle two of an even number."""
    order_N = np.argsort(values_N, kind="stable")
    ranks_DN = np.cumsum(weights_DN[:, order_N], axis=1)
    total_D1 = ranks_DN[:, -1:]
    middles = [np.argmax(ranks_DN > rank, axis=1) for rank in ((total_D1 - 1) // 2, total_D1 // 2)]
    return np.mean([values_N[order_N[index_D]] for index_D in middles], axis=0)


def interval_of(draws_D: np.ndarray) -> tuple[float, float]:
    """Of a single clip nothing is known about the spread: NaN."""
    if np.ptp(draws_D) == 0:
        return float("nan"), float("nan")
    outside = (1 - CONFIDENCE) / 2
    low, high = np.quantile(draws_D, [outside, 1 - outside])
    return float(low), float(high)


def _rounded(value: Any) -> Any:
    if not isinstance(value, float):
        return value
    return round(value, DIGITS) + 0.0 if np.isfinite(value) else None
