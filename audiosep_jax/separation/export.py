"""Export: a separator as one file of weights and program, for JAX alone or for ONNX engines."""

import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from audiosep_jax import files
from audiosep_jax.cli import Parser, exit_code
from audiosep_jax.errors import InputError
from audiosep_jax.separation.options import add_checkpoint, load_separator

if TYPE_CHECKING:
    import jax

    from audiosep_jax.model.network import ModelConfig
    from audiosep_jax.separation.separator import Separator

WeightType = Literal["float32", "float16"]

# JAX is imported where it is used, so that help is fast.

EXAMPLE = """examples:
  audiosep export dog.jax --checkpoint runs/demo
writes dog.jax for mixtures of 10 s and one query at a time, and dog.jax.json with its shapes and
sample rate.
  audiosep export dog.onnx --checkpoint runs/demo --text "a dog barking" --dtype float16
writes dog.onnx for mixtures of any length, and dog.onnx.json, also with the sentence's embedding.
docs/separating.md shows how to run both. Needs pip install 'audiosep-jax[export]'."""
INSTALL = "pip install 'audiosep-jax[export]'"
STREAM_TILE_SECONDS = 2.56


def main(argv: Sequence[str]) -> int:
    """Export the separator that `argv` names; return the exit code."""
    return exit_code(lambda: _export(**vars(_parser().parse_args(argv))))


def _export(
    checkpoint: str,
    file: Path,
    format: str | None,
    platforms: Sequence[str] | None,
    stream: bool,
    dtype: WeightType,
    **options: Any,
) -> None:
    is_onnx = (format or file.suffix.removeprefix(".")) == "onnx"
    if is_onnx and platforms:
        raise InputError("--platforms: an ONNX file runs everywhere; leave it out")
    if not is_onnx and (stream or dtype != "float32"):
        raise InputError("--stream and --dtype float16 need --format onnx")
    given = {name: value for name, value in options.items() if value is not None}
    separator = load_separator(checkpoint)
    if is_onnx:
        print(export_onnx(separator, file, stream=stream, dtype=dtype, **given))
    else:
        print(export_separator(separator, file, platforms=platforms, **given))


def export_separator(
    separator: "Separator",
    path: str | Path,
    *,
    batch_size: int = 1,
    tile_seconds: float = 10.0,
    platforms: Sequence[str] | None = None,
    text: Sequence[str] = (),
) -> Path:
    """Write the separator for a fixed batch and length, and a `.json` with its shapes beside it.

    `jax.export.deserialize` makes of the file a function of `mixture_BS` (float32 at the model's
    rate), `np.int32(num_samples)`, behind which the mixtures are ignored, and `condition_BE` (rows
    of `Separator.embed_text`). The estimate equals one pass over these samples, and is zero behind
    them. A network that cannot stream processes silence behind them, so its estimate is equal only
    if all samples count. Writing and reading need flatbuffers (the extra `export`).

    Args:
        platforms: such as `("cpu", "cuda", "tpu")`; the default is that of this process.
        text: sentences whose embeddings are written to the `.json`.
    """
    import jax
    import jax.numpy as jnp

    path, model = Path(path), separator.model
    num_samples = _num_samples(model, batch_size, tile_seconds)
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
        raise InputError(f"an export needs flatbuffers: {INSTALL}") from error
    shape, about = (batch_size, num_samples), {"platforms": list(exported.platforms)}
    return _write(separator, path, content, text, shape, about)


def export_onnx(
    separator: "Separator",
    path: str | Path,
    *,
    stream: bool = False,
    batch_size: int | None = None,
    tile_seconds: float | None = None,
    dtype: WeightType = "float32",
    text: Sequence[str] = (),
) -> Path:
    """Write the separator as an ONNX graph, and a `.json` with its shapes beside it.

    `model/separator_graph.py` names its inputs and outputs. The estimate equals that of `separate`
    to rounding. Writing needs onnx (the extra `export`).

    Args:
        stream: write one tile of a stream, with its state as inputs and outputs.
        batch_size, tile_seconds: fixed sizes; by default a call decides on both, but a tile of a
            stream has 2.56 s. A tile is rounded to the grid of the network's frames.
        dtype: of the stored weights; engines compute in float32.
        text: sentences whose embeddings are written to the `.json`.
    """
    from audiosep_jax.model.onnx_graph import with_float16_weights, with_sizes
    from audiosep_jax.model.separator_graph import write_separator

    model = separator.model
    num_samples = _num_samples(model, batch_size, tile_seconds)
    about = _tile(model, tile_seconds or STREAM_TILE_SECONDS) if stream else {}
    sizes = {"batch": batch_size, "samples": about.get("tile_samples", num_samples)}
    try:
        graph = write_separator(model, separator.variables, stream=stream)
        if dtype == "float16":
            graph = with_float16_weights(graph)
    except ImportError as error:
        raise InputError(f"an ONNX export needs onnx: {INSTALL}") from error
    content = with_sizes(graph, sizes).SerializeToString()
    return _write(separator, Path(path), content, text, sizes.values(), about)


def _num_samples(model: "ModelConfig", batch_size: int | None, seconds: float | None) -> int | None:
    """Samples of a mixture; InputError if a size is not positive."""
    for name, size in (("batch_size", batch_size), ("tile_seconds", seconds)):
        if size is not None and not 0 < size < math.inf:
            raise InputError(f"{name}={size} must be positive and finite")
    return None if seconds is None else max(1, round(seconds * model.sample_rate_hz))


def _tile(model: "ModelConfig", seconds: float) -> dict[str, int]:
    """Sizes that a caller of the graph of a stream needs."""
    from audiosep_jax.model.tiles import delay_frames

    hop, window, stride = model.hop_samples, model.window_samples, model.time_stride
    frames = max(1, round(seconds * model.sample_rate_hz / hop / stride)) * stride
    return {
        "tile_frames": frames,
        "tile_samples": (frames - 1) * hop + window,
        "hop_samples": hop,
        "window_samples": window,
        "delay_frames": delay_frames(model, frames),
    }


def _write(
    separator: "Separator",
    path: Path,
    content: bytes,
    text: Sequence[str],
    shape: Iterable[int | None],
    more: Mapping[str, Any],
) -> Path:
    """Write the file and what is known about it; a size that a call decides on is null."""
    rows = separator.embed_text(text) if text else ()
    batch_size, num_samples = shape
    about = {
        "mixture": [batch_size, num_samples],
        "condition": [batch_size, separator.model.condition_features],
        "sample_rate_hz": separator.model.sample_rate_hz,
        "step": separator.step,
        "text": separator.text.encoder,
        "conditions": {
            sentence: row_E.tolist() for sentence, row_E in zip(text, rows, strict=True)
        },
        **more,
    }
    with files.replacing(path) as partial:
        partial.write_bytes(content)
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
    description = "Store a separator as one file that runs without this library."
    parser = Parser("audiosep export", description, EXAMPLE)
    add = parser.add_argument
    add("file", type=Path, metavar="FILE", help="file to write, such as dog.jax or dog.onnx")
    add_checkpoint(parser)
    form = "what runs the file: JAX alone, or ONNX engines (default: onnx if FILE ends in .onnx)"
    add("--format", choices=("jax", "onnx"), help=form)
    batch = "fixed number of mixtures a call (default: jax 1, onnx any)"
    add("--batch_size", type=int, metavar="B", help=batch)
    seconds = "fixed seconds of the mixtures (default: jax 10, onnx any; a tile of a stream 2.56)"
    add("--tile_seconds", type=float, metavar="S", help=seconds)
    text = "a sentence whose embedding is written to FILE.json; may be repeated"
    add("--text", action="append", metavar="SENTENCE", help=text)
    platforms = "jax: where the file shall run (default: where this process does)"
    add("--platforms", nargs="+", choices=("cpu", "cuda", "rocm", "tpu"), help=platforms)
    stream = "onnx: one tile of a stream, with its state as inputs and outputs"
    add("--stream", action="store_true", help=stream)
    dtype = "onnx: type of the stored weights (default: %(default)s)"
    add("--dtype", choices=get_args(WeightType), default="float32", help=dtype)
    return parser
