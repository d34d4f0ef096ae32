"""Embeddings of captions kept on disk, so that no sentence is embedded twice by one encoder.

A folder for each encoder holds files of at most CHUNK_CAPTIONS captions with their embeddings.
Every caption is looked up by itself: data sets share what they have in common.
"""

import hashlib
import json
import os
import sys
import uuid
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from audiosep_jax.encoders.encoder import TextEncoder, embed_captions
from audiosep_jax.encoders.hashed import HashedEncoder
from audiosep_jax.errors import InputError

# What a killed computation may lose.
CHUNK_CAPTIONS = 512
_SUFFIX = ".npz"
_BROKEN = (
    *(EOFError, LookupError, MemoryError, NotImplementedError, OSError, RuntimeError),
    *(TypeError, ValueError, zipfile.BadZipFile, zlib.error),
)


def caption_table(
    encoder: TextEncoder, captions: Iterable[str], folder: Path | None = None
) -> dict[str, np.ndarray]:
    """Every distinct caption with its `(E,)` embedding; only those not in the store are computed.

    Args:
        encoder: embeds what is missing, with a progress bar.
        captions: sentences in any order, repeated or not.
        folder: of all stores; by default `captions` in the cache.

    Raises:
        InputError: the store cannot be written.
    """
    distinct = set(captions)
    if isinstance(encoder, HashedEncoder):  # computes as fast as a disk reads
        return embed_captions(encoder, distinct)
    store = (folder or _default_folder()) / encoder.fingerprint
    table = read_store(store, distinct)
    # Sentences of about one length share a chunk, so that little of a batch is padding.
    missing = sorted(distinct - table.keys(), key=lambda caption: (len(caption), caption))
    if missing:
        table |= _compute(encoder, missing, store)
    return table


def _default_folder() -> Path:
    from audiosep_jax.weights import (
        hub,  # it takes seconds to import, and hashed captions need none of it
    )

    return hub.cache_folder() / "captions"


def read_store(store: Path, wanted: set[str]) -> dict[str, np.ndarray]:
    """The wanted captions that the store has; a damaged file is removed, never trusted."""
    table: dict[str, np.ndarray] = {}
    for path in sorted(store.glob(f"*{_SUFFIX}")):
        try:
            captions, embedding_NE = _read_chunk(path)
        except FileNotFoundError:  # another process has found it damaged
            continue
        except _BROKEN:
            print(f"{path}: is damaged; its captions are embedded again", file=sys.stderr)
            path.unlink(missing_ok=True)
            continue
        rows = zip(captions, embedding_NE, strict=True)
        table |= {caption: row_E for caption, row_E in rows if caption in wanted}
    return table


def _compute(encoder: TextEncoder, captions: Sequence[str], store: Path) -> dict[str, np.ndarray]:
    table: dict[str, np.ndarray] = {}
    _write(store, None)  # a place that cannot be written to is found out before the work
    with tqdm(total=len(captions), desc="embedding captions", unit="") as bar:
        for start in range(0, len(captions), CHUNK_CAPTIONS):
            chunk = captions[start : start + CHUNK_CAPTIONS]
            embedding_NE = encoder(chunk)
            _write(store, (chunk, embedding_NE))
            table |= dict(zip(chunk, embedding_NE, strict=True))
            bar.update(len(chunk))
    return table


def _write(store: Path, chunk: tuple[Sequence[str], np.ndarray] | None) -> None:
    """Makes the store and, under a name that follows from its captions, a chunk in it."""
    try:
        store.mkdir(parents=True, exist_ok=True)
        partial = store / f"{uuid.uuid4().hex}.partial"  # hosts may share the folder
        try:
            with partial.open("wb") as file:
                if chunk is None:
                    return
                text = json.dumps(list(chunk[0])).encode()
                np.savez(file, captions=np.frombuffer(text, np.uint8), embedding_NE=chunk[1])
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, store / (hashlib.sha256(text).hexdigest()[:32] + _SUFFIX))
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(
            f"{store}: cannot be written ({error.strerror}); "
            "the environment variable AUDIOSEP_JAX_CACHE names another folder"
        ) from error


def _read_chunk(path: Path) -> tuple[list[str], np.ndarray]:
    """What was written; ValueError and the like where the file is not whole."""
    with np.load(path, allow_pickle=False) as arrays:  # the zip's checksums are compared
        captions = json.loads(arrays["captions"].tobytes())
        embedding_NE = arrays["embedding_NE"]
    if embedding_NE.dtype != np.float32 or embedding_NE.ndim != 2:
        raise ValueError("is no table of embeddings")
    if len(captions) != len(embedding_NE) or not all(isinstance(x, str) for x in captions):
        raise ValueError("has not as many captions as embeddings")
    return captions, embedding_NE
