"""Queries of a command line or a list: values in order, blends of them, and their embeddings."""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from audiosep_jax.cli import naming
from audiosep_jax.encoders import KINDS
from audiosep_jax.errors import InputError

if TYPE_CHECKING:
    import numpy as np

    from audiosep_jax.separation.separator import Separator

NOT = "not"  # option of unwanted sounds, which are sentences
SMALLEST_BLEND = 1e-3  # a weighted sum of unit vectors that is shorter has no direction


@dataclasses.dataclass(frozen=True)
class Part:
    """A value of one option, such as a sentence or the path of a sound."""

    option: str  # a key of `KINDS`, or NOT
    value: str
    weight: float | None = None
    region: tuple[int, int, int, int] | None = None  # of a picture, in pixels

    @property
    def kind(self) -> str:
        return "text" if self.option == NOT else self.option

    @property
    def label(self) -> str:
        kind = KINDS[self.kind]
        return kind.label or (Path(self.value).stem if kind.is_file else self.value)

    def __str__(self) -> str:
        return f"--{self.option} {self.value}"


Query = tuple[Part, ...]  # one part, or several with weights, which together are one query


def queries_of(parts: Sequence[Part]) -> list[Query]:
    """Make a query of each part, or a single one if the parts have weights."""
    weights = [part.weight for part in parts if part.weight is not None]
    if not weights:
        return [(part,) for part in parts]
    if len(weights) < len(parts):
        missing = next(part for part in parts if part.weight is None)
        raise InputError(
            f"{missing}: has no --weight, but another query has; weights blend all into one"
        )
    if not all(math.isfinite(weight) and weight for weight in weights):
        raise InputError("--weight must be a number other than 0")
    return [tuple(parts)]


def read(parts: Iterable[Part]) -> dict[Part, list[Any]]:
    """Read the sentence or the file of each part."""
    values = {}
    for part in parts:
        with naming(f"--{part.option}", part.value):
            region = () if part.region is None else (part.region,)
            values[part] = KINDS[part.kind].read(part.value, *region)
    return values


def embed(separator: "Separator", values: Mapping[Part, Sequence[Any]]) -> dict[Part, "np.ndarray"]:
    """Embed what `read` returned: `(N, E)` conditions of each part, equal sentences only once."""
    sentences = list(dict.fromkeys(x[0] for part, x in values.items() if part.kind == "text"))
    rows: dict[str, np.ndarray] = {}
    if sentences:
        source = separator.text.source
        with naming("--text_model" if source else "--text", source):
            rows = dict(zip(sentences, separator.embed("text", sentences), strict=True))
    found = {part: rows[x[0]][None] for part, x in values.items() if part.kind == "text"}
    for part, items in values.items():
        if part.kind != "text":
            with naming(f"--{part.option}", part.value):
                found[part] = separator.embed(part.kind, items)
    return found


def labels_of(queries: Sequence[Query], values: Mapping[Part, Sequence[Any]]) -> list[str]:
    """Name each result; a file of several embeddings is as many queries, a blend is one."""
    labels = []
    for query in queries:
        part, count = query[0], len(values[query[0]])
        if part.weight is not None:
            labels.append(" + ".join(f"{part.weight:g} {part.label}" for part in query))
        elif count == 1:
            labels.append(part.label)
        else:
            labels += [f"{part.label} {n + 1}" for n in range(count)]
    return labels


def conditions(
    queries: Sequence[Query], vectors: Mapping[Part, "np.ndarray"], features: int
) -> "np.ndarray":
    """Return the conditions `(N, E)` of queries, in the order of `labels_of`."""
    import numpy as np

    rows = [np.zeros((0, features), np.float32)]
    for query in queries:
        is_blend = query[0].weight is not None
        rows.append(_blend(query, vectors)[None] if is_blend else vectors[query[0]])
    return np.concatenate(rows).astype(np.float32)


def _blend(query: Query, vectors: Mapping[Part, "np.ndarray"]) -> "np.ndarray":
    """Weighted sum of unit vectors, scaled to length 1, as text encoders return vectors."""
    import numpy as np

    total_E = np.zeros(vectors[query[0]].shape[1])
    largest = max(abs(part.weight or 0) for part in query)
    for part in query:
        if len(vectors[part]) > 1:
            raise InputError(f"{part}: has {len(vectors[part])} rows; a blend takes one")
        row_E = vectors[part][0].astype(np.float64)
        assert part.weight is not None
        total_E += part.weight / largest * row_E / max(float(np.linalg.norm(row_E)), 1e-12)
    length = float(np.linalg.norm(total_E))
    if length < SMALLEST_BLEND:
        raise InputError("--weight: the weighted queries cancel each other")
    return total_E / length
