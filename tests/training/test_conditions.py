"""conditions: a table of embeddings in a file."""

import contextlib
import dataclasses
import json

import numpy as np
import psutil
import pytest
import soundfile
from PIL import Image
from tiny_models import write_clip

from audiosep_jax.data.captions import Captions
from audiosep_jax.data.mixing import MixingConfig
from audiosep_jax.data.pipeline import train_batches
from audiosep_jax.data.sources import DataConfig, build_source
from audiosep_jax.data.validation import validation_set
from audiosep_jax.encoders import KINDS, make_encoder, make_query_encoder
from audiosep_jax.encoders.encoder import TextConfig, query_of
from audiosep_jax.errors import InputError
from audiosep_jax.training import conditions as conditions_module
from audiosep_jax.training.conditions import (
    ConditionTable,
    captions_hash,
    check_captions,
    distinct_captions,
    make_conditions,
)
from audiosep_jax.training.config import Config

RATE_HZ = 8000


def test_captions_of_several_sets_are_sorted_and_distinct():
    first, second = Captions([("rain", "dog")]), Captions([("rain",), ("bell",)])
    assert distinct_captions(first, second) == ["bell", "dog", "rain"]


def test_half_a_character_is_named():
    assert captions_hash(["a", "bé"]) != captions_hash(["bé", "a"])
    with pytest.raises(InputError, match=r"no Unicode text: 'a dog\\ud83d barks'"):
        captions_hash(["a dog\ud83d barks"])


def test_rows_are_those_that_were_set():
    captions = [f"sound {k}" for k in range(10)]
    table = ConditionTable(captions, 600)
    rows_NE = np.random.default_rng(0).standard_normal((10, 600)).astype(np.float32)
    for number, caption in enumerate(captions[:8]):
        table[caption] = rows_NE[number]
    assert (len(table), list(table)) == (8, captions[:8])
    assert "sound 7" in table
    assert "sound 8" not in table
    assert "another" not in table
    table["sound 8"], table["sound 9"] = rows_NE[8], rows_NE[9]
    table.share()
    for number, caption in enumerate(captions):
        np.testing.assert_array_equal(table[caption], rows_NE[number])


def test_a_row_of_another_length_is_refused():
    with pytest.raises(InputError, match=r"gives 4 numbers .*condition_features=3"):
        ConditionTable(["rain"], 3)["rain"] = np.zeros(4, np.float32)


def test_without_place_for_a_file_the_table_is_in_memory(monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(conditions_module.os, "posix_fallocate", full, raising=False)
    table = ConditionTable(["rain"], 3)
    table["rain"] = np.float32([1, 2, 3])
    table.share()
    np.testing.assert_array_equal(table["rain"], [1, 2, 3])


def test_the_rows_of_a_large_table_are_not_in_the_memory_of_the_process():
    captions = [str(number) for number in range(20_000)]
    table = ConditionTable(captions, 512)  # of 40 MB
    row_E, process = np.ones(512, np.float32), psutil.Process()
    before = process.memory_info().rss
    for caption in captions:
        table[caption] = row_E
    table.share()
    assert all(table[caption][511] == 1 for caption in table)
    assert process.memory_info().rss - before < 10e6


@pytest.fixture
def pictures(tmp_path, monkeypatch):
    """Data config of a manifest of three tones, each with a sentence and a picture."""
    monkeypatch.setenv("AUDIOSEP_JAX_CACHE", str(tmp_path / "cache"))
    rng, rows = np.random.default_rng(0), []
    for k in range(3):
        tone_S = np.sin(np.arange(RATE_HZ) * (k + 1) / 9) / 4
        soundfile.write(tmp_path / f"{k}.wav", tone_S, RATE_HZ)
        square_HWC = rng.integers(0, 256, (224, 224, 3), np.uint8)
        Image.fromarray(square_HWC).save(tmp_path / f"{k}.png")
        rows.append({"wav": f"{k}.wav", "caption": f"tone {'abc'[k]}", "image": f"{k}.png"})
    (tmp_path / "tones.json").write_text(json.dumps({"data": rows}))
    return DataConfig(root=str(tmp_path / "tones.json"), segment_seconds=0.05, num_threads=0)


def clip_config(folder):
    config, text = Config(), TextConfig("clip", str(write_clip(folder)))
    return dataclasses.replace(
        config, text=text, model=dataclasses.replace(config.model, condition_features=8)
    )


def test_sentences_and_pictures_ask_for_a_clip_in_turn(tmp_path, pictures):
    config, source = clip_config(tmp_path / "clip"), build_source(pictures, "train", RATE_HZ)
    conditions, fingerprint = make_conditions(config, distinct_captions(source.captions))
    assert fingerprint == make_encoder(config.text).fingerprint  # separation compares it
    for kind in ("text", "image"):
        own = [caption for caption in conditions if query_of(caption)[0] == kind]
        queries = [KINDS[kind].read(query_of(caption)[1])[0] for caption in own]
        expected_NE = make_query_encoder(kind, config.text)(queries)
        np.testing.assert_allclose([conditions[x] for x in own], expected_NE, atol=1e-6)

    drawn, mixed = {}, (source, conditions, MixingConfig(), pictures)
    with contextlib.closing(train_batches(*mixed, seed=0, batch_size=60, first_step=0)) as batches:
        for condition_E in next(batches)["condition"]:
            (caption,) = (x for x, own_E in conditions.items() if (own_E == condition_E).all())
            drawn[caption] = drawn.get(caption, 0) + 1
    assert len(drawn) == 6
    assert min(drawn.values()) >= 4
    fixed = validation_set(*mixed, seed=0, num_mixtures=12)
    assert {query_of(caption)[0] for caption in fixed["caption"]} == {"text", "image"}


def test_pictures_are_embedded_once(tmp_path, pictures):
    config = clip_config(tmp_path / "clip")
    captions = distinct_captions(build_source(pictures, "train", RATE_HZ).captions)
    first, _ = make_conditions(config, captions)
    for path in tmp_path.glob("*.png"):
        path.unlink()
    again, _ = make_conditions(config, captions)
    assert all((again[caption] == first[caption]).all() for caption in captions)


def test_a_picture_needs_an_image_tower(tmp_path, pictures):
    source = build_source(pictures, "train", RATE_HZ)
    with pytest.raises(
        InputError, match=r"/0\.wav: its image '.*/0\.png' needs text.encoder=clip$"
    ):
        check_captions(source, "sentence")
    for encoder in ("clip", "none"):
        check_captions(source, encoder)


def test_names_of_pictures_count_for_the_data_but_not_their_folder(tmp_path, pictures):
    first = build_source(pictures, "train", RATE_HZ).fingerprint
    for name in ("moved", "renamed"):
        (tmp_path / name).mkdir()
    for k in range(3):
        (tmp_path / "moved" / f"{k}.png").write_bytes((tmp_path / f"{k}.png").read_bytes())
        (tmp_path / "renamed" / f"new{k}.png").write_bytes(b"")
    rows = (tmp_path / "tones.json").read_text()
    for new in ('"image": "moved/', '"image": "renamed/new'):
        (tmp_path / "tones.json").write_text(rows.replace('"image": "', new))
        same = build_source(pictures, "train", RATE_HZ).fingerprint == first
        assert same == ("moved" in new)
