"""What every text encoder looks like, and which one a config means."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, Protocol, TypeAlias, TypeVar

import numpy as np

from audiosep_jax.errors import InputError
from audiosep_jax.settings import Count, Share, section, setting

# Which files are taken where `text.model` names none.
DEFAULT_MODELS = {"clap": "laion/larger_clap_general", "clip": "openai/clip-vit-base-patch32"}
MODEL_OPTION = "--config.text.model=DIR"


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
    """Which encoder turns captions and queries into conditions."""

    encoder: Literal["hashed", "clap", "clip"] = "hashed"
    # Hub id or folder; for clap also an AudioSep checkpoint that holds its CLAP.
    model: str = setting(default="", per_process=True)
    batch_size: Count = setting(
        default=256, per_process=True
    )  # sentences that the tower embeds at once
    # Share of batches whose condition is the caption's; the others get the clean target's own.
    use_text_ratio: Share = 1.0

    def __post_init__(self) -> None:
        if self.model and self.encoder == "hashed":
            raise InputError(
                f"model={self.model!r} needs encoder=clap or encoder=clip; hashed has no files"
            )
        if self.use_text_ratio < 1 and self.encoder != "clap":
            raise InputError(
                f"use_text_ratio={self.use_text_ratio} needs encoder=clap, which embeds texts and "
                f"sounds in one space, not encoder={self.encoder}"
            )

    @property
    def source(self) -> str:
        """Where the files of the model come from; empty for hashed."""
        return self.model or DEFAULT_MODELS.get(self.encoder, "")


def embed_captions(encoder: TextEncoder, captions: Iterable[str]) -> dict[str, np.ndarray]:
    """Every distinct caption with its `(E,)` embedding; `text.table` keeps them on disk besides."""
    distinct = sorted(set(captions))
    return dict(zip(distinct, encoder(distinct), strict=True))


def check_dimensions(conditions: Mapping[str, np.ndarray], condition_features: int) -> None:
    """InputError where the encoder's vectors are not of the length that the model takes."""
    for condition_E in conditions.values():
        if len(condition_E) != condition_features:
            raise InputError(
                f"the text encoder gives {len(condition_E)} numbers a caption, but "
                f"model.condition_features={condition_features}; make them equal"
            )


def embed_queries(encoder: TextEncoder, queries: Sequence[str]) -> np.ndarray:
    """`(N, E)` embeddings of what a user asked for; InputError where a query is empty."""
    for query in queries:
        if not query.strip():
            raise InputError("a query is empty: describe the sound to separate")
    return encoder(queries)
