"""The protocol of encoders, and the config of the text encoder."""

import itertools
import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Protocol, TypeAlias, TypeVar

import numpy as np

from audiosep_jax.errors import InputError
from audiosep_jax.settings import Count, Share, section, setting

# Files of the encoder if `text.model` is empty.
DEFAULT_MODELS = {
    "clap": "laion/larger_clap_general",
    "clip": "openai/clip-vit-base-patch32",
    "sentence": "sentence-transformers/all-MiniLM-L6-v2",
    "static": "minishlab/potion-base-8M",
}

_FILE = re.compile(r"(image|voice):(.*)#\d+-\d+", re.DOTALL)
_FILES_READ = 16  # at once

Query = TypeVar("Query", contravariant=True)


class Encoder(Protocol[Query]):
    """A frozen function of queries of one kind, the same on every machine but for rounding."""

    @property
    def fingerprint(self) -> str:
        """Name of the function, which changes whenever any embedding would."""

    def __call__(self, queries: Sequence[Query], /) -> np.ndarray:
        """Return `(N, E)` float32, each row of length 1."""


TextEncoder: TypeAlias = Encoder[str]


@section
class TextConfig:
    """Settings under `text.`: the encoder that turns captions and queries into conditions.

    With the encoder `none` no caption is used: a network with `model.slots` finds its own parts.
    """

    encoder: Literal["hashed", "static", "sentence", "clap", "clip", "voice", "none"] = "hashed"
    # Hub id or folder; for clap also an AudioSep checkpoint that holds its CLAP, for voice the file
    # of weights.
    model: str = setting(default="", per_process=True)
    # Sentences that the tower embeds at once.
    batch_size: Count = setting(default=256, per_process=True)
    # Share of batches with the caption as the query; the others have the clean target itself.
    use_text_ratio: Share = 1.0

    def __post_init__(self) -> None:
        if self.model and self.encoder in ("hashed", "none"):
            raise InputError(
                f"model={self.model!r} needs encoder=static, sentence, clap, clip or voice; "
                f"{self.encoder} has no files"
            )
        if self.use_text_ratio < 1 and self.encoder != "clap":
            raise InputError(
                f"use_text_ratio={self.use_text_ratio} needs encoder=clap, which embeds texts and "
                f"sounds in one space, not encoder={self.encoder}"
            )

    @property
    def source(self) -> str:
        """Hub id, folder or file of the model; empty for hashed, and for voice's own."""
        return self.model or DEFAULT_MODELS.get(self.encoder, "")


def file_caption(kind: str, path: str) -> str:
    """Caption that stands for a picture or a voice; it differs once the file has changed."""
    stat = os.stat(path)
    return f"{kind}:{path}#{stat.st_size}-{stat.st_mtime_ns}"


def query_of(caption: str) -> tuple[str, str]:
    """(kind, path) of a caption that `file_caption` made; ("text", caption) of any other."""
    named = _FILE.fullmatch(caption)
    return (named[1], named[2]) if named else ("text", caption)


class FileEncoder:
    """Text encoder of captions that name files, as `file_caption` makes them."""

    def __init__(self, read: Callable[[str], list[Any]], encoder: Encoder[Any]) -> None:
        self._read, self._encoder, self.fingerprint = read, encoder, encoder.fingerprint

    def __call__(self, captions: Sequence[str]) -> np.ndarray:
        """Return `(N, E)` float32, each row of length 1; InputError if a file is unreadable."""
        paths, rows = [query_of(caption)[1] for caption in captions], [self._encoder([])]
        for start in range(0, len(paths), _FILES_READ):
            queries = map(self._read, paths[start : start + _FILES_READ])
            rows.append(self._encoder(list(itertools.chain(*queries))))
        return np.concatenate(rows)


def check_dimensions(conditions: Mapping[str, np.ndarray], condition_features: int) -> None:
    """Raise InputError if the encoder's vectors are not of the length that the model takes."""
    for condition_E in conditions.values():
        if len(condition_E) != condition_features:
            raise InputError(
                f"the text encoder gives {len(condition_E)} numbers a caption, but "
                f"model.condition_features={condition_features}; make them equal"
            )
