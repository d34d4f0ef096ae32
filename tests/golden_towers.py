"""Weights and expected embeddings of the golden towers, shared by the tests of the towers."""

import ast
import importlib.util
from pathlib import Path

import flax
import jax
import numpy as np

GOLDEN = Path(__file__).parent / "golden"

_spec = importlib.util.spec_from_file_location("golden_recipe", GOLDEN / "recipe.py")
assert _spec is not None
assert _spec.loader is not None
recipe = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(recipe)

# Towers of the same make as the golden ones, small enough for any test.
TINY_TEXT = {
    "vocab_size": 50,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 32,
    "projection_dim": 8,
}
TINY_AUDIO = {
    "spec_size": 32,
    "num_mel_bins": 16,
    "window_size": 2,
    "patch_embeds_hidden_size": 8,
    "depths": [2, 2],
    "num_attention_heads": [2, 4],
    "projection_dim": 8,
}


def listing(name: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a golden state dict."""
    lines = (GOLDEN / f"{name}_state_dict.txt").read_text().splitlines()
    return {key: ast.literal_eval(shape) for key, shape in (line.split("\t") for line in lines)}


def golden_state(name: str, prefix: str) -> dict[str, np.ndarray]:
    """Every tensor of a golden state dict; `prefix` comes before the name that seeds it."""
    return recipe_state(listing(name), prefix)


def recipe_state(shapes: dict[str, tuple[int, ...]], prefix: str = "") -> dict[str, np.ndarray]:
    """A tensor for every name and shape."""
    return {key: recipe.tensor(prefix + key, shape) for key, shape in shapes.items()}


def recipe_params(module, *example):
    """Parameters of a small module, made without compiling its initialisation."""
    shapes = jax.eval_shape(module.init, jax.random.key(0), *example)["params"]
    flat = flax.traverse_util.flatten_dict(shapes)
    return flax.traverse_util.unflatten_dict(
        {path: recipe.tensor(".".join(path), leaf.shape) for path, leaf in flat.items()}
    )


def random_tokens(seed: int, num_tokens: int, token_counts: tuple[int, ...], pad_id: int):
    """Ids and mask (N, L): ids 5 to 47, each row of its own count, ended by 48, then padded."""
    rng = np.random.default_rng(seed)
    rows = [[*rng.integers(5, 48, count - 1), 48] for count in token_counts]
    ids = np.array([row + [pad_id] * (num_tokens - len(row)) for row in rows], np.int32)
    mask = np.array([[1] * len(row) + [0] * (num_tokens - len(row)) for row in rows], np.int32)
    return ids, mask


def assert_same_embedding(embedding_NE, expected_NE, *, element: float, cosine: float) -> None:
    """Element error, and cosine distance measured in float64."""
    x, y = np.asarray(embedding_NE, np.float64), np.asarray(expected_NE, np.float64)
    np.testing.assert_allclose(x, y, rtol=0, atol=element)
    distances = 1 - (x * y).sum(-1) / np.linalg.norm(x, axis=-1) / np.linalg.norm(y, axis=-1)
    assert distances.max() <= cosine
