"""CLIP's text transformer against the golden embeddings; causality, pooling and padding."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest
from golden_towers import (
    GOLDEN,
    TINY_TEXT,
    assert_same_embedding,
    golden_state,
    random_tokens,
    recipe_params,
)

from audiosep_jax.encoders import clip_text
from audiosep_jax.encoders.layers import embed
from audiosep_jax.encoders.names import tower_params
from audiosep_jax.errors import InputError

TINY_CLIP = {**TINY_TEXT, "num_hidden_layers": 1}
TINY = clip_text.ClipTextConfig.from_dict({**TINY_CLIP, "eos_token_id": 48})


@functools.cache
def tiny_params():
    tokens = jnp.zeros((1, 4), jnp.int32)
    return recipe_params(clip_text.ClipText(TINY), tokens, tokens)


def test_golden_embeddings():
    golden, config = np.load(GOLDEN / "clip_text.npz"), clip_text.ClipTextConfig()
    params = tower_params(clip_text.ClipText(config), golden_state("clip_text_hf", "clip."))
    ids, mask = golden["input_ids"].astype(np.int32), golden["attention_mask"].astype(np.int32)
    embedding = embed(clip_text.ClipText(config), params, ids, mask)
    assert embedding.dtype == np.float32
    # Asked for are 1e-5 and 1e-6; reached are 3e-7 and 1e-12.
    assert_same_embedding(embedding, golden["embedding"], element=2e-6, cosine=1e-10)


@pytest.mark.parametrize("pad_id", [0, 48])  # 48 is the end of text too, as in CLIP's tokenizer
@pytest.mark.parametrize("eos_token_id", [48, clip_text.LEGACY_EOS_TOKEN_ID])
def test_padding_does_not_reach_the_embedding(eos_token_id, pad_id):
    config = clip_text.ClipTextConfig.from_dict({**TINY_CLIP, "eos_token_id": eos_token_id})
    embedding = embed(
        clip_text.ClipText(config), tiny_params(), *random_tokens(0, 16, (3, 9), pad_id)
    )
    expected = embed(clip_text.ClipText(TINY), tiny_params(), *random_tokens(0, 77, (3, 9), pad_id))
    np.testing.assert_allclose(embedding, expected, rtol=0, atol=1e-6)


def test_the_mask_hides_a_token_before_the_end():
    ids, mask = random_tokens(0, 16, (9, 3), 0)
    other = ids.copy()
    other[0, 4] += 1
    embeddings = [embed(clip_text.ClipText(TINY), tiny_params(), x, mask)[0] for x in (ids, other)]
    assert float(jnp.abs(embeddings[0] - embeddings[1]).max()) > 1e-4
    mask[0, 4] = 0
    embeddings = [embed(clip_text.ClipText(TINY), tiny_params(), x, mask)[0] for x in (ids, other)]
    np.testing.assert_allclose(embeddings[0], embeddings[1], rtol=0, atol=1e-6)


def test_nothing_after_the_end_of_text_matters_even_unmasked():
    ids, mask = random_tokens(0, 16, (9, 9), 0)
    ids[1] = ids[0]
    ids[1, 9:] = np.arange(10, 17)
    embedding = embed(clip_text.ClipText(TINY), tiny_params(), ids, np.ones_like(mask))
    np.testing.assert_allclose(embedding[0], embedding[1], rtol=0, atol=1e-6)


def test_end_of_text_in_both_conventions():
    ids = jnp.array([[90, 5, 99, 99], [90, 99, 2, 0], [90, 2, 7, 99]])
    np.testing.assert_array_equal(clip_text.end_of_text(ids, 99), [2, 1, 3])
    np.testing.assert_array_equal(clip_text.end_of_text(ids, 7), [0, 0, 2])
    # The legacy value means the highest id, not the token whose id is 2.
    np.testing.assert_array_equal(clip_text.end_of_text(ids, 2), [2, 1, 3])


def test_config_reads_every_spelling():
    whole = {"text_config": {**TINY_TEXT, "hidden_act": "gelu"}, "projection_dim": 24}
    config = clip_text.ClipTextConfig.from_dict(whole)
    assert (config.hidden_size, config.hidden_act, config.projection_dim) == (16, "gelu", 24)
    assert clip_text.ClipTextConfig.from_dict({"text_config": TINY_TEXT}).projection_dim == 512
    assert clip_text.ClipTextConfig.from_dict(TINY_TEXT).projection_dim == 8
    # The older key replaces the newer one altogether: what it leaves out is the default.
    older = {**whole, "text_config_dict": {"hidden_size": 32}}
    config = clip_text.ClipTextConfig.from_dict(older)
    assert (config.hidden_size, config.hidden_act) == (32, "quick_gelu")
    with pytest.raises(InputError, match=r"eos_token_id=\[1, 2\] must be"):
        clip_text.ClipTextConfig.from_dict({"eos_token_id": [1, 2]})
