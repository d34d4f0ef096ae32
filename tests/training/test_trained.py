"""Weights on disk: what is saved comes back to the bit, from a folder, a file or a hub."""

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from hub_server import environment, serving
from separator_examples import tiny_variables
from tiny_run import RATE_HZ, save_run
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from audiosep_jax.encoders import make_encoder
from audiosep_jax.encoders.encoder import TextConfig
from audiosep_jax.errors import InputError
from audiosep_jax.separation.separator import Separator
from audiosep_jax.training import trained
from audiosep_jax.weights import torch_files
from audiosep_jax.weights.names import export_separator, full_state_dict


@pytest.fixture(scope="module")
def separator(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    save_run(folder, {20: 3.0})
    return Separator.load(folder)


def assert_equal(loaded, separator):
    for name in ("model", "text", "text_fingerprint", "step"):
        assert vars(loaded)[name] == vars(separator)[name]
    jax.tree.map(np.testing.assert_array_equal, loaded.variables, separator.variables)


def test_saved_and_loaded_is_the_same(separator, tmp_path):
    separator.save_pretrained(tmp_path / "new" / "folder")
    loaded = Separator.from_pretrained(tmp_path / "new" / "folder")
    assert_equal(loaded, separator)
    audio_S = np.random.default_rng(0).standard_normal(400).astype(np.float32)
    expected_S = separator.separate(audio_S, RATE_HZ, "rain")
    np.testing.assert_array_equal(loaded.separate(audio_S, RATE_HZ, "rain"), expected_S)
    assert sorted(x.name for x in (tmp_path / "new" / "folder").iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
    ]


def test_a_known_name_is_no_local_path(separator, tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    separator.save_pretrained("shipped")
    other = dataclasses.replace(separator, step=separator.step + 1)
    other.save_pretrained("small")
    monkeypatch.setattr(trained, "SHIPPED_FOLDER", tmp_path / "shipped")
    assert Separator.from_pretrained("small").step == separator.step
    assert "./small is the path" in caplog.text
    caplog.clear()
    assert Separator.load("./small").step == Separator.load(Path("small")).step == other.step
    assert caplog.records == []


def test_a_table_of_words_goes_with_the_weights(separator, tmp_path):
    table = tmp_path / "table"
    table.mkdir()
    Tokenizer(WordLevel({"?": 0, "rain": 1}, unk_token="?")).save(str(table / "tokenizer.json"))
    table_VE = np.random.default_rng(0).standard_normal((2, separator.model.condition_features))
    torch_files.write_safetensors(table / "model.safetensors", {"embeddings": table_VE})
    text = TextConfig("static", model=str(table))
    fingerprint = make_encoder(text).fingerprint
    made = dataclasses.replace(separator, text=text, text_fingerprint=fingerprint, _encoders={})
    made.save_pretrained(tmp_path / "first")
    shutil.rmtree(table)
    Separator.load(tmp_path / "first").save_pretrained(tmp_path / "again")
    shutil.rmtree(tmp_path / "first")
    row_E = Separator.load(tmp_path / "again").embed_text(["rain"])[0]
    np.testing.assert_allclose(row_E, table_VE[1] / np.linalg.norm(table_VE[1]), atol=1e-6)
    assert str(tmp_path) not in (tmp_path / "again" / "config.json").read_text()


def test_model_card_tells_the_sizes(separator, tmp_path):
    separator.save_pretrained(tmp_path / "saved", name="me/mine")
    card = (tmp_path / "saved" / "README.md").read_text()
    count = sum(x.size for x in jax.tree.leaves(separator.variables["params"]))
    for words in (f"| {count:,} |", "8,000 Hz", "window 64, hop 16 samples (2 ms)", "20 steps"):
        assert words in card
    assert 'from_pretrained("me/mine")' in card
    assert card.startswith("---\nlibrary_name: audiosep_jax\n")


def test_model_card_of_voices_asks_by_voice(separator):
    text = TextConfig("voice")
    saved = trained.Trained(separator.model, text, None, separator.variables, separator.step)
    card = trained.model_card(saved, "mine")
    assert "--voice enrolment.wav" in card
    assert 'embed("voice", ' in card
    assert "--text" not in card


def test_pushed_and_fetched_through_the_hubs_client(separator, tmp_path):
    separator.save_pretrained(tmp_path / "saved")
    code = (
        "from audiosep_jax.separation.separator import Separator\n"
        f"separator = Separator.from_pretrained({str(tmp_path / 'saved')!r})\n"
        "print(separator.push_to_hub('someone/mine'))\n"
        f"Separator.from_pretrained('someone/mine').save_pretrained({str(tmp_path / 'back')!r})"
    )
    with serving({}) as loopback:
        command = [sys.executable, "-c", code]
        changes = {"HF_TOKEN": "hf_x"}
        env = environment(tmp_path, loopback.endpoint, **changes)
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip() == f"{loopback.endpoint}/someone/mine"
        assert b"someone/mine" in loopback.repositories["models/someone/mine"]["README.md"]
    assert_equal(Separator.from_pretrained(tmp_path / "back"), separator)


def test_a_folder_or_file_of_the_originals(separator, tmp_path):
    model = dataclasses.replace(
        separator.model, sample_rate_hz=32000, window_samples=2048, hop_samples=320
    )
    variables = tiny_variables(model)
    tensors = full_state_dict(variables, model, 4)
    torch_files.write_torch(tmp_path / "pytorch_model.bin", tensors, lightning=False)
    (tmp_path / "config.json").write_text('{"architectures": ["AudioSep"]}')
    for source in (tmp_path, tmp_path / "pytorch_model.bin"):
        loaded = trained.read(source)
        assert (loaded.model, loaded.text, loaded.step) == (model, TextConfig("clap"), 4)
        expected = dict(export_separator(variables))
        for name, tensor in export_separator(loaded.variables):
            np.testing.assert_array_equal(tensor, expected[name])


def test_a_sound_is_no_query_without_clap(separator):
    with pytest.raises(
        InputError, match="audio_query needs weights trained with clap, not with hashed"
    ):
        separator.embed_audio(np.zeros(9, np.float32), RATE_HZ)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda about: about["model"].update(stem_channels=5), "bn1.running_mean has shape"),
        (lambda about: about["model"].update(depth=3), "another version"),
        (lambda about: about.pop("text"), "does not hold its model, text"),
        (lambda about: about.update(text_fingerprint="hashed-0"), "text encoder hashed-0"),
    ],
)
def test_config_of_something_else(separator, tmp_path, change, words):
    separator.save_pretrained(tmp_path)
    about = json.loads((tmp_path / "config.json").read_text())
    change(about)
    (tmp_path / "config.json").write_text(json.dumps(about))
    with pytest.raises(InputError, match=words) as caught:
        Separator.from_pretrained(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_config_that_is_no_json(separator, tmp_path):
    separator.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("[")
    with pytest.raises(InputError, match=r"config\.json: is not JSON"):
        Separator.from_pretrained(tmp_path)


def test_to_separate_no_data_code_is_imported():
    code = (
        "import sys, audiosep_jax.training.trained\n"
        "heavy = ('audiosep_jax.data', 'audiosep_jax.training.config', 'scipy', 'orbax', 'grain')\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
