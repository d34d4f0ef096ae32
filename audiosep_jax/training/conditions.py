"""The condition of every caption of a run, the same in all its processes."""

import hashlib

import numpy as np

from audiosep_jax.data.captions import Captions
from audiosep_jax.encoders import make_encoder
from audiosep_jax.encoders.encoder import TextConfig, check_dimensions
from audiosep_jax.encoders.hashed import words_of
from audiosep_jax.encoders.table import caption_table
from audiosep_jax.training import processes
from audiosep_jax.training.config import Config

_ROWS_SENT = 2**15  # at once: the copies on the devices take a few times their 64 MB


def distinct_captions(*data_sets: Captions) -> list[str]:
    """Every caption of the data sets once, in alphabetical order."""
    return sorted({text for captions in data_sets for text in captions.texts})


def captions_hash(captions: list[str]) -> str:
    """Of a list of captions and their order."""
    return hashlib.sha256("\0".join(captions).encode()).hexdigest()[:16]


def known_words(config: TextConfig, captions: list[str]) -> list[str]:
    """Words of the captions, if the text encoder knows no others; else none."""
    return words_of(captions) if config.encoder == "hashed" else []


def make_conditions(config: Config, captions: list[str]) -> tuple[dict[str, np.ndarray], str]:
    """Return the `(E,)` of each caption, and the encoder's fingerprint (in process 0 only).

    Process 0 computes the embeddings and sends them to the others.
    """
    fingerprint = ""
    rows_NE = np.zeros((len(captions), config.model.condition_features), np.float32)
    with processes.failing_together():
        if processes.is_main():
            encoder = make_encoder(config.text)
            table, fingerprint = caption_table(encoder, captions), encoder.fingerprint
            check_dimensions(table, config.model.condition_features)
            del encoder  # and with it its weights, which a device holds
            rows_NE = np.stack([table[caption] for caption in captions])
    for start in range(0, len(captions), _ROWS_SENT):
        part = slice(start, start + _ROWS_SENT)
        rows_NE[part] = processes.broadcast(rows_NE[part], rows_NE[part])
    return dict(zip(captions, rows_NE, strict=True)), fingerprint
