"""Every file in configs/ says how it is run, and takes a step in small."""

import ast
import functools
import importlib.util
import json
import shlex
from pathlib import Path

import jax
import numpy as np
import pytest
import soundfile
from ml_collections import ConfigDict
from tiny_models import write_clap, write_clip, write_static, write_voice
from tiny_run import save_run

import train
from audiosep_jax.model import make_model, variable_shapes
from audiosep_jax.training.config import differences, from_mapping

pytestmark = pytest.mark.slow

CONFIGS = sorted((Path(__file__).resolve().parents[2] / "configs").glob("*.py"))
LINES = ("Command:", "Hardware:", "Time:", "Expect:")


def load(path: Path):
    spec = importlib.util.spec_from_file_location(f"configs_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def facts(path: Path) -> dict[str, str]:
    """The entries of the docstring, by the word before the colon."""
    lines = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))).splitlines()
    found = {key: [line for line in lines if line.startswith(key)] for key in LINES}
    assert all(len(lines) == 1 for lines in found.values()), found
    return {key: lines[0].removeprefix(key).strip() for key, lines in found.items()}


def shrink(values: ConfigDict, folder: Path) -> None:
    """A network of one level, and local files in `folder` for all that would be fetched."""
    values.model.stem_channels = 4
    values.model.encoder_channels = (4,)
    values.model.time_pools = values.model.frequency_pools = (2,)
    values.data.segment_seconds = 0.5
    if values.text.encoder == "voice":
        values.text.model = str(write_voice(folder / "voice.pt"))
    if values.data.source == "speakers" or values.mixing.cue_probability:
        values.data.root = values.data.valid_root = str(folder / "voices")
        for k, speaker in enumerate("aabbcc"):
            path = folder / "voices" / speaker / f"{k}.wav"
            path.parent.mkdir(parents=True, exist_ok=True)
            tone_S = np.sin(np.arange(24_000) * (k + 1) / 20)
            soundfile.write(path, tone_S / 4, 16_000)
    elif values.text.encoder != "hashed":
        write = {"clap": write_clap, "clip": write_clip, "static": write_static}
        values.text.model = str(write[values.text.encoder](folder / "encoder"))
        values.model.condition_features = 8
        values.data.source, values.data.roots, values.data.weights = "synthetic", (), ()
        values.data.valid_root = ""
    if values.init_from:
        values.data.source = "synthetic"
        values.model.activity = "gate" if values.loss.activity else "none"
        frozen = values.copy_and_resolve_references()
        frozen.init_from, frozen.optim.adapter_rank = "", 0
        save_run(folder / "published", config=frozen)
        values.init_from = str(folder / "published")


def test_the_demo_is_among_them() -> None:
    assert {"demo", "esc50"} <= {path.stem for path in CONFIGS}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_docstring_gives_command_hardware_time_and_a_number(path: Path) -> None:
    said = facts(path)
    words = shlex.split(said["Command:"])
    assert words[:3] == ["python", "train.py", "--config"]
    assert words[3] == f"configs/{path.name}"
    assert said["Hardware:"]
    for key in ("Time:", "Expect:"):
        assert any(letter.isdigit() for letter in said[key]), said[key]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_its_name_is_that_of_the_file_and_its_values_are_valid(path: Path) -> None:
    config = from_mapping(load(path).get_config().to_dict())
    assert config.name == path.stem
    assert config.valid.every_steps <= config.num_steps
    assert differences(config, from_mapping(load(path).get_config().to_dict())) == {}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_its_network_in_full_size_fits_its_clips(path: Path) -> None:
    config = from_mapping(load(path).get_config().to_dict())
    rows, num_samples = 2, round(config.data.segment_seconds * config.model.sample_rate_hz)
    mixture_BS = jax.ShapeDtypeStruct((rows, num_samples), np.float32)
    condition_BE = jax.ShapeDtypeStruct((rows, config.model.condition_features), np.float32)
    apply = functools.partial(make_model(config.model).apply, train=False)
    estimate_BS = jax.eval_shape(apply, variable_shapes(config.model), mixture_BS, condition_BE)
    assert (estimate_BS.shape, estimate_BS.dtype) == ((rows, num_samples), np.float32)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_one_step_in_small(
    path: Path,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    values = load(path).get_config()
    values.valid.batch_size = values.valid.num_mixtures = 8
    values.batch_size = 16 if values.loss.remix else 8  # remixing takes two rows on each device
    values.num_steps = values.log_every_steps = values.valid.num_examples = 1
    values.valid.segment_seconds = 0.0  # as short as those of training
    values.data.num_synthetic_clips = 50
    if values.data.source == "esc50":
        values.data.root = str(request.getfixturevalue("shared") / "data" / "esc10")
    shrink(values, tmp_path)
    monkeypatch.setenv("AUDIOSEP_JAX_CACHE", str(tmp_path / "cache"))
    workdir = tmp_path / "run"
    train.train(from_mapping(values.to_dict()), workdir)
    logged = {}
    for line in (workdir / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        logged |= json.loads(line)
    assert -5 < logged["train/loss"] < 5
    assert -60 < logged["valid/sdri"] < 30
