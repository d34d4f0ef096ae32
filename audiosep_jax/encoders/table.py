"""Embeddings of captions on disk, so that an encoder embeds each sentence only once.

Each encoder has a folder, whose files hold at most CHUNK_CAPTIONS captions with their embeddings.
Captions are looked up one by one, so that data sets share the captions they have in common.
"""

import hashlib
import json
import sys
from collections.abc import Iterable, MutableMapping, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from audiosep_jax.encoders.encoder import TextEncoder
from audiosep_jax.encoders.hashed import HashedEncoder
from audiosep_jax.files import cache_folder, make_folder, replacing

CHUNK_CAPTIONS = 512  # captions per file: the most work that a kill can lose
_HASHED_CAPTIONS = 1 << 14  # computed at once by the encoder that is not stored
_SUFFIX = ".npz"


def caption_table(
    encoder: TextEncoder,
    captions: Iterable[str],
    folder: Path | None = None,
    table: MutableMapping[str, np.ndarray] | None = None,
) -> MutableMapping[str, np.ndarray]:
    """Map every distinct caption to its `(E,)` embedding; compute those that are not stored.

    Args:
        encoder: embeds what is missing, with a progress bar.
        captions: sentences in any order, repeated or not.
        folder: parent of the encoders' folders; by default `captions` in the cache.
        table: takes the embeddings; by default a new dict.

    Raises:
        InputError: the folder cannot be written.
    """
    distinct, table = set(captions), {} if table is None else table
    if isinstance(encoder, HashedEncoder):  # computes as fast as a disk reads
        ordered = sorted(distinct)
        for start in range(0, len(ordered), _HASHED_CAPTIONS):
            part = ordered[start : start + _HASHED_CAPTIONS]
            table.update(zip(part, encoder(part), strict=True))
        return table
    store = (folder or cache_folder("captions")) / encoder.fingerprint
    read_store(store, distinct, table)
    # Sentences of similar length share a chunk, so that little of a batch is padding.
    missing = sorted(distinct - table.keys(), key=lambda caption: (len(caption), caption))
    if missing:
        _compute(encoder, missing, store, table)
    return table


def read_store(store: Path, wanted: set[str], table: MutableMapping[str, np.ndarray]) -> None:
    """Read the wanted captions that are stored into the table; remove damaged files."""
    for path in sorted(store.glob(f"*{_SUFFIX}")):
        try:
            captions, embedding_NE = _read_chunk(path)
        except FileNotFoundError:  # another process has found it damaged
            continue
        except Exception:  # the zip and the arrays in it can be damaged in any way
            print(f"{path}: is damaged; its captions are embedded again", file=sys.stderr)
            path.unlink(missing_ok=True)
            continue
        rows = zip(captions, embedding_NE, strict=True)
        table.update((caption, row_E) for caption, row_E in rows if caption in wanted)


def _compute(
    encoder: TextEncoder,
    captions: Sequence[str],
    store: Path,
    table: MutableMapping[str, np.ndarray],
) -> None:
    make_folder(store)  # before the work, since the encoder may take minutes to the first chunk
    with tqdm(total=len(captions), desc="embedding captions", unit="") as bar:
        for start in range(0, len(captions), CHUNK_CAPTIONS):
            chunk = captions[start : start + CHUNK_CAPTIONS]
            embedding_NE = encoder(chunk)
            _write(store, chunk, embedding_NE)
            table.update(zip(chunk, embedding_NE, strict=True))
            bar.update(len(chunk))


def _write(store: Path, captions: Sequence[str], embedding_NE: np.ndarray) -> None:
    """Write a chunk, under a name that follows from its captions."""
    text = json.dumps(list(captions)).encode()
    with replacing(store / (hashlib.sha256(text).hexdigest()[:32] + _SUFFIX)) as partial:
        np.savez(partial, captions=np.frombuffer(text, np.uint8), embedding_NE=embedding_NE)


def _read_chunk(path: Path) -> tuple[list[str], np.ndarray]:
    """Read the captions and embeddings of a file; an exception if it is not whole."""
    with np.load(path, allow_pickle=False) as arrays:  # this compares the checksums of the zip
        captions = json.loads(arrays["captions"].tobytes())
        embedding_NE = arrays["embedding_NE"]
    if embedding_NE.dtype != np.float32 or embedding_NE.ndim != 2:
        raise ValueError("is not a table of embeddings")
    if len(captions) != len(embedding_NE) or not all(isinstance(x, str) for x in captions):
        raise ValueError("has not as many captions as embeddings")
    return captions, embedding_NE
