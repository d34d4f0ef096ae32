"""The pickle in a PyTorch file, read and written without PyTorch; nothing that it names is run."""

import io
import math
import pickle
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple

_MAX_NAMES = 100_000  # of classes and functions; a real checkpoint names some 20


def unpickle(content: bytes) -> Any:
    """Return the object that a pickle describes; ValueError if it is malformed or hostile."""
    try:
        return _Unpickler(io.BytesIO(content)).load()
    except Exception as error:  # such as an opcode that takes more objects than there are
        reason = str(error) or type(error).__name__
        raise ValueError(f"its pickle is malformed or hostile: {reason}") from error


def unpickle_legacy(content: bytes) -> tuple[Any, list["Storage"], int]:
    """Read the pickles that begin a file of PyTorch before 1.6, as `unpickle` does.

    Returns:
        The object, its storages in the order of the file, and the place where the first begins.
    """
    try:
        file = io.BytesIO(content)
        _magic, _version, system = (_Unpickler(file).load() for _ in range(3))
        unpickler = _Unpickler(file)
        loaded, keys = unpickler.load(), _Unpickler(file).load()
        if not system["little_endian"]:
            raise ValueError("it was written by a big-endian machine")
        return loaded, [unpickler.storages[key] for key in keys], file.tell()
    except Exception as error:
        reason = str(error) or type(error).__name__
        raise ValueError(f"its pickle is malformed or hostile: {reason}") from error


def describe(value: object) -> str:
    """Say what a loaded value is, but not its content, which can be of any size."""
    kind = value if isinstance(value, type) else type(value)
    return repr(str(getattr(kind, "name", kind.__name__))[:80])


class Named:
    """Instance of a class, or result of a function, that a pickle names: it keeps its arguments.

    `_Unpickler.find_class` makes a subclass for each name, so that nothing a file does to a class
    can reach the next file.
    """

    name = ""
    arguments: tuple[Any, ...] = ()

    def __new__(cls, *arguments: Any, **_: Any) -> "Named":
        self = super().__new__(cls)
        self.arguments = arguments
        return self

    def __call__(self, *_: Any, **__: Any) -> "Named":
        return self

    def __setitem__(self, key: Any, value: Any) -> None:
        """Ignore an item."""

    def extend(self, items: Any) -> None:
        """Ignore items."""

    append = add = extend


class _Dict(dict[Any, Any]):
    """Dict that replaces keys that are not text: a hash of nested tuples can take for ever."""

    def __init__(self) -> None:
        super().__init__()

    def __setitem__(self, key: Any, value: Any) -> None:
        super().__setitem__(key if type(key) is str else object(), value)


class Storage(NamedTuple):
    """Reference to the content of a tensor: to a member of the zip, if the file is one."""

    kind: str  # such as "torch.FloatStorage"
    member: str
    num_elements: int


class _Unpickler(pickle._Unpickler):
    """Unpickler that makes tensors and plain containers, and runs nothing that a file names.

    It extends the standard library's unpickler in Python. Its twin in C cannot be kept from taking
    objects out of copyreg's cache, or from allocating as much memory as a file asks for.
    """

    # The library's own, which its stubs leave out.
    append: Callable[[Any], None]
    pop_mark: Callable[[], list[Any]]

    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = dict(pickle._Unpickler.dispatch)
    _num_names = 0

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file)
        self.storages: dict[str, Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        self._num_names += 1
        if self._num_names > _MAX_NAMES:
            raise ValueError(f"it names more than {_MAX_NAMES} classes and functions")
        full = f"{module}.{name}"
        if full == "torch.Size":
            return type("Size", (tuple,), {})
        return type("Dict", (_Dict,), {}) if full == "collections.OrderedDict" else _named(full)

    def persistent_load(self, pid: Any) -> Any:
        match pid:
            # The None of files before 1.6 says that the storage is no part of another one.
            case ("storage", type() as kind, str(member), _, int(num_elements), *rest) if not any(
                rest
            ):
                storage = Storage(str(getattr(kind, "name", "")), member, num_elements)
                return self.storages.setdefault(member, storage)
        raise ValueError("it refers to a storage in an unknown way")

    def get_extension(self, code: int) -> None:
        raise ValueError(f"it uses extension {code} of copyreg, which no checkpoint needs")

    def _load_dict(self) -> None:
        items = self.pop_mark()
        made = _Dict()
        for key, value in zip(items[::2], items[1::2], strict=True):
            made[key] = value
        self.append(made)

    def _load_frozenset(self) -> None:
        self.pop_mark()
        self.append(_named("frozenset")())

    def _refuse(self) -> None:
        raise ValueError("it holds a buffer, which no checkpoint needs")

    dispatch |= {
        pickle.BUILD[0]: lambda self: self.stack.pop(),  # drops the state of an object
        pickle.EMPTY_DICT[0]: lambda self: self.append(_Dict()),
        pickle.DICT[0]: _load_dict,
        pickle.EMPTY_SET[0]: lambda self: self.append(_named("set")()),
        pickle.FROZENSET[0]: _load_frozenset,
        pickle.BYTEARRAY8[0]: _refuse,
    }


def _named(name: str) -> type[Named]:
    return type("Named", (Named,), {"name": name})


def opcodes(value: Any) -> bytes:
    """Opcodes that push a plain value, without the header and the end of a pickle."""
    return pickle.dumps(value, protocol=2)[2:-1]


def dict_opcodes(items: Sequence[tuple[str, bytes]]) -> bytes:
    """Opcodes of a dict, from its keys and the opcodes of its values."""
    return b"}(" + b"".join(opcodes(key) + value for key, value in items) + b"u"


def tensor_opcodes(storage: Storage, shape: tuple[int, ...]) -> bytes:
    """Opcodes of `_rebuild_tensor_v2(storage, 0, shape, strides, False, OrderedDict())`."""
    strides = tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
    kind = storage.kind.removeprefix("torch.").encode()
    reference = b"(" + opcodes("storage") + b"ctorch\n" + kind + b"\n" + opcodes(storage.member)
    reference += opcodes("cpu") + opcodes(storage.num_elements) + b"tQ"
    view = opcodes(0) + opcodes(shape) + opcodes(strides)
    hooks = b"\x89ccollections\nOrderedDict\n)R"  # requires no gradient, has no hooks
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + reference + view + hooks + b"tR"
