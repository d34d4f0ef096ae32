"""settings: sections are checked by their declaration; errors name the field and its value."""

import copy
import dataclasses
import pickle
from typing import Annotated

import pytest

from audiosep_jax.errors import InputError
from audiosep_jax.settings import (
    Count,
    Positive,
    fields_of,
    override,
    parse,
    rising,
    section,
    setting,
)


@section
class Inner:
    """A section within a section."""

    sizes: tuple[Count, ...] = (1, 2)
    ends_db: Annotated[tuple[float, ...], rising(-3, 3, optional=True)] = ()
    rate: Positive = setting(default=0.5, per_process=True)

    def __post_init__(self) -> None:
        if self.rate > len(self.sizes):
            raise InputError(f"rate={self.rate} must be at most the number of sizes")


@section
class Outer:
    """A config."""

    steps: Count = setting(default=4, resumable=True)
    inner: Inner = Inner()
    other: Inner = setting(default=Inner(sizes=(3,)), resumable=True)


def test_lists_become_tuples_and_integers_become_floats():
    parsed = parse(Outer, {"steps": 7, "inner": {"sizes": [4, 5], "rate": 1, "ends_db": [0, 1]}})
    assert parsed == Outer(steps=7, inner=Inner(sizes=(4, 5), rate=1.0, ends_db=(0.0, 1.0)))
    assert type(parsed.inner.rate) is type(parsed.inner.ends_db[0]) is float
    assert parsed.other.sizes == (3,)


def test_sections_are_values():
    outer = Outer(steps=7)
    assert hash(outer) == hash(Outer(steps=7))
    assert pickle.loads(pickle.dumps(outer)) == outer
    assert parse(Outer, dataclasses.asdict(outer)) == outer == dataclasses.replace(Outer(), steps=7)
    with pytest.raises(dataclasses.FrozenInstanceError):
        outer.steps = 8


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"step": 3}, "unknown config field step; did you mean steps? The fields of the config are "
         "steps, inner, other"),
        ({"inner": {"size": 3}}, "unknown config field inner.size; did you mean inner.sizes? The "
         "fields of section inner are sizes, ends_db, rate"),
        ({"inner": {"sizes": [1, 0]}}, "inner.sizes[1]=0 must be greater than or equal to 1"),
        ({"inner": {"ends_db": [2, 1]}}, "inner.ends_db=[2, 1] must be two "
         "rising numbers in -3..3"),
        ({"inner": {"rate": 3}}, "inner.rate=3.0 must be at most the number of sizes"),
        ({"steps": 2**31}, "steps=2147483648 must be less than or equal to 2147483647"),
        ({"steps": True}, "steps=True must be a valid integer"),
        (3, "the config=3 must be a section with fields"),
    ],
)  # fmt: skip
def test_errors_name_the_field_its_value_and_what_it_accepts(values, message):
    with pytest.raises(InputError) as caught:
        parse(Outer, values)
    assert str(caught.value) == message
    with pytest.raises(InputError) as caught:
        parse(Outer, values, "a/config.json")
    assert str(caught.value) == f"a/config.json: {message}"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sizes": (0,)}, "sizes[0]=0 must be greater than or equal to 1"),
        ({"rate": 3}, "rate=3.0 must be at most the number of sizes"),
        ({"ends_db": (1.0,)}, "ends_db=(1.0,) must be two rising numbers in -3..3"),
    ],
)
def test_a_section_made_in_code_is_checked_alike(change, message):
    with pytest.raises(InputError) as caught:
        Inner(**change)
    assert str(caught.value) == message


def test_marks_are_inherited_by_the_fields_of_a_section():
    def names(mark):
        return {name for name, _, has in fields_of(Outer(), mark) if has}

    assert names("per_process") == {"inner.rate", "other.rate"}
    others = {"other.sizes", "other.ends_db", "other.rate"}
    assert names("resumable") == {"steps", "inner.rate"} | others


VALUES = dataclasses.asdict(Outer()) | {"name": "a", "fast": True, "roots": ()}


@pytest.mark.parametrize(
    ("path", "text", "value"),
    [
        ("steps", "12", 12),
        ("steps", "fast", "fast"),  # which `parse` refuses by name
        ("name", "12", "12"),
        ("fast", "false", False),
        ("fast", "1", True),
        ("fast", "maybe", "maybe"),
        ("inner.rate", "1e-3", 1e-3),
        ("inner.sizes", "(4, 5)", (4, 5)),
        ("inner.sizes", "4,5", (4, 5)),
        ("inner.sizes", "4", (4,)),
        ("inner.sizes", "[]", ()),
        ("roots", "/a,b c", ("/a", "b c")),
        ("roots", "/a", ("/a",)),
    ],
)
def test_text_is_read_as_the_value_that_it_replaces(path, text, value):
    values = copy.deepcopy(VALUES)
    override(values, path, text)
    section_name, _, name = path.rpartition(".")
    changed = (values[section_name] if section_name else values)[name]
    assert changed == value
    assert type(changed) is type(value)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("inner.rat", "unknown config field inner.rat; did you mean inner.rate? The fields of"),
        ("inne.rate", "unknown config field inne; did you mean inner?"),
        ("steps.rate", "steps.rate: steps is a field and has no fields"),
        ("inner", "inner is a section; give one of its fields: sizes, ends_db, rate"),
    ],
)
def test_only_fields_can_be_overridden(path, message):
    values = copy.deepcopy(VALUES)
    with pytest.raises(InputError) as caught:
        override(values, path, "3")
    assert str(caught.value).startswith(message)
    assert values == VALUES
