"""Queries: parts in order, weights, and the conditions they give."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest

from audiosep_jax.encoders.encoder import TextConfig
from audiosep_jax.errors import InputError
from audiosep_jax.separation.queries import (
    Part,
    conditions,
    embed,
    labels_of,
    queries_of,
    read,
)

RAIN, DOG = Part("text", "rain"), Part("text", "dog")


class Embedder:
    """A separator whose sentences lie on the axes, by their first letter."""

    model = SimpleNamespace(condition_features=3)

    def __init__(self):
        self.sentences = []

    text = TextConfig()

    def embed(self, kind, items):
        if kind == "embedding":
            return np.stack(items)
        self.sentences += items
        return np.eye(3, dtype=np.float32)[["dr".index(x[0]) for x in items]]


def test_parts_are_queries_or_with_weights_one():
    assert queries_of([RAIN, DOG]) == [(RAIN,), (DOG,)]
    heavy, light = Part("text", "rain", 2.0), Part("text", "dog", 1.0)
    assert queries_of([heavy, light]) == [(heavy, light)]
    for parts, words in (
        ([heavy, DOG], "--text dog: has no --weight"),
        ([Part("text", "a", float("inf"))], "--weight must be"),
        ([Part("text", "a", 0.0)], "--weight must be"),
    ):
        with pytest.raises(InputError, match=words):
            queries_of(parts)


def test_empty_sentences_are_refused():
    for option in ("text", "not"):
        with pytest.raises(InputError, match=f"--{option}.*: a query is empty"):
            read([Part(option, " ")])


def test_every_sentence_is_embedded_once():
    separator = Embedder()
    values = read([RAIN, DOG, RAIN, Part("not", "rain")])
    vectors = embed(separator, values)
    assert separator.sentences == ["rain", "dog"]
    queries = queries_of([RAIN, DOG, RAIN])
    condition_NE = conditions(queries, vectors, 3)
    assert labels_of(queries, values) == ["rain", "dog", "rain"]
    np.testing.assert_array_equal(condition_NE, np.eye(3)[[1, 0, 1]])


def test_a_blend_weighs_directions_not_lengths(tmp_path):
    np.save(tmp_path / "far.npy", np.array([0.0, 0.0, 50.0]))
    far = Part("embedding", str(tmp_path / "far.npy"), -1.0)
    parts = [Part("text", "rain", 2.0), far]
    values = read(parts)
    condition_NE = conditions(queries_of(parts), embed(Embedder(), values), 3)
    assert labels_of(queries_of(parts), values) == ["2 rain + -1 far"]
    np.testing.assert_allclose(condition_NE, np.array([[0, 2, -1]]) / np.sqrt(5), rtol=1e-6)
    for factor in (1e-300, 1e300):  # only ratios of weights count
        scaled = [dataclasses.replace(part, weight=part.weight * factor) for part in parts]
        vectors = embed(Embedder(), read(scaled))
        np.testing.assert_allclose(conditions(queries_of(scaled), vectors, 3), condition_NE)


def test_a_blend_of_nothing(tmp_path):
    parts = [Part("text", "rain", 1.0), Part("text", "rain ", -1.0)]
    vectors = embed(Embedder(), read(parts))
    with pytest.raises(InputError, match="cancel each other"):
        conditions(queries_of(parts), vectors, 3)
    np.save(tmp_path / "two.npy", np.ones((2, 3)))
    parts = [Part("embedding", str(tmp_path / "two.npy"), 1.0)]
    with pytest.raises(InputError, match="has 2 rows; a blend takes one"):
        conditions(queries_of(parts), embed(Embedder(), read(parts)), 3)


def test_rows_of_a_file_are_queries_of_their_own(tmp_path):
    np.save(tmp_path / "two.npy", np.arange(6.0).reshape(2, 3))
    parts = [RAIN, Part("embedding", str(tmp_path / "two.npy"))]
    values = read(parts)
    condition_NE = conditions(queries_of(parts), embed(Embedder(), values), 3)
    assert labels_of(queries_of(parts), values) == ["rain", "two 1", "two 2"]
    np.testing.assert_array_equal(condition_NE, [[0, 1, 0], [0, 1, 2], [3, 4, 5]])


def test_no_query_is_no_row():
    assert labels_of([], {}) == []
    assert conditions([], {}, 3).shape == (0, 3)
