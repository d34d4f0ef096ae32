"""Export: a separator as one file for JAX alone or for ONNX engines, or as a page for browsers."""

import argparse
import functools
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from audiosep_jax import files
from audiosep_jax.cli import Parser, exit_code, local_path
from audiosep_jax.errors import InputError
from audiosep_jax.separation.options import add_adapter, add_checkpoint, load_separator
from audiosep_jax.training import WeightType

if TYPE_CHECKING:
    import jax

    from audiosep_jax.separation.separator import Separator


# JAX is imported where it is used, so that help is fast.

EXAMPLE = """examples:
  audiosep export dog.jax --checkpoint runs/demo
writes dog.jax for mixtures of 10 s and one query at a time, and dog.jax.json with its shapes and
sample rate.
  audiosep export dog.onnx --checkpoint runs/demo --text "a dog barking" --dtype float16
writes dog.onnx for mixtures of any length, and dog.onnx.json, also with the sentence's embedding.
docs/separating.md shows how to run both.
  audiosep export page --format web
writes a folder with a page that separates in the browser alone, for any web server, such as
python -m http.server --directory page. Needs npm, or a package that npm has fetched elsewhere.
All need pip install 'audiosep-jax[export]'."""
INSTALL = "pip install 'audiosep-jax[export]'"
OPTIONS = {
    "jax": ("batch_size", "tile_seconds", "platforms"),
    "onnx": ("stream", "dtype"),
    "web": ("dtype", "runtime"),
}


def main(argv: Sequence[str]) -> int:
    """Export the separator that `argv` names; return the exit code."""
    return exit_code(lambda: _export(**vars(_parser().parse_args(argv))))


def _export(
    checkpoint: str,
    adapter: str,
    file: Path,
    format: str | None,
    text: Sequence[str],
    **options: Any,
) -> None:
    format = format or ("onnx" if file.suffix == ".onnx" else "jax")
    given = {name: value for name, value in options.items() if value is not None}
    for name in given:
        if name not in OPTIONS[format]:
            raise InputError(f"--{name}: is no option of --format {format}")
    exports: dict[str, Callable[..., Path]]
    exports = {"jax": export_separator, "onnx": export_onnx, "web": export_web}
    separator = load_separator(checkpoint, argparse.Namespace(adapter=adapter))
    print(exports[format](separator, file, text=text, **given))


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

    model = separator.model
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
        raise InputError(f"an export needs flatbuffers: {INSTALL}") from error
    about = {
        "mixture": [batch_size, num_samples],
        "condition": [batch_size, model.condition_features],
        "platforms": list(exported.platforms),
    }
    return _write(separator, Path(path), content, text, about)


def export_onnx(
    separator: "Separator",
    path: str | Path,
    *,
    stream: bool = False,
    dtype: WeightType = "float32",
    text: Sequence[str] = (),
) -> Path:
    """Write the separator as an ONNX graph for mixtures of any number and length, and a `.json`.

    `model/separator_graph.py` describes its inputs and outputs. The estimate equals that of
    `separate` to rounding. Writing needs onnx (the extra `export`).

    Args:
        stream: write one tile of a stream, with its state as inputs and outputs.
        dtype: of the stored weights; engines compute in float32.
        text: sentences whose embeddings are written to the `.json`.
    """
    from audiosep_jax.model.onnx_graph import with_float16_weights
    from audiosep_jax.model.separator_graph import write_separator
    from audiosep_jax.model.tiles import delay_frames

    model = separator.model
    try:
        graph = write_separator(model, separator.variables, stream=stream)
        if dtype == "float16":
            with_float16_weights(graph)
    except ImportError as error:
        raise InputError(f"an ONNX export needs onnx: {INSTALL}") from error
    about = {
        "window_samples": model.window_samples,
        "hop_samples": model.hop_samples,
        "time_stride": model.time_stride,
        "delay_frames": delay_frames(model, 0),
    }
    return _write(separator, Path(path), graph.SerializeToString(), text, about)


def export_web(
    separator: "Separator",
    folder: str | Path,
    *,
    dtype: WeightType = "float32",
    runtime: Path | None = None,
    text: Sequence[str] = (),
) -> Path:
    """Write a folder of static files: a page that separates in the browser alone.

    The page takes any sentence if the text encoder is a table of words with BERT's tokenizer, as in
    the weights `small`. With other encoders it offers the sentences in `text`. Writing needs onnx
    (the extra `export`).

    Args:
        folder: the new folder.
        dtype: of the stored weights; browsers compute in float32.
        runtime: the package onnxruntime-web as `npm pack` writes it, in the version `web.VERSION`.
            By default, npm fetches it once.
        text: sentences that the page offers.

    Raises:
        InputError: the folder exists, the network cannot stream or has no ONNX graph, there is no
            sentence, or onnxruntime-web cannot be fetched.
    """
    from audiosep_jax.separation import web

    folder = Path(folder)
    if folder.exists():
        raise InputError(f"{folder}: exists already; remove it or choose another folder")
    with files.replacing(folder) as partial:
        shutil.copytree(web.PAGE, partial)
        words = web.write_words(separator, partial)
        if not words and not text:
            encoder = separator.text.encoder
            raise InputError(f"no browser runs the text encoder {encoder}: give some sentences")
        web.write_runtime(partial / "runtime", runtime)
        graph = export_onnx(separator, partial / "model.onnx", stream=True, dtype=dtype, text=text)
        about = web.sizes(separator.model, graph.stat().st_size)
        files.write_json(partial / "page.json", {**about, "words": words}, indent=None)
    return folder


def _write(
    separator: "Separator", path: Path, content: bytes, text: Sequence[str], more: dict[str, Any]
) -> Path:
    """Write the file, and beside it a `.json` with the embeddings and what else a user needs."""
    rows_NE = separator.embed_text(text) if text else np.zeros((0, 0))
    about = {
        "sample_rate_hz": separator.model.sample_rate_hz,
        **more,
        "step": separator.step,
        "text": separator.text.encoder,
        "conditions": dict(zip(text, rows_NE.tolist(), strict=True)),
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
    description = "Store a separator as a file or a page that runs without this library."
    parser = Parser("audiosep export", description, EXAMPLE)
    add = parser.add_argument
    add("file", type=Path, metavar="FILE", help="what to write: dog.jax, dog.onnx or a folder")
    add_checkpoint(parser)
    add_adapter(parser)
    form = (
        "what runs it: JAX alone, ONNX engines, or browsers, for which FILE is a new folder "
        "(default: onnx if FILE ends in .onnx, jax otherwise)"
    )
    add("--format", choices=tuple(OPTIONS), help=form)
    text = "a sentence whose embedding is stored, which a page offers; may be repeated"
    add("--text", action="append", default=[], metavar="SENTENCE", help=text)
    add("--batch_size", type=int, metavar="B", help="jax: mixtures a call (default: 1)")
    seconds = "jax: length of the mixtures in seconds (default: 10)"
    add("--tile_seconds", type=float, metavar="S", help=seconds)
    platforms = "jax: where the file shall run (default: where this process does)"
    add("--platforms", nargs="+", choices=("cpu", "cuda", "rocm", "tpu"), help=platforms)
    stream = "onnx: one tile of a stream, with its state as inputs and outputs"
    add("--stream", action="store_true", default=None, help=stream)
    dtype = "onnx, web: type of the stored weights (default: float32)"
    add("--dtype", choices=get_args(WeightType), help=dtype)
    runtime = "web: file that npm pack wrote, if this machine cannot fetch onnxruntime-web itself"
    add("--runtime", type=local_path, metavar="TGZ", help=runtime)
    return parser
