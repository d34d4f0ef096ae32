"""A text encoder that looks words up: mean of static vectors, in the format of model2vec.

It needs no accelerator and a few milliseconds, and knows synonyms as far as the model knew them
from which the vectors were distilled. `examples/distill_table.py` makes a table.
"""

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from audiosep_jax import files
from audiosep_jax.encoders.encoder import DEFAULT_MODELS
from audiosep_jax.errors import InputError
from audiosep_jax.weights import hub
from audiosep_jax.weights.torch_files import read_state_dict

if TYPE_CHECKING:
    from tokenizers import Tokenizer

FILES = ("model.safetensors", "tokenizer.json")
# (R, E) floating-point numbers or int8, at any scale; and, in tables whose vocabulary is quantised,
# the row of each word piece, (V,), and the factor of its row, (V,).
TABLE, MAPPING, WEIGHTS = "embeddings", "mapping", "weights"


class StaticEncoder:
    """Mean of the vectors of a sentence's word pieces, at length 1.

    Args:
        source: a hub id or a folder with `FILES`.
    """

    def __init__(self, source: str = "") -> None:
        self._folder = hub.snapshot(source or DEFAULT_MODELS["static"], FILES)
        hashes = (hub.file_hash(self._folder / name)[:16] for name in FILES)
        self.fingerprint = f"static-{''.join(hashes)}"

    def __call__(self, sentences: Sequence[str]) -> np.ndarray:
        """Return `(N, E)` float32, each row of length 1.

        Raises:
            InputError: a file cannot be read, or the table has no vector for a sentence.
        """
        rows = [self._embed(sentence) for sentence in sentences]
        return np.array(rows, np.float32).reshape(len(rows), self.table_VE.shape[1])

    def _embed(self, sentence: str) -> np.ndarray:
        # A surrogate, which is no text, has no vector.
        text = sentence.encode(errors="replace").decode()
        ids = self.tokenizer.encode(text, add_special_tokens=False).ids
        total_E = self.table_VE[[x for x in ids if x != self._unknown]].sum(0, dtype=np.float64)
        length = np.linalg.norm(total_E)
        if not length > 0:
            raise InputError(f"the text encoder knows no word of {sentence!r}")
        return total_E / length

    @functools.cached_property
    def table_VE(self) -> np.ndarray:
        """Vectors of all word pieces, one row each."""
        path = self._folder / FILES[0]
        stored = read_state_dict(path, prefixes=(TABLE, MAPPING, WEIGHTS))
        table_VE = stored.get(TABLE)
        if table_VE is None or table_VE.ndim != 2:
            raise InputError(f"{path}: holds no table {TABLE!r} of word vectors")
        if (row_V := stored.get(MAPPING)) is not None:
            if not 0 <= row_V.min(initial=0) <= row_V.max(initial=0) < len(table_VE):
                raise InputError(f"{path}: {MAPPING!r} names rows that {TABLE!r} does not have")
            table_VE = table_VE[row_V]
        if (weight_V := stored.get(WEIGHTS)) is not None:
            table_VE = table_VE[: len(weight_V)] * weight_V[: len(table_VE), None]
        if self.tokenizer.get_vocab_size() > len(table_VE):
            raise InputError(f"{path}: the table has fewer rows than the tokenizer has words")
        return table_VE

    @functools.cached_property
    def tokenizer(self) -> "Tokenizer":
        """The tokenizer, which neither pads nor truncates."""
        from tokenizers import Tokenizer

        path = self._folder / FILES[1]
        try:
            tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the library's own errors have no base class
            reason = files.not_the_file(path) or f"cannot be read ({error})"
            raise InputError(f"{path}: {reason}") from error
        tokenizer.no_padding()
        tokenizer.no_truncation()
        return tokenizer

    @functools.cached_property
    def _unknown(self) -> int | None:
        """Id of the token for unknown words, whose vector means nothing."""
        return self.tokenizer.token_to_id(getattr(self.tokenizer.model, "unk_token", "") or "")
