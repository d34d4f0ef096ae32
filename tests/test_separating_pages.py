"""The pages about separating run as they are printed: their scripts and their commands."""

import contextlib
import os
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import soundfile
from PIL import Image
from tiny_models import write_clip, write_voice
from tiny_run import RATE_HZ, save_run, tiny_config

from audiosep_jax import cli
from audiosep_jax.__main__ import main
from audiosep_jax.audio import files as audio_files
from audiosep_jax.separation.separator import Separator

DOCS = Path(__file__).parents[1] / "docs"
COMMAND, SEPARATING = ((DOCS / f"{name}.md").read_text() for name in ("command", "separating"))

pytestmark = pytest.mark.slow


def commands(page):
    """Words of the indented commands, in the order of the page."""
    return [shlex.split(line) for line in re.findall(r"^ {4}(audiosep .*)$", page, re.MULTILINE)]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with everything that the pages name."""
    folder = tmp_path_factory.mktemp("page")
    for name in ("demo", "esc50"):
        save_run(folder / "runs" / name)
    config = tiny_config()
    write_clip(folder / "clip", projection_dim=config.model.condition_features)
    config.text.encoder, config.text.model = "clip", str(folder / "clip")
    save_run(folder / "runs/clip", config=config, text_fingerprint=None)
    config = tiny_config()
    config.model.condition_features, config.data.source = 256, "speakers"
    config.text.encoder, config.text.model = "voice", str(write_voice(folder / "voice.pt"))
    save_run(folder / "runs/voice", config=config, text_fingerprint=None)
    for name in ("dog.jpg", "street.jpg"):
        Image.new("RGB", (640, 320)).save(folder / name)
    (folder / "recordings").mkdir()
    audio_SC = np.random.default_rng(0).uniform(-0.3, 0.3, (RATE_HZ, 2))
    for name in (
        "meeting.wav",
        "alice.wav",
        "street.wav",
        "street.flac",
        "a.wav",
        "b.wav",
        "recordings/c.wav",
    ):
        soundfile.write(folder / name, audio_SC, RATE_HZ)
    (folder / "list.csv").write_text("file,query\na.wav,rain\nb.wav,wind\n")
    return folder


@pytest.mark.skipif(
    shutil.which("ffmpeg") is None and os.environ.get("CI") != "true",
    reason="ffmpeg is not installed",
)
def test_commands_that_separate(place, monkeypatch):
    monkeypatch.chdir(place)
    found = commands(COMMAND)
    assert len(found) == 5
    for _, *words in found:
        if "--checkpoint" not in words:
            words += ["--checkpoint", "runs/demo"]
        assert main([*words, "--overwrite"]) == 0, words
    for name in ("street - rain.wav", "street.txt", "street.vtt", "street.mka"):
        assert (place / "separated" / name).is_file()
    assert (place / "out" / "c - wind.wav").is_file()


def test_scripts_and_exports(place, monkeypatch):
    """One after the other, as a reader would type them; not every processor has bfloat16."""
    monkeypatch.chdir(place)
    monkeypatch.setattr(cli, "use_compilation_cache", lambda: None)
    for _, *words in commands(SEPARATING):
        assert main(words) == 0, words
    separator = Separator.load("runs/demo")
    audio_CS, _ = audio_files.read("street.wav")
    condition_NE = separator.embed_text(["a dog barking", "a dog barking"])
    names = {
        "microphone": np.array_split(audio_CS, 8, axis=1),
        "onnxruntime": onnxruntime,
        "mixture_BS": audio_CS,
        "num_samples": 8000,
        "condition_BE": condition_NE,
    }
    expected_CS = separator.separate_conditions(audio_CS, RATE_HZ, condition_NE[:1])[0]
    scripts = re.findall(r"```python\n(.*?)```", SEPARATING, re.DOTALL)
    assert len(scripts) == 5
    for script in scripts:
        if "jax.export" in script:  # of one mixture of 10 s
            names["mixture_BS"] = np.pad(audio_CS[:1], ((0, 0), (0, 9 * RATE_HZ)))
            names["condition_BE"] = condition_NE[:1]
        with contextlib.redirect_stdout(None):
            exec(script.replace('"bfloat16"', '"float32"'), names)
        if "estimate_BS" in names:
            estimate_BS = names.pop("estimate_BS")
            rows = expected_CS[: len(estimate_BS)]
            np.testing.assert_allclose(estimate_BS[:, :RATE_HZ], rows, rtol=0, atol=1e-5)
    np.testing.assert_allclose(names["dog_CS"], expected_CS, rtol=0, atol=1e-5)
    assert names["done"].presence_N.shape == (2,)
