"""Sentences to ids in a few fixed lengths, with a tokenizer made on the spot."""

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from audiosep_jax.encoders.tokenize import TOKEN_LENGTHS, tokenize
from audiosep_jax.errors import InputError

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


def test_input_errors_name_their_cause():
    with pytest.raises(InputError, match="sentence 1 is 3"):
        tokenize(TOKENIZER, ["a", 3])
    with pytest.raises(InputError, match="no padding token"):
        tokenize(make_tokenizer(), ["a"])
