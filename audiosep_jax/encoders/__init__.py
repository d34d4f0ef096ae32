"""Frozen encoders that turn a query into a unit vector, and the kinds of query that there are.

A new kind of query is a module of this package, with its reader and its encoder, and a row of
`KINDS`. Nothing heavy is imported before a reader or an encoder is called.
"""

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from audiosep_jax.errors import InputError

if TYPE_CHECKING:
    from audiosep_jax.encoders.encoder import Encoder, TextConfig, TextEncoder
    from audiosep_jax.encoders.pictures import Region


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of query: how it is read, and what makes conditions of it."""

    metavar: str  # name of the value in help texts
    help: str
    encoders: tuple[str, ...]  # values of `text.encoder` whose embedding space it shares
    read: Callable[..., list[Any]]  # queries in a sentence or a file; InputError
    make_encoder: Callable[["TextConfig"], "Encoder[Any]"]
    is_file: bool = True  # the value names a file
    label: str = ""  # name of a result, if not the sentence or the name of the file


def make_encoder(config: "TextConfig") -> "TextEncoder":
    """Make the text encoder that a config names; its files are found, but not read yet."""
    if config.encoder == "hashed":
        from audiosep_jax.encoders.hashed import HashedEncoder

        return HashedEncoder()
    if config.encoder == "static":
        from audiosep_jax.encoders.static import StaticEncoder

        return StaticEncoder(config.model)
    from audiosep_jax.encoders.pretrained import TowerEncoder

    return TowerEncoder(config.encoder, config.model, batch_size=config.batch_size)


def make_query_encoder(kind: str, config: "TextConfig") -> "Encoder[Any]":
    """Make the encoder of a kind of query, for weights trained with the text encoder of `config`.

    Raises:
        InputError: the kind does not share the embedding space of the text encoder.
    """
    if config.encoder == "none":
        raise InputError("the weights were trained without queries; ask for their parts by --blind")
    if config.encoder not in KINDS[kind].encoders:
        raise InputError(
            f"a query of kind {kind} needs weights trained with "
            f"{' or '.join(KINDS[kind].encoders)}, not with {config.encoder}"
        )
    return KINDS[kind].make_encoder(config)


def make_caption_encoder(kind: str, config: "TextConfig") -> "TextEncoder":
    """Make the encoder of captions of a kind: of sentences, or of those that name files."""
    from audiosep_jax.encoders.encoder import FileEncoder

    encoder = make_query_encoder(kind, config)
    return FileEncoder(KINDS[kind].read, encoder) if KINDS[kind].is_file else encoder


def _read_sentence(sentence: str) -> list[Any]:
    if not sentence.strip():
        raise InputError("a query is empty: describe the sound to separate")
    if any("\ud800" <= letter <= "\udfff" for letter in sentence):
        raise InputError(f"the query {sentence!r} is not valid text")
    return [sentence]


def _read_sound(path: str) -> list[Any]:
    from audiosep_jax.audio import files

    return [files.read_mono(path)]


def _make_sound_encoder(config: "TextConfig") -> "Encoder[Any]":
    from audiosep_jax.encoders.pretrained import AudioEncoder

    return AudioEncoder(config.source)


def _read_picture(path: str, region: "Region | None" = None) -> list[Any]:
    from audiosep_jax.encoders import pictures

    return pictures.read(path, region)


def _make_image_encoder(config: "TextConfig") -> "Encoder[Any]":
    from audiosep_jax.encoders.pretrained import ImageEncoder

    return ImageEncoder(config.source)


def _make_voice_encoder(config: "TextConfig") -> "Encoder[Any]":
    from audiosep_jax.encoders.ge2e import VoiceEncoder

    return VoiceEncoder(config.model)


def _read_vectors(path: str) -> list[Any]:
    from audiosep_jax.encoders import vectors

    return vectors.read(path)


def _make_vector_encoder(config: "TextConfig") -> "Encoder[Any]":
    from audiosep_jax.encoders import vectors

    del config
    return vectors.VectorEncoder()


def _read_count(text: str) -> list[Any]:
    if not text.isdecimal() or not 0 < int(text) < 100:
        raise InputError(f"{text!r} must be a number of sounds, such as 2")
    return list(range(int(text)))


# By the name of the option, and of the column in lists.
KINDS = {
    "text": Kind(
        metavar="SENTENCE",
        help="what it sounds like",
        encoders=("hashed", "static", "sentence", "clap", "clip"),
        read=_read_sentence,
        make_encoder=make_encoder,
        is_file=False,
    ),
    "embedding": Kind(
        metavar="NPY",
        help="an .npy file of embeddings as the text encoder makes them: one query or a row each",
        encoders=("hashed", "static", "sentence", "clap", "clip", "voice"),
        read=_read_vectors,
        make_encoder=_make_vector_encoder,
    ),
    "audio_query": Kind(
        metavar="FILE",
        help="a recording of a sound like the wanted one; needs weights trained with CLAP",
        encoders=("clap",),
        read=_read_sound,
        make_encoder=_make_sound_encoder,
    ),
    "image": Kind(
        metavar="PICTURE",
        help="a picture or a film of what makes the sound; needs weights trained with CLIP",
        encoders=("clip",),
        read=_read_picture,
        make_encoder=_make_image_encoder,
    ),
    "voice": Kind(
        metavar="FILE",
        help="a recording of the wanted speaker's voice; needs weights trained with voices",
        encoders=("voice",),
        read=_read_sound,
        make_encoder=_make_voice_encoder,
    ),
    "blind": Kind(
        metavar="N",
        help="the first N parts that the weights were trained to find without a query",
        encoders=(),  # needs none: the conditions are weights of the network
        read=_read_count,
        make_encoder=make_encoder,  # never called, for the same reason
        is_file=False,
        label="part",
    ),
}
