"""The script that makes a corpus of speakers."""

import importlib
from pathlib import Path

import numpy as np
import pytest
import soundfile

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
RATE_HZ = 16000


@pytest.fixture
def voices(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return importlib.import_module("voices")


def save_prompts(folder, name, count, suffix=".ogg"):
    """Prompts of two seconds of sound between silences."""
    for k in range(count):
        tone_S = np.sin(np.arange(2 * RATE_HZ) * (k + 5) / 100) / 4
        path = folder / name.format(k)
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, np.pad(tone_S, RATE_HZ), RATE_HZ)


def test_prompts_are_joined_by_speaker(voices, tmp_path):
    data, output = tmp_path / "data", tmp_path / "output"
    for folder in voices.FOLDERS.values():
        (data / folder).mkdir(parents=True)
    save_prompts(data, "tuxpaint/stamps/animals/{}_desc_ro.ogg", 7)
    save_prompts(data, "klettres/de/alpha/{}.ogg", 6)
    save_prompts(data, "klettres/nn/{}.ogg", 4)
    save_prompts(data, "klettres/sr@latin/{}.ogg", 6)
    found = voices.speakers(data)
    assert {name: len(paths) for name, paths in found.items()} == {
        "stamps_ro": 7,
        "klettres_de": 6,
        "klettres_nn": 4,
    }
    for name, paths in found.items():
        voices.write_speaker(output, (1.25,), name, paths)
    written = sorted(output.rglob("*.flac"))
    # Three prompts make a recording, and a speaker with only one is left out.
    names = ["train/klettres_de/000.flac", "train/klettres_de/001.flac"]
    names += ["train/klettres_de_1.25/000.flac", "train/klettres_de_1.25/001.flac"]
    names += ["valid/stamps_ro/000.flac", "valid/stamps_ro/001.flac"]
    assert [str(path.relative_to(output)) for path in written] == names
    for path in written:
        audio_S, rate_hz = soundfile.read(path)
        assert rate_hz == RATE_HZ
        speed = 1.25 if "1.25" in path.parent.name else 1
        assert 6 < len(audio_S) / RATE_HZ * speed < 7.1  # silences are cut to 0.15 s
        assert np.sqrt(np.mean(audio_S**2)) == pytest.approx(10 ** (-22 / 20), rel=0.1)
