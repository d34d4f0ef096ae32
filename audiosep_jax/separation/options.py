"""The options of separate.py, and what can be said of them before anything is loaded."""

import argparse
import math
import os
from pathlib import Path
from typing import Any

from audiosep_jax.cli import Parser, shard
from audiosep_jax.errors import InputError
from audiosep_jax.separation.queries import Part

EXAMPLE = """examples:
  python separate.py street.wav --text "a dog barking" --checkpoint runs/demo
writes
  separated/street - a dog barking.wav
at the rate, length, channels and format of street.wav. Several queries give a file each.
  python separate.py recordings/ --text rain --text wind --residual --output out --resume
does so with every recording in a folder, below the same folders in out/, and
  python separate.py list.csv
with the files and queries of a list, whose first line is "file,query" or "file,query,output".
  python separate.py song.wav --text guitar --weight 0.7 --text banjo --weight 0.3 --not drums
asks for something between two queries, without what sounds like drums.
Without --checkpoint the published weights are used, which are fetched once.

exit code: 0; 1 where some recordings of a folder or list could not be separated, which are named
at the end; 2 with one line for a mistake, nothing written; 130 if interrupted."""

FORMATS = ("wav", "flac", "ogg", "mp3", "aiff", "caf", "w64", "rf64", "au")
SUBTYPES = tuple(
    "FLOAT DOUBLE PCM_U8 PCM_S8 PCM_16 PCM_24 PCM_32 VORBIS OPUS MPEG_LAYER_III".split()  # noqa: SIM905
)


def check_options(arguments: argparse.Namespace) -> None:
    """InputError for what is wrong by itself; makes and loads nothing."""
    output, checkpoint = arguments.output, arguments.checkpoint
    if arguments.tile_seconds is not None and not 0 < arguments.tile_seconds < math.inf:
        raise InputError(f"--tile_seconds {arguments.tile_seconds}: must be positive")
    if not os.path.exists(checkpoint) and not _may_be_on_a_hub(checkpoint):
        raise InputError(f"--checkpoint {checkpoint}: no such folder or file")
    _check_output("--output", output)
    if arguments.json:
        _check_json(arguments.json)
    if arguments.output_format and arguments.subtype:
        import soundfile

        if not soundfile.check_format(arguments.output_format.upper(), arguments.subtype):
            kind = f"{arguments.output_format} has no such"
            raise InputError(f"--subtype {arguments.subtype}: {kind}")


def _may_be_on_a_hub(checkpoint: str) -> bool:
    """Whether to ask a hub: `audiosep`, or of the form of `owner/name` or `spaces/owner/name`."""
    parts = checkpoint.removeprefix("spaces/").split("/")
    return checkpoint == "audiosep" or (len(parts) == 2 and all(part.strip(".") for part in parts))


def _check_output(option: str, output: Path) -> None:
    """InputError where the folder could not be made or written to; makes nothing."""
    try:
        there = next(folder for folder in (output, *output.absolute().parents) if folder.exists())
    except (OSError, ValueError) as error:
        raise InputError(f"{option} {output}: cannot be written to ({error})") from error
    if not there.is_dir():
        raise InputError(f"{option} {output}: {there} is not a folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise InputError(f"{option} {output}: cannot be written to")


def _check_json(path: Path) -> None:
    _check_output("--json", path.absolute().parent)
    if os.path.isdir(path):
        raise InputError(f"--json {path}: is a folder")
    if path.suffix.lower() != ".json":  # of recordings, results and lists it takes no place
        raise InputError(f"--json {path}: must end in .json")


class _AddQuery(argparse.Action):
    """Queries of all kinds in the order in which they are given."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        kind: Any = (option_string or "").removeprefix("--")
        parts = [*getattr(namespace, self.dest), Part(kind, values)]
        setattr(namespace, self.dest, parts)


class _Weigh(argparse.Action):
    """Gives the query before it a weight."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        if not namespace.queries or namespace.queries[-1].weight is not None:
            parser.error(f"--weight {values:g}: must stand behind the query it belongs to")
        *before, last = namespace.queries
        namespace.queries = [*before, Part(last.kind, last.value, values)]


def make_parser() -> Parser:
    """All options in groups, as `--help` lists them."""
    description = "Separate what sentences describe from recordings of any length."
    parser = Parser("separate.py", description, EXAMPLE)
    parser.add_argument(
        "input",
        type=Path,
        metavar="INPUT",
        help="recording of any rate that libsndfile reads (or ffmpeg, where it is installed), a "
        "folder of them, or a .csv of files and queries",
    )
    _add_queries(parser)
    _add_model(parser)
    _add_output(parser)
    _add_lists(parser)
    return parser


def _add_queries(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what to separate; each may be repeated")
    parser.set_defaults(queries=[], unwanted=[])
    options: dict[str, Any] = {"action": _AddQuery, "dest": "queries", "default": []}
    group.add_argument("--text", metavar="SENTENCE", help="what it sounds like", **options)
    group.add_argument(
        "--embedding",
        metavar="NPY",
        help="a query given as the text encoder's numbers, one query or a row for each",
        **options,
    )
    group.add_argument(
        "--audio_query",
        metavar="FILE",
        help="a recording of what to separate; needs weights trained with CLAP",
        **options,
    )
    group.add_argument(
        "--weight",
        action=_Weigh,
        type=float,
        metavar="W",
        help="of the query before it: all queries become one, the weighted sum of their embeddings",
    )
    group.add_argument(
        "--not",
        action=_AddQuery,
        dest="unwanted",
        default=[],
        metavar="SENTENCE",
        help="what must not be in the results: it is separated too and masked out of them",
    )


def _add_model(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("model")
    group.add_argument(
        "--checkpoint",
        default="audiosep",
        metavar="WHAT",
        help="workdir of train.py, of which the best checkpoint is used, or a checkpoint in it; "
        "folder, file or hub id of weights, AudioSep's too (default: the published weights)",
    )
    group.add_argument(
        "--text_model",
        default="",
        metavar="DIR",
        help="folder or hub id of the text encoder (default: that of training)",
    )
    group.add_argument(
        "--stereo",
        choices=("mid", "channels"),
        default="mid",
        help="one mask from the mean of the channels, which keeps the image, or a mask for each, "
        "which takes as many times as long (default: %(default)s)",
    )
    group.add_argument(
        "--above_nyquist",
        choices=("keep", "drop"),
        default="keep",
        help="what lies above the model's band follows its topmost bins, or goes "
        "(default: %(default)s)",
    )
    group.add_argument(
        "--tile_seconds",
        type=float,
        metavar="S",
        help="how much is computed at once (default: by the memory that is free)",
    )


def _add_output(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("results")
    group.add_argument(
        "--output",
        type=Path,
        default=Path("separated"),
        metavar="DIR",
        help="folder for the results, made where missing (default: %(default)s)",
    )
    group.add_argument(
        "--output_format", choices=FORMATS, help="file format (default: that of the input)"
    )
    group.add_argument(
        "--subtype",
        choices=SUBTYPES,
        metavar="TYPE",
        help=f"how samples are stored: {', '.join(SUBTYPES)} (default: as in the input)",
    )
    group.add_argument(
        "--clip",
        choices=("none", "rescale", "clamp"),
        help="of results beyond full scale: write them to files that hold them and refuse others, "
        "make all results of a recording quieter, or cut them off (default: none for floating "
        "point, Vorbis, Opus and MP3; rescale for the rest, where the work else would be lost)",
    )
    group.add_argument(
        "--residual", action="store_true", help="also write the recording minus all targets"
    )
    group.add_argument(
        "--plot",
        nargs="?",
        const="png",
        choices=("png", "svg"),
        help="also draw spectrograms of the recording, the targets and what is left (needs "
        "matplotlib: pip install 'audiosep-jax[plot]')",
    )
    group.add_argument(
        "--json",
        type=Path,
        metavar="FILE",
        help="also write what was found: presence of each query and when it is active; with "
        "--shard 0/8 to FILE's name with .0-of-8 in it",
    )


def _add_lists(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("folders and lists")
    group.add_argument(
        "--resume",
        action="store_true",
        help="leave out recordings whose results are there, as separated.jsonl beside them says",
    )
    group.add_argument(
        "--shard",
        type=shard,
        default=(0, 1),
        metavar="I/N",
        help="do part I of 0 to N-1 only, for several processes or machines",
    )
