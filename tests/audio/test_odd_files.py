"""Odd recordings: a right result or one clear line for each, and nothing outside the output."""

import contextlib
import importlib.util
import os
import struct
import tempfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
from tiny_run import save_run

from audiosep_jax.audio.files import AudioReader
from audiosep_jax.separation import batch  # noqa: F401 (a user without permission may not import it)
from audiosep_jax.separation.separator import Separator

ROOT = Path(__file__).resolve().parents[2]
_spec = importlib.util.spec_from_file_location("separate", ROOT / "separate.py")
separate = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(separate)

LOSSY = ("MP3", "OGG")


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    save_run(folder)
    return Separator.load(folder)


@pytest.fixture
def command(loaded, monkeypatch):
    """`main` with one loaded network for all calls."""
    separator = loaded
    monkeypatch.setattr(Separator, "load", lambda *_, **__: separator)
    return lambda *words: separate.main([*map(os.fspath, words), "--checkpoint", "audiosep"])


def noise(num_samples=300, channels=1, scale=0.1):
    rng = np.random.default_rng(0)
    return (scale * rng.standard_normal((num_samples, channels))).astype(np.float32)


def sound(audio_SC=None, rate_hz=8000, **options):
    """The bytes of a recording."""
    with tempfile.NamedTemporaryFile() as file:
        options = {"format": "WAV", "subtype": "FLOAT"} | options
        audio_SC = noise() if audio_SC is None else audio_SC
        soundfile.write(file.name, audio_SC, rate_hz, **options)
        return Path(file.name).read_bytes()


def with_rate(content, rate_hz):
    """A WAV whose header gives another rate."""
    at = content.index(b"fmt ") + 12
    return content[:at] + struct.pack("<I", rate_hz) + content[at + 4 :]


def with_channels(content, channels):
    at = content.index(b"fmt ") + 10
    return content[:at] + struct.pack("<H", channels) + content[at + 2 :]


def without_lengths(content):
    """As a recorder leaves it that was switched off."""
    at = content.index(b"data") + 4
    return b"RIFF" + bytes(4) + content[8:at] + bytes(4) + content[at + 4 :]


def filled(value, where=150):
    audio_SC = noise()
    audio_SC[where] = value
    return sound(audio_SC)


def good():
    """Recordings that have a right result, by name."""
    ints = {"subtype": "PCM_16"}
    return {
        "one sample.wav": sound(noise(1)),
        "two samples.wav": sound(noise(2)),
        "dc.wav": sound(np.full((300, 1), 0.5)),
        "silence.wav": sound(np.zeros((300, 1))),
        "denormal.wav": sound(np.full((300, 1), 1e-42)),
        "enormous.wav": sound(noise(scale=1e6)),
        "full scale.wav": sound(np.sign(noise()) * 0.99, **ints),
        "8 bit.wav": sound(subtype="PCM_U8"),
        "24 bit.wav": sound(subtype="PCM_24"),
        "32 bit.wav": sound(subtype="PCM_32"),
        "64 bit.wav": sound(subtype="DOUBLE"),
        "a-law.wav": sound(subtype="ALAW"),
        "adpcm.wav": sound(subtype="IMA_ADPCM"),
        "32 channels.wav": sound(noise(300, 32), **ints),
        "100 Hz.wav": with_rate(sound(), 100),
        "768 kHz.wav": with_rate(sound(), 768_000),
        "11 kHz.wav": sound(rate_hz=11_025),
        "no lengths.wav": without_lengths(sound(**ints)),
        "junk behind.wav": sound(**ints) + b"ID3\3" + bytes(99),
        "really flac.wav": sound(format="FLAC", subtype="PCM_16"),
        "vorbis.ogg": sound(noise(4000), format="OGG", subtype="VORBIS"),
        "layer 3.mp3": sound(noise(4000), format="MP3", subtype="MPEG_LAYER_III"),
        "big end.aiff": sound(format="AIFF", **ints),
        "next.au": sound(format="AU", **ints),
        "core.caf": sound(format="CAF", **ints),
        "sony.w64": sound(format="W64", **ints),
        "UPPER.WAV": sound(**ints),
        "-n.wav": sound(**ints),
        'it\'s "quoted" $(touch x) `y`.wav': sound(**ints),
        "two\nlines\ttab.wav": sound(**ints),
        "🐶 犬 e\u0301.wav": sound(**ints),
        "x" * 240 + ".wav": sound(**ints),
        os.fsdecode(b"\xff\xfe.wav"): sound(**ints),
    }


def bad():
    """Recordings that have none, with words of the line that says so."""
    whole = sound()
    return {
        "empty.wav": (b"", "is empty"),
        "empty.flac": (b"", "is empty"),
        "four bytes.wav": (b"RIFF", "cannot be read as audio"),
        "header alone.wav": (whole[:44], ""),
        "truncated.wav": (whole[: len(whole) // 2], "truncated"),
        "truncated.flac": (sound(noise(9000), format="FLAC", subtype="PCM_16")[:6000], ""),
        "truncated.ogg": (sound(noise(9000), format="OGG", subtype="VORBIS")[:-900], "truncated"),
        "no samples.wav": (sound(noise(0)), "contains no samples"),
        "text.wav": (b"Dear diary,\n" * 50, "cannot be read as audio"),
        "page.mp3": (b"<!doctype html><title>404</title>" * 9, "cannot be read as audio"),
        "zip.ogg": (b"PK\3\4" + bytes(400), "cannot be read as audio"),
        "zeros.wav": (bytes(4000), "cannot be read as audio"),
        "random.flac": (np.random.default_rng(0).bytes(4000), "cannot be read as audio"),
        "nan.wav": (filled(np.nan), "NaN or infinite"),
        "nan at the end.wav": (filled(np.nan, -1), "NaN or infinite"),
        "infinite.wav": (filled(np.inf), "NaN or infinite"),
        "minus infinite.wav": (filled(-np.inf), "NaN or infinite"),
        "1 Hz.wav": (with_rate(whole, 1), "sample rate of 1 Hz"),
        "0 Hz.wav": (with_rate(whole, 0), ""),
        "4 GHz.wav": (with_rate(whole, 4_000_000_000), ""),
        "no channels.wav": (with_channels(whole, 0), ""),
        "65535 channels.wav": (with_channels(whole, 65535), ""),
        "film.mp4": (b"\0\0\0\x18ftypmp42" + bytes(300), ""),
        "\x1b[31mred\n.wav": (b"", "is empty"),
    }


def tree(folder):
    return sorted(os.fsencode(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.mark.slow
def test_a_folder_of_odd_files(tmp_path, command, capfd):
    """Sixty-one of them: the good have results, the bad a line each, and no trace is left."""
    for name, content in [*good().items(), *((name, x) for name, (x, _) in bad().items())]:
        path = tmp_path / "in" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
    os.mkfifo(tmp_path / "in/pipe.wav")
    (tmp_path / "in/nowhere.wav").symlink_to("missing")
    (tmp_path / "in/round.wav").symlink_to("round.wav")
    (tmp_path / "in/zero.wav").symlink_to("/dev/zero")
    (tmp_path / "in/folder.wav").mkdir()
    before = tree(tmp_path / "in")
    options = ["--text", "rain", "--text", "犬"]
    code = command(tmp_path / "in", "--output", tmp_path / "out", *options)
    err = capfd.readouterr().err
    assert code == 1
    assert "Traceback" not in err
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    links = {"pipe.wav": "", "nowhere.wav": "no such file", "round.wav": "", "zero.wav": ""}
    expected = {name: words for name, (_, words) in bad().items()} | links
    for name, words in expected.items():
        shown = "".join(x if x.isprintable() else "?" for x in " ".join(name.split()))
        (line,) = [line for line in lines if f"in/{shown}: " in line]
        assert words in line
        assert len(line) < 400
    assert len(lines) == len(expected)
    assert err.splitlines()[-1].startswith(f"{len(expected)} of {len(expected) + len(good())} ")
    assert tree(tmp_path / "in") == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]
    assert_results(tmp_path, good())


def assert_results(tmp_path, contents):
    results = [path for path in (tmp_path / "out").rglob("*") if path.suffix != ".jsonl"]
    assert len(results) == 2 * len(contents)
    for name in contents:
        with AudioReader(tmp_path / "in" / name) as original:
            shape = original.sample_rate_hz, original.num_channels, original.num_samples
            lossy = original.format in LOSSY
        stem = os.fsencode(name).rpartition(b".")[0][:83]
        mine = [path for path in results if os.fsencode(path.name).startswith(stem + b" - ")]
        assert len(mine) == 2, name
        for path in mine:
            audio_SC, rate_hz = soundfile.read(os.fsencode(path), always_2d=True)
            assert np.isfinite(audio_SC).all()
            assert (rate_hz, audio_SC.shape[1]) == shape[:2]
            assert lossy or len(audio_SC) == shape[2], name
            if name == "silence.wav":
                assert not audio_SC.any()


def refused(capfd, tmp_path, code, words):
    out, err = capfd.readouterr()
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert words in err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("missing.wav", "no such file"),
        ("folder", "holds no recordings"),
        ("x" * 5000, "cannot be opened"),
        ("in.wav/below.wav", ""),
        ("/dev/null", "is a folder, pipe or device"),
        ("none://x/a.wav", "cannot be used (Protocol not known"),
        ("", "a path is empty"),
    ],
)
def test_what_is_no_file(tmp_path, command, capfd, monkeypatch, name, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "in.wav").write_bytes(sound())
    code = command("--output", "out", "--text", "rain", name)
    refused(capfd, tmp_path, code, words)


@contextlib.contextmanager
def unprivileged():
    """As a user who is not root, where this is root, whom no permission stops."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


def test_without_permission(command, capfd):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "in.wav").write_bytes(sound())
        (folder / "in.wav").chmod(0)
        (folder / "closed").mkdir(mode=0)
        folder.chmod(0o755)
        for path in (folder / "in.wav", folder / "closed/in.wav"):
            with unprivileged():
                code = command(path, "--output", folder / "out", "--text", "rain")
            refused(capfd, folder, code, "Permission denied")
        (folder / "in.wav").chmod(0o644)
        with unprivileged():
            code = command(folder / "in.wav", "--output", folder / "out", "--text", "rain")
        refused(capfd, folder, code, "cannot be created (Permission denied)")
        assert sorted(path.name for path in folder.iterdir()) == ["closed", "in.wav"]


def test_results_in_a_folder_that_cannot_be_listed_are_not_replaced(command, capfd):
    with tempfile.TemporaryDirectory() as name:
        recording, out = Path(name) / "in.wav", Path(name) / "out"
        recording.write_bytes(sound())
        out.mkdir()
        (out / "in - rain.wav").write_text("of the user")
        if os.geteuid() == 0:
            for path in (out, out / "in - rain.wav"):
                os.chown(path, 65534, 65534)
        Path(name).chmod(0o755)
        out.chmod(0o300)
        with unprivileged():
            code = command(recording, "--output", out, "--text", "rain")
        assert code == 2
        assert f"{out}: cannot be listed (Permission denied)" in capfd.readouterr().err
        out.chmod(0o700)
        assert (out / "in - rain.wav").read_text() == "of the user"


@pytest.mark.parametrize(
    "output",
    [
        "../evil",
        "/tmp/evil",
        "a/../../evil",
        "..",
        "C:/evil",
        "..\\evil",
        "a/\0",
        "a/\x1b",
        "nul./x",
    ],
)
def test_a_list_cannot_write_elsewhere(tmp_path, command, capfd, output):
    (tmp_path / "in.wav").write_bytes(sound())
    (tmp_path / "list.csv").write_text(f"file,query,output\nin.wav,rain,{output}\n")
    code = command(tmp_path / "list.csv", "--output", tmp_path / "out")
    refused(capfd, tmp_path, code, "")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.wav", "list.csv"]


def test_queries_and_links_cannot_write_elsewhere(tmp_path, command, capfd):
    (tmp_path / "in.wav").write_bytes(sound())
    (tmp_path / "list.csv").write_text(
        "file,query,output\nin.wav,../../evil,\nin.wav,/evil,\nin.wav,x,link/evil\n"
    )
    (tmp_path / "out").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out/link").symlink_to(tmp_path / "elsewhere")
    assert command(tmp_path / "list.csv", "--output", tmp_path / "out") == 1
    assert "a link leads out of the output folder" in capfd.readouterr().err
    assert not list((tmp_path / "elsewhere").iterdir())
    (tmp_path / "out/link").unlink()
    assert command(tmp_path / "list.csv", "--output", tmp_path / "out") == 0
    assert tree(tmp_path / "out") == [
        b"in - .._.._evil.wav",
        b"in - _evil.wav",
        b"link",
        b"link/evil.wav",
        b"separated.jsonl",
    ]
