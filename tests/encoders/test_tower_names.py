"""Names and shapes of every published layout, and each way in which a file can be wrong."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from golden_towers import TINY_AUDIO, TINY_TEXT, listing, recipe_state

from audiosep_jax.encoders import names as tower_names
from audiosep_jax.encoders.clap_audio import HTSAT_BASE, Htsat, HtsatConfig
from audiosep_jax.encoders.clap_text import ClapText, ClapTextConfig
from audiosep_jax.encoders.clip_image import ClipImage, ClipImageConfig
from audiosep_jax.encoders.clip_text import ClipText, ClipTextConfig
from audiosep_jax.encoders.names import tower_params
from audiosep_jax.errors import InputError

TEXT, AUDIO = ClapTextConfig.from_dict(TINY_TEXT), HtsatConfig.from_dict(TINY_AUDIO)
CLIP = ClipTextConfig.from_dict(TINY_TEXT)
TOKENS = jnp.zeros((1, 4), jnp.int32)
CONTRASTIVE = {"logit_scale_a": (), "logit_scale_t": ()}


def shapes_of(module, *example):
    """Hugging Face's names and PyTorch's shapes of a module's parameters."""
    variables = jax.eval_shape(module.init, jax.random.key(0), *example)
    for path, leaf in flatten_dict(variables["params"]).items():
        shape = leaf.shape
        if path[-1] == "kernel":
            shape = (shape[3], shape[2], *shape[:2]) if len(shape) == 4 else shape[::-1]
        yield tower_names.hf_name(path), shape


def tiny_state():
    """All of a small `ClapModel` as Hugging Face lays it out."""
    shapes = {
        **dict(shapes_of(ClapText(TEXT), TOKENS, TOKENS)),
        **dict(shapes_of(Htsat(AUDIO), jnp.zeros((1, 60, 16)))),
        **CONTRASTIVE,
        "text_model.embeddings.position_ids": (1, 514),
        "audio_model.audio_encoder.batch_norm.num_batches_tracked": (),
    }
    return recipe_state(shapes)


def to_laion(state):
    """The same weights under LAION's names, written here independently of the import."""
    renames = [
        ("text_model.", "text_branch."),
        ("_projection.linear1.", "_projection.0."),
        ("_projection.linear2.", "_projection.2."),
        ("audio_model.audio_encoder.batch_norm.", "audio_branch.bn0."),
        ("audio_model.audio_encoder.", "audio_branch."),
        ("layernorm_before", "norm1"),
        ("layernorm_after", "norm2"),
    ]
    blocks = [
        ("attention.output.dense", "attn.proj"),
        ("attention.self.", "attn."),
        ("intermediate.dense", "mlp.fc1"),
        ("output.dense", "mlp.fc2"),
    ]
    laion = {}
    for name, tensor in state.items():
        for old, new in renames + (blocks if ".blocks." in name else []):
            name = name.replace(old, new)
        laion[name] = tensor
    for name in [name for name in laion if ".attn.query." in name]:
        parts = [laion.pop(name.replace("query", part)) for part in ("query", "key", "value")]
        laion[name.replace("query", "qkv")] = np.concatenate(parts)
    heads = {
        "audio_branch.head.weight": (5, 5),
        "audio_branch.tscam_conv.weight": (5, 16, 2, 3),
        "audio_branch.spectrogram_extractor.stft.conv_real.weight": (5, 1, 8),
        "audio_branch.logmel_extractor.melW": (5, 16),
        "audio_branch.layers.0.blocks.1.attn_mask": (4, 4, 4),
        "text_transform.sequential.0.weight": (8, 8),
        "audio_transform.sequential.3.bias": (8,),
    }
    return {**laion, **recipe_state(heads)}


def assert_equal_trees(left, right):
    left, right = flatten_dict(left), flatten_dict(right)
    assert left.keys() == right.keys()
    for path, leaf in left.items():
        np.testing.assert_array_equal(leaf, right[path])


@pytest.mark.parametrize(
    ("name", "module", "example"),
    [
        ("clap_text_hf", ClapText(ClapTextConfig()), (TOKENS, TOKENS)),
        ("clip_text_hf", ClipText(ClipTextConfig()), (TOKENS, TOKENS)),
        ("clap_audio_hf", Htsat(HTSAT_BASE), (jnp.zeros((1, 1001, 64)),)),
        ("clip_image_hf", ClipImage(ClipImageConfig()), (jnp.zeros((1, 224, 224, 3)),)),
    ],
)
def test_our_trees_are_the_published_listings(name, module, example):
    buffers = re.compile(
        "position_ids$|token_type_ids$|relative_position_index$|num_batches_tracked$"
    )
    published = {key: shape for key, shape in listing(name).items() if not buffers.search(key)}
    assert dict(shapes_of(module, *example)) == published


def test_a_tensor_arrives_in_flax_layout():
    state = tiny_state()
    text, audio = tower_params(ClapText(TEXT), state), tower_params(Htsat(AUDIO), state)
    np.testing.assert_array_equal(
        text["text_model.encoder.layer.1"]["intermediate.dense"]["kernel"],
        state["text_model.encoder.layer.1.intermediate.dense.weight"].T,
    )
    np.testing.assert_array_equal(
        text["text_model.embeddings.word_embeddings"]["embedding"],
        state["text_model.embeddings.word_embeddings.weight"],
    )
    patch = audio["audio_model.audio_encoder.patch_embed.proj"]["kernel"]
    weight = state["audio_model.audio_encoder.patch_embed.proj.weight"]
    assert patch[1, 2, 0, 5] == weight[5, 0, 1, 2]
    np.testing.assert_array_equal(
        audio["audio_model.audio_encoder.layers.0.blocks.1"]["attention"][
            "self.relative_position_bias_table"
        ],
        state[
            "audio_model.audio_encoder.layers.0.blocks.1.attention.self.relative_position_bias_table"
        ],
    )


@pytest.mark.parametrize("prefix", ["", "module.", "query_encoder.model."])
def test_laion_names_give_the_same_parameters(prefix):
    state = tiny_state()
    laion = {prefix + name: tensor for name, tensor in to_laion(state).items()}
    if prefix == "query_encoder.model.":
        laion["ss_model.base.bn0.weight"] = np.zeros(3)
    assert_equal_trees(tower_params(ClapText(TEXT), laion), tower_params(ClapText(TEXT), state))
    assert_equal_trees(tower_params(Htsat(AUDIO), laion), tower_params(Htsat(AUDIO), state))


def test_clip_towers_are_found_in_the_whole_model():
    tower = ClipImage(ClipImageConfig.from_dict({**TINY_TEXT, "image_size": 6}, {"patch_size": 2}))
    text = recipe_state(dict(shapes_of(ClipText(CLIP), TOKENS, TOKENS)))
    image = recipe_state(dict(shapes_of(tower, jnp.zeros((1, 6, 6, 3)))))
    buffers = {f"{x}_model.embeddings.position_ids": (1, 77) for x in ("text", "vision")}
    whole = {**text, **image, **recipe_state({"logit_scale": (), **buffers})}
    assert_equal_trees(tower_params(ClipText(CLIP), whole), tower_params(ClipText(CLIP), text))
    assert_equal_trees(tower_params(tower, whole), tower_params(tower, image))
    with pytest.raises(InputError, match=r"vision_model\.lora: the file holds"):
        tower_params(tower, {**whole, "vision_model.lora": np.zeros(1)})


TOWERS = {"text": ClapText(TEXT), "audio": Htsat(AUDIO)}
VICTIMS = [
    ("text", "text_model.pooler.dense.weight"),
    ("text", "text_model.embeddings.word_embeddings.weight"),
    ("text", "text_projection.linear2.bias"),
    ("audio", "audio_model.audio_encoder.batch_norm.running_var"),
    ("audio", "audio_model.audio_encoder.layers.1.blocks.0.attention.self.key.weight"),
]


@pytest.mark.parametrize(("tower", "name"), VICTIMS)
def test_a_missing_or_misshapen_tensor_is_named(tower, name):
    state = tiny_state()
    tensor = state.pop(name)
    with pytest.raises(InputError, match=f"{re.escape(name)}: the file lacks"):
        tower_params(TOWERS[tower], state)
    for wrong in (tensor[:-1], tensor[None], tensor.reshape(-1)[:1]):
        with pytest.raises(InputError, match=re.escape(f"{name}: shape {wrong.shape}")):
            tower_params(TOWERS[tower], {**state, name: wrong})


@pytest.mark.parametrize(
    ("tower", "name"),
    [
        ("text", "text_model.encoder.layer.2.output.dense.weight"),
        ("text", "text_model.lora.weight"),
        ("audio", "audio_model.audio_encoder.patch_embed.mel_conv2d.weight"),
        ("audio", "image_model.weight"),
    ],
)
def test_a_tensor_without_a_place_is_named(tower, name):
    with pytest.raises(InputError, match=f"{re.escape(name)}: the file holds"):
        tower_params(TOWERS[tower], {**tiny_state(), name: np.zeros(1)})
