"""PyTorch and safetensors files: equal to PyTorch bit for bit; hostile files refused by name."""

import argparse
import contextlib
import io
import json
import os
import pickle
import re
import struct
import zipfile
from pathlib import Path
from types import ModuleType

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from audiosep_jax.errors import InputError
from audiosep_jax.weights import torch_files
from audiosep_jax.weights.torch_files import read_state_dict, write_safetensors, write_torch
from audiosep_jax.weights.torch_pickle import Storage, dict_opcodes, opcodes, tensor_opcodes

RNG = np.random.default_rng(0)
DTYPES = [ml_dtypes.bfloat16, "f2", "f4", "f8", "i8", "i4", "i2", "i1", "u1", "?"]
ARRAYS = {f"of.{np.dtype(dtype)}": (RNG.normal(size=(3, 5)) * 9).astype(dtype) for dtype in DTYPES}
ARRAYS |= {
    "scalar": np.array(3.5, np.float32),
    "empty": np.zeros((0, 4), np.float32),
    "transposed": RNG.normal(size=(4, 3, 2)).astype(np.float32).T,
    "every.other": np.arange(20, dtype=np.int64)[::2],
    "ünï/code": np.array([np.nan, -0.0, np.inf], np.float32),
}


@pytest.fixture(scope="session")
def torch() -> ModuleType:
    return pytest.importorskip("torch", reason="PyTorch is installed by the extra `test` only")


def assert_same(left: np.ndarray, right: np.ndarray) -> None:
    assert (left.dtype, left.shape) == (right.dtype, right.shape)
    assert left.tobytes() == right.tobytes()


def bits(tensor) -> np.ndarray:
    """A PyTorch tensor as numpy, which PyTorch itself does not offer for bfloat16."""
    import torch

    tensor = tensor.detach().contiguous()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()


@pytest.mark.parametrize("lightning", [False, True])
def test_written_files_come_back(tmp_path, lightning: bool):
    path = tmp_path / "weights.ckpt"
    write_torch(path, ARRAYS, lightning=lightning)
    loaded = read_state_dict(path)
    assert list(loaded) == list(ARRAYS)
    for name, array in loaded.items():
        assert_same(array, ARRAYS[name])
        assert not array.flags.writeable or not array.size
    assert os.listdir(tmp_path) == ["weights.ckpt"]


@pytest.mark.parametrize("lightning", [False, True])
def test_pytorch_reads_what_is_written(torch, tmp_path, lightning: bool):
    path = tmp_path / "weights.pt"
    write_torch(path, ARRAYS, lightning=lightning)
    loaded = torch.load(path, weights_only=True)
    if lightning:
        assert loaded["pytorch-lightning_version"] == "2.0.0"
        loaded = loaded["state_dict"]
    assert list(loaded) == list(ARRAYS)
    for name, tensor in loaded.items():
        assert tensor.is_contiguous()
        assert_same(bits(tensor), ARRAYS[name])


def test_pytorch_maps_what_is_written(torch, tmp_path):
    """Storages start at multiples of 64 bytes, as torch.load(mmap=True) likes them."""
    write_torch(tmp_path / "a.pt", ARRAYS, lightning=False)
    for tensor in torch.load(tmp_path / "a.pt", weights_only=True, mmap=True).values():
        assert tensor.untyped_storage().data_ptr() % 64 == 0 or not tensor.numel()


def torch_tensors(torch) -> dict:
    base = torch.randn(4, 6, generator=torch.Generator().manual_seed(1))
    floats = [torch.bfloat16, torch.float16, torch.float32, torch.float64]
    integers = [torch.int64, torch.int32, torch.int16, torch.int8, torch.bool]
    tensors = {str(dtype): (base * 9).to(dtype) for dtype in floats + integers}
    return tensors | {
        "shared": base,
        "shared.row": base[2],
        "shared.transposed": base.T,
        "strided": base[1::2, ::3],
        "permuted": torch.arange(24, dtype=torch.uint8).reshape(2, 3, 4).permute(2, 0, 1),
        "expanded": torch.arange(3.0).expand(2, 3),
        "parameter": torch.nn.Parameter(base[:2].clone()),
        "scalar": torch.tensor(7),
        "empty": torch.zeros(3, 0, 2),
    }


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_pytorch_files_are_read_bit_for_bit(torch, tmp_path, protocol: int):
    tensors = torch_tensors(torch)
    torch.save(tensors, tmp_path / "a.bin", pickle_protocol=protocol)
    loaded = read_state_dict(tmp_path / "a.bin")
    assert list(loaded) == list(tensors)
    for name, tensor in tensors.items():
        assert_same(loaded[name], bits(tensor))
    assert np.shares_memory(loaded["shared"], loaded["shared.row"])


class AttributeDict(dict):
    """Lightning's class for hyperparameters, which no reader may need."""


def lightning_checkpoint(torch) -> tuple[dict, dict]:
    model = torch.nn.Sequential(torch.nn.Conv2d(2, 3, 3), torch.nn.BatchNorm2d(3))
    moments = {"step": torch.tensor(1.0), "exp_avg": torch.zeros(3, 2, 3, 3)}
    weights = {f"ss_model.{name}": value for name, value in model.state_dict().items()}
    weights["query_encoder.weight"] = torch.ones(2)
    checkpoint = {
        "epoch": 3,
        "pytorch-lightning_version": "1.9.0",
        "state_dict": weights,
        "optimizer_states": [{"state": {0: moments}, "param_groups": [{"params": [0]}]}],
        "lr_schedulers": [{"gamma": Path("somewhere"), "module": model}],
        "hyper_parameters": AttributeDict(rate=1e-3, options=argparse.Namespace(a=1), size={1, 2}),
        "device": torch.device("cpu"),
        "size": torch.Size([2, 3]),
        "dtype": torch.float32,
        "rng": np.random.default_rng(0).normal(size=3),
    }
    return checkpoint, weights


def test_lightning_checkpoint_with_foreign_objects(torch, tmp_path):
    checkpoint, weights = lightning_checkpoint(torch)
    torch.save(checkpoint, tmp_path / "last.ckpt")
    loaded = read_state_dict(tmp_path / "last.ckpt", prefixes=("ss_model.",))
    assert list(loaded) == [name for name in weights if name.startswith("ss_model.")]
    for name, array in loaded.items():
        assert_same(array, bits(weights[name]))
    assert "query_encoder.weight" in read_state_dict(tmp_path / "last.ckpt")


@pytest.mark.parametrize("field", ["state_dict", "model", "model_state_dict"])
def test_state_dict_of_a_module_under_its_usual_names(torch, tmp_path, field: str):
    module = torch.nn.Linear(3, 2)
    torch.save({"epoch": 1, field: module.state_dict()}, tmp_path / "a.pth")
    loaded = read_state_dict(tmp_path / "a.pth")
    assert_same(loaded["weight"], module.weight.detach().numpy())
    assert_same(loaded["bias"], module.bias.detach().numpy())


def test_what_is_not_a_state_dict_is_refused(torch, tmp_path):
    path = tmp_path / "a.pt"
    cases = {
        "torch.nn.modules.linear.Linear": torch.nn.Linear(2, 2),
        "'list', not a state dict": [torch.ones(2)],
        "'epoch': is 'int', not a tensor": {"epoch": 1},
        "ComplexFloatStorage": {"a": torch.ones(2, dtype=torch.complex64)},
        "'a': is 'torch._utils._rebuild_sparse_tensor'": {"a": torch.eye(2).to_sparse()},
        "holds no tensors": {},
        "keys that are not text": {1: torch.ones(2)},
    }
    for message, value in cases.items():
        torch.save(value, path)
        assert message in refusal(path)


# ---------------------------------------------------------------------------- before PyTorch 1.6


def legacy(values: dict[str, bytes], *storages: np.ndarray, little_endian: bool = True) -> bytes:
    """A file of PyTorch before 1.6, whose values are opcodes."""
    parts = [0x1950A86A20F9469CFC6C, 1001, {"little_endian": little_endian}]
    content = b"".join(pickle.dumps(part, 2) for part in parts)
    content += b"\x80\x02" + dict_opcodes(list(values.items())) + b"."
    content += pickle.dumps([str(key) for key in range(len(storages))], 2)
    return content + b"".join(struct.pack("<q", x.size) + x.tobytes() for x in storages)


def legacy_tensor(key: int, array: np.ndarray, num_elements: int | None = None) -> bytes:
    kind = {"f4": "FloatStorage", "i8": "LongStorage"}[array.dtype.str[1:]]
    storage = Storage(kind, str(key), num_elements or array.size)
    return tensor_opcodes(storage, array.shape).replace(b"tQ", b"NtQ")  # it is no view


def test_a_legacy_file_is_read(tmp_path):
    first, second = np.arange(6, dtype=np.float32).reshape(2, 3), np.arange(3, dtype=np.int64)
    tensors = {"a.weight": legacy_tensor(0, first), "b": legacy_tensor(1, second)}
    (tmp_path / "a.pt").write_bytes(legacy(tensors, first, second))
    loaded = read_state_dict(tmp_path / "a.pt")
    assert set(loaded) == {"a.weight", "b"}
    assert_same(loaded["a.weight"], first)
    assert_same(loaded["b"], second)
    assert set(read_state_dict(tmp_path / "a.pt", prefixes=("b",))) == {"b"}


def test_legacy_files_of_pytorch_are_read(torch, tmp_path):
    tensors = {"a": torch.randn(3, 4).T, "b": torch.arange(5), "c": torch.randn(9)[2:5]}
    tensors["d"] = tensors["c"]
    torch.save(
        {"step": 3, "model_state": tensors},
        tmp_path / "a.pt",
        _use_new_zipfile_serialization=False,
    )
    loaded = read_state_dict(tmp_path / "a.pt")
    for name, tensor in tensors.items():
        assert_same(loaded[name], tensor.numpy())


def test_a_legacy_file_runs_nothing_and_is_refused(tmp_path):
    array = np.ones(4, np.float32)
    tensor = legacy_tensor(0, array)
    system = b"cos\nsystem\n(" + opcodes(f"touch {tmp_path}/ran") + b"tR"
    whole, path = legacy({"a": tensor}, array), tmp_path / "a.pt"
    cases = {
        "'a': is 'os.system', not a tensor": legacy({"a": system, "b": tensor}, array),
        "big-endian": legacy({"a": tensor}, array, little_endian=False),
        "12 bytes, fewer than declared": whole[:-4],
        "fewer than declared": legacy({"a": legacy_tensor(0, array, 1 << 40)}, array),
        "malformed or hostile": whole[:60],
        "the dtype of torch.QStorage": legacy({"a": tensor.replace(b"Float", b"Q")}, array),
    }
    for message, content in cases.items():
        path.write_bytes(content)
        assert message in refusal(path)
    assert not (tmp_path / "ran").exists()


def test_safetensors_both_ways(tmp_path):
    arrays = {name: np.ascontiguousarray(array) for name, array in ARRAYS.items()}
    arrays["scalar"] = ARRAYS["scalar"]
    safetensors.numpy.save_file(arrays, tmp_path / "theirs")
    write_safetensors(tmp_path / "ours", ARRAYS)
    ours = safetensors.numpy.load_file(tmp_path / "ours")
    theirs = read_state_dict(tmp_path / "theirs")
    assert set(ours) == set(theirs) == set(ARRAYS)
    for name, array in ARRAYS.items():
        assert_same(ours[name], array)
        assert_same(theirs[name], array)
    chosen = read_state_dict(tmp_path / "ours", prefixes=("of.float", "scal"))
    assert set(chosen) == {"of.float16", "of.float32", "of.float64", "scalar"}


def test_prefixes_that_fit_nothing_are_named(tmp_path):
    write_torch(tmp_path / "a", {"model.weight": np.ones(2)}, lightning=True)
    write_safetensors(tmp_path / "b", {"model.weight": np.ones(2)})
    for name in "ab":
        message = refusal(tmp_path / name, prefixes=("ss_model.", "net."))
        assert "no name starts with ss_model. or net.; one is 'model.weight'" in message


def refusal(path: Path, **options: tuple[str, ...]) -> str:
    """The one line that refuses a file; anything but an InputError that names it fails."""
    with pytest.raises(InputError) as caught:
        read_state_dict(path, **options)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert message.isprintable(), "one line, and nothing that a terminal obeys"
    assert len(message) < len(str(path)) + 320
    return message


FOUR = np.arange(4, dtype=np.float32)


def tensor(member: str = "0", count: int = 4, kind: str = "FloatStorage", **view) -> bytes:
    """Pickle of a view of the storage FOUR, or of one that claims more."""
    shape = view.get("shape", (4,))
    data = tensor_opcodes(Storage(f"torch.{kind}", member, count), (7, 8, 9))
    view = view.get("offset", opcodes(0)) + opcodes(shape) + opcodes(view.get("strides", (1,)))
    return data.replace(opcodes(0) + opcodes((7, 8, 9)) + opcodes((72, 9, 1)), view)


def checkpoint(value: bytes, name: str = "w") -> bytes:
    return b"\x80\x02" + dict_opcodes([(name, value)]) + b"."


def torch_zip(
    data: bytes, *, root: str = "archive", compression: int = zipfile.ZIP_STORED, **members: bytes
) -> bytes:
    """A file as torch.save lays it out, of any pickle and members."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        archive.writestr(f"{root}/data.pkl", data)
        archive.writestr(f"{root}/data/0", FOUR.tobytes())
        for name, content in members.items():
            archive.writestr(f"{root}/{name}", content)
    return buffer.getvalue()


GOOD = torch_zip(checkpoint(tensor()), version=b"3\n", byteorder=b"little")


def set_encrypted() -> bytes:
    data = bytearray(GOOD)
    for magic, position in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        start = data.rindex(magic)
        while start >= 0:
            data[start + position] |= 1
            start = data.rfind(magic, 0, start)
    return bytes(data)


def beyond_the_end() -> bytes:
    """The table says that the storage has 64 MiB."""
    data = bytearray(GOOD)
    start = data.rindex(b"PK\x01\x02", 0, data.rindex(b"archive/data/0"))
    data[start + 20 : start + 28] = struct.pack("<II", 1 << 26, 1 << 26)
    return bytes(data)


def header_of(header: dict | bytes, content: bytes = b"\0" * 16) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + content


def entry(begin: int, end: int, dtype: str = "F32", shape: tuple = (2,)) -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


OBJECT = b"cos\nsystem\n" + opcodes("touch canary") + b"\x85R"
HOSTILE = {
    "os.system under a wanted name": (torch_zip(checkpoint(OBJECT)), "'w': is 'os.system'"),
    "os.system as the whole": (torch_zip(b"\x80\x02" + OBJECT + b"."), "holds 'os.system'"),
    "path traversal": (torch_zip(checkpoint(tensor("../../../../etc/passwd"))), "no member"),
    "absolute path": (torch_zip(checkpoint(tensor("/etc/passwd"))), "no member 'data//etc/passwd'"),
    "missing storage": (torch_zip(checkpoint(tensor("1"))), "no member 'data/1'"),
    "storage shorter than declared": (torch_zip(checkpoint(tensor(count=5))), "fewer than"),
    "huge storage": (torch_zip(checkpoint(tensor(count=1 << 40))), "fewer than declared"),
    "huger storage": (torch_zip(checkpoint(tensor(count=1 << 200))), "fewer than declared"),
    "negative size": (torch_zip(checkpoint(tensor(shape=(-4,)))), "size of buffer"),
    "negative stride": (torch_zip(checkpoint(tensor(strides=(-1,)))), "size of buffer"),
    "stride out of range": (torch_zip(checkpoint(tensor(strides=(2,)))), "size of buffer"),
    "offset out of range": (torch_zip(checkpoint(tensor(offset=b"K\x01"))), "size of buffer"),
    "negative offset": (torch_zip(checkpoint(tensor(offset=b"J\xff\xff\xff\xff"))), "buffer"),
    "offset of text": (torch_zip(checkpoint(tensor(offset=b"X\x01\0\0\0a"))), "malformed tensor"),
    "boolean size": (torch_zip(checkpoint(tensor(shape=(True,)))), "integer is required"),
    "expansion": (torch_zip(checkpoint(tensor(shape=(1 << 40,), strides=(0,)))), "expands"),
    "dimensions": (torch_zip(checkpoint(tensor(shape=(2, 2)))), "same length as shape"),
    "100 dimensions": (torch_zip(checkpoint(tensor(shape=(1,) * 100, strides=(1,) * 100))), "dim"),
    "unknown dtype": (torch_zip(checkpoint(tensor(kind="QInt8Storage"))), "QInt8Storage"),
    "no tensor arguments": (
        torch_zip(checkpoint(b"ctorch._utils\n_rebuild_tensor_v2\n)R")),
        "malformed tensor",
    ),
    "terminal codes": (torch_zip(checkpoint(b"c\x1b[2Jos\nsystem\n)R")), "is '"),
    "big endian": (torch_zip(checkpoint(tensor()), byteorder=b"big"), "big-endian"),
    "malformed pickle": (torch_zip(b"\x80\x02}"), "malformed or hostile"),
    "empty pickle": (torch_zip(b""), "malformed"),
    "no data.pkl": (GOOD.replace(b"data.pkl", b"data.txt"), "without PyTorch's data.pkl"),
    "member beyond the end": (beyond_the_end(), "'w': member 'data/0': "),
    "encrypted": (set_encrypted(), "encrypted"),
    "truncated": (GOOD[:200], "incomplete or damaged zip"),
    "truncated central directory": (GOOD[:-60], "incomplete or damaged zip"),
    "corrupted local header": (
        GOOD[:4] + GOOD[4:].replace(b"PK\x03", b"PK\xff"),
        "member 'byteorder': Bad magic",
    ),
    "compression": (
        torch_zip(checkpoint(tensor()), compression=zipfile.ZIP_BZIP2),
        "is compressed",
    ),
    "empty file": (b"", "is empty"),
    "text": (b"not found", "neither"),
    "pickle": (pickle.dumps({"a": 1}), "neither"),
    "header of 2**60 bytes": (struct.pack("<Q", 1 << 60) + b'{"a":', "header"),
    "header beyond the end": (struct.pack("<Q", 400) + b'{"a":', "header"),
    "header of no JSON": (header_of(b"{nothing"), "header"),
    "deep header": (header_of(b'{"a":' + b"[" * 100_000), "header"),
    "overlap": (header_of({"a": entry(0, 8), "b": entry(4, 12)}), "invalid offset"),
    "hole": (header_of({"a": entry(0, 8), "b": entry(12, 20)}), "invalid offset"),
    "beyond the end": (header_of({"a": entry(0, 80, shape=(20,))}), "not fully covered"),
    "length and dtype disagree": (header_of({"a": entry(0, 16, "F16")}), "invalid shape"),
    "terminal codes in a header": (header_of({"\x1b[2J": entry(4, 12)}), "tensor `?[2J`"),
    "huge shape": (header_of({"a": entry(0, 16, shape=(1 << 62, 1 << 62))}), "overflow"),
    "unknown safetensors dtype": (header_of({"a": entry(0, 16, dtype="F13")}), "F13"),
    "no safetensors": (header_of({}, b""), "holds no tensors"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_file_is_refused(tmp_path, monkeypatch, name: str):
    monkeypatch.chdir(tmp_path)
    data, message = HOSTILE[name]
    (tmp_path / "a.ckpt").write_bytes(data)
    assert message in refusal(tmp_path / "a.ckpt")
    assert os.listdir(tmp_path) == ["a.ckpt"], "nothing was run or written"


def test_hostile_object_beside_the_weights_is_not_built(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fields = [("callbacks", OBJECT), ("state_dict", dict_opcodes([("w", tensor())])), ("z", OBJECT)]
    data = b"\x80\x02" + dict_opcodes(fields) + b"."
    (tmp_path / "a.ckpt").write_bytes(torch_zip(data, root="/etc"))
    assert_same(read_state_dict(tmp_path / "a.ckpt")["w"], FOUR)
    assert os.listdir(tmp_path) == ["a.ckpt"]
    pickle.loads(data.replace(tensor(), b"N"))
    assert "canary" in os.listdir(tmp_path), "the payload is live"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "git lfs pull"),
        (b"<!DOCTYPE html>\n<html>", "is a web page"),
        (b"\n<html lang='en'>{}", "is a web page"),
        (b"\n\n", "is empty"),
    ],
)
@pytest.mark.parametrize("name", ["a.ckpt", "a.safetensors"])
def test_what_was_saved_in_place_of_the_weights_is_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    assert message in refusal(tmp_path / name)


@pytest.mark.parametrize("kept", [50, -100])
def test_a_truncated_safetensors_file_is_to_be_fetched_again(tmp_path, kept):
    write_safetensors(tmp_path / "a.safetensors", {"w": np.zeros(100, np.float32)})
    content = (tmp_path / "a.safetensors").read_bytes()
    (tmp_path / "a.safetensors").write_bytes(content[:kept])
    message = refusal(tmp_path / "a.safetensors")
    assert "is an incomplete or damaged file" in message
    assert message.endswith("fetch it again")


def test_missing_files_and_folders(tmp_path):
    assert "no such file" in refusal(tmp_path / "nothing.ckpt")
    assert "is not a file" in refusal(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    assert "is not a file" in refusal(tmp_path / "pipe")


def test_a_compressed_file_and_a_huge_pickle_are_refused(tmp_path, monkeypatch):
    path = tmp_path / "a.pt"
    path.write_bytes(torch_zip(checkpoint(tensor()), compression=zipfile.ZIP_DEFLATED))
    assert "is compressed" in refusal(path)
    path.write_bytes(GOOD)
    monkeypatch.setattr(torch_files, "_MAX_PICKLE_BYTES", 100)
    assert re.search(r"its pickle has \d+ bytes, more", refusal(path))


def test_storages_at_odd_places_become_aligned(tmp_path):
    for pad in range(4):
        (tmp_path / "a").write_bytes(torch_zip(checkpoint(tensor()), root="r" * (1 + pad)))
        array = read_state_dict(tmp_path / "a")["w"]
        assert array.flags.aligned
        assert_same(array, FOUR)


def test_reading_maps_the_file(tmp_path):
    """A change of the file shows through: no copy was made."""
    path = tmp_path / "a"
    write_torch(path, {"w": FOUR}, lightning=False)
    array = read_state_dict(path)["w"]
    position = path.read_bytes().index(FOUR.tobytes())
    with path.open("r+b") as file:
        file.seek(position)
        file.write(np.float32(9).tobytes())
    assert array.tolist() == [9, 1, 2, 3]


SAFETENSORS = header_of({"w": entry(0, 8), "v": entry(8, 16, "BF16", (4,))})
FLIPS = st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(0, 255)), max_size=4)


@pytest.mark.filterwarnings("ignore:invalid escape sequence:DeprecationWarning")
@pytest.mark.parametrize("valid", [GOOD, SAFETENSORS], ids=["zip", "safetensors"])
@given(flips=FLIPS, keep=st.floats(0.5, 1.2))
@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_damaged_files_give_arrays_or_one_line(tmp_path, valid: bytes, flips: list, keep: float):
    data = bytearray(valid)
    for position, value in flips:
        data[position % len(data)] = value
    path = tmp_path / "a"
    path.write_bytes(data[: int(len(data) * keep)])
    with contextlib.suppress(InputError):
        for array in read_state_dict(path).values():
            assert len(array.tobytes()) == array.nbytes


@pytest.mark.parametrize("write", [write_safetensors, lambda *a: write_torch(*a, lightning=True)])
def test_failed_writing_leaves_the_old_file(tmp_path, monkeypatch, write):
    path = tmp_path / "a"
    path.write_bytes(b"old")
    for arrays in ({}, {"a": np.ones(2, complex)}, {7: np.ones(2)}):
        with pytest.raises(InputError, match="a: "):
            write(path, arrays)

    def full_disk(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(InputError, match="folder cannot be created"):
        write(path / "b", {"a": np.ones(2)})
    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(InputError, match="No space left"):
        write(path, {"a": np.ones(2)})
    assert (os.listdir(tmp_path), path.read_bytes()) == (["a"], b"old")


@pytest.mark.parametrize("write", [write_safetensors, lambda *a: write_torch(*a, lightning=True)])
def test_others_may_read_what_the_umask_lets_them(tmp_path, write):
    before = os.umask(0o022)
    try:
        write(tmp_path / "a", {"a": np.ones(2)})
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o644


def test_a_file_is_replaced_by_what_was_read_from_it(tmp_path):
    path = tmp_path / "a"
    write_torch(path, ARRAYS, lightning=True)
    loaded = read_state_dict(path)
    write_torch(path, loaded, lightning=False)
    for name, array in read_state_dict(path).items():
        assert_same(array, ARRAYS[name])
        assert_same(loaded[name], array)
