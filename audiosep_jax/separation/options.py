"""Options of `audiosep separate`, their help, and the checks that need nothing loaded."""

import argparse
import dataclasses
import functools
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from audiosep_jax import files
from audiosep_jax.cli import (
    Parser,
    add_cluster,
    naming,
    number,
    place,
    say,
    shard,
    use_compilation_cache,
)
from audiosep_jax.encoders import KINDS
from audiosep_jax.errors import InputError
from audiosep_jax.separation import AboveNyquist, Clip, EngineName, Precision, Stereo
from audiosep_jax.separation.editors import LABELS, STEMS, check_ffmpeg
from audiosep_jax.separation.queries import NOT, Part

if TYPE_CHECKING:
    from audiosep_jax.separation.separator import Separator

EXAMPLE = """examples:
  audiosep separate street.wav --text "a dog barking" --checkpoint runs/demo
writes
  separated/street - a dog barking.wav
at the sample rate, length, channels and format of street.wav. Each further --text adds a file.
  audiosep separate recordings/ --text rain --text wind --residual --output out --resume
separates all recordings of a folder into the same folders below out/, and
  audiosep separate list.csv
the files of a list with a query each, whose first line is "file,query" or "file,query,output".
  audiosep separate song.wav --text guitar --weight 0.7 --text banjo --weight 0.3 --not drums
asks for a sound between two queries, and removes what sounds like drums.
Without --checkpoint the small weights in the package are used; --checkpoint audiosep takes the
published ones, which are downloaded once.

exit code: 0; 1 if some of several recordings could not be separated, which are named at the end;
2 after a mistake, named in one line, with nothing written; 130 after Ctrl-C; 143 after SIGTERM."""

FORMATS = ("wav", "flac", "ogg", "mp3", "aiff", "caf", "w64", "rf64", "au")
SUBTYPES = tuple(
    "FLOAT DOUBLE PCM_U8 PCM_S8 PCM_16 PCM_24 PCM_32 VORBIS OPUS MPEG_LAYER_III".split()  # noqa: SIM905
)
# Format and subtype of a file that --output names, by its suffix.
FILES = {f".{name}": (name, None) for name in FORMATS} | {
    ".aif": ("aiff", None),
    ".ogg": ("ogg", "VORBIS"),
    ".opus": ("ogg", "OPUS"),
}


def add_checkpoint(parser: argparse._ActionsContainer) -> None:
    """Add --checkpoint, the first argument of `load_separator`."""
    parser.add_argument(
        "--checkpoint",
        default="",
        metavar="PATH",
        help="training workdir (its best checkpoint is used), a checkpoint in it, or a folder, "
        "file or hub id of weights, also AudioSep's own; or a name: small, the weights in this "
        "package, or audiosep, the published ones, which are downloaded once (default: small)",
    )


def add_adapter(parser: argparse._ActionsContainer) -> None:
    """Add --adapter, which `load_separator` reads."""
    adapter = "file of an adapter that was trained on the weights, or the workdir of its training"
    parser.add_argument("--adapter", default="", metavar="PATH", help=adapter)


def add_loading(parser: argparse._ActionsContainer) -> None:
    """Add --adapter and how to run the network, which `load_separator` reads."""
    add_adapter(parser)
    add = parser.add_argument
    text = "folder or hub id of the text encoder's files (default: those of training)"
    add("--text_model", default="", metavar="PATH", help=text)
    engine = (
        "what runs the network: jax on any device, or openvino on CPUs, which is faster and needs "
        "pip install 'audiosep-jax[cpu]' (default: openvino where it can run)"
    )
    add("--engine", choices=get_args(EngineName), default="auto", help=engine)
    precision = (
        "type of the network's numbers; bfloat16 is faster and needs a device that computes in it "
        "(default: float32 with openvino, that of training with jax)"
    )
    add("--precision", choices=get_args(Precision), help=precision)
    gate = "do not fade results to silence where the network finds that the sound is absent"
    add("--no_gate", dest="gate", action="store_false", help=gate)


def load_separator(checkpoint: str, options: argparse.Namespace | None = None) -> "Separator":
    """Load a separator; InputError names --checkpoint.

    Args:
        checkpoint: value of --checkpoint; if it is empty, the weights in the package are loaded.
        options: those of `add_loading` or `add_adapter`; without the former, JAX runs the network
            as it was trained.
    """
    from audiosep_jax.separation.separator import Separator
    from audiosep_jax.training.trained import SHIPPED

    if not checkpoint:
        checkpoint = SHIPPED
        say("using the weights in the package; --checkpoint audiosep takes the published ones")
    use_compilation_cache()
    how: dict[str, Any] = {"engine": "jax"}
    if options:
        names = ("adapter", "text_model", "engine", "precision", "gate")
        how |= {name: value for name, value in vars(options).items() if name in names}
    with naming("--checkpoint", checkpoint):
        return Separator.load(checkpoint, **how)


def names_a_file(output: Path) -> bool:
    """Return whether --output is the name of a recording; InputError if none can be written."""
    from audiosep_jax.audio.files import RECORDING_SUFFIXES

    suffix = output.suffix.lower()
    if suffix not in {*RECORDING_SUFFIXES, *FILES} or os.path.isdir(output):
        return False
    if suffix not in FILES:
        raise InputError(
            f"--output {output}: cannot be written as {suffix}; choose {', '.join(FILES)}"
        )
    return True


def check_options(arguments: argparse.Namespace, output: Path) -> None:
    """Raise InputError for options that are wrong by themselves; `output` is the folder."""
    with naming("--output", str(output)):
        files.check_writable(output / "separated.jsonl")
    if arguments.json:
        _check_json(arguments)
    if arguments.output_format and arguments.subtype:
        import soundfile

        if not soundfile.check_format(arguments.output_format.upper(), arguments.subtype):
            raise InputError(
                f"--subtype {arguments.subtype}: {arguments.output_format} has no such subtype"
            )
    if arguments.plot:
        from audiosep_jax import plots

        with naming("--plot"):
            plots.check_figure(f"x.{arguments.plot}")
    if arguments.stems:
        with naming("--stems"):
            check_ffmpeg()


def beside(arguments: argparse.Namespace) -> tuple[str, ...]:
    """Suffixes of the files that are written beside the results of a recording."""
    plot, stems = [arguments.plot] * bool(arguments.plot), [STEMS] * arguments.stems
    return *plot, *dict.fromkeys(arguments.labels), *stems


def _check_json(arguments: argparse.Namespace) -> None:
    path, (index, count) = arguments.json, arguments.shard
    if count > 1:  # each process writes its own file
        path = arguments.json = path.with_suffix(f".{index}-of-{count}{path.suffix}")
    with naming("--json", str(path)):
        files.check_writable(path)
    if path.is_dir():
        raise InputError(f"--json {path}: is a folder")
    if path.suffix.lower() != ".json":  # so that it replaces no recording, result or list
        raise InputError(f"--json {path}: must end in .json")
    if path.exists() and not (arguments.overwrite or arguments.resume):
        raise InputError(f"--json {path}: exists already; --overwrite replaces it")


class _AddQuery(argparse.Action):
    """Collect queries of all kinds in the order in which they are given."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option: Any = None) -> None:
        part = Part(option.removeprefix("--"), values)
        setattr(namespace, self.dest, [*getattr(namespace, self.dest), part])


class _Amend(argparse.Action):
    """Give the query before it a weight or, if it is a picture, a region."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option: Any = None) -> None:
        *before, last = namespace.queries or [None]
        wrong = last is None or getattr(last, self.dest) is not None
        if wrong or (self.dest == "region" and last.option != "image"):
            kind = "picture" if self.dest == "region" else "query"
            parser.error(f"{option}: must come after the {kind} that it belongs to")
        namespace.queries = [*before, dataclasses.replace(last, **{self.dest: values})]


def _region(text: str) -> tuple[int, ...]:
    """Parse `X,Y,W,H` in pixels: the type of `--region`."""
    if not re.fullmatch(r"\d{1,9},\d{1,9},0*[1-9]\d{0,8},0*[1-9]\d{0,8}", text, re.ASCII):
        raise argparse.ArgumentTypeError(f"{text} must be X,Y,W,H in pixels, such as 40,0,320,240")
    return tuple(map(int, text.split(",")))


def make_parser() -> Parser:
    """Make the parser, with options in groups as `--help` lists them."""
    description = "Separate the sounds that sentences describe from recordings of any length."
    parser = Parser("audiosep separate", description, EXAMPLE)
    parser.add_argument(
        "input",
        type=place,
        nargs="+",
        metavar="INPUT",
        help="recordings in any format that libsndfile reads (or ffmpeg, if it is installed), "
        "folders of them, or a .csv file that lists files and queries; or URLs, such as s3://bucket/x",
    )
    _add_queries(parser.add_argument_group("queries, each of which may be repeated"))
    parser.set_defaults(queries=[], unwanted=[])
    _add_separation(parser.add_argument_group("separation"))
    _add_results(parser.add_argument_group("results"))
    group = parser.add_argument_group("many recordings")
    resume = "skip recordings whose results are complete, as separated.jsonl beside them records"
    group.add_argument("--resume", action="store_true", help=resume)
    share = "do share I (from 0) of N only, to divide the work among processes or machines"
    group.add_argument("--shard", type=shard, default=(0, 1), metavar="I/N", help=share)
    add_cluster(group)
    return parser


def _add_queries(group: argparse._ArgumentGroup) -> None:
    add = functools.partial(group.add_argument, action=_AddQuery)
    for option, kind in KINDS.items():
        add(f"--{option}", dest="queries", metavar=kind.metavar, help=kind.help)
    weight = "weight of the query before it; all queries become one, the weighted sum"
    group.add_argument("--weight", action=_Amend, type=float, metavar="W", help=weight)
    region = "part of the picture before it that counts, in pixels: left, top, width, height"
    group.add_argument("--region", action=_Amend, type=_region, metavar="X,Y,W,H", help=region)
    unwanted = "a sound that must not be in the results: it is separated too and masked out"
    add(f"--{NOT}", dest="unwanted", metavar="SENTENCE", help=unwanted)
    during = "silence the results outside this span of the recording, in seconds, such as 3.0-5.5"
    during += " or 8-, to its end; may be repeated"
    group.add_argument("--during", action="append", default=[], metavar="SPAN", help=during)


def _add_separation(group: argparse._ArgumentGroup) -> None:
    add_checkpoint(group)
    add_loading(group)
    stereo = (
        "mid: one mask, of the mean of the channels, which keeps the stereo image; channels: a "
        "mask for each channel, which takes as many times as long (default: %(default)s)"
    )
    group.add_argument("--stereo", choices=get_args(Stereo), default="mid", help=stereo)
    group.add_argument(
        "--above_nyquist",
        choices=get_args(AboveNyquist),
        default="keep",
        help="frequencies above the model's band: keep them with the gain of its topmost bins, or "
        "drop them (default: %(default)s)",
    )
    tile = "seconds of audio that are computed at once (default: what the free memory allows)"
    group.add_argument("--tile_seconds", type=number(float, 1e-3, 1e9), metavar="S", help=tile)


def _add_results(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add(
        "--output",
        type=place,
        default=Path("separated"),
        metavar="PATH",
        help="folder for the results, created if missing; for one recording and one query also "
        "the name of the file, such as dog.wav; or a URL (default: %(default)s)",
    )
    add("--overwrite", action="store_true", help="replace files that exist (default: refuse)")
    add("--output_format", choices=FORMATS, help="file format (default: that of the input)")
    subtype = f"sample format: {', '.join(SUBTYPES)} (default: that of the input)"
    add("--subtype", choices=SUBTYPES, metavar="TYPE", help=subtype)
    clip = (
        "samples beyond full scale: none writes them as they are, or refuses if the sample format "
        "cannot hold them; rescale makes all results of the recording quieter by one factor; clamp "
        "limits them (default: none for floating point, Vorbis, Opus and MP3, rescale for others)"
    )
    add("--clip", choices=get_args(Clip), help=clip)
    add("--residual", action="store_true", help="also write the recording minus all results")
    plot = (
        "also draw spectrograms of the recording, the results and the residual; needs matplotlib "
        "(pip install 'audiosep-jax[plot]')"
    )
    add("--plot", nargs="?", const="png", choices=("png", "svg"), help=plot)
    labels = (
        "also write when each query is active: txt is a label track of Audacity, vtt WebVTT, csv a "
        "table; may be repeated"
    )
    add("--labels", action="append", default=[], choices=LABELS, help=labels)
    stems = "also write all results as the tracks of one Matroska file (.mka); needs ffmpeg"
    add("--stems", action="store_true", help=stems)
    found = (
        "also write how much of each query was found, and when; with --shard 0/8, found.json "
        "becomes found.0-of-8.json"
    )
    add("--json", type=place, metavar="FILE", help=found)
