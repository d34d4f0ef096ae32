"""Separate what sentences describe from a recording; `--help` shows an example."""

import argparse
import contextlib
import os
import sys
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from audiosep_jax.errors import InputError

if TYPE_CHECKING:
    import numpy as np

# Numpy, libsndfile and JAX are imported where they are used: help and mistakes answer at once.

EXAMPLE = """example:
  python separate.py street.wav --text "a dog barking" --checkpoint runs/demo
writes
  separated/street - a dog barking.wav
at the rate, length and channels of street.wav, as 32-bit float. Several queries give a file each.
Without --checkpoint the published weights are used, which are fetched once."""

MAX_QUERY_CHARACTERS = 60
# A file name holds at most 255 bytes, of which the temporary name needs some more.
MAX_QUERY_BYTES, MAX_STEM_BYTES = 120, 100
SUBTYPES = ("FLOAT", "DOUBLE", "PCM_16", "PCM_24", "PCM_32")
TEXT_MODEL = "--text_model DIR"
NOT_IN_FILE_NAMES = '<>:"/\\|?*'


def main(argv: Sequence[str]) -> int:
    """Exit code: 0, or 2 with one line on stderr and nothing written."""
    try:
        _separate(_parser().parse_args(argv))
    except InputError as error:
        print("error:", *str(error).split(), file=sys.stderr)
        return 2
    return 0


def _separate(arguments: argparse.Namespace) -> None:
    recording, output, queries = arguments.input, arguments.output, arguments.text

    # ------------------------------------------------------------------ checks, cheapest first
    for query in queries:
        if not query.strip():
            raise InputError('--text is empty: describe the sound, such as --text "a dog barking"')
    if not (queries or arguments.embedding or arguments.audio_query):
        raise InputError("--text, --embedding or --audio_query is needed; --help shows an example")
    if not os.path.exists(arguments.checkpoint) and not _may_be_on_a_hub(arguments.checkpoint):
        raise InputError(f"--checkpoint {arguments.checkpoint}: no such folder or file")
    _check_output(output)
    embeddings = [(path, _read_embedding(path)) for path in arguments.embedding]
    labels = [*queries, *_labels(embeddings), *(path.stem for path in arguments.audio_query)]
    paths = [output / name for name in output_names(recording.stem, labels)]
    for path in paths:
        if os.path.exists(path) and os.path.exists(recording) and path.samefile(recording):
            raise InputError(f"{path}: is the input; choose another --output")

    # ------------------------------------------------------------------ read, separate, write
    import numpy as np

    from audiosep_jax import audio_io

    audio_CS, sample_rate_hz = audio_io.read(recording)
    examples = [audio_io.read(path) for path in arguments.audio_query]

    from absl import logging

    from audiosep_jax.separator import Separator

    logging.set_verbosity(logging.ERROR)  # what Orbax tells of a load
    separator = Separator.from_pretrained(
        arguments.checkpoint,
        text_model=arguments.text_model,
        option="--checkpoint DIR",
        text_option=TEXT_MODEL,
    )
    features = separator.model.condition_features
    for path, condition_NE in embeddings:
        if condition_NE.shape[1] != features:
            numbers = f"{condition_NE.shape[1]} numbers a query; these weights take {features}"
            raise InputError(f"--embedding {path}: has {numbers}")
    conditions = [condition_NE for _, condition_NE in embeddings]
    conditions += [separator.embed_audio(*example) for example in examples]
    if queries:
        conditions.insert(0, separator.embed_text(queries))
    estimates_NCS = separator.separate_conditions(
        audio_CS, sample_rate_hz, np.concatenate(conditions)
    )
    with _all_or_nothing(paths):
        for path, estimate_CS in zip(paths, estimates_NCS, strict=True):
            audio_io.write(path, estimate_CS, sample_rate_hz, subtype=arguments.subtype)
    for path in paths:
        sys.stdout.buffer.write(os.fsencode(path) + b"\n")  # a path need not be valid text
    sys.stdout.flush()


def _may_be_on_a_hub(checkpoint: str) -> bool:
    """Whether to ask a hub: `audiosep`, or of the form of `owner/name` or `spaces/owner/name`."""
    parts = checkpoint.removeprefix("spaces/").split("/")
    return checkpoint == "audiosep" or (len(parts) == 2 and all(part.strip(".") for part in parts))


def _read_embedding(path: Path) -> "np.ndarray":
    """`(N, E)` of an .npy file that holds one embedding or a row for each."""
    import numpy as np

    try:
        condition_NE = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError, MemoryError) as error:
        reason = str(error.strerror if isinstance(error, OSError) else error) or "is not complete"
        raise InputError(f"--embedding {path}: cannot be read as .npy ({reason})") from error
    shape = np.shape(condition_NE)
    if not isinstance(condition_NE, np.ndarray) or condition_NE.dtype.kind != "f":
        raise InputError(f"--embedding {path}: must be one array of floating-point numbers")
    if len(shape) not in (1, 2) or 0 in shape:
        raise InputError(f"--embedding {path}: has shape {shape}, not (numbers,) or (N, numbers)")
    if not np.isfinite(condition_NE).all():
        raise InputError(f"--embedding {path}: contains NaN or infinite numbers")
    return np.atleast_2d(condition_NE)


def _labels(embeddings: Sequence[tuple[Path, "np.ndarray"]]) -> list[str]:
    """What to call each row: its file, and its number where there are several."""
    return [
        f"{path.stem} {row}" if len(condition_NE) > 1 else path.stem
        for path, condition_NE in embeddings
        for row in range(1, len(condition_NE) + 1)
    ]


def output_names(stem: str, queries: Sequence[str]) -> list[str]:
    """A file name for each query, in order, no two alike and none with a folder in it."""
    names: list[str] = []
    for query in queries:
        base = f"{_cut(stem, MAX_STEM_BYTES)} - {_safe(query)}"
        number, name = 1, base
        while name.casefold() in (other.casefold() for other in names):
            number += 1
            name = f"{base} ({number})"
        names.append(name)
    return [f"{name}.wav" for name in names]


def _safe(query: str) -> str:
    """The query with `_` for what some file system forbids, at most 60 characters."""
    text = " ".join(unicodedata.normalize("NFC", query).split())
    forbidden = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")
    letters = [
        "_" if letter in NOT_IN_FILE_NAMES or unicodedata.category(letter) in forbidden else letter
        for letter in text[:MAX_QUERY_CHARACTERS]
    ]
    # Windows drops dots and spaces at the end.
    return _cut("".join(letters), MAX_QUERY_BYTES).rstrip(". ") or "_"


def _cut(text: str, max_bytes: int) -> str:
    """The longest beginning of `text` that takes at most `max_bytes` in a file name."""
    while len(os.fsencode(text)) > max_bytes:
        text = text[:-1]
    return text


def _check_output(output: Path) -> None:
    """InputError where the folder could not be made or written to; makes nothing."""
    try:
        there = next(folder for folder in (output, *output.absolute().parents) if folder.exists())
    except (OSError, ValueError) as error:
        raise InputError(f"--output {output}: cannot be written to ({error})") from error
    if not there.is_dir():
        raise InputError(f"--output {output}: {there} is not a folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise InputError(f"--output {output}: cannot be written to")


@contextlib.contextmanager
def _all_or_nothing(paths: Sequence[Path]) -> Iterator[None]:
    """Removes, where the block fails, the paths that it made and their new folders."""
    parent = paths[0].parent
    new_folders = [folder for folder in (parent, *parent.parents) if not folder.exists()]
    new_paths = [path for path in paths if not path.exists()]
    try:
        yield
    except BaseException:
        for remove in [path.unlink for path in new_paths] + [path.rmdir for path in new_folders]:
            with contextlib.suppress(OSError):
                remove()
        raise


class _Parser(argparse.ArgumentParser):
    """Mistakes in one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; --help shows an example")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="separate.py",
        description="Separate what sentences describe from a recording.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "input", type=Path, metavar="INPUT", help="recording that libsndfile reads, of any rate"
    )
    parser.add_argument(
        "--text", action="append", default=[], help="what to separate; may be repeated"
    )
    parser.add_argument(
        "--embedding",
        action="append",
        default=[],
        type=Path,
        metavar="NPY",
        help="a query given as the text encoder's numbers, one query or a row for each",
    )
    parser.add_argument(
        "--audio_query",
        action="append",
        default=[],
        type=Path,
        metavar="FILE",
        help="a recording of what to separate; needs weights trained with CLAP",
    )
    parser.add_argument(
        "--checkpoint",
        default="audiosep",
        metavar="WHAT",
        help="workdir of train.py, of which the best checkpoint is used, or a checkpoint in it; "
        "folder, file or hub id of weights, AudioSep's too (default: the published weights)",
    )
    parser.add_argument(
        "--text_model",
        default="",
        metavar="DIR",
        help="folder or hub id of the text encoder (default: that of training)",
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("separated"),
        metavar="DIR",
        help="folder for the results, made where missing (default: %(default)s)",
    )
    parser.add_argument(
        "--output_format", choices=("wav",), default="wav", help="file format (default: wav)"
    )
    parser.add_argument(
        "--subtype",
        choices=SUBTYPES,
        default="FLOAT",
        help="how samples are stored (default: %(default)s, which cannot clip)",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
