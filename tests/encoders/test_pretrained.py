"""CLAP and CLIP as encoders: the towers' own numbers for every sentence, whatever its company."""

import json

import numpy as np
import pytest
from golden_towers import GOLDEN, assert_same_embedding, golden_state, recipe
from tiny_models import text_config, write_clap, write_clip
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from audiosep_jax.audio import files as audio_files
from audiosep_jax.encoders import clap_audio, clap_text, make_encoder, pretrained
from audiosep_jax.encoders.clap_audio import Htsat
from audiosep_jax.encoders.clap_text import ClapText
from audiosep_jax.encoders.clip_text import ClipText
from audiosep_jax.encoders.encoder import TextConfig, check_dimensions
from audiosep_jax.encoders.layers import embed
from audiosep_jax.encoders.names import tower_params
from audiosep_jax.encoders.pretrained import TOKEN_LENGTHS, AudioEncoder, tokenize
from audiosep_jax.errors import InputError
from audiosep_jax.weights.torch_files import read_state_dict, write_safetensors, write_torch

pytestmark = pytest.mark.slow

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
    tower = {"clap": ClapText, "clip": ClipText}[kind](text_config(folder, kind))
    params = tower_params(tower, read_state_dict(folder / "model.safetensors"))
    ids, mask = tokenize(pretrained.load_tokenizer(folder), [sentence], lengths=(77,))
    return np.asarray(embed(tower, params, ids, mask))[0]


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


def change_config(folder, **fields):
    values = json.loads((folder / "config.json").read_text())
    values["text_config"] |= fields
    (folder / "config.json").write_text(json.dumps(values))
    return folder


@pytest.mark.parametrize(
    ("positions", "lengths"), [(22, (16, 20)), (514, (16, 32, 77)), (11, (9,))]
)
def test_a_tower_of_fewer_positions_cuts_sentences_to_them(tmp_path, positions, lengths):
    folder = change_config(write_clap(tmp_path / "clap"), max_position_embeddings=positions)
    assert encoder_of("clap", folder).lengths == lengths


def test_few_shapes_are_compiled(tmp_path, monkeypatch):
    shapes = []

    def compute(tower, params, ids_NL, mask_NL):
        shapes.append(ids_NL.shape)
        return np.zeros((len(ids_NL), 8), np.float32)

    monkeypatch.setattr(pretrained, "embed", compute)
    sentences = ["x" * (count - 2) for count in (5, 40, 3, 16, 20, 17, 4, 70)]
    encoder_of("clap", write_clap(tmp_path / "clap"), batch_size=3)(sentences)
    assert shapes == [(4, 16), (4, 32), (2, 77)]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", "{", r"config\.json: is not JSON"),
        ("config.json", "[]", r"config\.json: holds a JSON list"),
        ("config.json", '{"text_config": {"hidden_size": "x"}}', "hidden_size='x' must be"),
        ("tokenizer.json", "{}", r"tokenizer\.json: cannot be read"),
        ("tokenizer.json", "<!doctype html>", r"tokenizer\.json: is a web page"),
        ("config.json", "version https://git-lfs", r"config\.json: is a Git LFS pointer"),
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
    with pytest.raises(InputError, match="absent: no such folder, and not a hub id"):
        encoder_of("clap", tmp_path / "absent")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    with pytest.raises(InputError, match="laion/larger_clap_general: ") as caught:
        make_encoder(TextConfig(encoder="clap"))
    assert "\n" not in str(caught.value)
    assert "give a local folder" in str(caught.value)


def test_a_tokenizer_of_another_model_is_refused(tmp_path):
    folder = change_config(write_clap(tmp_path / "clap"), pad_token_id=0)
    with pytest.raises(InputError, match="pads with token 1, the tower with 0"):
        encoder_of("clap", folder)(["rain"])
    folder = change_config(write_clip(tmp_path / "clip"), vocab_size=20)
    with pytest.raises(InputError, match="tokenizer has more words than the tower"):
        encoder_of("clip", folder)(["rain"])


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
        ({"model": "x/y"}, "^model='x/y' needs encoder=static, sentence, clap, clip or voice"),
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


# ---------------------------------------------------------------------------- tokens

WORDS = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "a": 4, "dog": 5, "barks": 6}


def make_tokenizer(**special: str) -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.WordLevel(WORDS, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", **special)


TOKENIZER = make_tokenizer(pad_token="<pad>", padding_side="left")


def test_ids_and_mask_are_padded_on_the_right():
    ids, mask = tokenize(TOKENIZER, ["a dog barks", "a cat", ""])
    assert ids.dtype == mask.dtype == np.int32
    np.testing.assert_array_equal(ids[0], [0, 4, 5, 6, 2] + [1] * 11)
    np.testing.assert_array_equal(ids[1], [0, 4, 3, 2] + [1] * 12)
    np.testing.assert_array_equal(ids[2], [0, 2] + [1] * 14)
    np.testing.assert_array_equal(mask, (np.arange(16) < [[5], [4], [2]]).astype(int))


@pytest.mark.parametrize(
    ("num_words", "num_tokens"), [(1, 16), (14, 16), (15, 32), (30, 32), (31, 77), (75, 77)]
)
def test_the_shortest_length_that_holds_the_longest_sentence(num_words, num_tokens):
    ids, mask = tokenize(TOKENIZER, ["a", "dog " * num_words])
    assert ids.shape == (2, num_tokens)
    np.testing.assert_array_equal(mask.sum(1), [3, num_words + 2])


def test_a_longer_sentence_is_cut_and_keeps_its_end():
    ids, mask = tokenize(TOKENIZER, ["dog " * 100])
    np.testing.assert_array_equal(ids[0], [0] + [5] * 75 + [2])
    assert mask.all()
    short, _ = tokenize(TOKENIZER, ["dog " * 100], lengths=(4, 6))
    np.testing.assert_array_equal(short[0], [0, 5, 5, 5, 5, 2])


def test_padding_with_the_end_of_text_is_still_masked():
    ids, mask = tokenize(make_tokenizer(pad_token="</s>"), ["a dog"])
    np.testing.assert_array_equal(ids[0], [0, 4, 5] + [2] * 13)
    np.testing.assert_array_equal(mask[0], [1] * 4 + [0] * 12)


def test_no_sentences_make_an_empty_batch():
    ids, mask = tokenize(TOKENIZER, [])
    assert ids.shape == mask.shape == (0, TOKEN_LENGTHS[0])


def test_what_cannot_be_tokenized():
    with pytest.raises(InputError, match="sentence 1, 3, is not valid text"):
        tokenize(TOKENIZER, ["a", 3])
    with pytest.raises(InputError, match="no padding token"):
        tokenize(make_tokenizer(), ["a"])


# ---------------------------------------------------------------------------- sounds

RATE_HZ = 16_000


@pytest.fixture(scope="module")
def clap(tmp_path_factory):
    return write_clap(tmp_path_factory.mktemp("clap"))


def clips(*lengths):
    return [recipe.waveform(i, length) for i, length in enumerate(lengths)]


def audio_embedding(folder, audio_S):
    """The tower's `(E,)` of one clip at its own rate."""
    config = json.loads((folder / "config.json").read_text())
    tower = clap_audio.HtsatConfig.from_dict(config)
    features = clap_audio.MelConfig.from_dict(
        json.loads((folder / "preprocessor_config.json").read_text())
    )
    state = read_state_dict(folder / "model.safetensors", prefixes=("audio_",))
    params = tower_params(Htsat(tower), state)
    mel_BTF = clap_audio.features(features, audio_S[None])
    return np.asarray(embed(Htsat(tower), params, mel_BTF))[0]


def test_each_clip_gets_its_own_towers_embedding_in_order(clap):
    # Shorter than the tower's 9,920 samples (repeated), longer (the middle), as long.
    sounds = clips(3000, 20_000, 9920)
    expected_NE = np.stack([audio_embedding(clap, x) for x in sounds])
    encoder = AudioEncoder(str(clap), batch_size=2)
    embedding_NE = encoder([(sound_S, RATE_HZ) for sound_S in sounds])
    assert embedding_NE.dtype == np.float32
    np.testing.assert_allclose(embedding_NE, expected_NE, rtol=0, atol=2e-6)
    assert np.abs(embedding_NE[0] - embedding_NE[1]).max() > 1e-3
    # The middle is what a long clip is judged by.
    middle_S = sounds[1][(20_000 - 9920) // 2 :][:9920]
    np.testing.assert_allclose(audio_embedding(clap, middle_S), expected_NE[1], atol=1e-6)


def test_one_clip_an_array_and_a_list_are_the_same(clap):
    encoder, sounds = AudioEncoder(str(clap)), np.stack(clips(4000, 4000))
    listed_NE = encoder([(sound_S, RATE_HZ) for sound_S in sounds])
    np.testing.assert_array_equal(encoder.embed_audio(sounds, RATE_HZ), listed_NE)
    one_NE = encoder.embed_audio(sounds[1].astype(np.float64), RATE_HZ)
    np.testing.assert_allclose(one_NE, listed_NE[1:], rtol=0, atol=1e-6)
    assert encoder([]).shape == (0, 8)


def test_a_clip_of_another_rate_is_converted_first(clap):
    encoder, (sound_S,) = AudioEncoder(str(clap)), clips(8000)
    same_S = audio_files.resample(sound_S[None], 12_000, RATE_HZ)[0]
    expected_E = audio_embedding(clap, same_S)
    np.testing.assert_allclose(encoder.embed_audio(sound_S, 12_000)[0], expected_E, atol=1e-6)
    assert np.abs(encoder.embed_audio(sound_S, RATE_HZ)[0] - expected_E).max() > 1e-4


def test_golden_embedding_out_of_an_audiosep_checkpoint(tmp_path):
    # HTSAT-base, its sizes known without a config, under the names inside AudioSep's checkpoint.
    golden = np.load(GOLDEN / "clap_audio.npz")
    state = golden_state("clap_audio_hf", "clap.")
    checkpoint = tmp_path / "audiosep.ckpt"
    inside = {f"query_encoder.model.{name}": tensor for name, tensor in state.items()}
    write_torch(checkpoint, inside | {"ss_model.x": np.zeros(3, "f")}, lightning=True)
    wave_BS = recipe.waveform(int(golden["waveform_48k_seed"]), 2, 240_000)
    embedding_NE = AudioEncoder(str(checkpoint)).embed_audio(wave_BS, 48_000)
    assert_same_embedding(embedding_NE, golden["embedding"], element=2e-6, cosine=1e-10)


def test_the_audio_fingerprint_follows_the_files(clap, tmp_path):
    encoder = AudioEncoder(str(clap))
    same = write_clap(tmp_path / "same")
    assert AudioEncoder(str(same)).fingerprint == encoder.fingerprint
    seen = {encoder.fingerprint, make_encoder(TextConfig("clap", str(clap))).fingerprint}
    write_clap(same, seed=9)
    seen.add(AudioEncoder(str(same)).fingerprint)
    values = json.loads((same / "preprocessor_config.json").read_text()) | {"frequency_min": 60.0}
    (same / "preprocessor_config.json").write_text(json.dumps(values))
    seen.add(AudioEncoder(str(same)).fingerprint)
    assert len(seen) == 4


@pytest.mark.parametrize(
    "audio",
    [
        np.zeros(0, np.float32),
        np.zeros((2, 0), np.float32),
        np.zeros((2, 3, 4), np.float32),
        np.array([0.1, np.nan]),
        np.array([[1, 2], [3, np.inf]]),
    ],
)
def test_audio_that_cannot_be_embedded_is_refused(clap, audio):
    with pytest.raises(InputError, match=r"a clip of shape .* must be \(samples,\)"):
        AudioEncoder(str(clap)).embed_audio(audio, RATE_HZ)


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json", "model.safetensors"])
def test_a_missing_file_of_the_audio_tower_is_named(tmp_path, name):
    folder = write_clap(tmp_path / "clap")
    (folder / name).unlink()
    with pytest.raises(InputError, match=name.replace(".", r"\.")):
        AudioEncoder(str(folder))


def test_weights_without_an_audio_tower_are_refused(tmp_path):
    folder = write_clap(tmp_path / "clap")
    state = read_state_dict(folder / "model.safetensors", prefixes=pretrained.AUDIO_NAMES)
    state.pop("audio_projection.linear1.weight")
    write_safetensors(folder / "model.safetensors", state)
    with pytest.raises(InputError, match=r"audio_projection\.linear1\.weight"):
        AudioEncoder(str(folder)).embed_audio(np.ones(100), RATE_HZ)
