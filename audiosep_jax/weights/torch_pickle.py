"""The pickle in a PyTorch file, read and written without PyTorch; runs nothing that a file says.

`load` interprets the pickle opcode by opcode. It can make tensors and plain containers; whatever
else the file names becomes an inert stand-in. The standard unpickler, even restricted by
`find_class`, would still call `__setstate__`, `append` and `setattr` on what a hostile file built.
"""

import dataclasses
import pickle
import pickletools
import struct
from collections.abc import Iterable

# A real checkpoint needs about 30 opcodes and 200 bytes for a tensor.
MAX_PICKLE_BYTES = 64 << 20
_MAX_OPCODES = 3_000_000
_MAX_NAME_CHARS = 4096


@dataclasses.dataclass(frozen=True, eq=False, slots=True)
class Storage:
    """A reference to a file member of `num_elements`; `kind` is such as "torch.FloatStorage"."""

    kind: str
    member: str
    num_elements: int


@dataclasses.dataclass(frozen=True, eq=False, slots=True)
class Tensor:
    """What the file gives `_rebuild_tensor_v2`, unchecked: storage, offset, shape, strides, ..."""

    arguments: tuple


@dataclasses.dataclass(frozen=True, eq=False, slots=True)
class _Global:
    name: str  # of a class or function, never imported


@dataclasses.dataclass(frozen=True, eq=False, slots=True)
class _Inert:
    name: str  # of the class or function that would have made the object


_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_SET": _Inert("set")}
_EMPTY = {"EMPTY_TUPLE": tuple, "EMPTY_LIST": list, "EMPTY_DICT": dict}
_INTEGERS = {"INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4"}
_TEXTS = {"UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"}
_BYTES = {"STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"}
_LITERALS = _INTEGERS | _TEXTS | _BYTES | {"BYTEARRAY8", "FLOAT", "BINFLOAT"}
_MARKED = {"TUPLE", "LIST", "DICT", "FROZENSET", "INST", "OBJ"}
_MARKED |= {"APPENDS", "ADDITEMS", "SETITEMS", "POP_MARK"}


def load(data: bytes) -> object:
    """The object that the pickle describes; ValueError where it is malformed or out of bounds."""
    if len(data) > MAX_PICKLE_BYTES:
        raise ValueError(f"its pickle has {len(data)} bytes, more than any real checkpoint")
    machine = _Machine()
    try:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(data)):
            if count >= _MAX_OPCODES:
                raise ValueError(f"it has more than {_MAX_OPCODES} opcodes")
            if opcode.name == "STOP":
                break
            machine.step(opcode.name, argument)
        (loaded,) = machine.pop(1)
    except (LookupError, OverflowError, TypeError, ValueError, struct.error) as error:
        raise ValueError(f"its pickle is malformed or hostile: {error}") from error
    return loaded


def describe(value: object) -> str:
    """What a loaded value is, in a few words; never its content, which can be of any size."""
    name = value.name if isinstance(value, (_Global, _Inert)) else type(value).__name__
    return repr(name[:80])


class _Machine:
    """The pickle virtual machine without its calls: no opcode imports, calls or sets attributes."""

    def __init__(self) -> None:
        self._stack: list = []
        self._below_marks: list[list] = []
        self._memo: dict[object, object] = {}

    def step(self, opcode: str, argument: object) -> None:
        if opcode in _LITERALS:
            self._stack.append(argument)
        elif opcode in _EMPTY:
            self._stack.append(_EMPTY[opcode]())
        elif opcode in _CONSTANTS:
            self._stack.append(_CONSTANTS[opcode])
        elif opcode in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            index = len(self._memo) if argument is None else argument
            self._memo[index] = self._stack[-1]
        elif opcode in ("GET", "BINGET", "LONG_BINGET"):
            self._stack.append(self._memo[argument])
        elif opcode in _MARKED:
            items, self._stack = self._stack, self._below_marks.pop()
            self._close_mark(opcode, argument, items)
        else:
            self._act(opcode, argument)

    def _close_mark(self, opcode: str, argument: object, items: list) -> None:
        match opcode:
            case "TUPLE":
                self._stack.append(tuple(items))
            case "LIST":
                self._stack.append(items)
            case "DICT":
                self._stack.append({})
                _set_items(self._stack[-1], items)
            case "APPENDS" | "ADDITEMS":
                _append(self._stack[-1], items)
            case "SETITEMS":
                _set_items(self._stack[-1], items)
            case "FROZENSET":
                self._stack.append(_Inert("frozenset"))
            case "INST":
                self._stack.append(_reduce(_global_from(argument), None))
            case "OBJ":
                self._stack.append(_reduce(items[0], None))

    def _act(self, opcode: str, argument: object) -> None:
        stack = self._stack
        match opcode:
            case "PROTO" | "FRAME":
                pass
            case "MARK":
                self._below_marks.append(stack)
                self._stack = []
            case "POP" if not stack:
                self._stack = self._below_marks.pop()
            case "POP" | "BUILD":  # BUILD would give its object a state: the state is dropped
                self.pop(1)
            case "DUP":
                stack.append(stack[-1])
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                stack.append(tuple(self.pop(int(opcode[-1]))))
            case "APPEND":
                _append(stack[-2], self.pop(1))
            case "SETITEM":
                _set_items(stack[-3], self.pop(2))
            case "GLOBAL":
                stack.append(_global_from(argument))
            case "STACK_GLOBAL":
                stack.append(_global(*self.pop(2)))
            case "REDUCE" | "NEWOBJ":
                stack.append(_reduce(*self.pop(2)))
            case "NEWOBJ_EX":
                stack.append(_reduce(self.pop(3)[0], None))
            case "BINPERSID":
                stack.append(_storage(*self.pop(1)))
            case _:
                raise ValueError(f"it uses {opcode}, which no checkpoint needs")

    def pop(self, count: int) -> list:
        """Takes the last `count` objects off the stack."""
        if len(self._stack) < count:
            raise ValueError("it takes more objects than it has made")
        items = self._stack[-count:]
        del self._stack[-count:]
        return items


def _global(module: object, name: object) -> _Global:
    if not (isinstance(module, str) and isinstance(name, str)):
        raise ValueError("a class or function has a name that is not text")
    if len(module) + len(name) > _MAX_NAME_CHARS:
        raise ValueError(f"a class or function has a name of over {_MAX_NAME_CHARS} characters")
    return _Global(f"{module}.{name}")


def _global_from(argument: object) -> _Global:
    module, _, name = str(argument).partition(" ")
    return _global(module, name)


def _reduce(function: object, arguments: object) -> object:
    """What `function(*arguments)` makes, for the few functions we know; nothing is called."""
    name = function.name if isinstance(function, _Global) else "an object made by an object"
    if isinstance(arguments, tuple):
        match name:
            case "torch._utils._rebuild_tensor_v2" | "torch._utils._rebuild_tensor":
                return Tensor(arguments)
            case "torch._utils._rebuild_parameter" | "torch._utils._rebuild_parameter_with_state":
                return arguments[0]
            case "torch.Size":
                return arguments[0]
            case "collections.OrderedDict" if not arguments:
                return {}
    return _Inert(name)


def _storage(reference: object) -> Storage:
    """From the persistent id ("storage", class, member, device, number of elements)."""
    match reference:
        case ("storage", _Global(name=kind), str(member), _, int(num_elements)):
            return Storage(kind, member, num_elements)
    raise ValueError("a storage is referred to in an unknown way")


def _append(target: object, values: list) -> None:
    if isinstance(target, list):
        target.extend(values)
    elif not isinstance(target, _Inert):
        raise ValueError(f"it appends to {describe(target)}")


def _set_items(target: object, items: list) -> None:
    """Sets alternating keys and values; a key that is not text becomes an inert one.

    Hashing or comparing other keys can be made to take forever (nested tuples, huge integers), and
    state dicts have none.
    """
    if isinstance(target, dict):
        for key, value in zip(items[::2], items[1::2], strict=True):
            if isinstance(key, str) and len(key) > _MAX_NAME_CHARS:
                raise ValueError(f"a key has over {_MAX_NAME_CHARS} characters")
            target[key if isinstance(key, str) else _Inert(type(key).__name__)] = value
    elif not isinstance(target, _Inert):
        raise ValueError(f"it sets items of {describe(target)}")


def dump_header() -> bytes:
    """Opens a pickle of protocol 2, which every PyTorch with zip files reads."""
    return b"\x80\x02"


def dump_dict(items: Iterable[tuple[str, bytes]]) -> bytes:
    """Pickle of a dict, from its keys and the pickles of its values."""
    return b"}(" + b"".join(dump_text(key) + value for key, value in items) + b"u"


def dump_text(text: str) -> bytes:
    """Pickle of a string."""
    utf8 = text.encode()
    return b"X" + struct.pack("<I", len(utf8)) + utf8


def dump_int(number: int) -> bytes:
    """Pickle of an integer."""
    return pickle.dumps(number, protocol=2)[2:-1]


def dump_tensor(storage: Storage, shape: tuple[int, ...], strides: tuple[int, ...]) -> bytes:
    """Pickle of a tensor that starts at the beginning of its storage."""
    kind = storage.kind.removeprefix("torch.").encode()
    reference = b"(" + dump_text("storage") + b"ctorch\n" + kind + b"\n"
    reference += dump_text(storage.member) + dump_text("cpu") + dump_int(storage.num_elements)
    sizes = b"".join(b"(" + b"".join(map(dump_int, numbers)) + b"t" for numbers in (shape, strides))
    arguments = reference + b"tQ" + dump_int(0) + sizes
    # requires_grad False and no backward hooks
    arguments += b"\x89" + b"ccollections\nOrderedDict\n)R"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + arguments + b"tR"
