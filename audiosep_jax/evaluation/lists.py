"""Lists of mixtures in CSV files: which files and which query make each mixture."""

import dataclasses
import hashlib
import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

from audiosep_jax import files
from audiosep_jax.encoders import KINDS
from audiosep_jax.errors import InputError
from audiosep_jax.evaluation.protocols import Protocol
from audiosep_jax.files import Row

WRONG_QUERY = "wrong_query"  # column of a list, and folder of estimates for these queries
MAX_SNR_DB = 200.0  # far beyond it the power of the scaled noise leaves the range of float32
OPTIONAL_COLUMNS = (
    *("query", "noise", "mixture", "snr", "id", "class", "noise_query", WRONG_QUERY),
    *("target_start", "noise_start", "seconds"),
)


@dataclasses.dataclass(frozen=True)
class Item:
    """One mixture of a list: the files that make it, and the query for it."""

    row: int  # position in the list, from 0
    id: str
    query: str  # a sentence, or the path of a file
    label: str  # class; the query if the list has none
    target: Path
    mixture: Path | None  # a file, or None if target and noises have to be mixed
    noises: tuple[Path, ...] = ()
    snr_db: float | None = None  # of the mixing; None adds the noise as it is
    target_start_seconds: float = 0.0
    noise_start_seconds: float = 0.0
    seconds: float | None = None  # None: all of the target
    clips: tuple[str, ...] = ()  # names of target and noises in the list
    noise_query: str = ""  # describes the noise, if the list says so
    line: int = 0  # of the list
    rendered: tuple[str, str] = ("", "")  # target and mixture in a folder of rendered mixtures
    wrong_query: str = ""  # describes neither target nor noise
    before: tuple["Item", ...] = ()  # whose mixtures are joined in front of it
    after: tuple["Item", ...] = ()
    kind: str = "text"  # of the queries

    @property
    def query_files(self) -> tuple[Path, ...]:
        """File of the query, if it is one."""
        return (Path(self.query),) if KINDS[self.kind].is_file else ()

    @property
    def files(self) -> tuple[Path, ...]:
        """All files that must exist."""
        sounds = (self.mixture,) if self.mixture else self.noises
        return (self.target, *sounds, *self.query_files)


def read_list(
    protocol: Protocol, metadata: Path | None, audio: Path, enrolments: Path | None = None
) -> list[Row]:
    """Rows of a list, or of the files in `audio` if a protocol has a folder instead of a list.

    Args:
        enrolments: list of the recordings that ask for the speakers of each mixture.
    """
    if metadata is None:
        paths = sorted((audio / protocol.folder).glob("*.wav"))
        if not paths:
            raise InputError(f"{audio / protocol.folder}: holds no .wav file")
        return [Row(0, {"file": path.name}) for path in paths]
    columns = protocol.columns
    rows = files.read_csv(metadata, () if protocol.by_position else columns, OPTIONAL_COLUMNS)
    if not rows:
        raise InputError(f"{metadata}: lists no mixture")
    if protocol.sources:
        return _rows_of_sources(protocol, rows, enrolments)
    if not protocol.by_position:
        return rows
    if len(rows[0].cells) != len(columns):
        order = ", ".join(columns)
        raise InputError(f"{metadata}: has {len(rows[0].cells)} columns, not, in order, {order}")
    return [Row(line, dict(zip(columns, cells.values(), strict=True))) for line, cells in rows]


def _rows_of_sources(protocol: Protocol, rows: Sequence[Row], enrolments: Path | None) -> list[Row]:
    """Return a row for each source of each mixture, with columns `source`, `target`, `enrolment`.

    A line of `enrolments` holds a mixture's ID, an utterance's ID, and the name of a recording,
    such as `s1/ID` for the first source of a mixture. The lines of a mixture are in the order of
    its sources.
    """
    named = {
        f"s{k}/{row.cells['mixture_ID']}": row.cells[column]
        for row in rows
        for k, column in enumerate(protocol.sources, start=1)
    }
    asked: dict[str, list[str]] = {}
    lines = files.read_text(enrolments).splitlines() if enrolments else ()
    for number, line in enumerate(lines, start=1):
        words = line.split()
        if len(words) != 3:
            what = f"has {len(words)} words, not a mixture, an utterance and a recording"
            raise InputError(f"{enrolments}: line {number} {what}")
        asked.setdefault(words[0], []).append(named.get(words[2], words[2]))
    made = []
    for row in rows:
        recordings = asked.get(row.cells["mixture_ID"], [])
        if protocol.kind == "blind":
            recordings = ["part 1"] * len(protocol.sources)
        if len(recordings) != len(protocol.sources):
            raise _mistake(row, f"{len(recordings)} enrolments, not one for each source")
        for k, (column, path) in enumerate(zip(protocol.sources, recordings, strict=True), start=1):
            about = {"source": str(k), "target": row.cells[column], "enrolment": path}
            about |= {WRONG_QUERY: "part 2"} if protocol.kind == "blind" else {}
            made.append(Row(row.number, row.cells | about))
    return made


def items_of(
    protocol: Protocol,
    rows: Sequence[Row],
    audio: Path,
    noise: Path,
    *,
    query_column: str = "",
    query: str = "",
    snr_db: float | None = None,
) -> list[Item]:
    """Mixtures of a list.

    Args:
        audio: folder of the targets and of rendered mixtures, which are taken if any exists.
        noise: folder of the noises.
        query_column: column of the query, if not the protocol's; `query` replaces all of them.
        snr_db: SNR of pairs whose list has none. None: 0, or unscaled noise in own mixtures.
    """
    column = query_column or protocol.query
    if not query and column not in rows[0].cells:
        found = ", ".join(rows[0].cells)[:80]
        raise InputError(f"the list has no column {column!r} of queries, only {found}")
    is_rendered = protocol.rendered is not None
    if protocol.rendered and protocol.pair:
        mixtures = (audio / path_of(protocol.rendered[1], row.cells) for row in rows)
        is_rendered = any(path.is_file() for path in mixtures)
    if snr_db is None and not protocol.own:
        snr_db = 0.0

    def item(number: int, row: Row) -> Item:
        cells = row.cells
        sentence = query or cells[column]
        if not sentence.strip():
            raise _mistake(row, "no query")
        queries = [sentence, cells.get(protocol.noise_query, ""), cells.get(WRONG_QUERY, "")]
        if KINDS[protocol.kind].is_file:
            queries = [text and str(audio / text) for text in queries]
        name = (path_of(protocol.id, cells) if protocol.id else cells.get("id", "")) or str(number)
        rendered = [path_of(template, cells) for template in protocol.rendered or ()]
        if protocol.own:
            pair, mixture = _own_files(row)
        else:
            pair, mixture = [path_of(template, cells) for template in protocol.pair], ""
        target, mixture = rendered if is_rendered else (pair[0], mixture)
        if not rendered or protocol.sources:  # whose mixtures each have several targets
            rendered = [f"segment-{name}.wav", f"mixture-{name}.wav"]
        listed_snr = _number(row, protocol.snr or "snr", -MAX_SNR_DB, MAX_SNR_DB)
        return Item(
            row=number,
            id=name,
            query=queries[0],
            label=cells.get(protocol.label) or sentence,
            target=audio / target,
            mixture=audio / mixture if mixture else None,
            noises=() if mixture else tuple(noise / path for path in pair[1:]),
            snr_db=None if mixture else snr_db if listed_snr is None else listed_snr,
            target_start_seconds=_number(row, "target_start", 0) or 0.0,
            noise_start_seconds=_number(row, "noise_start", 0) or 0.0,
            seconds=_number(row, "seconds", 0.001),
            clips=tuple(cells[protocol.clips].split("+++") if protocol.clips else pair),
            noise_query=queries[1],
            wrong_query=queries[2] if protocol.own or protocol.sources else "",
            line=row.number,
            rendered=(rendered[0], rendered[1]),
            kind=protocol.kind,
        )

    return list(itertools.starmap(item, enumerate(rows)))


def _own_files(row: Row) -> tuple[list[str], str]:
    """(target and noise, mixture) of a line of a user's list: either no noise or no mixture."""
    names = (row.cells.get(x, "").replace("\\", "/") for x in ("target", "noise", "mixture"))
    target, noise, mixture = names
    if not target or bool(noise) == bool(mixture):
        raise _mistake(row, "not a target and either a noise or a mixture")
    return [target, noise] if noise else [target], mixture


def path_of(template: str, cells: Mapping[str, str]) -> str:
    """Path that a template gives for the cells of a row; backslashes become slashes."""
    # Positions instead of names, because a column may be called "noise_wav1 (2)".
    names = sorted(cells, key=len, reverse=True)
    for position, name in enumerate(names):
        template = template.replace("{" + name, "{" + str(position))
    return template.format(*(PurePosixPath(cells[name].replace("\\", "/")) for name in names))


def list_fingerprint(items: Sequence[Item]) -> str:
    """Hash of the names, queries and mixing of a list; the folders of its files do not matter."""
    digest = hashlib.sha256()
    for item in items:
        names = [path.name for path in item.files]
        times = (item.target_start_seconds, item.noise_start_seconds, item.seconds)
        digest.update(repr((item.row, item.id, item.query, item.label, names)).encode())
        digest.update(repr((item.snr_db, *times, item.wrong_query)).encode())
    return digest.hexdigest()[:16]


def _number(row: Row, column: str, low: float, high: float = 1e9) -> float | None:
    """Number in a column; None if the column does not exist or the cell is empty."""
    text = row.cells.get(column)
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not low <= value <= high:
        raise _mistake(row, f"{column}={text!r}, not a number from {low:g} to {high:g}")
    return value


def _mistake(row: Row, what: str) -> InputError:
    return InputError(f"line {row.number} of the list has {what}")
