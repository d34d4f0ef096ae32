"""The scripts of `examples/` run and give the results that they promise."""

import csv
import importlib.util
import itertools
from pathlib import Path

import jax
import numpy as np
import pytest
from tiny_run import RATE_HZ, save_run, tiny_config

from audiosep_jax.audio import files as audio_files
from audiosep_jax.encoders import make_encoder
from audiosep_jax.encoders.encoder import TextConfig
from audiosep_jax.model import NETWORKS
from audiosep_jax.training import trained

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"

pytestmark = pytest.mark.slow


def load(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.smoke
def test_separate_file_three_ways(tmp_path):
    save_run(tmp_path / "run")
    audio_CS = np.random.default_rng(0).uniform(-0.3, 0.3, (2, 3 * RATE_HZ)).astype(np.float32)
    audio_files.write("in.wav", audio_CS, RATE_HZ, subtype="FLOAT")
    load("separate_file").main("in.wav", "rain", tmp_path / "run")
    names = ("estimate.wav", "target.wav", "rest.wav")
    estimate_CS, target_CS, rest_CS = (audio_files.read(name)[0] for name in names)
    assert estimate_CS.shape == audio_CS.shape
    np.testing.assert_allclose(target_CS + rest_CS, audio_CS, atol=1e-6)


@pytest.mark.smoke
def test_a_step_written_by_hand_learns():
    losses = load("training_step").main(10)
    assert len(losses) == 10
    assert np.mean(losses[-3:]) < losses[0] - 1


@pytest.mark.smoke
def test_a_network_of_ones_own_trains_and_separates(tmp_path, monkeypatch):
    monkeypatch.setattr("audiosep_jax.model.NETWORKS", dict(NETWORKS))
    separator = load("own_network").main("run", 10)
    assert separator.model.network == "gru"
    mixture_CS, _ = audio_files.read(tmp_path / "run" / "example" / "mixture.wav")
    rain_CS, _ = audio_files.read(tmp_path / "run" / "rain.wav")
    assert rain_CS.shape == mixture_CS.shape
    assert 0 < np.mean(rain_CS**2) < np.mean(mixture_CS**2)


@pytest.mark.smoke
def test_a_new_sound_is_taught_and_the_gain_is_told(tmp_path, capsys):
    """Two steps of a small network: the differences are those of the scores before and after."""
    save_run(tmp_path / "base")
    rng = np.random.default_rng(0)
    for place, names in (("new", ["whistle"]), ("others", ["rain", "siren"])):
        for folder in (place, f"{place}_test"):
            for name, number in itertools.product(names, range(2)):
                clip_CS = rng.uniform(-0.3, 0.3, (1, RATE_HZ)).astype(np.float32)
                audio_files.write(Path(folder, name, f"{number}.wav"), clip_CS, RATE_HZ)
    places = [f"--{x}={x}" for x in ("new", "new_test", "others", "others_test")]
    small = ["num_steps=2", "batch_size=8", "data.segment_seconds=0.5", "valid.num_mixtures=8"]
    small += ["valid.every_steps=2", "loss.activity=0"]
    words = [*places, "--checkpoint=base", "--workdir=run", "--num_pairs=4"]
    found = load("teach").main([*words, *(f"--config.{x}" for x in small)])
    for name in ("new", "others"):
        folders = (Path("run", "results", f"{name}-{when}") for when in ("before", "after"))
        tables = [_rows(folder / "results.csv") for folder in folders]
        for score in ("sdri", "si_sdri"):
            before, after = ([float(row[score]) for row in rows] for rows in tables)
            gain = np.mean(after) - np.mean(before)
            assert found[name][score]["difference"] == pytest.approx(gain, abs=1e-5)
            assert before != after
    assert {row["query"] for row in _rows(Path("run/new.csv"))} == {"whistle"}
    assert "new: si_sdri changes by" in capsys.readouterr().out


def test_the_head_for_the_activity_is_trained_alone(tmp_path):
    config = tiny_config()
    config.model.activity, config.text.encoder = "gate", "hashed"
    config.model.hop_samples = 32
    config.data.source, config.data.root = "folders", "clips"
    save_run(tmp_path / "base", config=config)
    Path("config.py").write_text(
        "from ml_collections import ConfigDict\n"
        f"def get_config(): return ConfigDict({config.to_dict()!r})"
    )
    rng = np.random.default_rng(0)
    for name in ("crying baby", "rooster", "rain"):
        clip_CS = rng.uniform(-0.3, 0.3, (1, RATE_HZ)).astype(np.float32)
        audio_files.write(Path("clips", name, "0.wav"), clip_CS, RATE_HZ)
    words = ["--config=config.py", "--checkpoint=base", "--output=new", "--num_mixtures=16"]
    load("activity_head").main([*words, "--steps=12", "--config.mixing.max_mix_num=2"])
    old, new = (jax.tree.leaves_with_path(trained.read(x).variables) for x in ("base", "new"))
    for (path, before), (_, after) in zip(old, new, strict=True):
        changed = not np.allclose(before, after, atol=3e-4)
        assert changed == ("activity" in jax.tree_util.keystr(path)), path


def test_the_pages_recordings_are_mixed_at_0_db(tmp_path):
    for number, name in enumerate(("loud", "quiet")):
        audio_CS = np.random.default_rng(number).uniform(-0.9, 0.9, (2, 6 * 32000)) / 10**number
        audio_files.write(tmp_path / f"{name}.wav", audio_CS, 32000, subtype="FLOAT")
    part_NS = load("page_recordings").mix([tmp_path / "loud", tmp_path / "quiet"])
    assert part_NS.shape == (2, 5 * 16000)
    assert np.sum(part_NS[0] ** 2) == pytest.approx(np.sum(part_NS[1] ** 2), rel=1e-4)
    assert np.abs(part_NS.sum(0)).max() == pytest.approx(0.7, rel=1e-4)


def _rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_distilled_table_holds_the_towers_vectors_weighted_by_rank(tmp_path):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "dog", "bark", "rain", "wind"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    transformers.BertTokenizerFast("vocab.txt").save_pretrained("tower")
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_attention_heads": 4, "intermediate_size": 24}
    config = transformers.BertConfig(
        vocab_size=len(words), num_hidden_layers=1, initializer_range=0.5, **sizes
    )
    bert = transformers.BertModel(config).eval()
    bert.save_pretrained("tower")
    load("distill_table").main("tower", tmp_path / "table", dimensions=16)
    rows_NE = make_encoder(TextConfig("static", model="table"))(["dog", "rain", "dog rain"])
    with torch.no_grad():
        ids = torch.tensor([(2, i, 3) for i in range(len(words))])
        pieces = unit(bert(ids).last_hidden_state.mean(1).numpy())
    dog, rain = ((pieces - pieces.mean(axis=0))[i] * np.log1p(i) for i in (6, 8))
    expected = unit(np.stack([dog, rain, dog + rain]))
    # All components are kept, so a rotation, which keeps cosines, is the only change but rounding.
    np.testing.assert_allclose(rows_NE @ rows_NE.T, expected @ expected.T, atol=0.02)


def unit(rows_NE):
    return rows_NE / np.linalg.norm(rows_NE, axis=1, keepdims=True)
