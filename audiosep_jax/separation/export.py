"""Export: a separator as one file of weights and program, which runs with JAX alone."""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from audiosep_jax import files
from audiosep_jax.cli import Parser, exit_code
from audiosep_jax.errors import InputError
from audiosep_jax.separation.options import add_checkpoint, load_separator

if TYPE_CHECKING:
    import jax

    from audiosep_jax.separation.separator import Separator

# JAX is imported where it is used, so that help is fast.

EXAMPLE = """example:
  audiosep export dog.jax --checkpoint runs/demo
writes dog.jax for mixtures of 10 s and one query at a time, and dog.jax.json with its shapes and
sample rate. docs/separating.md shows how to run it. Needs pip install 'audiosep-jax[export]'."""


def main(argv: Sequence[str]) -> int:
    """Export the separator that `argv` names; return the exit code."""
    return exit_code(lambda: _export(**vars(_parser().parse_args(argv))))


def _export(checkpoint: str, file: Path, **options: Any) -> None:
    print(export_separator(load_separator(checkpoint), file, **options))


def export_separator(
    separator: "Separator",
    path: str | Path,
    *,
    batch_size: int = 1,
    tile_seconds: float = 10.0,
    platforms: Sequence[str] | None = None,
) -> Path:
    """Write the separator for a fixed batch and length, and a `.json` with its shapes beside it.

    `jax.export.deserialize` makes of the file a function of `mixture_BS` (float32 at the model's
    rate), `np.int32(num_samples)`, behind which the mixtures are ignored, and `condition_BE` (rows
    of `Separator.embed_text`). The estimate equals one pass over these samples, and is zero behind
    them. A network that cannot stream processes silence behind them, so its estimate is equal only
    if all samples count. Writing and reading need flatbuffers (the extra `export`).

    Args:
        platforms: such as `("cpu", "cuda", "tpu")`; the default is that of this process.
    """
    import jax
    import jax.numpy as jnp

    path, model = Path(path), separator.model
    num_samples = round(tile_seconds * model.sample_rate_hz)
    if batch_size < 1 or num_samples < 1:
        raise InputError(
            f"batch_size={batch_size} and tile_seconds={tile_seconds} must be positive"
        )

    separate = jax.jit(jax.vmap(functools.partial(_one, separator), in_axes=(0, None, 0)))
    shapes = (
        jax.ShapeDtypeStruct((batch_size, num_samples), jnp.float32),
        jax.ShapeDtypeStruct((), jnp.int32),
        jax.ShapeDtypeStruct((batch_size, model.condition_features), jnp.float32),
    )
    try:
        exported = jax.export.export(separate, platforms=platforms)(*shapes)
        content = bytes(exported.serialize())
    except ImportError as error:
        hint = "pip install 'audiosep-jax[export]'"
        raise InputError(f"an export needs flatbuffers: {hint}") from error
    with files.replacing(path) as partial:
        partial.write_bytes(content)
    about = {
        "mixture": [batch_size, num_samples],
        "condition": [batch_size, model.condition_features],
        "sample_rate_hz": model.sample_rate_hz,
        "platforms": list(exported.platforms),
        "step": separator.step,
        "text": separator.text.encoder,
    }
    files.write_json(path.with_name(f"{path.name}.json"), about, indent=2)
    return path


def _one(
    separator: "Separator",
    mixture_S: "jax.Array",
    num_samples: "jax.Array",
    condition_E: "jax.Array",
) -> "jax.Array":
    """One pass over the first `num_samples` samples."""
    import jax.numpy as jnp

    from audiosep_jax.model.stft import num_frames
    from audiosep_jax.model.tiles import bucket, one_pass

    model, most = separator.model, mixture_S.shape[0]
    half, hop = model.window_samples // 2, model.hop_samples
    frames = bucket(model, num_frames(most, hop))
    sample_U = jnp.arange((frames - 1) * hop + model.window_samples) - half
    # Mirrored at both ends, as often as needed, like `np.pad(mode="reflect")`.
    period = jnp.maximum(2 * (num_samples - 1), 1)
    place_U = sample_U % period
    padded_U = mixture_S[jnp.minimum(place_U, period - place_U) * (num_samples > 1)]
    total = num_samples // hop + 1
    audio_U = one_pass(model, separator.variables, padded_U, condition_E, total)
    audio_S = audio_U[half : half + most]
    return jnp.where(jnp.arange(most) < num_samples, audio_S, 0)


def _parser() -> Parser:
    description = "Store a separator as one file that needs only JAX to run."
    parser = Parser("audiosep export", description, EXAMPLE)
    add = parser.add_argument
    add("file", type=Path, metavar="FILE", help="file to write, such as dog.jax")
    add_checkpoint(parser)
    add("--batch_size", type=int, default=1, help="mixtures a call (default: %(default)s)")
    seconds = "length of the mixtures in seconds (default: %(default)s)"
    add("--tile_seconds", type=float, default=10.0, help=seconds)
    platforms = "where the file shall run (default: where this process does)"
    add("--platforms", nargs="+", choices=("cpu", "cuda", "rocm", "tpu"), help=platforms)
    return parser
