"""From a list of mixtures in a CSV file to the files and the query of each."""

import csv
import dataclasses
import hashlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Literal

from audiosep_jax.errors import InputError
from audiosep_jax.evaluation.protocols import Protocol

Layout = Literal["auto", "rendered", "pairs"]
Row = Mapping[str, str]
MAX_SNR_DB = 200.0  # far beyond it the power of what is scaled leaves float32


@dataclasses.dataclass(frozen=True)
class Item:
    """One mixture of a list: which files make it, and what is asked of it."""

    row: int  # place in the list, from 0
    id: str
    query: str
    label: str  # class; the query where the list has none
    target: Path
    mixture: Path | None  # a file, or None where it is made of target and noises
    noises: tuple[Path, ...] = ()
    snr_db: float | None = None  # of what is made; None adds the noise as it is
    target_start_seconds: float = 0.0
    noise_start_seconds: float = 0.0
    seconds: float | None = None  # None: all of the target
    clips: tuple[str, ...] = ()  # what the list calls the target and the noises, where it does
    noise_query: str = ""  # asks for the noise, where the list says so

    @property
    def files(self) -> tuple[Path, ...]:
        """All that have to be there."""
        return (self.target, *((self.mixture,) if self.mixture else self.noises))


def read_list(protocol: Protocol, metadata: Path | None, audio: Path) -> list[Row]:
    """The rows of a list, or of the folder that stands for it; InputError names what is wrong."""
    if metadata is None:
        if not protocol.folder:
            raise InputError(f"--metadata is needed: the CSV file that lists {protocol.name}")
        names = sorted(path.name for path in (audio / protocol.folder).glob("*.wav"))
        if not names:
            raise InputError(f"{audio / protocol.folder}: holds no .wav file")
        return [{"file": name} for name in names]
    try:
        with metadata.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, strict=True)  # a quote left open would take in all the rest
            numbered = [(reader.line_num, row) for row in reader if row]
    except (OSError, ValueError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{metadata}: cannot be read as CSV ({reason})") from error
    if len(numbered) < 2:
        raise InputError(f"{metadata}: lists no mixture")
    header, numbered = numbered[0][1], numbered[1:]
    names = _distinct([name.strip() for name in header])
    if protocol.by_position and len(names) == len(protocol.columns):
        names = list(protocol.columns)
    missing = [name for name in protocol.columns if name not in names]
    if missing:
        wanted = f"{protocol.name} needs {', '.join(protocol.columns)}"
        raise InputError(f"{metadata}: has no column {missing[0]!r}; {wanted}")
    for line, row in numbered:
        if len(row) != len(names):
            raise InputError(f"{metadata}: line {line} has {len(row)} fields, not {len(names)}")
    return [dict(zip(names, row, strict=True)) for _, row in numbered]


def items_of(
    protocol: Protocol,
    rows: Sequence[Row],
    audio: Path,
    noise: Path,
    *,
    layout: Layout = "auto",
    query_column: str = "",
    query: str = "",
    snr_db: float | None = None,
) -> list[Item]:
    """The mixtures of a list.

    Args:
        audio: folder of the targets, and of rendered mixtures.
        noise: folder of the noises.
        layout: `auto` takes rendered mixtures where any of them is there.
        query_column: of the query, where not the protocol's.
        query: one sentence for all, instead.
        snr_db: of pairs whose list gives no SNR; None is 0, and of own mixtures the noise as it is.
    """
    column = query_column or protocol.query
    if not query and column not in rows[0]:
        raise InputError(f"the list has no column {column!r} of queries")
    rendered = protocol.rendered if layout != "pairs" else None
    if (layout == "rendered" and rendered is None) or (layout == "pairs" and not protocol.pair):
        raise InputError(f"--layout {layout}: {protocol.name} has none")
    if protocol.name == "mixtures":
        sentences = [query or row[column] for row in rows]
        return [_own(n, row, audio, noise, sentences[n], snr_db) for n, row in enumerate(rows)]
    if layout == "auto" and rendered and protocol.pair:
        there = any((audio / path_of(rendered[1], row)).is_file() for row in rows)
        rendered = rendered if there else None
    items = []
    for number, row in enumerate(rows):
        sentence = query or row[column]
        paths = [path_of(template, row) for template in rendered or protocol.pair]
        snr = _snr(row, protocol.snr, number) if protocol.snr else snr_db or 0.0
        items.append(
            Item(
                row=number,
                id=_id(protocol, row, number),
                query=_checked(sentence, number),
                label=row[protocol.label] if protocol.label else sentence,
                target=audio / paths[0],
                mixture=audio / paths[1] if rendered else None,
                noises=() if rendered else tuple(noise / path for path in paths[1:]),
                snr_db=None if rendered else snr,
                clips=_clips(protocol, row),
                noise_query=row[protocol.noise_query] if protocol.noise_query else "",
            )
        )
    return items


def path_of(template: str, row: Row) -> str:
    """The path that a template gives for a row."""
    # Positions instead of names: a column may be called "noise_wav1 (2)".
    names = sorted(row, key=len, reverse=True)
    for position, name in enumerate(names):
        template = template.replace("{" + name, "{" + str(position))
    return template.format(*(PurePosixPath(row[name]) for name in names))


def list_fingerprint(items: Sequence[Item]) -> str:
    """Hash of what the list asks for, wherever its files lie."""
    digest = hashlib.sha256()
    for item in items:
        names = [path.name for path in item.files]
        times = (item.target_start_seconds, item.noise_start_seconds, item.seconds)
        digest.update(repr((item.row, item.id, item.query, item.label, names)).encode())
        digest.update(repr((item.snr_db, *times)).encode())
    return digest.hexdigest()[:16]


def _clips(protocol: Protocol, row: Row) -> tuple[str, ...]:
    """What the list calls the target and the noises."""
    if protocol.clips:
        return tuple(row[protocol.clips].split("+++"))
    return tuple(path_of(template, row) for template in protocol.pair)


def _own(
    number: int, row: Row, audio: Path, noise: Path, sentence: str, snr_db: float | None
) -> Item:
    """A row of a user's own list: target, and noise or mixture."""
    named = {name: row.get(name, "").strip() for name in ("target", "noise", "mixture")}
    if not named["target"] or bool(named["noise"]) == bool(named["mixture"]):
        raise InputError(f"row {number + 2} of the list needs a target, and a noise or a mixture")
    seconds = _number(row, "seconds", number)
    if seconds is not None and seconds <= 0:
        raise InputError(f"row {number + 2} of the list has seconds={seconds:g}, not above 0")
    return Item(
        row=number,
        id=row.get("id", "").strip() or str(number),
        query=_checked(sentence, number),
        label=row.get("class", "").strip() or sentence,
        target=audio / named["target"],
        mixture=audio / named["mixture"] if named["mixture"] else None,
        noises=(noise / named["noise"],) if named["noise"] else (),
        snr_db=_snr(row, "snr", number, snr_db) if named["noise"] else None,
        target_start_seconds=_start(row, "target_start", number),
        noise_start_seconds=_start(row, "noise_start", number),
        seconds=seconds,
        clips=tuple(named[name] for name in ("target", "noise") if named[name]),
        noise_query=row.get("noise_query", ""),
    )


def _id(protocol: Protocol, row: Row, number: int) -> str:
    return path_of(protocol.id, row) or str(number)


def _checked(sentence: str, number: int) -> str:
    if not sentence.strip():
        raise InputError(f"row {number + 2} of the list has no query")
    return sentence


def _number(row: Row, column: str, number: int) -> float | None:
    """The row's number in a column; None where the column is not there or empty."""
    text = row.get(column, "").strip()
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise InputError(f"row {number + 2} of the list has {column}={text!r}, not a number")
    return value


def _snr(row: Row, column: str, number: int, default: float | None = None) -> float | None:
    value = _number(row, column, number)
    if value is not None and abs(value) > MAX_SNR_DB:
        limits = f"-{MAX_SNR_DB:g}..{MAX_SNR_DB:g} dB"
        raise InputError(f"row {number + 2} of the list has {column}={value:g}, not in {limits}")
    return default if value is None else value


def _start(row: Row, column: str, number: int) -> float:
    value = _number(row, column, number) or 0.0
    if value < 0:
        raise InputError(f"row {number + 2} of the list has {column}={value:g}, below 0")
    return value


def _distinct(names: Sequence[str]) -> list[str]:
    """The names, a second of one name numbered: Clotho's list has `noise_wav1` twice."""
    return [
        f"{name} ({names[:i].count(name) + 1})" if name in names[:i] else name
        for i, name in enumerate(names)
    ]
