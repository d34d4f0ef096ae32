"""The condition of every caption of a run, the same in all its processes."""

import hashlib
from collections.abc import Iterator

import jax
import numpy as np

from audiosep_jax.data.sources import Source
from audiosep_jax.encoders import make_encoder
from audiosep_jax.encoders.encoder import check_dimensions
from audiosep_jax.encoders.table import caption_table
from audiosep_jax.training.config import Config
from audiosep_jax.training.processes import Peers


def distinct_captions(*sources: Source) -> list[str]:
    """Every caption of the sources once, in alphabetical order."""
    return sorted({caption for source in sources for caption in _captions(source)})


def captions_hash(captions: list[str]) -> str:
    """Of a list of captions and their order."""
    return hashlib.sha256("\0".join(captions).encode()).hexdigest()[:16]


def make_conditions(
    config: Config, captions: list[str], peers: Peers
) -> tuple[dict[str, np.ndarray], str]:
    """(each caption's `(E,)`, what the encoder is); process 0 computes them for all."""
    table, fingerprint = {}, ""
    if peers.is_main:
        encoder = make_encoder(config.text)
        table, fingerprint = caption_table(encoder, captions), encoder.fingerprint
        check_dimensions(table, config.model.condition_features)
        del encoder  # and with it its weights, which a device holds
    if peers.count == 1:
        return table, fingerprint
    peers.meet("captions")
    size = (len(captions), config.model.condition_features)
    rows_NE = np.stack([table[caption] for caption in captions]) if peers.is_main else None
    rows_NE = peers.share(rows_NE, jax.ShapeDtypeStruct(size, np.float32))
    return dict(zip(captions, rows_NE, strict=True)), fingerprint


def _captions(source: Source) -> Iterator[str]:
    for index in range(len(source)):
        yield from source.captions(index)
