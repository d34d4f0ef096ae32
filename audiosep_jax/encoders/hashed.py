"""A text encoder that needs no download: random projections of words and character n-grams."""

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

DIMENSIONS = 512
WORD_WEIGHT = 4
NGRAM_WEIGHT = 1
NGRAM_LENGTHS = (3, 4)
_WORD = re.compile(r"\w+")


def words_of(sentences: Iterable[str]) -> list[str]:
    """Return the distinct words of sentences, in lower case and alphabetical order."""
    return sorted({word for sentence in sentences for word in _WORD.findall(sentence.lower())})


class HashedEncoder:
    """Bag of words and of character n-grams, projected by fixed random signs.

    Sentences with common words or stems have similar vectors; synonyms do not. The signs are bits
    of SHAKE-256 and their sum is an integer, so the vectors are equal to the bit on all machines.
    """

    fingerprint = "hashed-1"

    def __call__(self, sentences: Sequence[str]) -> np.ndarray:
        """Return `(N, 512)` float32, each row of length 1."""
        rows = [_embed(sentence) for sentence in sentences]
        return np.array(rows, np.float32).reshape(-1, DIMENSIONS)


def _embed(sentence: str) -> np.ndarray:
    total = np.zeros(DIMENSIONS, np.int64)
    for feature, weight in _features(sentence):
        total += weight * _signs(feature)
    # The sum is zero only if the features cancel in all 512 places.
    return (total / np.sqrt(np.sum(total**2))).astype(np.float32)


def _features(sentence: str) -> Iterator[tuple[str, int]]:
    """Yield words, and the n-grams of each word between boundary marks, with their weights."""
    for word in _WORD.findall(sentence.lower()) or [sentence.strip()]:
        yield word, WORD_WEIGHT
        marked = f"<{word}>"
        for n in NGRAM_LENGTHS:
            for start in range(len(marked) - n + 1):
                yield f"{n}:{marked[start : start + n]}", NGRAM_WEIGHT


def _signs(feature: str) -> np.ndarray:
    """Return 512 fixed signs, -1 or 1, as int64."""
    # Python decodes a command line that is not UTF-8 to lone surrogates, which encode() refuses.
    data = feature.encode("utf-8", "surrogatepass")
    digest = hashlib.shake_256(data).digest(DIMENSIONS // 8)
    return 2 * np.unpackbits(np.frombuffer(digest, np.uint8)).astype(np.int64) - 1
