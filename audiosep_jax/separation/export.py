"""A separator as one file that JAX alone runs: weights and program, without this library."""

import json
import os
import uuid
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from audiosep_jax.errors import InputError
from audiosep_jax.model.stft import num_frames
from audiosep_jax.model.tiles import bucket, separate_tile, spectrum_of
from audiosep_jax.separation.separator import Separator


def export_separator(
    separator: Separator,
    path: str | Path,
    *,
    batch_size: int = 1,
    tile_seconds: float = 10.0,
    platforms: Sequence[str] | None = None,
) -> Path:
    """Writes the separator for a fixed batch and length, and a `.json` of its sizes beside it.

        import jax, numpy as np
        separate = jax.export.deserialize(bytearray(open("dog.jax", "rb").read()))
        estimate_BS = separate.call(mixture_BS, np.int32(num_samples), condition_BE)

    `mixture_BS` float32 at the model's rate, of the `.json`'s shape, of which the first
    `num_samples` samples count; `condition_BE` rows of `Separator.embed_text`. The estimate equals
    one pass over those samples and is zero behind them. (A network that cannot stream hears silence
    behind them, so its estimate is equal only where all samples count.)

    Needs flatbuffers, the extra `export`; reading the file does, too.

    Args:
        platforms: such as `("cpu", "cuda", "tpu")`; that of this process where None.

    Raises:
        InputError: a size makes no sense, or the file cannot be written.
    """
    path, model = Path(path), separator.model
    num_samples = round(tile_seconds * model.sample_rate_hz)
    if batch_size < 1 or num_samples < 1:
        raise InputError(
            f"batch_size={batch_size} and tile_seconds={tile_seconds} must be positive"
        )

    @jax.jit
    def separate(
        mixture_BS: jax.Array, num_samples: jax.Array, condition_BE: jax.Array
    ) -> jax.Array:
        return jax.vmap(
            lambda mixture_S, condition_E: _one(separator, mixture_S, num_samples, condition_E)
        )(mixture_BS, condition_BE)

    arguments = (
        jax.ShapeDtypeStruct((batch_size, num_samples), jnp.float32),
        jax.ShapeDtypeStruct((), jnp.int32),
        jax.ShapeDtypeStruct((batch_size, model.condition_features), jnp.float32),
    )
    exported = jax.export.export(separate, platforms=platforms)(*arguments)
    try:
        content = bytes(exported.serialize())
    except ImportError as error:
        raise InputError(
            "an export needs flatbuffers: pip install 'audiosep-jax[export]'"
        ) from error
    about = {
        "mixture": [batch_size, num_samples],
        "condition": [batch_size, model.condition_features],
        "sample_rate_hz": model.sample_rate_hz,
        "platforms": list(exported.platforms),
        "step": separator.step,
        "text": separator.text.encoder,
    }
    _write(path, content)
    _write(path.with_name(f"{path.name}.json"), (json.dumps(about, indent=2) + "\n").encode())
    return path


def _one(
    separator: Separator, mixture_S: jax.Array, num_samples: jax.Array, condition_E: jax.Array
) -> jax.Array:
    """One pass over the first `num_samples` samples."""
    model, most = separator.model, mixture_S.shape[0]
    half, hop = model.window_samples // 2, model.hop_samples
    frames = bucket(model, num_frames(most, hop))
    sample_U = jnp.arange((frames - 1) * hop + model.window_samples) - half
    # Mirrored at both ends, again and again, as `np.pad(mode="reflect")` does.
    period = jnp.maximum(2 * (num_samples - 1), 1)
    place_U = sample_U % period
    padded_U = mixture_S[jnp.minimum(place_U, period - place_U) * (num_samples > 1)]
    spectrum_CTF = spectrum_of(model, padded_U[None], frames)
    total = num_samples // hop + 1
    first = np.int32(0)
    audio_NCS, _, _ = separate_tile(
        model, 1, separator.variables, {}, spectrum_CTF, condition_E[None], first, total
    )
    audio_S = audio_NCS[0, 0, half : half + most]
    return jnp.where(jnp.arange(most) < num_samples, audio_S, 0)


def _write(path: Path, content: bytes) -> None:
    """Whole or not at all."""
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        part.write_bytes(content)
        os.replace(part, path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise InputError(f"{path}: cannot be written ({error.strerror})") from error
