"""The restricted pickle machine: live payloads do nothing here, and real pickles read right."""

import contextlib
import copyreg
import pickle
import struct
from collections import OrderedDict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from audiosep_jax.weights import torch_pickle
from audiosep_jax.weights.torch_pickle import Named, dict_opcodes, opcodes, unpickle

FIRED = []
HERE = __name__.encode()


def fire(*arguments: object, **keywords: object) -> dict:
    """The canary: any payload below that runs calls it."""
    FIRED.append(arguments or keywords)
    return {}


class Bomb:
    """Goes off wherever an unpickler may touch an object."""

    def __new__(cls, *arguments: object, **keywords: object) -> "Bomb":
        fire("__new__")
        return super().__new__(cls)

    def __setstate__(self, state: object) -> None:
        fire("__setstate__")

    def __setitem__(self, key: object, value: object) -> None:
        fire("__setitem__")

    def append(self, value: object) -> None:
        fire("append")

    method = staticmethod(fire)


class Quiet(Bomb):
    """Built without a sound, so that what fires is what comes after."""

    __new__ = object.__new__


copyreg.add_extension(__name__, "fire", 0xA7)
FIRE = b"c" + HERE + b"\nfire\n"
BOMB = b"c" + HERE + b"\nBomb\n"
QUIET = b"c" + HERE + b"\nQuiet\n)\x81"
CALL_FIRE = f"__import__('sys').modules['{__name__}'].fire()"


def text(value: str) -> bytes:
    return b"\x8c" + bytes([len(value)]) + value.encode()


LIVE = {
    "reduce": FIRE + b")R",
    "reduce with arguments": FIRE + b"K\x01K\x02\x86R",
    "reduce in a reduce": FIRE + FIRE + b")R\x85R",
    "reduce of a reduce": b"cfunctools\npartial\n" + FIRE + b"\x85R)R",
    "eval": b"cbuiltins\neval\n" + text(CALL_FIRE) + b"\x85R",
    "exec": b"cbuiltins\nexec\n" + text(CALL_FIRE) + b"\x85R",
    "inst": b"(K\x01i" + HERE + b"\nfire\n",
    "obj": b"(" + FIRE + b"K\x01o",
    "newobj": BOMB + b")\x81",
    "newobj_ex": BOMB + b")}\x92",
    "build": QUIET + b"}" + text("a") + b"K\x01sb",
    "setitem": QUIET + b"K\x01K\x02s",
    "setitems": QUIET + b"(K\x01K\x02u",
    "append": QUIET + b"K\x01a",
    "appends": QUIET + b"(K\x01e",
    "dotted name": text(__name__) + text("Bomb.method") + b"\x93)R",
    "getattr": b"cbuiltins\ngetattr\n" + BOMB + text("method") + b"\x86R)R",
    "extension 1": b"\x82\xa7)R",
    "extension 2": b"\x83\xa7\x00)R",
    "extension 4": b"\x84\xa7\x00\x00\x00)R",
    "in a parameter": b"(" + FIRE + b")RK\x01t0" + FIRE + b")R",
    "under a mark": b"(" + FIRE + b")Rl",
    "dict key": b"}" + FIRE + b")R0" + text("a") + FIRE + b")Rs",
}


@pytest.mark.parametrize("name", LIVE)
def test_payload_that_fires_in_pickle_does_nothing_here(name: str):
    data = b"\x80\x04" + LIVE[name] + b"."
    FIRED.clear()
    pickle.loads(data)
    assert FIRED, "a payload that cannot fire proves nothing"
    FIRED.clear()
    refused = pytest.raises(ValueError, match="extension")
    with refused if name.startswith("extension") else contextlib.nullcontext():
        unpickle(data)
    assert not FIRED


def test_system_is_not_called(tmp_path):
    canary = tmp_path / "canary"
    data = b"\x80\x04cos\nsystem\n" + text(f"touch {canary}") + b"\x85R."
    assert torch_pickle.describe(unpickle(data)) == "'os.system'"
    assert not canary.exists()
    pickle.loads(data)
    assert canary.exists()


def test_builder_of_tensors_cannot_be_altered_by_build():
    """A pickle that patches our classes or functions must leave the next file alone."""
    name = b"ctorch._utils\n_rebuild_tensor_v2\n"
    unpickle(b"\x80\x02" + name + b"N}X\x04\x00\x00\x00nameK\x01s\x86b.")
    tensor = unpickle(b"\x80\x02" + name + b"K\x01\x85R.")
    assert isinstance(tensor, Named)
    assert (tensor.name, tensor.arguments) == ("torch._utils._rebuild_tensor_v2", (1,))


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: (
        st.lists(inner)
        | st.lists(inner).map(tuple)
        | st.dictionaries(st.text(), inner)
        | st.dictionaries(st.text(), inner).map(OrderedDict)
    ),
    max_leaves=12,
)


@given(PLAIN, st.integers(0, 5))
@settings(deadline=None, max_examples=50)
def test_plain_values_are_read_as_pickle_reads_them(value: object, protocol: int):
    assert unpickle(pickle.dumps(value, protocol=protocol)) == value


@pytest.mark.filterwarnings("ignore:invalid escape sequence:DeprecationWarning")
@given(st.binary(max_size=60))
@settings(deadline=None)
def test_any_bytes_give_a_value_or_a_value_error(data: bytes):
    with contextlib.suppress(ValueError):
        unpickle(data)


def test_bytes_sets_and_unknown_keys_are_harmless():
    value = {"bytes": b"abc", "set": {1, 2}, "frozen": frozenset("a"), 7: "seven", (1,): 1}
    loaded = unpickle(pickle.dumps(value, protocol=4))
    assert isinstance(loaded, dict)
    assert loaded["bytes"] == b"abc"
    assert torch_pickle.describe(loaded["set"]) == "'set'"
    assert [key for key in loaded if isinstance(key, str)] == ["bytes", "set", "frozen"]


def nested(levels: int) -> bytes:
    return b"\x80\x02K\x01" + b"2\x86" * levels


TOO_MUCH = {
    "a long integer that is not there": b"\x80\x02\x8b\xff\xff\xff\x7f.",
    "a string that is not there": b"\x80\x04\x8d" + struct.pack("<Q", 1 << 62) + b".",
    "a negative long": b"\x80\x02\x8b\xff\xff\xff\xff.",
    "a long decimal": b"I" + b"9" * 100_000 + b"\n.",
    "a name that is not text": nested(60) + b"N\x93.",
    "a persistent id in text": b"Pstorage\n.",
    "a persistent id of no storage": b"K\x01Q.",
    "a memo that is not there": b"\x80\x02j\xff\xff\xff\x7f.",
    "a buffer": b"\x80\x05\x97.",
    "a mark that is not there": b"t.",
    "an empty stack": b".",
    "no end": b"\x80\x02}",
    "nothing": b"",
    "an item of an integer": b"K\x01NNs.",
    "an append to a dict": b"}Na.",
}


@pytest.mark.parametrize("name", TOO_MUCH)
def test_what_is_out_of_bounds_is_refused(name: str):
    with pytest.raises(ValueError, match="malformed or hostile"):
        unpickle(TOO_MUCH[name])


def test_too_many_names_are_refused(monkeypatch):
    monkeypatch.setattr(torch_pickle, "_MAX_NAMES", 10)
    with pytest.raises(ValueError, match="more than 10 classes and functions"):
        unpickle(b"ca\nb\n0" * 11 + b"N.")


def test_long_names_stay_out_of_messages():
    value = unpickle(b"\x80\x02c" + b"a" * 5000 + b"\nb\n.")
    assert len(torch_pickle.describe(value)) < 100


def test_deep_nesting_and_exponential_keys_end():
    """2**100 tuples by reference, hashed as a key, would take the age of the universe."""
    deep = b"\x80\x02" + b"]" * 200_000 + b"a" * 199_999 + b"."
    assert isinstance(unpickle(deep), list)
    loaded = unpickle(b"\x80\x02}" + nested(100)[2:] + b"Ns.")
    assert not any(isinstance(key, tuple) for key in loaded)


def test_memo_indices_are_not_sizes():
    """The C unpickler allocates as many slots as the largest index says."""
    assert unpickle(b"\x80\x02K\x05r\xff\xff\xff\x7f0j\xff\xff\xff\x7f.") == 5


def test_dumps_are_read_by_pickle():
    parts = [("a", opcodes(7)), ("ü", opcodes("é\n")), ("big", opcodes(1 << 40))]
    data = b"\x80\x02" + dict_opcodes(parts) + b"."
    assert pickle.loads(data) == unpickle(data) == {"a": 7, "ü": "é\n", "big": 1 << 40}
