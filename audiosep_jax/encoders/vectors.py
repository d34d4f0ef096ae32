"""Queries that are embeddings already, in .npy files."""

import os
from collections.abc import Sequence

import numpy as np

from audiosep_jax.errors import InputError
from audiosep_jax.files import not_the_file


class VectorEncoder:
    """Identity: the embedding of a vector is the vector."""

    fingerprint = "vectors-1"

    def __call__(self, queries: Sequence[np.ndarray]) -> np.ndarray:
        """Return the vectors as rows `(N, E)` float32."""
        return np.stack(queries).astype(np.float32)


def read(path: str | os.PathLike[str]) -> list[np.ndarray]:
    """Read the vectors `(E,)` of an .npy file, which holds `(E,)` or `(N, E)`.

    Raises:
        InputError: the file is not of that form, or holds NaN or infinity.
    """
    try:
        vector_NE = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError, MemoryError) as error:
        if isinstance(error, OSError):
            raise InputError(f"{path}: cannot be read ({error.strerror or error})") from error
        raise InputError(f"{path}: {not_the_file(path) or 'is not a whole .npy file'}") from error
    shape = np.shape(vector_NE)
    if isinstance(vector_NE, np.ndarray) and vector_NE.dtype.kind == "V":
        raise InputError(f"{path}: holds no numbers (bfloat16 is saved so); save float32")
    if not isinstance(vector_NE, np.ndarray) or vector_NE.dtype.kind != "f":
        raise InputError(f"{path}: must hold one array of floating-point numbers")
    if len(shape) not in (1, 2) or 0 in shape:
        raise InputError(f"{path}: has shape {shape}; it must be (E,) or (N, E)")
    if not np.isfinite(vector_NE).all():
        raise InputError(f"{path}: contains NaN or infinity")
    return list(np.atleast_2d(vector_NE))
