"""Command `audiosep prepare`: turns a downloaded data set into shards for training."""

import argparse
import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from audiosep_jax import files, remote, workers
from audiosep_jax.cli import Parser, add_cluster, exit_code, number, place, shard
from audiosep_jax.errors import InputError, named
from audiosep_jax.preparing.datasets import DATASETS
from audiosep_jax.preparing.exclusion import REASON, excluding

if TYPE_CHECKING:  # imported where they are used, so that help and mistakes answer at once
    from audiosep_jax.preparing.plan import Plan, Settings, Shard

EXAMPLE = f"""examples:
  audiosep prepare clotho --root downloads/clotho --output data/clotho
writes a data set to train with:
  python train.py --config.data.source=prepared --config.data.root=data/clotho

  audiosep prepare audioset --root /download --output /data/audioset --shard 0/4
does a quarter of the work. With --shard 1/4, 2/4 and 3/4, other machines that see the same output
folder do the rest; the same command without --shard then completes the data set. The same command
again resumes a run that was stopped. Paths may be URLs, such as s3://bucket/audioset.

SOURCE is one of
  {(chr(10) + "  ").join(f"{name:17} {row.help}" for name, row in DATASETS.items())}
docs/data.md says what to download for each and where to put it."""
_ACCOUNTS = "*.array_record*.json"  # of finished shards
_SEARCHED = 100  # recordings whose files are searched for before the work begins


def main(argv: Sequence[str]) -> int:
    """Run the command; return 0, or 2 after one line on stderr."""

    def run() -> None:
        options = _parser().parse_args(argv)
        _check(options)
        print(*map(named, prepare(options)), sep="\n")

    return exit_code(run, "; the same command resumes")


def prepare(options: argparse.Namespace) -> list[str]:
    """Prepare the data set and return lines that say what was written."""
    from audiosep_jax.preparing import shards
    from audiosep_jax.preparing.plan import Settings, make_plan

    output: Path = options.output
    folder = output.with_name(output.name + ".parts")
    settings = Settings(options.source, options.sample_rate, options.min_seconds)
    with _held(folder, options.shard):
        items = DATASETS[options.source].read(**_given(options))
        plan = make_plan(excluding(items, options.exclude), folder, settings)
        if _is_finished(output, folder, plan.fingerprint):
            files.remove(folder)
            return [f"{output} is finished already"]
        if not plan.shards:
            first = plan.skipped[0] if plan.skipped else None
            reason = f"; left out: {first.id}: {first.reason}, and others" if first else ""
            raise InputError(f"{options.source}: lists no recording to prepare{reason}")
        _write(plan, options, settings)
        if options.shard[1] > 1:
            left = sum(shards.read_account(folder, row) is None for row in plan.shards)
            return [f"wrote into {folder}; {left} of {len(plan.shards)} shards are left"]
        report = shards.finish(plan, settings, output)
    return _summary(report, options)


def _given(options: argparse.Namespace) -> dict[str, Any]:
    """Options that describe the data set, without those that were not given."""
    names = ("root", "valid_root", "valid_folds", "num_clips")
    return {name: vars(options)[name] for name in names if vars(options)[name] is not None}


def _write(plan: "Plan", options: argparse.Namespace, settings: "Settings") -> None:
    """Write the shards of this process that are missing, with a progress bar."""
    from tqdm import tqdm

    from audiosep_jax.preparing import shards

    index, count = options.shard
    mine = plan.shards[index::count]
    todo = [row for row in mine if shards.read_account(plan.folder, row) is None]
    _search_files(todo, options.root)
    total, left = (sum(row.num_recordings for row in rows) for rows in (mine, todo))
    with tqdm(
        total=total,
        initial=total - left,
        unit="recording",
        desc=options.source,
        mininterval=0.5 if sys.stderr.isatty() else 30,
        smoothing=0.05,
        disable=not todo,
    ) as bar:
        num_workers = options.workers or workers.available_cores()
        shards.write_shards(plan, todo, settings, num_workers, bar.update, options.cluster)


def _search_files(todo: Sequence["Shard"], root: Path | None) -> None:
    """Refuse a wrong folder at once, not after hours of recordings that are missing."""
    from audiosep_jax.preparing.plan import recordings_of
    from audiosep_jax.preparing.recordings import find

    searched, wanted = 0, ""
    for row in todo[:: max(1, len(todo) // 8)]:
        for recording, _ in zip(recordings_of(row), range(_SEARCHED // 8), strict=False):
            if recording.synthetic or find(recording):
                return
            searched, wanted = searched + 1, recording.places[0]
    if searched:
        raise InputError(
            f"{root}: none of {searched} recordings searched for exists, such as {wanted}"
            "; docs/data.md says where they belong"
        )


@contextlib.contextmanager
def _held(folder: Path, shard: tuple[int, int]) -> Iterator[None]:
    """Hold the folder of unfinished work; remove it if no shard of it is finished.

    An OSError of the block becomes an InputError, such as "No space left on device".
    """
    import filelock

    files.make_folder(folder)
    if remote.url_of(folder):
        remote.show(folder)
    lock = filelock.FileLock(folder / f".lock-{shard[0]}-of-{shard[1]}", timeout=0)
    try:
        lock.acquire()
    except filelock.Timeout as error:
        raise InputError(f"{folder}: another prepare is writing to it") from error
    except OSError as error:
        raise files.cannot_write(folder, error) from error
    try:
        yield
    except OSError as error:
        raise InputError(f"{error.filename or folder}: {error.strerror or error}") from error
    finally:
        lock.release()
        with contextlib.suppress(OSError):
            locks, finished = folder.glob(".lock*"), folder.glob(_ACCOUNTS)
            if not remote.url_of(folder) and len(list(locks)) < 2 and not any(finished):
                files.remove(folder)


def _is_finished(output: Path, folder: Path, fingerprint: str) -> bool:
    """Return True if the data set exists; raise InputError if something else does."""
    from audiosep_jax.data.prepared import INFO_FILE, METADATA_FILE

    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return False
    with contextlib.suppress(InputError):
        metadata = files.read_json_object(output / METADATA_FILE)
        if (output / INFO_FILE).is_file() and metadata.get("plan") == fingerprint:
            return True
    if remote.url_of(output) and not (output / INFO_FILE).exists() and any(folder.glob(_ACCOUNTS)):
        return False  # killed while it was copied
    raise InputError(
        f"{output}: exists, and was not made from these recordings with these settings; "
        "choose another --output or remove it"
    )


def _summary(report: dict[str, Any], options: argparse.Namespace) -> list[str]:
    lines = [
        f"{split}: {row['records']} records of {row['recordings']} recordings, "
        f"{row['seconds'] / 3600:.2f} h"
        for split, row in report["splits"].items()
    ]
    if report["num_skipped"]:
        where = options.output / "prepare_report.json"
        lines.append(f"skipped {report['num_skipped']} recordings; {where} says why")
    if options.exclude:
        excluded = sum(row["reason"].startswith(REASON) for row in report["skipped"])
        lines.append(f"excluded {excluded} recordings that --exclude names")
    return [*lines, f"wrote {options.output}"]


# ---------------------------------------------------------------------------------- arguments


def _parser() -> Parser:
    description = "Decode, check, resample and cut a data set into records for training."
    parser = Parser("audiosep prepare", description, EXAMPLE)
    add = parser.add_argument
    add("source", metavar="SOURCE", choices=list(DATASETS), help="kind of data set, see below")
    add("--output", type=place, required=True, metavar="DIR", help="data set to write")
    add("--root", type=place, metavar="PATH", help="the downloaded folder or file")
    add("--valid_root", type=place, metavar="PATH", help="held-out clips of manifest and folders")
    add("--valid_folds", type=_folds, metavar="N,N", help="of esc50 (default: 5)")
    clips = "of synthetic (default: 20000)"
    add("--num_clips", type=number(int, 1), metavar="N", help=clips)
    exclude = "CSV, text or JSON files that name recordings to leave out of training"
    add("--exclude", type=place, nargs="+", default=(), metavar="LIST", help=exclude)
    rate, rate_hz = "of records (default: 32000)", number(int, 1000, 192_000)
    add("--sample_rate", type=rate_hz, default=32000, metavar="HZ", help=rate)
    shorter, seconds = "skip shorter recordings (default: 1)", number(float, 0, 3600)
    add("--min_seconds", type=seconds, default=1.0, metavar="S", help=shorter)
    processes = "processes (default: one per core)"
    add("--workers", type=number(int, 0), default=0, metavar="N", help=processes)
    add("--shard", type=shard, default=(0, 1), metavar="I/N", help="do part I of 0 to N-1 only")
    add_cluster(parser)
    return parser


def _folds(text: str) -> tuple[int, ...]:
    folds = text.split(",")
    if not {*folds} < {"1", "2", "3", "4", "5"}:
        raise argparse.ArgumentTypeError(f"{text!r} must be some of the folds 1 to 5, such as 4,5")
    return tuple(map(int, folds))


def _check(options: argparse.Namespace) -> None:
    """Check all that can be checked before anything is loaded."""
    source, given, takes = options.source, _given(options), DATASETS[options.source].options
    for name in given:
        if name not in takes:
            raise InputError(f"--{name} cannot be used with {source}")
    if "root" in takes and options.root is None:
        raise InputError(f"--root is missing: the folder or file of {source}")
    roots = [("--root", options.root), ("--valid_root", options.valid_root)]
    roots = [(option, path) for option, path in roots if path is not None]
    for option, path in [*roots, *(("--exclude", name) for name in options.exclude)]:
        if not path.exists():
            raise InputError(f"{option}: {path}: no such file or folder")
        if option != "--exclude" and remote.url_of(path) and path.is_file():
            remote.show(path.parent)  # the recordings of a manifest
    output = options.output.resolve()
    utf_8 = str(output).encode(errors="replace").decode() == str(output)  # TFDS needs it
    if options.output.name in ("", "..") or os.path.isfile(output) or not utf_8:
        raise InputError(f"--output: {options.output} cannot be a folder")
    for option, path in roots:
        if source == "folders" and path.resolve() in output.parents:
            raise InputError(f"--output: {output} is in {option}: it would become a class of it")
