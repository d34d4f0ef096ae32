"""CLAP and CLIP as encoders: the towers' own numbers for every sentence, whatever its company."""

import json

import numpy as np
import pytest
from tiny_models import text_config, write_clap, write_clip

from audiosep_jax.encoders import clap_text, clip_text, make_encoder, pretrained
from audiosep_jax.encoders import names as tower_names
from audiosep_jax.encoders.encoder import TextConfig, check_dimensions
from audiosep_jax.encoders.tokenize import tokenize
from audiosep_jax.errors import InputError
from audiosep_jax.weights.torch_files import read_state_dict, write_safetensors, write_torch

WRITE = {"clap": write_clap, "clip": write_clip}
SENTENCES = [
    *("a dog barking", "b", "rain falls on a tin roof", "Glocken läuten", ""),
    *("x" * 40, "y z " * 60, "a dog barking"),
]


@pytest.fixture(scope="module", params=["clap", "clip"])
def model(request, tmp_path_factory):
    """(kind, folder) of a small random model."""
    kind = request.param
    return kind, WRITE[kind](tmp_path_factory.mktemp(kind))


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("AUDIOSEP_JAX_CACHE", str(tmp_path / "cache"))


def encoder_of(kind, folder, **fields):
    return make_encoder(TextConfig(encoder=kind, model=str(folder), **fields))


def tower_embedding(kind, folder, sentence):
    """The tower's `(E,)` for one sentence, padded to 77 tokens."""
    config = text_config(folder, kind)
    tower = {"clap": clap_text, "clip": clip_text}[kind]
    load = {"clap": tower_names.clap_text_params, "clip": tower_names.clip_text_params}[kind]
    state = read_state_dict(folder / "model.safetensors", prefixes=("text_",))
    ids, mask = tokenize(pretrained.load_tokenizer(folder), [sentence], lengths=(77,))
    return np.asarray(tower.embed(config, load(config, state), ids, mask))[0]


def test_each_sentence_gets_its_own_towers_embedding_in_order(model):
    kind, folder = model
    expected_NE = np.stack([tower_embedding(kind, folder, x) for x in SENTENCES])
    embedding_NE = encoder_of(kind, folder, batch_size=3)(SENTENCES)
    assert embedding_NE.dtype == np.float32
    np.testing.assert_allclose(embedding_NE, expected_NE, rtol=0, atol=2e-6)
    assert np.abs(embedding_NE[0] - embedding_NE[1]).max() > 0.01


def test_no_sentences(model):
    assert encoder_of(*model)([]).shape == (0, 8)


def test_pickled_weights_give_the_same(model, tmp_path):
    kind, folder = model
    other = WRITE[kind](tmp_path / "pickled", pickled=True)
    assert not (other / "model.safetensors").exists()
    one_NE, other_NE = encoder_of(kind, folder)(["rain"]), encoder_of(kind, other)(["rain"])
    np.testing.assert_array_equal(one_NE, other_NE)


def test_half_precision_weights_are_computed_with_in_float32(model, tmp_path):
    kind, folder = model
    half = WRITE[kind](tmp_path / "half")
    state = read_state_dict(folder / "model.safetensors")
    write_safetensors(half / "model.safetensors", {k: x.astype("e") for k, x in state.items()})
    embedding_NE = encoder_of(kind, half)(["rain"])
    np.testing.assert_allclose(embedding_NE, encoder_of(kind, folder)(["rain"]), atol=5e-3)
    assert np.linalg.norm(embedding_NE) == pytest.approx(1, abs=1e-6)


def test_the_fingerprint_follows_the_files_and_not_their_place(model, tmp_path):
    kind, folder = model
    same = WRITE[kind](tmp_path / "same")
    fingerprint = encoder_of(kind, folder).fingerprint
    assert fingerprint.startswith(f"{kind}-")
    assert encoder_of(kind, same).fingerprint == fingerprint
    assert encoder_of(kind, same, batch_size=1).fingerprint == fingerprint
    seen = {fingerprint}
    WRITE[kind](same, seed=7)  # other weights
    seen.add(encoder_of(kind, same).fingerprint)
    for name, field in (("config.json", "text_config"), ("tokenizer.json", "added_tokens")):
        values = json.loads((same / name).read_text())
        values[f"another {field}"] = values[field]
        (same / name).write_text(json.dumps(values))
        seen.add(encoder_of(kind, same).fingerprint)
    (same / "tokenizer_config.json").write_text('{"model_max_length": 9}')
    seen.add(encoder_of(kind, same).fingerprint)
    assert len(seen) == 5


def test_clap_out_of_an_audiosep_checkpoint(tmp_path, monkeypatch):
    folder = write_clap(tmp_path / "clap")
    config = text_config(folder, "clap")
    monkeypatch.setattr(clap_text, "LAION_TEXT_CONFIG", config)
    monkeypatch.setitem(pretrained.DEFAULT_MODELS, "clap", str(folder))  # the tokenizer's place
    state = read_state_dict(folder / "model.safetensors", prefixes=("text_",))
    laion = {
        name.replace("text_model.", "text_branch.")
        .replace("text_projection.linear1", "text_projection.0")
        .replace("text_projection.linear2", "text_projection.2"): tensor
        for name, tensor in state.items()
    }
    inside = {f"query_encoder.model.{name}": tensor for name, tensor in laion.items()}
    checkpoint = tmp_path / "audiosep.ckpt"
    write_torch(checkpoint, inside | {"ss_model.x": np.zeros(3, "f")}, lightning=True)
    encoder = encoder_of("clap", checkpoint)
    np.testing.assert_array_equal(encoder(["rain"]), encoder_of("clap", folder)(["rain"]))
    assert encoder.fingerprint != encoder_of("clap", folder).fingerprint
    with pytest.raises(InputError, match=r"audiosep\.ckpt: is a file"):
        encoder_of("clip", checkpoint)


def test_a_tower_of_fewer_positions_cuts_sentences_to_them(tmp_path):
    tower = pretrained.Tower(lambda *_: None, 8, 50, max_tokens=20)
    assert tower.lengths() == (16, 20)
    assert pretrained.Tower(lambda *_: None, 8, 50, max_tokens=512).lengths() == (16, 32, 77)
    assert pretrained.Tower(lambda *_: None, 8, 50, max_tokens=9).lengths() == (9,)


def test_few_shapes_are_compiled():
    shapes = []

    def embed(ids_NL, mask_NL):
        shapes.append(ids_NL.shape)
        return np.zeros((len(ids_NL), 8), np.float32)

    tower = pretrained.Tower(embed, 8, 50, max_tokens=77)
    counts_N = np.array([5, 40, 3, 16, 20, 17, 4, 70])
    for rows in pretrained.batches_by_length(counts_N, 3):
        ids_NL = np.zeros((len(rows), 77), np.int32)
        pretrained._embed_rows(tower, ids_NL, ids_NL, int(counts_N[rows[-1]]))
    assert shapes == [(4, 16), (4, 32), (2, 77)]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", "{", r"config\.json: cannot be read as JSON"),
        ("config.json", "[]", r"config\.json: holds no JSON object"),
        ("config.json", '{"text_config": {"hidden_size": "x"}}', "hidden_size must be int"),
        ("tokenizer.json", "{}", "tokenizer cannot be read"),
        ("model.safetensors", "not one", "neither a PyTorch checkpoint"),
    ],
)
def test_a_broken_file_is_named_in_one_line(tmp_path, name, content, message):
    folder = write_clap(tmp_path / "clap")
    (folder / name).write_text(content)
    with pytest.raises(InputError, match=message) as caught:
        encoder_of("clap", folder)(["rain"])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_missing_file_is_named(tmp_path, name):
    folder = write_clip(tmp_path / "clip")
    (folder / name).unlink()
    with pytest.raises(InputError, match=name.replace(".", r"\.")):
        encoder_of("clip", folder)


def test_no_folder_and_no_network_is_one_line(tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"no such folder.*--config\.text\.model=DIR"):
        encoder_of("clap", tmp_path / "absent")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    with pytest.raises(InputError, match="laion/larger_clap_general: ") as caught:
        make_encoder(TextConfig(encoder="clap"))
    assert "\n" not in str(caught.value)
    assert "--config.text.model=DIR" in str(caught.value)


def test_a_tokenizer_of_another_model_is_refused(tmp_path):
    folder = write_clap(tmp_path / "clap")
    values = json.loads((folder / "config.json").read_text())
    values["text_config"]["pad_token_id"] = 0
    (folder / "config.json").write_text(json.dumps(values))
    with pytest.raises(InputError, match="pads with token 1, the tower with 0"):
        encoder_of("clap", folder)(["rain"])
    tower = pretrained.Tower(lambda *_: None, 8, vocab_size=20, max_tokens=77)
    encoder = pretrained.TowerEncoder("-", lambda: (pretrained.load_tokenizer(folder), tower))
    with pytest.raises(InputError, match=r"the tokenizer gives token \d+, the tower knows 20"):
        encoder(["rain"])


def test_weights_that_are_not_finite_are_refused(tmp_path):
    folder = write_clip(tmp_path / "clip")
    state = dict(read_state_dict(folder / "model.safetensors"))
    state["text_projection.weight"] = state["text_projection.weight"] * np.nan
    write_safetensors(folder / "model.safetensors", state)
    with pytest.raises(InputError, match="give NaN"):
        encoder_of("clip", folder)(["rain"])


def test_half_a_surrogate_pair_is_refused(model):
    with pytest.raises(InputError, match=r"sentence 1, .* is not valid text"):
        encoder_of(*model)(["rain", "\ud800"])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model": "x/y"}, "^model='x/y' needs encoder=clap or encoder=clip"),
        ({"encoder": "clap", "batch_size": 0}, "^batch_size=0 must be"),
        ({"encoder": "clap", "use_text_ratio": 1.5}, r"^use_text_ratio=1\.5 must be .* equal to 1"),
        ({"encoder": "clip", "use_text_ratio": 0.5}, "needs encoder=clap,.* not encoder=clip"),
    ],
)
def test_a_wrong_config_is_named(fields, message):
    with pytest.raises(InputError, match=message):
        TextConfig(**fields)


def test_embeddings_of_another_length_than_the_models_are_refused():
    check_dimensions({"rain": np.zeros(8)}, 8)
    with pytest.raises(InputError, match=r"8 numbers a caption, .*condition_features=512"):
        check_dimensions({"rain": np.zeros(8)}, 512)
