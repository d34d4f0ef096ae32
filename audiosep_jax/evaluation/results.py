"""Results of an evaluation: rows of scores, their summary, and the files that hold both.

A row is what is known of one mixture: its facts, and its scores or the reason why it has none. Rows
are appended to a log as they are made, so a run that was killed continues where it ended. When all
rows are there, they are summarized into `results.json` and listed in `results.csv`.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, Self

import numpy as np

import audiosep_jax
from audiosep_jax import files
from audiosep_jax.errors import InputError, named
from audiosep_jax.evaluation.lists import Item, list_fingerprint
from audiosep_jax.evaluation.protocols import Aggregation, Protocol

Row = dict[str, Any]

JSON_NAME, CSV_NAME, MARKDOWN_NAME = "results.json", "results.csv", "results.md"
LOG_NAME = "results.partial"
# Columns of a row that are not scores.
FACTS = (
    *("row", "id", "query", "label", "clip", "snr_db", "num_samples"),
    *("fingerprint", "silent", "reason"),
)
# Headings of the scores, in the order of all tables.
HEADINGS = {
    "sdr": "SDR, dB",
    "sdri": "SDRi, dB",
    "si_sdr": "SI-SDR, dB",
    "si_sdri": "SI-SDRi, dB",
    "sdri_wrong_query": "SDRi of a wrong query, dB",
    "query_gap": "SDRi minus that of a wrong query, dB",
    "mixture_sdr": "SDR of the mixture, dB",
    "mixture_si_sdr": "SI-SDR of the mixture, dB",
    "pesq": "PESQ",
    "stoi": "STOI",
    "segmental_snr": "segmental SNR, dB",
    "clap_score": "CLAPScore",
}
NUM_DRAWS, DRAWS_SEED = 1000, 2023


# ---------------------------------------------------------------------- the run


@dataclasses.dataclass(frozen=True)
class Run:
    """Settings of an evaluation, as its results state them."""

    protocol: Protocol
    sample_rate_hz: int  # of scoring
    baseline: str = ""
    checkpoint: Mapping[str, Any] | None = None  # source, step (None: read estimates), ...
    metadata: Path | None = None
    query: str = ""
    query_column: str = ""
    extras: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # scores beside SDR
    command: str = ""

    def about(self, items: Sequence[Item]) -> dict[str, Any]:
        """Settings that must be equal for rows to belong together."""
        return {
            "protocol": self.protocol.name,
            "list": list_fingerprint(items),
            "baseline": self.baseline,
            "checkpoint": self.checkpoint["fingerprint"] if self.checkpoint else "",
            "sample_rate_hz": self.sample_rate_hz,
            **self.extras,
        }


# ---------------------------------------------------------------------- rows on disk


class RowLog(files.FinishedLog):
    """Rows of an evaluation in a folder; every process that takes part appends to a file.

    The first line of a file holds the settings that its rows belong to; `with` writes it.
    """

    def __init__(
        self, folder: Path, about: Mapping[str, Any], shard: tuple[int, int] = (0, 1)
    ) -> None:
        super().__init__(folder, LOG_NAME, shard)
        self._about, self._alone = dict(about), shard[1] == 1

    def read(self) -> dict[int, Row]:
        """Rows of all processes by number; a row with scores replaces one without.

        InputError if a file holds rows of an evaluation with other settings.
        """
        found: dict[int, Row] = {}
        for path in self.paths():
            about, rows = self._read(path)
            if about != self._about:
                changed = [key for key in self._about if about.get(key) != self._about[key]]
                raise InputError(
                    f"{path.parent}: holds rows of another evaluation "
                    f"({(changed or ['evaluation'])[0]} differs); "
                    "choose another output folder, or overwrite it"
                )
            for row in rows:
                if "reason" not in row or row["row"] not in found:
                    found[row["row"]] = row
        return found

    def discard(self) -> None:
        """Remove the rows, except those that other processes of this evaluation may be adding."""
        for path in self.paths():
            if self._alone or path == self.path or self._read(path)[0] != self._about:
                files.remove(path)

    def __enter__(self) -> Self:
        if not self.path.exists() or not any(files.read_records(self.path)):
            self.add({"about": self._about})
        return self

    def _read(self, path: Path) -> tuple[dict[str, Any], list[Row]]:
        """(settings, rows) of a file; this run's settings if the file has no whole line."""
        records = list(files.read_records(path)) or [{"about": self._about}]
        return records[0].get("about") or {}, records[1:]


# ---------------------------------------------------------------------- results.json, results.csv


def results_of(
    run: Run, rows: Sequence[Row], summarize: Callable[..., dict[str, Any]] | None = None
) -> dict[str, Any]:
    """Content of results.json; nothing in it depends on when or how fast it was made."""
    protocol = run.protocol
    scored = [row for row in rows if "reason" not in row]
    digest = hashlib.sha256("".join(row["fingerprint"] for row in scored).encode())
    silent = {row["row"] for row in rows if "silent" in row}
    unscored = [{k: row[k] for k in ("row", "id", "reason")} for row in rows if "reason" in row]
    notes = notes_of(run, rows)
    default_query = "" if run.query_column else protocol.default_query
    return {
        "protocol": protocol.name,
        "title": protocol.title,
        "is_benchmark": protocol.count is not None and not notes,
        "notes": notes,
        "count": len(scored),
        "listed": len(rows),
        "benchmark_count": protocol.count,
        "missing": [x for x in unscored if x["row"] not in silent],
        "silent": [x for x in unscored if x["row"] in silent],
        "baseline": run.baseline or None,
        "checkpoint": run.checkpoint,
        "data": {
            "metadata": named(str(run.metadata)) if run.metadata else None,
            "fingerprint": digest.hexdigest()[:16],
        },
        "sample_rate_hz": run.sample_rate_hz,
        "query_kind": protocol.query_kind,
        "query_column": run.query_column or protocol.query or None,
        "query": run.query or default_query or None,
        "aggregation": protocol.aggregation,
        "definition": protocol.definition,
        **(summarize or summary)(rows, protocol.aggregation),
        "version": f"audiosep_jax {audiosep_jax.__version__}, jax {metadata.version('jax')}",
        "command": run.command,
    }


def notes_of(run: Run, rows: Sequence[Row]) -> list[str]:
    """Differences between the run and the published benchmark, a sentence each."""
    notes, protocol, rate_hz = [], run.protocol, run.sample_rate_hz
    silent = sum("silent" in row for row in rows)
    missing = sum("reason" in row for row in rows) - silent
    if missing:
        notes.append(f"{missing:,} of the {len(rows):,} mixtures listed cannot be used")
    if silent:
        what = "have a silent target or noise and are left out of the means"
        notes.append(f"{silent:,} of the {len(rows):,} mixtures listed {what}")
    if run.baseline:
        notes.append(f"the baseline {run.baseline}, not the separation asked for")
    if run.checkpoint and run.checkpoint["step"] is None:
        notes.append(f"the estimates were read from {run.checkpoint['source']}")
    if protocol.count is None:
        return notes
    if len(rows) != protocol.count:
        notes.append(f"{len(rows):,} mixtures are listed, the benchmark has {protocol.count:,}")
    if protocol.pair and not protocol.snr and rows[0]["snr_db"] is not None:
        snr = f"{rows[0]['snr_db']:g} dB"
        notes.append(f"mixed again at {snr}; the SNR of the published mixtures is not known")
    if rate_hz != protocol.sample_rate_hz:
        notes.append(f"scored at {rate_hz} Hz, the benchmark at {protocol.sample_rate_hz}")
    if run.checkpoint and run.checkpoint["sample_rate_hz"] != rate_hz:
        model_hz = run.checkpoint["sample_rate_hz"]
        notes.append(f"the model works at {model_hz} Hz and is converted to {rate_hz}")
    if run.query_column not in ("", protocol.query) or (protocol.query and run.query):
        notes.append("the queries are not the benchmark's")
    return notes


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    """Write one line for each mixture, scored or not, in the order of the list."""
    names = score_names(rows)
    columns = [*FACTS[:-3], *names, *FACTS[-3:]]
    lines = [
        [_rounded(row.get(x, "")) if x in names else row.get(x, "") for x in columns]
        for row in sorted(rows, key=lambda row: row["row"])
    ]
    files.write_csv(path, columns, lines)


# ---------------------------------------------------------------------- summary


def score_names(rows: Sequence[Row]) -> list[str]:
    """Names of the scores of all rows, those of `HEADINGS` first and in their order."""
    names = dict.fromkeys(name for row in rows for name in row if name not in FACTS)
    return [x for x in HEADINGS if x in names] + [x for x in names if x not in HEADINGS]


def summary(rows: Sequence[Row], aggregation: Aggregation) -> dict[str, Any]:
    """`scores`: mean and 95 % interval by score; `classes`: count and values by class.

    The interval is that of a bootstrap, in which the mixtures of one target clip, such as the five
    captions of AudioCaps, are drawn together.
    """
    scored = [row for row in sorted(rows, key=lambda row: row["row"]) if "reason" not in row]
    values = {name: np.array([row[name] for row in scored]) for name in score_names(scored)}
    groups = groups_of(scored, aggregation)
    draws_DN = bootstrap([row["clip"] for row in scored], groups)
    scores = {}
    for name, values_N in values.items():
        low, high = interval_of(aggregate(values_N, groups, aggregation, draws_DN))
        mean = aggregate(values_N, groups, aggregation)[0]
        scores[name] = {"mean": _rounded(mean), "low": _rounded(low), "high": _rounded(high)}
    return {"scores": scores, "classes": _classes(scored, values, aggregation)}


def aggregate(
    values_N: np.ndarray,
    groups: Sequence[np.ndarray],
    aggregation: Aggregation,
    weights_DN: np.ndarray | None = None,
) -> np.ndarray:
    """Score `(D,)` of a benchmark from the scores of its mixtures and the indices of its classes.

    `weights_DN` says how often each mixture counts in each of D draws; by default once, and D is 1.
    """
    middle = _median if aggregation == "mean of class medians" else _mean
    weights_DN = np.ones((1, len(values_N)), np.int32) if weights_DN is None else weights_DN
    return np.mean([middle(values_N[g], weights_DN[:, g]) for g in groups], axis=0)


def bootstrap(
    clips: Sequence[str], groups: Sequence[np.ndarray], num_draws: int = NUM_DRAWS
) -> np.ndarray:
    """Weights `(draws, N)`, drawn for each class separately, mixtures of one clip together."""
    rng = np.random.default_rng(np.random.SeedSequence(DRAWS_SEED))
    weights = np.zeros((num_draws, len(clips)), np.int32)
    for group in groups:
        _, cluster_of = np.unique([clips[i] for i in group], return_inverse=True)
        num_clusters = int(cluster_of.max()) + 1
        share = np.full(num_clusters, 1 / num_clusters)
        weights[:, group] = rng.multinomial(num_clusters, share, size=num_draws)[:, cluster_of]
    return weights


def interval_of(draws_D: np.ndarray) -> tuple[float | None, float | None]:
    """Bounds of the 95 % interval; None if all draws are equal, as those of a single clip are."""
    if np.ptp(draws_D) == 0:
        return None, None
    low, high = np.quantile(draws_D, [0.025, 0.975])
    return float(low), float(high)


def groups_of(rows: Sequence[Row], aggregation: Aggregation) -> list[np.ndarray]:
    """Indices of each class in the order of their names, or of all rows if classes do not count."""
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
    if len(classes) > len(rows) / 2:  # labels are captions, most of them of a single mixture
        return {}
    return {
        label: {"count": len(index)}
        | {x: _rounded(aggregate(values[x], [index], aggregation)[0]) for x in values}
        for label, index in classes.items()
    }


def _mean(values_N: np.ndarray, weights_DN: np.ndarray) -> np.ndarray:
    return weights_DN @ values_N / np.sum(weights_DN, axis=1)


def _median(values_N: np.ndarray, weights_DN: np.ndarray) -> np.ndarray:
    """Medians of weighted values; the mean of the middle two for an even total weight."""
    order_N = np.argsort(values_N, kind="stable")
    ranks_DN = np.cumsum(weights_DN[:, order_N], axis=1)
    total_D1 = ranks_DN[:, -1:]
    middles = [np.argmax(ranks_DN > rank, axis=1) for rank in ((total_D1 - 1) // 2, total_D1 // 2)]
    return np.mean([values_N[order_N[index_D]] for index_D in middles], axis=0)


def _rounded(value: Any) -> Any:
    """Float with six decimals; other values as they are."""
    return round(value, 6) + 0.0 if isinstance(value, float) else value
