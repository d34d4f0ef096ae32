"""What is told of an evaluation beside its numbers: what was scored, with what, and how."""

import argparse
import hashlib
import shlex
from collections.abc import Sequence
from importlib import metadata
from typing import Any

import jax

from audiosep_jax.evaluation import protocols, results
from audiosep_jax.evaluation.lists import Item, list_fingerprint
from audiosep_jax.evaluation.protocols import Protocol
from audiosep_jax.evaluation.rows import Row
from audiosep_jax.separation.separator import Separator


def about_of(
    arguments: argparse.Namespace,
    protocol: Protocol,
    items: Sequence[Item],
    separator: Separator | None,
    sample_rate_hz: int,
) -> dict[str, Any]:
    """What must be the same for rows to belong together."""
    return {
        "protocol": protocol.name,
        "list": list_fingerprint(items),
        "baseline": arguments.baseline,
        "checkpoint": separator.fingerprint if separator else "",
        "sample_rate_hz": sample_rate_hz,
        "scores": [
            bool(arguments.speech or protocol.speech),
            bool(arguments.clap_score),
            arguments.clap_model if arguments.clap_score else "",
        ],
    }


def results_of(
    arguments: argparse.Namespace,
    argv: Sequence[str],
    protocol: Protocol,
    separator: Separator | None,
    sample_rate_hz: int,
    rows: Sequence[Row],
) -> dict[str, Any]:
    """All that results.json tells; nothing in it depends on when or how fast it was made."""
    scored = [row for row in rows if "reason" not in row]
    digest = hashlib.sha256("".join(row["fingerprint"] for row in scored).encode())
    checkpoint = separator and {
        "source": str(arguments.checkpoint),
        "step": separator.step,
        "fingerprint": separator.fingerprint,
        "sample_rate_hz": separator.model.sample_rate_hz,
        "text_encoder": separator.text.encoder,
    }
    notes = notes_of(arguments, protocol, separator, sample_rate_hz, rows)
    return {
        "protocol": protocol.name,
        "title": protocol.title,
        "is_benchmark": protocol.count is not None and not notes,
        "notes": notes,
        "count": len(scored),
        "listed": len(rows),
        "benchmark_count": protocol.count,
        "missing": [
            {key: row[key] for key in ("row", "id", "reason")} for row in rows if "reason" in row
        ],
        "baseline": arguments.baseline or None,
        "checkpoint": checkpoint,
        "data": {
            "metadata": str(arguments.metadata) if arguments.metadata else None,
            "fingerprint": digest.hexdigest()[:16],
        },
        "sample_rate_hz": sample_rate_hz,
        "query_kind": protocol.query_kind,
        "query_column": arguments.query_column or protocol.query or None,
        "query": arguments.query or (not arguments.query_column and protocol.default_query) or None,
        "aggregation": protocol.aggregation,
        "definition": protocols.SDR_DEFINITION,
        "headline": list(protocol.headline),
        **results.summary(rows, protocol.aggregation),
        "version": version_of(),
        "command": command_of(argv),
    }


def notes_of(
    arguments: argparse.Namespace,
    protocol: Protocol,
    separator: Separator | None,
    sample_rate_hz: int,
    rows: Sequence[Row],
) -> list[str]:
    """In what the run is not the benchmark, a sentence each."""
    notes, count = [], protocol.count
    missing = sum("reason" in row for row in rows)
    if missing:
        notes.append(f"{missing:,} of the {len(rows):,} mixtures listed are missing")
    if arguments.baseline:
        notes.append(f"the baseline {arguments.baseline}, not the separation asked for")
    if count is None:
        return notes
    if len(rows) != count:
        notes.append(f"{len(rows):,} mixtures are listed, the benchmark has {count:,}")
    if protocol.pair and not protocol.snr and rows[0]["snr_db"] is not None:
        snr = f"{rows[0]['snr_db']:g} dB"
        notes.append(f"mixed again at {snr}; the SNR of the published mixtures is not known")
    if sample_rate_hz != protocol.sample_rate_hz:
        notes.append(f"scored at {sample_rate_hz} Hz, the benchmark at {protocol.sample_rate_hz}")
    if separator and separator.model.sample_rate_hz != sample_rate_hz:
        model_hz = separator.model.sample_rate_hz
        notes.append(f"the model works at {model_hz} Hz and is converted to {sample_rate_hz}")
    other_column = arguments.query_column not in ("", protocol.query)
    if other_column or (protocol.query and arguments.query):
        notes.append("the queries are not the benchmark's")
    return notes


def version_of() -> str:
    try:
        own = metadata.version("audiosep-jax")
    except metadata.PackageNotFoundError:
        own = "not installed"
    return f"audiosep_jax {own}, jax {jax.__version__}"


def command_of(argv: Sequence[str]) -> str:
    """As typed, without what says which part of the work this process does."""
    words = list(argv)
    while "--shard" in words:
        del words[words.index("--shard") : words.index("--shard") + 2]
    words = [w for w in words if not w.startswith("--shard=") and w != "--overwrite"]
    return shlex.join(["python", "-m", "audiosep_jax.evaluate", *words])
