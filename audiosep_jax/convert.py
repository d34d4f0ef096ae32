"""Converts separators between AudioSep's files and ours; `--help` shows an example."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from audiosep_jax.cli import Parser
from audiosep_jax.errors import InputError

# JAX is imported where it is used: help and mistakes answer at once.

EXAMPLE = """examples:
  python -m audiosep_jax.convert audiosep_base_4M_steps.ckpt runs/audiosep
writes a workdir to separate with:
  python separate.py street.wav --text "a dog barking" --checkpoint runs/audiosep

  python -m audiosep_jax.convert runs/clap runs/clap.ckpt
writes the best checkpoint of a training for AudioSep's PyTorch code, complete for strict=True.

SRC: a workdir of train.py, a checkpoint in it, a folder of weights, a file of AudioSep's of any of
PyTorch's formats, a hub id, or audiosep, the published weights.
DST: a file for PyTorch where it ends in .ckpt (as Lightning's), .pt, .bin or .safetensors, else a
workdir."""

FILES = (".ckpt", ".pt", ".bin", ".safetensors")


def main(argv: Sequence[str]) -> int:
    """Exit code: 0, or 2 with one line on stderr and nothing written."""
    try:
        arguments = _parser().parse_args(argv)
        convert(
            arguments.source,
            arguments.destination,
            overwrite=arguments.overwrite,
            sample_rate_hz=arguments.sample_rate_hz,
            hop_samples=arguments.hop_samples,
        )
    except InputError as error:
        print("error:", *str(error).split(), file=sys.stderr)
        return 2
    sys.stdout.buffer.write(os.fsencode(arguments.destination) + b"\n")
    return 0


def convert(
    source: str,
    destination: Path,
    *,
    overwrite: bool = False,
    sample_rate_hz: int | None = None,
    hop_samples: int | None = None,
) -> None:
    """Reads what `source` is and writes what `destination` is called; whole or not at all.

    Args:
        source: what `trained.read` takes.
        destination: a file for PyTorch where it ends in one of `FILES`, else a workdir.
        overwrite: replace what is there.
        sample_rate_hz: of a file that does not tell it, and so `hop_samples`.

    Raises:
        InputError: the source is unusable, or the destination taken or not writable.
    """
    # ------------------------------------------------------------------ checks, cheapest first
    _check_destination(destination, overwrite)
    given = [option for option in (sample_rate_hz, hop_samples) if option is not None]
    if any(option < 1 for option in given):
        raise InputError("--sample_rate_hz and --hop_samples must be at least 1")
    is_file = os.path.isfile(source)
    if given and not is_file:
        raise InputError(f"{source}: --sample_rate_hz and --hop_samples are for a file of weights")
    if is_file and os.path.exists(destination) and os.path.samefile(source, destination):
        raise InputError(f"{destination}: is the source; choose another destination")

    # ------------------------------------------------------------------ read, write
    from audiosep_jax import files
    from audiosep_jax.training import trained

    if is_file:
        found = trained.read_file(Path(source), sample_rate_hz, hop_samples)
    else:
        found = trained.read(source)
    partial = destination.with_name(f".{os.getpid()}.partial.{destination.name}")
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        if destination.suffix in FILES:
            trained.write_file(partial, found)
        else:
            trained.write_workdir(partial, found, destination.name)
        _put(partial, destination)
    except OSError as error:
        raise InputError(f"{destination}: cannot be written ({error.strerror})") from error
    finally:
        files.remove(partial)


def _check_destination(destination: Path, overwrite: bool) -> None:
    """InputError where it is taken or could not be written; makes nothing."""
    try:
        taken = os.path.lexists(destination)
        there = next(x for x in destination.absolute().parents if x.exists())
        # Asked of the system, since a name may be too long or hold a null character.
        os.stat(there)
    except (OSError, ValueError) as error:
        raise InputError(f"{destination}: cannot be written to ({error})") from error
    if taken and not overwrite:
        raise InputError(f"{destination}: is there already; --overwrite replaces it")
    if taken and (destination.suffix in FILES) == destination.is_dir():
        kind = "a folder" if destination.is_dir() else "a file"
        raise InputError(f"{destination}: is {kind} and would be the other; remove it first")
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise InputError(f"{destination}: cannot be written to, {there} is no writable folder")


def _put(partial: Path, destination: Path) -> None:
    """Moves the finished result in place; a folder that is there moves aside until it is done."""
    if not destination.is_dir():
        os.replace(partial, destination)
        return
    from audiosep_jax import files

    old = destination.with_name(f".{os.getpid()}.old.{destination.name}")
    os.rename(destination, old)
    try:
        os.rename(partial, destination)
    except OSError:
        os.rename(old, destination)
        raise
    files.remove(old)


def _parser() -> Parser:
    description = "Convert a separator between AudioSep's PyTorch files and ours."
    parser = Parser("python -m audiosep_jax.convert", description, EXAMPLE)
    parser.add_argument("source", metavar="SRC", help="what to read, see below")
    parser.add_argument("destination", type=Path, metavar="DST", help="what to write, see below")
    parser.add_argument("--overwrite", action="store_true", help="replace DST where it is there")
    parser.add_argument(
        "--sample_rate_hz",
        type=int,
        metavar="HZ",
        help="of SRC, where its window is neither 2048 (32 kHz) nor 1024 (16 kHz)",
    )
    parser.add_argument("--hop_samples", type=int, metavar="N", help="of SRC, as above")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
