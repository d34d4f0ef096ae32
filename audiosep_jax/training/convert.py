"""The command `audiosep convert`: separators between AudioSep's PyTorch files and ours."""

import argparse
import contextlib
import os
import sys
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import get_args

from audiosep_jax import files
from audiosep_jax.cli import Parser, exit_code, local_path
from audiosep_jax.errors import InputError
from audiosep_jax.training import WeightType

# JAX is imported where it is used, so that help and mistakes are answered at once.

EXAMPLE = """examples:
  audiosep convert audiosep_base_4M_steps.ckpt runs/audiosep
writes a folder of weights, to separate with:
  audiosep separate street.wav --text "a dog barking" --checkpoint runs/audiosep

  audiosep convert runs/clap runs/clap.ckpt
writes the best checkpoint of a training for AudioSep's PyTorch code, complete for strict=True.

SRC is what --checkpoint takes: a workdir of train.py, a checkpoint in it, a folder of weights, a
file of AudioSep's in any of PyTorch's formats, a hub id, "small" or "audiosep".
DST is a PyTorch file if it ends in .ckpt (Lightning's layout), .pt, .bin or .safetensors, and
otherwise a folder of weights as hubs hold them: config.json, model.safetensors and a model card."""

SUFFIXES = (".ckpt", ".pt", ".bin", ".safetensors")


def main(argv: Sequence[str]) -> int:
    """Run the command: 0, or 2 with one line on stderr and nothing written."""
    return exit_code(lambda: _convert(_parser().parse_args(argv)))


def _convert(options: argparse.Namespace) -> None:
    """Read SRC and write DST, whole or not at all."""
    source, destination = options.source, options.destination
    sizes = {"sample_rate_hz": options.sample_rate_hz, "hop_samples": options.hop_samples}
    for name, value in sizes.items():
        if value is not None and value < 1:
            raise InputError(f"--{name} {value}: must be at least 1")
        if value is not None and not os.path.isfile(source):
            raise InputError(f"--{name}: applies to a file of weights; {source} is none")
    is_folder = destination.suffix not in SUFFIXES
    if options.dtype != "float32" and not is_folder:
        raise InputError(f"--dtype {options.dtype}: applies to a folder; {destination} is a file")
    _check_destination(source, destination, options.overwrite)
    from audiosep_jax.training import trained

    is_file = os.path.isfile(source)
    found = trained.read_file(Path(source), **sizes) if is_file else trained.read(source)
    if is_folder:
        with _replacing_folder(destination) as partial:
            trained.write_folder(partial, found, destination.name, options.dtype)
    else:
        trained.write_file(destination, found)
    sys.stdout.buffer.write(os.fsencode(destination) + b"\n")


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
    """Extend `files.replacing` to a folder that exists, which no system call replaces."""
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
    add = parser.add_argument
    add("source", metavar="SRC", help="what to read, see below")
    add("destination", type=local_path, metavar="DST", help="what to write, see below")
    dtype = "type of the kernels in a folder DST; float16 takes half the space (default: float32)"
    add("--dtype", choices=get_args(WeightType), default="float32", help=dtype)
    add("--overwrite", action="store_true", help="replace DST if it exists")
    rate = "sample rate of the file SRC; known for windows of 2048 (32 kHz) and 1024 (16 kHz)"
    add("--sample_rate_hz", type=int, metavar="HZ", help=rate)
    add("--hop_samples", type=int, metavar="N", help="hop of the file SRC; known for the same")
    return parser
