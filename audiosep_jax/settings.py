"""Sections of a config: frozen dataclasses that pydantic checks, and mappings turned into them.

A section is declared beside the code that obeys it. Its annotations say what each field accepts;
`__post_init__` checks what concerns several fields, and starts its message with a field's name.
"""

import ast
import dataclasses
import difflib
import json
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, TypeVar, cast, dataclass_transform

import pydantic
from pydantic import AfterValidator, Field
from pydantic.dataclasses import dataclass

from audiosep_jax.errors import InputError

T = TypeVar("T")

_MOST = 2**31 - 1  # counters of steps, rows and samples are int32 on devices
Count = Annotated[int, Field(ge=1, le=_MOST)]
CountOrZero = Annotated[int, Field(ge=0, le=_MOST)]
Seed = Annotated[int, Field(ge=0, le=2**32 - 1)]  # what `jax.random.key` takes without x64
Share = Annotated[float, Field(ge=0, le=1)]
# Devices compute in float32, where a larger number or its square would overflow.
Positive = Annotated[float, Field(gt=0, le=1e12)]
PositiveOrZero = Annotated[float, Field(ge=0, le=1e12)]


def setting(*, default: T, resumable: bool = False, per_process: bool = False) -> T:
    """Field of a section, which may differ between runs or processes that belong together.

    Args:
        default: the value where none is given.
        resumable: a resumed run may have another value, because the weights do not depend on it.
        per_process: the processes of one run may have different values; implies `resumable`.
    """
    marks = {"resumable": resumable or per_process, "per_process": per_process}
    return dataclasses.field(default=default, metadata=marks)


@dataclass_transform(frozen_default=True, field_specifiers=(setting,))
def section(kind: type[T]) -> type[T]:
    """Class decorator: a frozen dataclass that raises InputError for a wrong value."""
    config = pydantic.ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
    checked = dataclass(kind, frozen=True, config=config)
    init = checked.__init__

    def checked_init(self: Any, *args: Any, **kwargs: Any) -> None:
        try:
            init(self, *args, **kwargs)
        except pydantic.ValidationError as error:
            raise InputError(_message(kind, error)) from error

    checked.__init__ = checked_init  # type: ignore[method-assign]
    return cast(type[T], checked)


def parse(kind: type[T], values: Any, where: str = "", *, inside: str = "") -> T:
    """`kind` from nested mappings, lists taken for tuples and integers for floats.

    Args:
        inside: name of the section of the config that `kind` is, for messages.

    Raises:
        InputError: `where` (a file, or nothing), the dotted field, its value, and what it accepts.
    """
    try:
        # Strict JSON takes lists for tuples and objects for sections; strict Python does not.
        return pydantic.TypeAdapter(kind).validate_json(json.dumps(values))
    except pydantic.ValidationError as error:
        message = _message(kind, error, inside)
    except TypeError as error:
        message = f"a value is no number, text, list or mapping ({error})"
    raise InputError(f"{where}: {message}" if where else message)


def rising(least: float, most: float, *, optional: bool = False) -> Any:
    """Annotation of a tuple: a low and a high end in least..most, or nothing where `optional`."""

    def check(ends: tuple[float, ...]) -> tuple[float, ...]:
        rises = len(ends) == 2 and least <= ends[0] <= ends[1] <= most
        if rises or (optional and not ends):
            return ends
        raise ValueError(f"must be two rising numbers in {least:g}..{most:g}")

    return AfterValidator(check)


def fields_of(config: Any, mark: str = "") -> Iterator[tuple[str, Any, bool]]:
    """(dotted name, value, whether it or a section around it has the `mark`) of every field."""
    for field in dataclasses.fields(config):
        value, marked = getattr(config, field.name), field.metadata.get(mark, False)
        if dataclasses.is_dataclass(value):
            for name, inner, also in fields_of(value, mark):
                yield f"{field.name}.{name}", inner, marked or also
        else:
            yield field.name, value, marked


def override(values: Any, path: str, text: str) -> None:
    """Set the field at the dotted `path` of nested dicts from `text`, read as the value there is.

    Raises:
        InputError: there is no such field, or it is a section.
    """
    *parents, name = path.split(".")
    for i, parent in enumerate([*parents, name]):
        if not isinstance(values, dict):
            raise InputError(f"{path}: {'.'.join(parents[:i])} is a field and has no fields")
        if parent not in values:
            raise InputError(_unknown(parents[:i], parent, list(values)))
        section_values, values = values, values[parent]
    if isinstance(values, dict):
        raise InputError(f"{path} is a section; give one of its fields: {', '.join(values)}")
    section_values[name] = _read(text, values)


def _read(text: str, like: Any) -> Any:
    """`text` as a value of the type of `like`, or as it is, for `parse` to refuse."""
    if isinstance(like, str):
        return text
    if isinstance(like, bool):
        return {"true": True, "1": True, "false": False, "0": False}.get(text.lower(), text)
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        value = text
    if isinstance(like, tuple):
        items = text.split(",") if isinstance(value, str) else value
        items = () if not text.strip() else items
        return tuple(items) if isinstance(items, list | tuple) else (items,)
    return value


def _unknown(parents: Sequence[Any], name: str, known: list[str]) -> str:
    """One line for a field that the section below `parents`, with the fields `known`, lacks."""
    prefix = "".join(f"{parent}." for parent in parents)
    nearest = difflib.get_close_matches(name, known, n=1, cutoff=0)[0]
    inside = f"section {prefix[:-1]}" if prefix else "the config"
    return (
        f"unknown config field {prefix}{name}; did you mean {prefix}{nearest}? "
        f"The fields of {inside} are {', '.join(known)}"
    )


def _message(kind: Any, error: pydantic.ValidationError, inside: str = "") -> str:
    """One line on the first thing that is wrong: the dotted field, its value, what it accepts."""
    first = error.errors(include_url=False)[0]
    outer, cause = [inside] if inside else [], first.get("ctx", {}).get("error")
    where = [*outer, *first["loc"]]
    path = "".join(f"[{x}]" if isinstance(x, int) else f".{x}" for x in where).removeprefix(".")
    if first["type"] == "unexpected_keyword_argument":
        for parent in first["loc"][:-1]:
            kind = {field.name: field.type for field in dataclasses.fields(kind)}[str(parent)]
        known = [field.name for field in dataclasses.fields(kind)]
        return _unknown(where[:-1], str(where[-1]), known)
    if isinstance(cause, InputError):  # from `__post_init__`
        return f"{path}.{cause}" if path else str(cause)
    words = {"tuple_type": "must be a list", "dataclass_type": "must be a section with fields"}
    accepted = cause or words.get(first["type"], f"must{first['msg'].partition('should')[2]}")
    return f"{path or 'the config'}={first['input']!r} {accepted}"
