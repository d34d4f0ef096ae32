"""PyTorch checkpoints and safetensors files, read and written as numpy arrays without PyTorch.

A PyTorch file is a zip with a pickle, which describes the tensors, and a member for each storage;
before PyTorch 1.6 it was pickles and storages one after another. Nothing that a pickle names is
imported or called.
"""

import math
import mmap
import os
import struct
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np
import safetensors.numpy

from audiosep_jax.errors import InputError
from audiosep_jax.files import not_the_file, replacing
from audiosep_jax.weights.torch_pickle import (
    Named,
    Storage,
    describe,
    dict_opcodes,
    opcodes,
    tensor_opcodes,
    unpickle,
    unpickle_legacy,
)

# A real checkpoint needs about 200 bytes for a tensor; reading so many opcodes takes seconds.
_MAX_PICKLE_BYTES = 32 << 20
# A view with a stride of 0 repeats its storage, up to this many elements.
_MAX_EXPANDED_ELEMENTS = 1 << 24
_ALIGNMENT_BYTES = 64
_LEGACY_MAGIC = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."  # a pickled long of 80 bits
_COUNT_BYTES = 8  # before each storage of a legacy file: its number of elements
# Lightning converts what older versions wrote and warns about newer ones; AudioSep pins this one.
_LIGHTNING_VERSION = "2.0.0"

_DTYPES = {
    "torch.FloatStorage": np.dtype(np.float32),
    "torch.HalfStorage": np.dtype(np.float16),
    "torch.BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "torch.DoubleStorage": np.dtype(np.float64),
    "torch.LongStorage": np.dtype(np.int64),
    "torch.IntStorage": np.dtype(np.int32),
    "torch.ShortStorage": np.dtype(np.int16),
    "torch.CharStorage": np.dtype(np.int8),
    "torch.ByteStorage": np.dtype(np.uint8),
    "torch.BoolStorage": np.dtype(np.bool_),
}
_STORAGE_KINDS = {dtype: kind for kind, dtype in _DTYPES.items()}


# ---------------------------------------------------------------------------- reading


def read_state_dict(
    path: str | os.PathLike[str], *, prefixes: tuple[str, ...] = ("",)
) -> dict[str, np.ndarray]:
    """Read the tensors of a `.ckpt`, `.pt`, `.bin` or `.safetensors` file under their full names.

    The content decides the format, not the suffix. Arrays of PyTorch files are read-only views of
    the mapped file: those that are not used cost nothing, and the file must not change while they
    exist (it may be replaced). The checksums of the zip are not verified.

    Args:
        path: the file.
        prefixes: only names that start with one of these are read.

    Raises:
        InputError: there is no such file, it is damaged or of another kind, or no name starts so.
    """
    path = Path(path)
    try:
        if not path.is_file():
            raise ValueError("is not a file" if path.exists() else "no such file")
        with path.open("rb") as file:
            head = file.read(len(_LEGACY_MAGIC))
            if head.startswith(b"PK\x03\x04"):
                return _read_zip(file, prefixes)
            if head.startswith(_LEGACY_MAGIC):
                return _read_legacy(file, prefixes)
        if head[8:9] == b"{":
            return _read_safetensors(path, prefixes)
        unknown = "is neither a PyTorch checkpoint nor a safetensors file"
        raise ValueError(not_the_file(path) or unknown)
    except Exception as error:  # a damaged or hostile file can make the libraries raise any
        raise InputError(f"{path}: {_one_line(error)}") from error


def _one_line(error: BaseException) -> str:
    words = " ".join(str(error).split())[:300]
    return "".join(char if char.isprintable() else "?" for char in words) or type(error).__name__


def _read_safetensors(path: Path, prefixes: tuple[str, ...]) -> dict[str, np.ndarray]:
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            return {name: file.get_tensor(name) for name in _select(list(file.keys()), prefixes)}
    except safetensors.SafetensorError as error:
        raise ValueError(f"is an incomplete or damaged file ({error}); fetch it again") from error


def _read_zip(file: BinaryIO, prefixes: tuple[str, ...]) -> dict[str, np.ndarray]:
    archive = _Archive(file)
    content = archive.member("data.pkl")
    if content.size > _MAX_PICKLE_BYTES:
        raise ValueError(f"its pickle has {content.size} bytes, more than a real one has")
    return _arrays(unpickle(content.tobytes()), prefixes, lambda key: archive.member(f"data/{key}"))


def _read_legacy(file: BinaryIO, prefixes: tuple[str, ...]) -> dict[str, np.ndarray]:
    content = _mapped(file)
    loaded, storages, place = unpickle_legacy(content[:_MAX_PICKLE_BYTES].tobytes())
    contents = {}
    for storage in storages:
        begin = place + _COUNT_BYTES
        place = begin + storage.num_elements * _dtype(storage).itemsize
        contents[storage.member] = content[begin:place]
    return _arrays(loaded, prefixes, contents.__getitem__)


def _mapped(file: BinaryIO) -> np.ndarray:
    return np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)


def _arrays(
    loaded: object, prefixes: tuple[str, ...], content_of: Callable[[str], np.ndarray]
) -> dict[str, np.ndarray]:
    """Make the chosen tensors of an unpickled object from the contents of its storages."""
    state_dict = _find_state_dict(loaded)
    arrays = {}
    for name in _select(list(state_dict), prefixes):
        try:
            arrays[name] = _to_array(state_dict[name], content_of)
        except Exception as error:
            raise ValueError(f"{name!r:.200}: {_one_line(error)}") from error
    return arrays


def _find_state_dict(loaded: object) -> dict[Any, Any]:
    if not isinstance(loaded, dict):
        raise ValueError(
            f"holds {describe(loaded)}, not a state dict; torch.save(model.state_dict(), ...)"
        )
    # "state_dict" is Lightning's.
    for field in ("state_dict", "model_state_dict", "model_state", "model"):
        if isinstance(loaded.get(field), dict):
            return loaded[field]
    return loaded


def _select(names: list[Any], prefixes: tuple[str, ...]) -> list[str]:
    if not names:
        raise ValueError("holds no tensors")
    if not all(isinstance(name, str) for name in names):
        raise ValueError("holds a dict with keys that are not text: not a state dict")
    chosen = [name for name in names if name.startswith(prefixes)]
    if not chosen:
        raise ValueError(f"no name starts with {' or '.join(prefixes)}; one is {names[0]!r:.80}")
    return chosen


class _Archive:
    """The members of a torch.save zip as mapped uint8 arrays."""

    def __init__(self, file: BinaryIO):
        try:
            self._zip = zipfile.ZipFile(file)
        except zipfile.BadZipFile as error:
            reason = f"is an incomplete or damaged zip ({error}); fetch it again"
            raise ValueError(reason) from error
        names = self._zip.namelist()
        roots = [name for name in names if name.endswith("/data.pkl")]
        if len(roots) != 1:
            raise ValueError("is a zip file without PyTorch's data.pkl")
        self._root = roots[0].removesuffix("data.pkl")
        self._bytes = _mapped(file)
        if f"{self._root}byteorder" in names and self.member("byteorder").tobytes() != b"little":
            raise ValueError("was written by a big-endian machine; save it again on another")

    def member(self, name: str) -> np.ndarray:
        """Return the content of `<archive>/<name>`, which is looked up in the zip's table only."""
        try:
            info = self._zip.getinfo(self._root + name)
        except KeyError:
            raise ValueError(f"no member {name!r:.80} in the zip; is it complete?") from None
        try:
            self._zip.open(info).close()  # checks the local header: magic, name, encryption
        except Exception as error:
            raise ValueError(f"member {name!r:.80}: {error}") from error
        if info.compress_type != zipfile.ZIP_STORED:
            raise ValueError("is compressed, which PyTorch never does; save it with PyTorch again")
        start = info.header_offset + 30  # then come name and extra field, with their sizes at 26
        start += sum(struct.unpack_from("<HH", self._bytes.data, info.header_offset + 26))
        content = self._bytes[start : start + info.file_size]
        if content.size != info.file_size:
            raise ValueError(f"member {name!r:.80}: goes beyond the end of the file")
        return content


def _dtype(storage: Storage) -> np.dtype:
    if storage.kind not in _DTYPES:
        raise ValueError(f"has the dtype of {storage.kind:.80}, which is not supported")
    return _DTYPES[storage.kind]


def _to_array(value: object, content_of: Callable[[str], np.ndarray]) -> np.ndarray:
    """Make the tensor as a view of its storage; numpy checks that the view is inside it."""
    while isinstance(value, Named) and value.name.startswith("torch._utils._rebuild_parameter"):
        value = value.arguments[0]
    names = ("torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor")
    if not isinstance(value, Named) or value.name not in names:
        raise ValueError(f"is {describe(value)}, not a tensor")
    match value.arguments:
        case (Storage() as storage, int(offset), tuple(shape), tuple(strides), *_):
            dtype, content = _dtype(storage), content_of(storage.member)
        case _:
            raise ValueError("is a malformed tensor")
    if content.size < storage.num_elements * dtype.itemsize:
        raise ValueError(f"its storage has {content.size} bytes, fewer than declared")
    if math.prod(shape) > max(storage.num_elements, _MAX_EXPANDED_ELEMENTS):
        raise ValueError(f"expands a storage of {storage.num_elements} elements to {shape}")
    array: np.ndarray = np.ndarray(
        shape,
        dtype,
        buffer=content,
        offset=offset * dtype.itemsize,
        strides=[stride * dtype.itemsize for stride in strides],
    )
    return array if array.flags.aligned else array.copy()


# ---------------------------------------------------------------------------- writing


def write_torch(
    path: str | os.PathLike[str], state_dict: Mapping[str, np.ndarray], *, lightning: bool
) -> None:
    """Write a file that `torch.load(path, weights_only=True)` reads as a dict of tensors.

    Args:
        path: the file, which is replaced when the new one is complete.
        state_dict: arrays by name.
        lightning: put the state dict under "state_dict", as Lightning's checkpoints do.
    """
    _check_arrays(path, state_dict)
    tensors = []
    for index, (name, array) in enumerate(state_dict.items()):
        storage = Storage(_STORAGE_KINDS[array.dtype], str(index), array.size)
        tensors.append((name, tensor_opcodes(storage, array.shape)))
    tree = dict_opcodes(tensors)
    if lightning:
        values = {"epoch": 0, "global_step": 0, "pytorch-lightning_version": _LIGHTNING_VERSION}
        fields = [(name, opcodes(value)) for name, value in values.items()]
        tree = dict_opcodes([*fields, ("state_dict", tree)])
    with (
        replacing(path) as partial,
        partial.open("wb") as file,
        zipfile.ZipFile(file, "w") as archive,
    ):
        _write_member(file, archive, "data.pkl", b"\x80\x02" + tree + b".")  # protocol 2
        _write_member(file, archive, "byteorder", b"little")
        for index, array in enumerate(state_dict.values()):
            content = np.asarray(array, order="C").reshape(-1).view(np.uint8).data
            _write_member(file, archive, f"data/{index}", content)
        _write_member(file, archive, "version", b"3\n")


def write_safetensors(
    path: str | os.PathLike[str],
    state_dict: Mapping[str, np.ndarray],
    about: Mapping[str, str] | None = None,
) -> None:
    """Write a safetensors file, with `about` in its header; it is put in place when complete."""
    _check_arrays(path, state_dict)
    # The library writes the bytes of other orders as they are, under the shape of C order.
    tensors = {name: np.asarray(array, order="C") for name, array in state_dict.items()}
    with replacing(path) as partial:
        # transformers refuses files without the format. `save_file` would ignore the umask.
        partial.write_bytes(safetensors.numpy.save(tensors, {"format": "pt", **(about or {})}))


def _check_arrays(path: str | os.PathLike[str], state_dict: Mapping[str, np.ndarray]) -> None:
    if not state_dict:
        raise InputError(f"{path}: there are no tensors to write")
    for name, array in state_dict.items():
        if not isinstance(name, str) or array.dtype not in _STORAGE_KINDS:
            raise InputError(f"{path}: {name!r:.80} of {array.dtype} cannot be written")


def _write_member(
    file: BinaryIO, archive: zipfile.ZipFile, name: str, content: bytes | memoryview
) -> None:
    """Append a member that starts at a multiple of 64 bytes, as PyTorch's do."""
    info = zipfile.ZipInfo(f"archive/{name}")
    info.file_size = len(content)
    start = file.tell() + 30 + len(info.filename) + 4
    padding = -start % _ALIGNMENT_BYTES
    info.extra = b"FB" + struct.pack("<H", padding) + bytes(padding)
    with archive.open(info, "w") as member:
        member.write(content)
