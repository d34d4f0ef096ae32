"""separate.py: the file it writes, and one line on stderr for everything that cannot be."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st
from tiny_run import save_run, tiny_config

from audiosep_jax import audio_io
from audiosep_jax.errors import InputError
from audiosep_jax.separator import Separator

SCRIPT = Path(__file__).resolve().parents[1] / "separate.py"
_spec = importlib.util.spec_from_file_location("separate", SCRIPT)
separate = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(separate)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    save_run(folder)
    return folder


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty current folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def noise(num_channels, num_samples, scale=0.2):
    return (scale * np.random.default_rng(0).standard_normal((num_channels, num_samples))).astype(
        np.float32
    )


def recording(path, num_channels=1, num_samples=500, rate_hz=8000, scale=0.2, **options):
    audio_CS = noise(num_channels, num_samples, scale)
    soundfile.write(path, audio_CS.T, rate_hz, subtype=options.pop("subtype", "FLOAT"), **options)
    return path


def command(workdir, *arguments, text="rain", recording="in.wav"):
    return [str(recording), "--text", text, "--checkpoint", str(workdir), *map(str, arguments)]


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


# ---------------------------------------------------------------------- what is written


@pytest.mark.parametrize(
    ("num_channels", "num_samples", "rate_hz"),
    [(1, 1, 8000), (2, 501, 44100), (6, 64, 48000), (1, 7, 22050), (1, 500, 8000)],
)
def test_writes_what_the_library_returns(
    here, workdir, capfdbinary, num_channels, num_samples, rate_hz
):
    audio_CS, _ = audio_io.read(recording("in.wav", num_channels, num_samples, rate_hz))
    assert separate.main(command(workdir)) == 0
    out, err = capfdbinary.readouterr()
    assert (out, err) == (b"separated/in - rain.wav\n", b"")
    info = soundfile.info("separated/in - rain.wav")
    assert (info.format, info.subtype) == ("WAV", "FLOAT")
    written_CS, written_hz = audio_io.read("separated/in - rain.wav")
    assert written_hz == rate_hz
    expected_CS = Separator.load(workdir).separate(audio_CS, rate_hz, "rain")
    np.testing.assert_array_equal(written_CS, expected_CS)


def test_loud_is_neither_clipped_nor_wrapped(here, workdir):
    recording("quiet.wav", scale=0.2)
    recording("loud.wav", scale=200)
    for name in ("quiet.wav", "loud.wav"):
        assert separate.main(command(workdir, "--output", ".", recording=name)) == 0
    loud_CS, _ = audio_io.read("loud - rain.wav")
    expected_CS = Separator.load(workdir).separate(noise(1, 500, 200), 8000, "rain")
    assert np.abs(loud_CS).max() > 2
    np.testing.assert_array_equal(loud_CS, expected_CS)


def test_each_text_gives_its_file(here, workdir, capfd):
    audio_CS, _ = audio_io.read(recording("in.flac", subtype="PCM_16"))
    arguments = command(workdir, "--text", "a dog", "--text", "rain", recording="in.flac")
    assert separate.main(arguments) == 0
    names = ["in - rain.wav", "in - a dog.wav", "in - rain (2).wav"]
    assert capfd.readouterr().out.splitlines() == [f"separated/{name}" for name in names]
    expected_NCS = Separator.load(workdir).separate(audio_CS, 8000, ["rain", "a dog", "rain"])
    for name, expected_CS in zip(names, expected_NCS, strict=True):
        np.testing.assert_allclose(
            audio_io.read(f"separated/{name}")[0], expected_CS, rtol=0, atol=1e-6
        )


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("../../etc/passwd", ".._.._etc_passwd"),
        ("/root/x", "_root_x"),
        ("..", "_"),
        ("犬が吠える 🐶", "犬が吠える 🐶"),
        ("C:\\con|rain?", "C__con_rain_"),
        ("  rain,\n\ton   a roof. ", "rain, on a roof"),
        ("x" * 500, "x" * 60),
        ("\x1b[31mred\u202e\x7f", "_[31mred__"),
    ],
)
def test_a_query_becomes_a_file_name(text, name):
    assert separate.output_names("in", [text]) == [f"in - {name}.wav"]


@given(st.text(max_size=300), st.lists(st.text(max_size=80), min_size=1, max_size=4))
def test_any_text_stays_in_its_folder(stem, queries):
    stem = Path(stem.encode(errors="ignore").decode().replace("\0", "")).stem
    names = separate.output_names(stem, queries)
    assert len({name.casefold() for name in names}) == len(queries)
    for name in names:
        assert Path(name).name == name
        assert len(os.fsencode(name)) < 235
        assert name.endswith(".wav")


# ---------------------------------------------------------------------- mistakes


def refused(capfd, here, arguments, words):
    """One line on stderr that says `words`, exit code 2, and nothing written."""
    before = files(here)
    assert separate.main(arguments) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert words in err
    assert files(here) == before


def broken_recordings(here):
    whole = recording(here / "whole.wav").read_bytes()
    (here / "empty.wav").write_bytes(b"")
    (here / "text.wav").write_text("Dear diary,\n" * 50)
    (here / "truncated.wav").write_bytes(whole[: len(whole) // 2])
    (here / "folder.wav").mkdir()
    (here / "two\nlines.wav").write_bytes(b"")
    recording(here / "zero.wav", num_samples=0)
    soundfile.write(here / "nan.wav", np.full(99, np.nan), 8000, subtype="FLOAT")
    soundfile.write(here / "infinite.wav", np.full(99, np.inf), 8000, subtype="FLOAT")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("missing.wav", "missing.wav: no such file"),
        ("empty.wav", "empty.wav: is empty"),
        ("text.wav", "text.wav: cannot be read as audio"),
        ("truncated.wav", "truncated.wav: is truncated"),
        ("folder.wav", "folder.wav: is not a file"),
        ("two\nlines.wav", "two lines.wav: is empty"),
        ("zero.wav", "zero.wav: contains no samples"),
        ("nan.wav", "nan.wav: contains NaN"),
        ("infinite.wav", "infinite.wav: contains NaN or infinite"),
        ("x" * 300, "cannot be opened"),
    ],
)
def test_unusable_recording(here, workdir, capfd, name, words):
    broken_recordings(here)
    refused(capfd, here, command(workdir, recording=name), words)


@pytest.mark.parametrize("text", ["", " \n\t", "\udc80"])
def test_unusable_text(here, workdir, capfd, text):
    recording(here / "in.wav")
    words = "is not valid text" if text.strip() else "--text is empty"
    refused(capfd, here, command(workdir, text=text), words)
    refused(capfd, here, command(workdir, "--text", text), words)


def test_unusable_checkpoint(here, workdir, capfd):
    recording(here / "in.wav")
    refused(capfd, here, command("missing"), "missing: no such folder")
    refused(capfd, here, command("in.wav"), "in.wav: is neither a PyTorch checkpoint")
    (here / "empty").mkdir()
    refused(capfd, here, command("empty"), "empty: is no training workdir")
    (here / "empty" / "checkpoints").mkdir()
    refused(capfd, here, command("empty"), "holds no checkpoint yet")


def test_checkpoint_of_another_architecture(here, capfd):
    recording(here / "in.wav")
    config = tiny_config()
    save_run(here / "other", config=config)
    about = next(here.glob("other/checkpoints/*/about/metadata"))
    about.write_text(about.read_text().replace('"stem_channels": 3', '"stem_channels": 5'))
    refused(capfd, here, command("other"), "is of another architecture")


@pytest.mark.parametrize("output", ["in.wav", "in.wav/below/it", "x" * 300, "/proc/nothing/here"])
def test_unusable_output(here, workdir, capfd, output):
    recording(here / "in.wav")
    refused(capfd, here, command(workdir, "--output", output), "")


def test_a_name_that_is_taken_by_a_folder_leaves_nothing_behind(here, workdir, capfd):
    """The first of two results is removed again where the second cannot be written."""
    recording(here / "in.wav")
    (here / "out" / "in - dog.wav").mkdir(parents=True)
    refused(
        capfd, here, command(workdir, "--text", "dog", "--output", "out"), "in - dog.wav: cannot"
    )


def test_a_failure_while_writing_removes_new_folders(here, workdir, capfd, monkeypatch):
    recording(here / "in.wav")

    def disk_full(path, audio_CS, sample_rate_hz, *, subtype):
        path.parent.mkdir(parents=True)
        path.write_bytes(b"half")
        raise InputError(f"{path}: cannot be written (disk full)")

    monkeypatch.setattr(audio_io, "write", disk_full)
    refused(capfd, here, command(workdir, "--output", "new/deep"), "disk full")


@pytest.mark.parametrize("link", [os.link, os.symlink])
def test_the_input_is_never_overwritten(here, workdir, capfd, link):
    recording(here / "in.wav")
    link(here / "in.wav", here / "in - rain.wav")
    refused(capfd, here, command(workdir, "--output", "."), "is the input")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "required"),
        (["in.wav", "--text", "rain", "--checkpoint", "no/such/run"], "--checkpoint"),
        (["in.wav", "--checkpoint", "run"], "--text"),
        (["in.wav", "--text", "rain", "--checkpoint", "run", "--loud"], "--loud"),
    ],
)
def test_mistyped(here, capfd, arguments, words):
    refused(capfd, here, arguments, words)


# ---------------------------------------------------------------------- as a user runs it


def run(here, *arguments):
    return subprocess.run(
        [sys.executable, SCRIPT, *arguments],
        cwd=here,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(SCRIPT.parent)},
        check=False,
    )


def test_as_a_process(here, workdir):
    recording(here / "in.wav", num_channels=2)
    done = run(here, *command(workdir, "--output", "out", text="a dog 🐶"))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "out/in - a dog 🐶.wav\n"
    assert files(here) == ["in.wav", "out", "out/in - a dog 🐶.wav"]


def test_a_mistake_as_a_process(here, workdir):
    done = run(here, *command(workdir, recording="none.wav"))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: none.wav: no such file\n"
    assert files(here) == []


def test_help_shows_an_example_without_loading_the_library():
    code = (
        f"import runpy, sys; sys.argv = ['separate.py', '--help']\n"
        f"try: runpy.run_path({str(SCRIPT)!r}, run_name='__main__')\n"
        f"finally: assert not {{'jax', 'numpy', 'orbax'}} & set(sys.modules)"
    )
    environment = {**os.environ, "PYTHONPATH": str(SCRIPT.parent)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert (
        'python separate.py street.wav --text "a dog barking" --checkpoint runs/demo' in done.stdout
    )
