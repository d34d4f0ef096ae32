"""The command `audiosep convert`: separators between AudioSep's PyTorch files and ours."""

import contextlib
import functools
import os
import sys
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

from audiosep_jax import files
from audiosep_jax.cli import Parser, exit_code, local_path
from audiosep_jax.errors import InputError

# JAX is imported where it is used, so that help and mistakes are answered at once.

EXAMPLE = """examples:
  audiosep convert audiosep_base_4M_steps.ckpt runs/audiosep
writes a workdir, to separate with:
  audiosep separate street.wav --text "a dog barking" --checkpoint runs/audiosep

  audiosep convert runs/clap runs/clap.ckpt
writes the best checkpoint of a training for AudioSep's PyTorch code, complete for strict=True.

SRC is a workdir of train.py, a checkpoint in it, a folder of weights, a file of AudioSep's in any
of PyTorch's formats, a hub id, or "audiosep" for the published weights.
DST is a PyTorch file if it ends in .ckpt (Lightning's layout), .pt, .bin or .safetensors, and a
workdir otherwise."""

SUFFIXES = (".ckpt", ".pt", ".bin", ".safetensors")


def main(argv: Sequence[str]) -> int:
    """Run the command: 0, or 2 with one line on stderr and nothing written."""
    return exit_code(functools.partial(_run, argv))


def _run(argv: Sequence[str]) -> None:
    arguments = _parser().parse_args(argv)
    sizes = {"--sample_rate_hz": arguments.sample_rate_hz, "--hop_samples": arguments.hop_samples}
    for option, value in sizes.items():
        if value is not None and value < 1:
            raise InputError(f"{option} {value}: must be at least 1")
        if value is not None and not os.path.isfile(arguments.source):
            raise InputError(f"{option}: applies to a file of weights; {arguments.source} is none")
    convert(
        arguments.source,
        arguments.destination,
        overwrite=arguments.overwrite,
        sample_rate_hz=arguments.sample_rate_hz,
        hop_samples=arguments.hop_samples,
    )
    sys.stdout.buffer.write(os.fsencode(arguments.destination) + b"\n")


def convert(
    source: str,
    destination: Path,
    *,
    overwrite: bool = False,
    sample_rate_hz: int | None = None,
    hop_samples: int | None = None,
) -> None:
    """Read a separator and write it in another form, whole or not at all.

    Args:
        source: what `trained.read` takes.
        destination: a PyTorch file if it ends in one of `SUFFIXES`, otherwise a workdir.
        overwrite: replace an existing destination.
        sample_rate_hz: rate of a file whose window does not determine it.
        hop_samples: hop of such a file.

    Raises:
        InputError: the source cannot be read, or the destination exists or cannot be written.
    """
    _check_destination(source, destination, overwrite)
    from audiosep_jax.training import trained

    if os.path.isfile(source):
        found = trained.read_file(Path(source), sample_rate_hz, hop_samples)
    else:
        found = trained.read(source)
    if destination.suffix in SUFFIXES:
        trained.write_file(destination, found)
    else:
        with _replacing_folder(destination) as partial:
            trained.write_workdir(partial, found, destination.name)


def _check_destination(source: str, destination: Path, overwrite: bool) -> None:
    """Raise InputError if the destination exists or could not be written; create nothing."""
    files.check_writable(destination)
    if not os.path.lexists(destination):
        return
    if not overwrite:
        raise InputError(f"{destination}: exists already; --overwrite replaces it")
    if (destination.suffix in SUFFIXES) == destination.is_dir():
        kinds = ("a folder", "a file") if destination.is_dir() else ("a file", "a folder")
        raise InputError(f"{destination}: is {kinds[0]}, not {kinds[1]}; remove it first")
    if os.path.isfile(source) and os.path.samefile(source, destination):
        raise InputError(f"{destination}: is the source; choose another destination")


@contextlib.contextmanager
def _replacing_folder(folder: Path) -> Iterator[Path]:
    """Extend `files.replacing` to a folder that exists: it is moved aside, and removed at the end.

    No system call replaces a folder with files in it.
    """
    old = folder.with_name(f".{uuid.uuid4().hex}.old")
    try:
        with files.replacing(folder) as partial:
            yield partial
            if folder.is_dir():
                os.rename(folder, old)
    except BaseException:
        if old.is_dir():
            os.rename(old, folder)
        raise
    if old.is_dir():
        files.remove(old)


def _parser() -> Parser:
    description = "Convert a separator between AudioSep's PyTorch files and ours."
    parser = Parser("audiosep convert", description, EXAMPLE)
    parser.add_argument("source", metavar="SRC", help="what to read, see below")
    parser.add_argument(
        "destination", type=local_path, metavar="DST", help="what to write, see below"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace DST if it exists")
    parser.add_argument(
        "--sample_rate_hz",
        type=int,
        metavar="HZ",
        help="sample rate of the file SRC; known for windows of 2048 (32 kHz) and 1024 (16 kHz)",
    )
    parser.add_argument(
        "--hop_samples", type=int, metavar="N", help="hop of the file SRC; known for the same"
    )
    return parser
