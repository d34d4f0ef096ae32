"""results.md: the scores of an evaluation as a page, beside those that others report."""

from collections.abc import Mapping, Sequence
from typing import Any

from audiosep_jax.evaluation.protocols import PROTOCOLS
from audiosep_jax.evaluation.results import HEADINGS

MAX_CLASSES = 60  # if there are more, the best and the worst are shown


def markdown(content: Mapping[str, Any], figures: Sequence[str] = ()) -> str:
    """Page of one results.json; `figures` are the names of files beside it."""
    parts = [
        f"# {content['title']}",
        *_notes(content),
        _scores(content),
        *_published(content),
        *_classes(content),
        *_unscored("Not scored", content["missing"]),
        *_unscored("Silent, left out of the means", content["silent"]),
        *(f"![{name}]({name})" for name in figures),
        _how(content),
    ]
    return "\n\n".join(parts) + "\n"


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Table in Markdown, with two decimals in numbers and a dash for None."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(cell, line)) + " |" for line in lines)


def cell(value: Any) -> str:
    """Text of a value in a table."""
    if value is None:
        return "-"
    text = f"{value:.2f}" if isinstance(value, float) else " ".join(str(value).split())
    return text.replace("|", "\\|")


def name_of(score: str) -> str:
    """Heading of a score."""
    return HEADINGS.get(score, score)


def _notes(content: Mapping[str, Any]) -> list[str]:
    differs = "This differs from the published benchmark:"
    title = differs if PROTOCOLS[content["protocol"]].count else "Notes:"
    lines = [f"> **{title}**", ">", *(f"> - {note}" for note in content["notes"])]
    return ["\n".join(lines)] if content["notes"] else []


def _scores(content: Mapping[str, Any]) -> str:
    about = f"{content['count']:,} mixtures"
    if content["aggregation"] != "mean":
        about += f", {content['aggregation']}"
    rows = [[name_of(name), x["mean"], between(x)] for name, x in content["scores"].items()]
    return f"{about}.\n\n" + table(["score", "value", "95 % interval"], rows)


def between(score: Mapping[str, Any], form: str = ".2f") -> str | None:
    """Text of the 95 % interval of a score, None if it has none."""
    low, high = score["low"], score["high"]
    return None if low is None else f"{low:{form}} to {high:{form}}"


def _published(content: Mapping[str, Any]) -> list[str]:
    """This run beside published scores; nothing for protocols without any."""
    others = PROTOCOLS[content["protocol"]].published
    if not others:
        return []
    what = content["baseline"] or "this run"
    own = f"{what} (see the notes above)" if content["notes"] else what
    scores = {own: {name: score["mean"] for name, score in content["scores"].items()}, **others}
    shown = dict.fromkeys(name for system in others.values() for name in system)
    rows = [[name, *(found.get(x) for x in shown)] for name, found in scores.items()]
    return ["## Beside published numbers", table(["", *map(name_of, shown)], rows)]


def _classes(content: Mapping[str, Any]) -> list[str]:
    classes = content["classes"]
    if not classes:
        return []
    wanted = ("sdri", "si_sdri", "query_gap", "si_sdr", "sdr")
    names = [name for name in wanted if name in content["scores"]]
    order = sorted(classes, key=lambda label: (-(classes[label].get("sdri") or 0.0), label))
    shown, which = order, "best first"
    if len(order) > MAX_CLASSES:
        half = MAX_CLASSES // 2
        shown, which = [*order[:half], *order[-half:]], f"the {half} best and the {half} worst"
    rows = [[x, *(classes[x].get(name) for name in ("count", *names))] for x in shown]
    header = ["class", "mixtures", *map(name_of, names)]
    return [f"## By class ({which} of {len(order)})", table(header, rows)]


def _unscored(title: str, mixtures: Sequence[Mapping[str, Any]]) -> list[str]:
    if not mixtures:
        return []
    rows = [[x["row"], x["id"], x["reason"]] for x in mixtures[:50]]
    more = len(mixtures) - len(rows)
    parts = [f"## {title}: {len(mixtures):,}", table(["row", "id", "reason"], rows)]
    return [*parts, f"and {more:,} more, in results.csv"] if more else parts


def _how(content: Mapping[str, Any]) -> str:
    checkpoint = "none"
    if made := content["checkpoint"]:
        step = "estimates" if made["step"] is None else f"step {made['step']:,}"
        checkpoint = f"{made['source']}, {step}, fingerprint {made['fingerprint']}"
    rows = [
        ["command", f"`{content['command']}`"],
        ["checkpoint", checkpoint],
        ["data", f"{content['data']['metadata']}, fingerprint {content['data']['fingerprint']}"],
        ["query", _query(content)],
        ["sample rate", f"{content['sample_rate_hz']} Hz"],
        ["definition", content["definition"]],
        ["version", content["version"]],
    ]
    return "## How it was made\n\n" + table(["", ""], rows)


def _query(content: Mapping[str, Any]) -> str:
    if content["query"]:
        return f'"{content["query"]}" for all'
    column = f", column {content['query_column']}" if content["query_column"] else ""
    return f"{content['query_kind']}{column}"
