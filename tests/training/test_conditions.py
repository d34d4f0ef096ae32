"""conditions: a table of embeddings in a file."""

import numpy as np
import psutil
import pytest

from audiosep_jax.data.captions import Captions
from audiosep_jax.errors import InputError
from audiosep_jax.training import conditions as conditions_module
from audiosep_jax.training.conditions import ConditionTable, captions_hash, distinct_captions


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
