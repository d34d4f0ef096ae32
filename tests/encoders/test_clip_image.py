"""CLIP's image tower against the golden embeddings, and its config."""

import numpy as np
import pytest
from golden_towers import GOLDEN, TINY_TEXT, assert_same_embedding, golden_state

from audiosep_jax.encoders.clip_image import ClipImage, ClipImageConfig
from audiosep_jax.encoders.layers import embed
from audiosep_jax.encoders.names import tower_params


def test_golden_embeddings():
    golden, tower = np.load(GOLDEN / "clip_image.npz"), ClipImage(ClipImageConfig())
    params = tower_params(tower, golden_state("clip_image_hf", "clip."))
    rng = np.random.Generator(np.random.PCG64(int(golden["pixel_seed"])))
    pixels_NCHW = rng.standard_normal((2, 3, 224, 224)).astype(np.float32)
    embedding = embed(tower, params, pixels_NCHW.transpose(0, 2, 3, 1))
    assert embedding.dtype == np.float32
    # Asked for is 1e-5; reached are 1.5e-7 and 1e-13.
    assert_same_embedding(embedding, golden["embedding"], element=2e-6, cosine=1e-10)


@pytest.mark.parametrize("key", ["vision_config", "vision_config_dict"])
def test_config_reads_every_spelling(key):
    values = {key: {**TINY_TEXT, "patch_size": 16}, "projection_dim": 24}
    config = ClipImageConfig.from_dict(values, {"image_mean": [0.5, 0.5, 0.5], "crop_size": 224})
    assert (config.hidden_size, config.patch_size, config.projection_dim) == (16, 16, 24)
    assert (config.image_mean, config.image_std[0]) == ((0.5, 0.5, 0.5), 0.26862954)
