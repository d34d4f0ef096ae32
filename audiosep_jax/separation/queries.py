"""What to look for: sentences, embeddings, sounds, blends of them; and their conditions."""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from audiosep_jax.errors import InputError

if TYPE_CHECKING:
    import numpy as np

    from audiosep_jax.separation.separator import Separator

Kind = Literal["text", "embedding", "audio_query", "not"]
SMALLEST_BLEND = 1e-3  # length of a weighted sum of unit vectors that says nothing any more


@dataclasses.dataclass(frozen=True)
class Part:
    """A sentence, or the file of an embedding or a sound, as one option gives it."""

    kind: Kind
    value: str
    weight: float | None = None

    def __str__(self) -> str:
        return f"--{self.kind} {self.value}"

    @property
    def label(self) -> str:
        return self.value if self.kind in ("text", "not") else Path(self.value).stem


@dataclasses.dataclass(frozen=True)
class Query:
    """One part; or several with their weights, which together are one query."""

    parts: tuple[Part, ...]


def queries_of(parts: Sequence[Part]) -> list[Query]:
    """A query for each part, or one of all where they have weights.

    Raises:
        InputError: a sentence is empty, or only some parts have a weight.
    """
    for part in parts:
        if part.kind in ("text", "not") and not part.value.strip():
            example = "music" if part.kind == "not" else "a dog barking"
            raise InputError(
                f'--{part.kind} is empty: describe the sound, such as --{part.kind} "{example}"'
            )
    weights = [part.weight for part in parts if part.weight is not None]
    if not weights:
        return [Query((part,)) for part in parts]
    if len(weights) < len(parts):
        missing = next(part for part in parts if part.weight is None)
        raise InputError(f"{missing}: has no --weight, and others have; weights make one query")
    if not all(math.isfinite(weight) and weight for weight in weights):
        raise InputError("--weight must be a number other than 0")
    return [Query(tuple(parts))]


@dataclasses.dataclass(frozen=True, eq=False)
class Material:
    """What the file of a part holds: rows of an .npy, or a sound."""

    condition_NE: "np.ndarray | None" = None
    sound: "tuple[np.ndarray, int] | None" = None


def read_files(parts: Iterable[Part]) -> dict[Part, Material]:
    """What lies in the files of parts; InputError where one cannot be used."""
    from audiosep_jax.audio import files as audio_files

    material = {}
    for part in parts:
        if part.kind == "embedding":
            material[part] = Material(condition_NE=_read_embedding(part))
        elif part.kind == "audio_query":
            material[part] = Material(sound=audio_files.read(part.value))
    return material


def embed(
    separator: "Separator", parts: Iterable[Part], material: Mapping[Part, Material]
) -> dict[Part, "np.ndarray"]:
    """`(N, E)` conditions of every part, each distinct sentence embedded once.

    Raises:
        InputError: an embedding is of another size, or audio cannot be embedded.
    """
    parts = list(parts)
    sentences = sorted({part.value for part in parts if part.kind in ("text", "not")})
    rows = dict(zip(sentences, separator.embed_text(sentences), strict=True)) if sentences else {}
    found = {}
    for part in parts:
        held = material.get(part, Material())
        if held.sound is not None:
            found[part] = separator.embed_audio(*held.sound)
        elif held.condition_NE is not None:
            found[part] = _of_size(part, held.condition_NE, separator.model.condition_features)
        else:
            found[part] = rows[part.value][None]
    return found


def conditions(
    queries: Sequence[Query], vectors: Mapping[Part, "np.ndarray"], features: int
) -> tuple[list[str], "np.ndarray"]:
    """(labels, condition_NE): an .npy of several rows is as many queries, a blend is one."""
    import numpy as np

    labels: list[str] = []
    rows = [np.zeros((0, features), np.float32)]
    for query in queries:
        if query.parts[0].weight is not None:
            labels.append(" + ".join(f"{part.weight:g} {part.label}" for part in query.parts))
            rows.append(_blend(query, vectors)[None])
            continue
        (part,) = query.parts
        condition_NE = vectors[part]
        several = len(condition_NE) > 1
        labels += [
            f"{part.label} {row + 1}" if several else part.label for row in range(len(condition_NE))
        ]
        rows.append(condition_NE)
    return labels, np.concatenate(rows).astype(np.float32)


def _blend(query: Query, vectors: Mapping[Part, "np.ndarray"]) -> "np.ndarray":
    """Weighted sum of the parts, each and the sum of length 1, as text encoders give them."""
    import numpy as np

    total_E = np.zeros_like(vectors[query.parts[0]][0], dtype=np.float64)
    for part in query.parts:
        if len(vectors[part]) > 1:
            raise InputError(f"{part}: has {len(vectors[part])} rows; a blend takes one")
        row_E = vectors[part][0].astype(np.float64)
        assert part.weight is not None
        total_E += part.weight * row_E / max(float(np.linalg.norm(row_E)), 1e-12)
    length = float(np.linalg.norm(total_E))
    if length < SMALLEST_BLEND * max(abs(part.weight or 0) for part in query.parts):
        raise InputError("--weight: the weighted queries cancel each other")
    return total_E / length


def _read_embedding(part: Part) -> "np.ndarray":
    """`(N, E)` of an .npy file that holds one embedding or a row for each."""
    import numpy as np

    try:
        condition_NE = np.load(part.value, allow_pickle=False)
    except (OSError, ValueError, EOFError, MemoryError) as error:
        reason = str(error.strerror if isinstance(error, OSError) else error) or "is not complete"
        raise InputError(f"{part}: cannot be read as .npy ({reason})") from error
    shape = np.shape(condition_NE)
    if not isinstance(condition_NE, np.ndarray) or condition_NE.dtype.kind != "f":
        raise InputError(f"{part}: must be one array of floating-point numbers")
    if len(shape) not in (1, 2) or 0 in shape:
        raise InputError(f"{part}: has shape {shape}, not (numbers,) or (N, numbers)")
    if not np.isfinite(condition_NE).all():
        raise InputError(f"{part}: contains NaN or infinite numbers")
    return np.atleast_2d(condition_NE)


def _of_size(part: Part, condition_NE: "np.ndarray", features: int) -> "np.ndarray":
    if condition_NE.shape[1] != features:
        numbers = f"{condition_NE.shape[1]} numbers a query; these weights take {features}"
        raise InputError(f"{part}: has {numbers}")
    return condition_NE
