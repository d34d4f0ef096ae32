"""The hub's real client against a hub on loopback: fetched once, resumed, checked, offline."""

import dataclasses
import functools
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import soundfile
from golden_towers import recipe
from hub_server import COMMIT, environment, etag, serving
from separator_examples import TINY, tiny_variables, unit_rows

from audiosep_jax.audio import files as audio_files
from audiosep_jax.errors import InputError
from audiosep_jax.model import make_model
from audiosep_jax.weights import hub, torch_files
from audiosep_jax.weights.names import full_state_dict

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
WEIGHTS = np.random.default_rng(0).bytes(300_000)
FILES = {
    "config.json": b'{"a": 1}',
    "tokenizer.json": b"{}",
    "model.safetensors": WEIGHTS,
    "pytorch_model.bin": b"the same again" * 99,
}
WANTED = ["config.json", "model.safetensors|pytorch_model.bin"]


@pytest.fixture
def loopback():
    with serving({"models/some/model": dict(FILES), "spaces/some/space": dict(FILES)}) as running:
        yield running


def fetch(folder, endpoint, source="some/model", wanted=WANTED, revision=None, **changes):
    """(folder or None, error) of `hub.snapshot` in a process of its own, as the client needs."""
    code = (
        "from audiosep_jax.weights import hub; from audiosep_jax.errors import InputError\n"
        f"try: print(hub.snapshot({source!r}, {wanted!r}, revision={revision!r}))\n"
        "except InputError as error: print('error:', error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=environment(folder, endpoint, **changes),
        check=True,
    )
    assert done.stdout.count("\n") == 1, done.stdout
    told = done.stdout.strip()
    return (None, told[7:]) if told.startswith("error: ") else (Path(told), None)


def test_fetched_once_and_used_without_a_network(loopback, tmp_path):
    first, _ = fetch(tmp_path, loopback.endpoint)
    assert sorted(loopback.downloads()) == ["config.json", "model.safetensors"]
    for name in loopback.downloads():
        assert (first / name).read_bytes() == FILES[name]

    loopback.requests.clear()
    assert fetch(tmp_path, loopback.endpoint) == (first, None)
    assert loopback.downloads() == []
    assert {method for method, _, _ in loopback.requests} == {"GET"}  # the listing only

    loopback.requests.clear()
    assert fetch(tmp_path, loopback.endpoint, HF_HUB_OFFLINE="1") == (first, None)
    assert loopback.requests == []
    assert fetch(tmp_path, "http://127.0.0.1:9") == (first, None)


def test_a_download_that_breaks_off_is_resumed(loopback, tmp_path):
    megabyte = 1 << 20
    large = WEIGHTS * (24 * megabyte // len(WEIGHTS))
    loopback.repositories["models/some/model"]["model.safetensors"] = large
    loopback.cut_after = 15 * megabyte
    folder, _ = fetch(tmp_path, loopback.endpoint)
    assert (folder / "model.safetensors").read_bytes() == large
    asked = [x for x in loopback.requests if x[0] == "GET" and x[1].endswith("model.safetensors")]
    # The client keeps what has come in whole blocks of 10 MiB.
    assert [held for _, _, held in asked] == ["", f"bytes={10 * megabyte}-"]


def test_a_damaged_download_is_refused_and_forgotten(loopback, tmp_path):
    loopback.damage = True
    _, error = fetch(tmp_path, loopback.endpoint)
    assert error.startswith("some/model: config.json was damaged")  # git's hash tells
    _, error = fetch(tmp_path, loopback.endpoint, wanted=["model.safetensors"])
    assert error.startswith("some/model: model.safetensors was damaged")  # LFS's does
    assert etag(WEIGHTS)[:12] in error
    loopback.damage = False
    folder, error = fetch(tmp_path, loopback.endpoint)
    assert error is None
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS


def test_what_lies_damaged_in_the_cache_is_refused(loopback, tmp_path):
    folder, _ = fetch(tmp_path, loopback.endpoint)
    blob = (folder / "model.safetensors").resolve()
    blob.chmod(0o644)
    blob.write_bytes(bytes(len(WEIGHTS)))
    _, error = fetch(tmp_path, loopback.endpoint, HF_HUB_OFFLINE="1")
    assert "model.safetensors was damaged" in error
    assert not blob.exists()


def test_spaces_revisions_and_alternatives(loopback, tmp_path):
    loopback.repositories["spaces/some/space"].pop("model.safetensors")
    folder, error = fetch(tmp_path, loopback.endpoint, "spaces/some/space", revision=COMMIT)
    assert error is None
    assert (folder / "pytorch_model.bin").read_bytes() == FILES["pytorch_model.bin"]
    _, error = fetch(tmp_path, loopback.endpoint, revision="v9")
    assert error == f"some/model: has no revision v9 at {loopback.endpoint}"


@pytest.mark.parametrize(
    ("source", "wanted", "changes", "words"),
    [
        ("some/other", WANTED, {}, ["some/other: no such folder", "repository"]),
        ("some/model", ["*.gguf"], {}, ["some/model: has no *.gguf at http"]),
        ("some/model", WANTED, {"HF_HUB_OFFLINE": "1"}, ["HF_HUB_OFFLINE is set"]),
        (
            "some/model",
            WANTED,
            {"HF_ENDPOINT": "http://127.0.0.1:9"},
            ["127.0.0.1:9"],
        ),
    ],
)
def test_what_cannot_be_had_is_told_in_one_line(loopback, tmp_path, source, wanted, changes, words):
    folder, error = fetch(tmp_path, loopback.endpoint, source, wanted, **changes)
    assert folder is None
    if changes:
        words = [*words, "config.json", str(tmp_path / "hf" / "hub"), "give a local folder"]
    for word in words:
        assert word in error, error


# ---------------------------------------------------------------------- without a hub


def test_a_local_folder_is_taken_as_it_is(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.bin").write_bytes(b"a")
    assert hub.snapshot(str(tmp_path), ["sub/*.bin"]) == tmp_path
    with pytest.raises(InputError, match=r"has no config\.json$"):
        hub.snapshot(str(tmp_path), ["config.json"])


@pytest.mark.parametrize(
    "source", ["/no/such/folder", "name", "a/b/c", "../x", "a b/c", "", "spaces/x"]
)
def test_what_is_neither_a_folder_nor_a_hub_id(source):
    with pytest.raises(InputError, match="no such folder, and not a hub id"):
        hub.snapshot(source, ["x"])


def test_what_is_there_but_no_folder_is_not_told_as_the_nearest(tmp_path):
    (tmp_path / "pipe").touch()
    with pytest.raises(InputError, match=r"not a hub id \(owner/name\)$"):
        hub.snapshot(str(tmp_path / "pipe"), ["x"])


@pytest.mark.parametrize("source", ["runs/demoo", "demoo", "runs/deep/demoo"])
def test_a_mistyped_folder_is_told_the_nearest_one(tmp_path, monkeypatch, source):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    right = Path(source[:-1])
    for folder in (right, right.with_name("clap")):
        folder.mkdir(parents=True)
    with pytest.raises(InputError, match=f"^{source}: .*; did you mean {right}\\?$"):
        hub.snapshot(source, ["x"])


def test_a_conversion_is_made_once_per_content(tmp_path, monkeypatch):
    monkeypatch.setenv("AUDIOSEP_JAX_CACHE", str(tmp_path / "cache"))
    source, calls = tmp_path / "in.bin", []

    def convert(path, destination):
        calls.append(path)
        destination.write_bytes(path.read_bytes()[::-1])

    for content, wanted in ((b"abc", 1), (b"abc", 1), (b"abd", 2), (b"abc", 2)):
        source.write_bytes(content)
        made = hub.converted(source, "out.bin", convert)
        assert (made.read_bytes(), len(calls)) == (content[::-1], wanted)
    assert (
        sorted(x.name for x in (tmp_path / "cache" / "converted").rglob("*.bin")) == ["out.bin"] * 2
    )


@pytest.mark.parametrize(
    "error", [InputError("broken"), OSError(28, "disk full"), KeyboardInterrupt()]
)
def test_a_failed_conversion_leaves_nothing(tmp_path, monkeypatch, error):
    monkeypatch.setenv("AUDIOSEP_JAX_CACHE", str(tmp_path / "cache"))
    (tmp_path / "in.bin").write_bytes(b"abc")

    def convert(path, destination):
        destination.mkdir()
        (destination / "half").write_bytes(b"half")
        raise error

    wanted = InputError if isinstance(error, OSError) else type(error)
    with pytest.raises(wanted):
        hub.converted(tmp_path / "in.bin", "out", convert)
    assert not list((tmp_path / "cache" / "converted").rglob("*out"))


# ---------------------------------------------------------------------- the whole way


HIVE = "AlayaLab/AudioSep-hive"


@pytest.mark.parametrize(
    ("name", "file", "checkpoint"),
    [
        ("spaces/Audio-AGI/AudioSep", "checkpoint/audiosep_base_4M_steps.ckpt", "audiosep"),
        (f"models/{HIVE}", "weights/audiosep_hive.ckpt", HIVE),
    ],
)
def test_the_published_weights_are_fetched_and_converted_once(tmp_path, name, file, checkpoint):
    """`separate.py` with each, and again with neither download nor conversion."""
    small = dataclasses.replace(TINY, sample_rate_hz=16000, window_samples=1024, hop_samples=160)
    variables = tiny_variables(small)
    torch_files.write_torch(tmp_path / "x", full_state_dict(variables, small, 9), lightning=True)
    repository = {file: (tmp_path / "x").read_bytes(), "README.md": b""}
    mixture_S = recipe.waveform(3, 2000)
    soundfile.write(tmp_path / "in.wav", mixture_S, 16000, subtype="FLOAT")
    condition_NE = unit_rows(1, 1)
    np.save(tmp_path / "q.npy", condition_NE)
    apply = jax.jit(functools.partial(make_model(small).apply, train=False))
    expected_BS = apply(variables, mixture_S[None], condition_NE)

    with serving({name: repository}) as loopback:
        arguments = ["in.wav", "--embedding", "q.npy", "--overwrite", "--checkpoint", checkpoint]
        for changes in ({}, {"HF_HUB_OFFLINE": "1"}):
            done = subprocess.run(
                [sys.executable, ROOT / "separate.py", *arguments],
                cwd=tmp_path,
                env=environment(tmp_path, loopback.endpoint, **changes),
                capture_output=True,
                text=True,
                check=False,
            )
            assert (done.returncode, done.stdout) == (0, "separated/in - q.wav\n"), done.stderr
            estimate_CS, _ = audio_files.read(tmp_path / "separated" / "in - q.wav")
            np.testing.assert_allclose(estimate_CS, expected_BS, rtol=0, atol=1e-5)
            (made,) = (tmp_path / "ours" / "converted").rglob("model.safetensors")
            if not changes:
                stamps = made.stat().st_mtime_ns, made.stat().st_ino
            assert (made.stat().st_mtime_ns, made.stat().st_ino) == stamps
        assert loopback.downloads() == [Path(file).name]
