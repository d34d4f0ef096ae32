"""Sentences to token ids in one of a few fixed lengths, so that few programs are compiled."""

from collections.abc import Sequence

import numpy as np
from transformers import PreTrainedTokenizerBase

from audiosep_jax.errors import InputError

# The longest is CLIP's context, and the length that CLAP was trained with.
TOKEN_LENGTHS = (16, 32, 77)


def tokenize(
    tokenizer: PreTrainedTokenizerBase,
    sentences: Sequence[str],
    lengths: tuple[int, ...] = TOKEN_LENGTHS,
) -> tuple[np.ndarray, np.ndarray]:
    """Ids and mask (N, L) int32; L is the first of `lengths` that holds the longest sentence.

    A sentence beyond the last of `lengths` is cut there and keeps its end-of-text token.
    """
    for i, sentence in enumerate(sentences):
        if not isinstance(sentence, str):
            raise InputError(f"sentence {i} is {sentence!r}; a query must be text")
    if tokenizer.pad_token_id is None:
        raise InputError(f"tokenizer {tokenizer.name_or_path!r} has no padding token")
    ids = _token_ids(tokenizer, sentences, max_tokens=lengths[-1])
    longest = max(map(len, ids), default=0)
    num_tokens = next(length for length in lengths if length >= longest)
    input_ids_NL = np.full((len(ids), num_tokens), tokenizer.pad_token_id, np.int32)
    attention_mask_NL = np.zeros_like(input_ids_NL)
    for i, row in enumerate(ids):
        input_ids_NL[i, : len(row)] = row
        attention_mask_NL[i, : len(row)] = 1
    return input_ids_NL, attention_mask_NL


def _token_ids(
    tokenizer: PreTrainedTokenizerBase, sentences: Sequence[str], *, max_tokens: int
) -> list[list[int]]:
    if not sentences:
        return []
    # Padded here, not by the tokenizer: some pad on the left, some ignore a fixed length.
    encoded = tokenizer(list(sentences), truncation=True, max_length=max_tokens, padding=False)
    return encoded["input_ids"]
