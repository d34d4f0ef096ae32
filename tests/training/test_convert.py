"""convert: PyTorch's file to ours to a recording, and back to PyTorch, to the bit."""

import ast
import importlib.util
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
from golden_towers import GOLDEN, recipe, recipe_state
from separator_examples import TINY, tiny_variables

from audiosep_jax.audio import files as audio_files
from audiosep_jax.separation.separator import Separator
from audiosep_jax.training import convert
from audiosep_jax.weights import torch_files
from audiosep_jax.weights.names import (
    COUNTER,
    PREFIX,
    export_separator,
    full_state_dict,
    learnt_state_dict,
    stft_buffers,
)
from audiosep_jax.weights.torch_files import read_state_dict

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
_spec = importlib.util.spec_from_file_location("separate", ROOT / "separate.py")
separate = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(separate)
OF_TINY = ["--sample_rate_hz", "800", "--hop_samples", "8"]


@pytest.fixture(scope="session")
def torch():
    return pytest.importorskip("torch", reason="PyTorch is installed by the extra `test` only")


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def tiny_file(path, step=7, **changes):
    tensors = full_state_dict(tiny_variables(), TINY, step)
    torch_files.write_torch(path, tensors | changes, lightning=True)
    return path


def assert_same_tensors(left, right):
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        assert (tensor.dtype, tensor.shape) == (right[name].dtype, right[name].shape), name
        assert tensor.tobytes() == right[name].tobytes(), name


# ---------------------------------------------------------------------- the published network


def golden_listing():
    lines = (GOLDEN / "resunet30_state_dict.txt").read_text().splitlines()
    return {k: ast.literal_eval(shape) for k, shape, _ in (line.split("\t") for line in lines)}


def golden_state_dict():
    """Weights of the recipe, and the STFT's buffers, which are the DFT."""
    buffers = {PREFIX + name: tensor for name, tensor in stft_buffers(2048).items()}
    shapes = {name: s for name, s in golden_listing().items() if name not in buffers}
    return buffers | recipe_state(shapes)


def write_lightning(torch, path, state_dict):
    """As Lightning lays it out, with the text encoder and the optimiser beside the separator."""
    tensors = {name: torch.from_numpy(np.array(x)) for name, x in state_dict.items()}
    tensors["query_encoder.model.text_branch.embeddings.word_embeddings.weight"] = torch.ones(9, 4)
    step = {"step": torch.tensor(3.0), "exp_avg": torch.zeros(7)}
    optimizer = {"state": {0: step}, "param_groups": [{"lr": 1e-3, "params": [0]}]}
    about = {"epoch": 1, "global_step": 2, "pytorch-lightning_version": "2.0.0"}
    torch.save({**about, "state_dict": tensors, "optimizer_states": [optimizer]}, path)


def test_pytorchs_checkpoint_separates_as_there_and_returns_to_the_bit(torch, here):
    golden = np.load(GOLDEN / "resunet30_inference.npz")
    state_dict = golden_state_dict()
    write_lightning(torch, "published.ckpt", state_dict)
    assert convert.main(["published.ckpt", "ours"]) == 0

    soundfile.write("mixture.wav", golden["mixture"][0, 0], 32000, subtype="FLOAT")
    np.save("condition.npy", golden["condition"][0])
    arguments = ["mixture.wav", "--embedding", "condition.npy", "--checkpoint", "ours"]
    assert separate.main([*arguments, "--output_format", "wav", "--subtype", "FLOAT"]) == 0
    estimate_CS, rate_hz = audio_files.read("separated/mixture - condition.wav")
    expected_S = golden["waveform"][0, 0]
    assert (estimate_CS.shape, rate_hz) == ((1, len(expected_S)), 32000)
    error = np.abs(estimate_CS[0] - expected_S).max() / np.abs(expected_S).max()
    print(f"largest error: {error:.1e} of the peak")
    assert error < 1e-5

    assert convert.main(["ours", "back.ckpt"]) == 0
    back = torch.load("back.ckpt", weights_only=True)["state_dict"]
    lines = [f"{k}\t{tuple(x.shape)}\t{x.dtype}" for k, x in back.items()]
    assert sorted(lines) == sorted((GOLDEN / "resunet30_state_dict.txt").read_text().splitlines())
    assert_same_tensors({k: x.numpy() for k, x in back.items()}, state_dict)


# ---------------------------------------------------------------------- every way round


def test_round_trips_are_exact(here):
    wanted = read_state_dict(tiny_file(here / "a.ckpt"))
    steps = [("a.ckpt", "run"), ("run", "b.safetensors"), ("b.safetensors", "c.pt")]
    steps += [("c.pt", "deep/er/run"), ("deep/er/run", "d.bin")]
    steps += [("d.bin", "e.ckpt")]
    for source, destination in steps:
        options = OF_TINY if Path(source).is_file() else []
        assert convert.main([source, destination, *options]) == 0
    for name in ("b.safetensors", "c.pt", "d.bin", "e.ckpt"):
        assert_same_tensors(read_state_dict(name), wanted)
    assert (here / "e.ckpt").read_bytes() == (here / "a.ckpt").read_bytes()


def test_a_folder_of_weights_is_taken_too(here):
    convert.main([str(tiny_file(here / "a.ckpt")), "run", *OF_TINY])
    Separator.load("run").save_pretrained("weights")
    assert convert.main(["weights", "again"]) == 0
    assert convert.main(["again", "b.ckpt"]) == 0
    assert_same_tensors(read_state_dict("b.ckpt"), read_state_dict("a.ckpt"))


def test_float16_halves_a_folder_and_rounds_kernels_only(here):
    tiny_file(here / "a.ckpt")
    for dtype in ("float32", "float16"):
        assert convert.main(["a.ckpt", dtype, "--dtype", dtype, *OF_TINY]) == 0
    exact, rounded = (
        dict(export_separator(Separator.load(x).variables)) for x in ("float32", "float16")
    )
    stored = read_state_dict("float16/model.safetensors")
    for name, tensor in exact.items():
        dtype = np.float16 if tensor.ndim > 1 else np.float32
        assert stored[PREFIX + name].dtype == dtype
        assert rounded[name].dtype == np.float32
        np.testing.assert_array_equal(rounded[name], tensor.astype(dtype))


@pytest.mark.parametrize("prefix", ["", PREFIX])
def test_names_with_prefix_or_without(here, prefix):
    state = learnt_state_dict(tiny_variables(), 3)
    state = {name.replace(PREFIX, prefix): tensor for name, tensor in state.items()}
    state["query_encoder.model.logit_scale_a"] = np.zeros(1, np.float32)
    torch_files.write_safetensors("in.safetensors", state)
    assert convert.main(["in.safetensors", "run", *OF_TINY]) == 0
    loaded = Separator.load("run")
    assert (loaded.step, loaded.model, loaded.text.encoder) == (3, TINY, "clap")
    assert_same_tensors(
        dict(export_separator(loaded.variables)), dict(export_separator(tiny_variables()))
    )


def test_embeddings_of_many_rows_and_what_is_none(here, capfd):
    convert.main([str(tiny_file(here / "a.ckpt")), "run", *OF_TINY])
    audio_S = recipe.waveform(1, 300)
    soundfile.write("in.wav", audio_S, 800, subtype="FLOAT")
    condition_NE = np.random.default_rng(0).standard_normal((2, 6))
    np.save("two.npy", condition_NE)
    np.save("one.npy", condition_NE[1])
    command = ["in.wav", "--checkpoint", "run", "--output", "out"]
    assert separate.main([*command, "--embedding", "two.npy", "--embedding", "one.npy"]) == 0
    expected_NS = Separator.load("run").separate_conditions(audio_S, 800, condition_NE[[0, 1, 1]])
    for label, expected_S in zip(("two 1", "two 2", "one"), expected_NS, strict=True):
        written_CS, _ = audio_files.read(f"out/in - {label}.wav")
        np.testing.assert_allclose(written_CS[0], expected_S, rtol=0, atol=1e-6)
    (here / "text.npy").write_text("1 2 3")
    np.save("int.npy", np.arange(6))
    np.save("nan.npy", np.full(6, np.nan))
    np.save("wide.npy", np.zeros(512))
    np.save("cube.npy", np.zeros((1, 1, 6)))
    np.save("object.npy", np.array([{}]), allow_pickle=True)
    for name in ("text", "int", "nan", "wide", "cube", "object", "missing"):
        capfd.readouterr()
        assert separate.main([*command, "--embedding", f"{name}.npy"]) == 2
        err = capfd.readouterr().err
        assert err.startswith(f"error: --embedding {name}.npy: ")
        assert err.count("\n") == 1
    soundfile.write("dog.wav", audio_S, 800)


@pytest.mark.parametrize(("subtype", "step"), [("PCM_16", 2**-15), ("PCM_24", 2**-23)])
def test_subtype_of_the_result(here, subtype, step):
    convert.main([str(tiny_file(here / "a.ckpt")), "run", *OF_TINY])
    soundfile.write("in.wav", recipe.waveform(1, 300), 800, subtype="FLOAT")
    np.save("q.npy", np.full(6, 0.3))
    command = ["in.wav", "--checkpoint", "run", "--embedding", "q.npy"]
    assert separate.main(command) == 0
    full_CS, _ = audio_files.read("separated/in - q.wav")
    assert separate.main([*command, "--subtype", subtype, "--overwrite"]) == 0
    assert soundfile.info("separated/in - q.wav").subtype == subtype
    coarse_CS, _ = audio_files.read("separated/in - q.wav")
    assert 0 < np.abs(coarse_CS - full_CS).max() <= step


# ---------------------------------------------------------------------- mistakes


def refused(capfd, here, arguments, words):
    before = files(here)
    capfd.readouterr()
    assert convert.main(list(map(str, arguments))) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert words in err, err
    assert files(here) == before


def hostile_files(folder):
    """(path, what is said of it)."""
    whole = tiny_file(folder / "whole.ckpt").read_bytes()
    bn0 = f"{PREFIX}base.bn0.weight"
    state = full_state_dict(tiny_variables(), TINY, 7)
    without = {name: x for name, x in state.items() if name != f"{PREFIX}base.bn0.running_var"}
    made = {
        "empty": b"",
        "text": b"hello, hello\n" * 99,
        "html": b"<!doctype html><title>Sign in</title>",
        "lfs": b"version https://example.org/spec/v1\noid sha256:00\nsize 1\n",
        "cut": whole[: len(whole) // 2],
        "cut by one": whole[:-1],
        "no start": whole[1000:],
        "legacy": b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.",
        "pickle": b"cos\nsystem\n(S'touch pwned'\ntR.",
        "huge header": b"\xff\xff\xff\xff\xff\xff\xff\x7f{}",
        "header only": b"\x02\0\0\0\0\0\0\0{}",
        "bad header": b'\x09\0\0\0\0\0\0\0{"a": 1}}',
    }
    for name, content in made.items():
        (folder / f"{name}.ckpt").write_bytes(content)
    changed = {
        "missing": without,
        "extra": state | {f"{PREFIX}base.unknown": np.zeros(3, np.float32)},
        "shape": state | {f"{PREFIX}base.after_conv.bias": np.zeros(9, np.float32)},
        "nan": state | {bn0: np.full(17, np.nan, np.float32)},
        "integers": state | {bn0: np.ones(17, np.int64)},
        "scalar": state | {bn0: np.float32(1).reshape(())},
        "of another": {"encoder.weight": np.zeros((2, 2), np.float32)},
    }
    for name, tensors in changed.items():
        torch_files.write_torch(folder / f"{name}.ckpt", tensors, lightning=False)
    with zipfile.ZipFile(folder / "zip.ckpt", "w") as archive:
        archive.writestr("a.txt", "not a checkpoint")
    with zipfile.ZipFile(folder / "calls.ckpt", "w") as archive:
        archive.writestr("archive/data.pkl", made["pickle"])
    os.remove(folder / "whole.ckpt")
    return sorted(folder.glob("*.ckpt"))


def test_hostile_files_leave_nothing(here, capfd):
    (here / "hostile").mkdir()
    paths = hostile_files(here / "hostile")
    assert len(paths) >= 20
    (here / "kept.ckpt").write_bytes(b"precious")
    for path in paths:
        words = path.name if " " not in path.name else path.stem.split()[0]
        refused(capfd, here, [path, "out", *OF_TINY], words)
        refused(capfd, here, [path, "out.safetensors", *OF_TINY], words)
        refused(capfd, here, [path, "kept.ckpt", "--overwrite", *OF_TINY], words)
    assert (here / "kept.ckpt").read_bytes() == b"precious"
    assert not (here / "pwned").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "required"),
        (["a.ckpt"], "required"),
        (["a.ckpt", "taken.ckpt", *OF_TINY], "taken.ckpt: exists already; --overwrite"),
        (["a.ckpt", "folder", *OF_TINY], "folder: exists already"),
        (["a.ckpt", "folder.ckpt", "--overwrite", *OF_TINY], "is a folder"),
        (["a.ckpt", "taken", "--overwrite", *OF_TINY], "is a file"),
        (["a.ckpt", "a.ckpt", "--overwrite", *OF_TINY], "is the source"),
        (["a.ckpt", "taken/below", *OF_TINY], "not a writable folder"),
        (["a.ckpt", "x" * 300 + "/y", *OF_TINY], "cannot be written"),
        (["a.ckpt", "out"], "a.ckpt: has a window of 32 samples"),
        (["a.ckpt", "out", "--sample_rate_hz", "800", "--hop_samples", "0"], "at least 1"),
        (["a.ckpt", "out", "--sample_rate_hz", "800", "--hop_samples", "17"], "hop_samples=17"),
        (["folder", "out", *OF_TINY], "applies to a file"),
        (["folder", "out"], "folder: is no training workdir"),
        (["none.ckpt", "out"], "none.ckpt: no such folder"),
        (["a.ckpt", "out.pt", "--dtype", "float16"], "--dtype float16: applies to a folder"),
        (["a.ckpt", "out", "--fast"], "--fast"),
    ],
)
def test_mistakes(here, capfd, arguments, words):
    tiny_file(here / "a.ckpt")
    (here / "taken.ckpt").write_bytes(b"")
    (here / "taken").write_bytes(b"")
    (here / "folder").mkdir()
    (here / "folder.ckpt").mkdir()
    refused(capfd, here, arguments, words)


def test_overwrite_replaces_a_file_and_a_folder(here):
    for step in (3, 4):
        tiny_file(here / "a.ckpt", step)
        assert convert.main(["a.ckpt", "run", "--overwrite", *OF_TINY]) == 0
        assert convert.main(["run", "b.pt", "--overwrite"]) == 0
        assert Separator.load("run").step == step
        assert int(read_state_dict("b.pt")[f"{PREFIX}base.bn0.{COUNTER}"]) == step
    assert sorted(os.listdir(here)) == ["a.ckpt", "b.pt", "run"]


def test_a_failure_while_writing_leaves_nothing(here, capfd, monkeypatch):
    tiny_file(here / "a.ckpt")

    def disk_full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", disk_full)
    refused(capfd, here, ["a.ckpt", "b.ckpt", *OF_TINY], "b.ckpt: cannot be written (No space left")


def test_nothing_is_logged(here, caplog, capfd):
    for source, destination in (("a.ckpt", "run"), ("run", "b.safetensors"), ("run", "again")):
        tiny_file(here / "a.ckpt")
        options = OF_TINY if source == "a.ckpt" else []
        assert convert.main([source, destination, *options]) == 0
    Separator.load("run")
    assert caplog.records == []
    assert capfd.readouterr() == ("run\nb.safetensors\nagain\n", "")


def test_help_shows_an_example_without_jax():
    code = (
        "import sys; from audiosep_jax.training import convert\n"
        "try: convert.main(['--help'])\n"
        "finally: assert not {'jax', 'numpy', 'orbax'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "audiosep convert audiosep_base_4M_steps.ckpt runs/audiosep" in done.stdout
