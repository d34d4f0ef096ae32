"""Prepares a data set for training; `--help` shows an example."""

import argparse
import contextlib
import fcntl
import json
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from audiosep_jax.cli import Parser, shard
from audiosep_jax.errors import InputError

if TYPE_CHECKING:  # imported where they are used: help and mistakes answer at once
    from audiosep_jax.preparing.plan import Plan
    from audiosep_jax.preparing.task_pool import Spent
    from audiosep_jax.preparing.writer import Part, Settings

SOURCES = {
    "manifest": '--root FILE.json: {"data": [{"wav": ..., "caption": ...}]}; --valid_root too',
    "folders": "--root DIR: a folder for each class; --valid_root too",
    "synthetic": "made by arithmetic; --num_clips",
    "esc50": "--root DIR: ESC-50; --valid_folds",
    "audioset": "--root DIR: AudioSet",
    "vggsound": "--root DIR: VGGSound",
    "audiocaps": "--root DIR: AudioCaps",
    "clotho": "--root DIR: Clotho v2",
    "wavcaps": "--root DIR: WavCaps",
    "fsd50k": "--root DIR: FSD50K",
    "music": "--root DIR: MUSIC",
    "voicebank_demand": "--root DIR: Voicebank-DEMAND",
}
EXAMPLE = f"""examples:
  python -m audiosep_jax.prepare clotho --root downloads/clotho --output data/clotho
writes a data set to train with:
  python train.py --config.data.source=prepared --config.data.root=data/clotho

  python -m audiosep_jax.prepare audioset --root /download --output /data/audioset --shard 0/4
does a quarter of the work, into /data/audioset.parts, and with 1/4, 2/4 and 3/4 on other machines
the rest. The same command without --shard does what is left and puts the data set together; with
--merge DIR.parts ... it takes in parts from other disks. A run that was killed goes on when the
same command is given again.

SOURCE is one of
  {(chr(10) + "  ").join(f"{name:17} {text}" for name, text in SOURCES.items())}
docs/data.md says what to download for each and where to put it."""
_LOOKED_FOR = 100  # recordings whose files are looked for before the work begins


def main(argv: Sequence[str]) -> int:
    """Exit code: 0, 2 with one line on stderr, or 130 after Ctrl-C."""
    try:
        options = _parser().parse_args(argv)
        _check(options)
        lines = prepare(options)
    except InputError as error:
        print("error:", *str(error).split(), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command goes on where it was", file=sys.stderr)
        return 130
    print(*lines, sep="\n")
    return 0


def prepare(options: argparse.Namespace) -> list[str]:
    """Does what is asked; lines that say what was written, and where."""
    from audiosep_jax.preparing import plan as plan_lib
    from audiosep_jax.preparing.writer import Settings

    output: Path = options.output
    folder = output.with_name(output.name + ".parts")
    settings = Settings(options.source, options.sample_rate, options.min_seconds)
    with _at_work(folder, options.shard):
        plan = plan_lib.make_plan(_items(options), folder, settings)
        if _is_finished(output, plan.fingerprint):
            shutil.rmtree(folder, ignore_errors=True)
            return [f"{output} is finished already"]
        if not plan.sizes:
            shutil.rmtree(folder, ignore_errors=True)
            raise InputError(f"{options.source}: no recording to prepare{_first(plan.skipped)}")
        for other in options.merge or ():
            _take_in(other, folder, plan)
        mine = range(len(plan.sizes))[slice(options.shard[0], None, options.shard[1])]
        parts, spent = _do(plan, mine, settings, options)
        if options.shard[1] > 1:
            return _shard_lines(folder, plan, spent)
        report = _assemble(folder, parts, plan, settings, output)
    return [*_cost(spent), *_summary(report, output)]


def _items(options: argparse.Namespace) -> Iterator[Any]:
    """Recordings of the source, and rows that describe none."""
    from audiosep_jax.preparing import datasets

    return datasets.recordings(
        options.source,
        options.root,
        valid_root=options.valid_root,
        valid_folds=options.valid_folds,
        num_clips=options.num_clips,
    )


def _do(
    plan: "Plan", mine: Sequence[int], settings: "Settings", options: argparse.Namespace
) -> tuple[list["Part"], "Spent"]:
    """All parts that are finished after the tasks `mine` are, and what those cost."""
    from tqdm import tqdm

    from audiosep_jax.preparing.task_pool import num_cores, run_tasks

    folder = plan.path.parent
    todo = [task for task in mine if _finished_part(folder, task) is None]
    if options.merge is not None and todo:
        raise InputError(
            f"{folder}: {len(todo)} of {len(plan.sizes)} tasks are not done, the first is "
            f"{todo[0]}; without --merge this command does them"
        )
    _look_for_files(plan, todo, options.root)
    num_done = sum(plan.sizes[task] for task in mine) - sum(plan.sizes[task] for task in todo)
    with tqdm(
        total=sum(plan.sizes[task] for task in mine),
        initial=num_done,
        unit="recording",
        desc=options.source,
        mininterval=0.5 if sys.stderr.isatty() else 30,
        smoothing=0.05,
        disable=not todo,
    ) as bar:
        spent = run_tasks(plan, todo, settings, options.workers or num_cores(), bar.update)
    parts = [_finished_part(folder, task) for task in range(len(plan.sizes))]
    return [part for part in parts if part is not None], spent


def _finished_part(folder: Path, task: int) -> "Part | None":
    """What a task wrote, None where not all of it is there."""
    from audiosep_jax.preparing.writer import read_part

    part = read_part(folder, task)
    if part is None:
        return None
    for name, _, num_bytes, _ in part.shards:
        path = folder / name
        if not path.is_file() or path.stat().st_size != num_bytes:
            return None
    return part


def _look_for_files(plan: "Plan", todo: Sequence[int], root: Path | None) -> None:
    """A wrong folder is told at once, not after hours as one skipped file after another."""
    from audiosep_jax.preparing.plan import tasks_of
    from audiosep_jax.preparing.recordings import find

    looked = 0
    for task in todo[:: max(1, len(todo) // 8)]:
        for recording in tasks_of(plan.path, plan.begins[task])[: _LOOKED_FOR // 8]:
            if recording.synthetic or find(recording):
                return
            looked, wanted = looked + 1, recording.places[0]
    if looked:
        raise InputError(
            f"{root}: none of {looked} recordings looked for is there, such as {wanted}"
            "; docs/data.md says where they belong"
        )


def _take_in(other: Path, folder: Path, plan: "Plan") -> None:
    """Links or copies the finished tasks of another folder of parts that are not here."""
    from audiosep_jax.preparing.plan import plan_fingerprint
    from audiosep_jax.preparing.writer import link, part_files

    if plan_fingerprint(other) != plan.fingerprint:
        raise InputError(f"{other}: holds no parts of this data set with these settings")
    for task in range(len(plan.sizes)):
        part = _finished_part(other, task)
        if part is None or _finished_part(folder, task) is not None:
            continue
        for path in part_files(other, task, part):
            partial = folder / f".{path.name}.{os.getpid()}.partial"
            link(path, partial)
            os.replace(partial, folder / path.name)


def _assemble(
    folder: Path, parts: list["Part"], plan: "Plan", settings: "Settings", output: Path
) -> dict[str, Any]:
    """Makes the data set out of all parts; its report."""
    from audiosep_jax.preparing.writer import assemble

    if not any(part.shards for part in parts):
        reasons = [why for part in parts for _, why in part.skipped]
        shutil.rmtree(folder, ignore_errors=True)  # or mended files would be taken for skipped
        raise InputError(f"{output}: nothing to write, all was skipped; first reason: {reasons[0]}")
    report = assemble(folder, parts, plan.skipped, settings, output, plan.fingerprint)
    shutil.rmtree(folder, ignore_errors=True)
    return report


# ---------------------------------------------------------------------------- what is there


@contextlib.contextmanager
def _at_work(folder: Path, shard: tuple[int, int]) -> Iterator[None]:
    """Holds the folder of parts; a lock of the system ends with the process, however it ends."""
    lock = folder / f".lock-{shard[0]}-of-{shard[1]}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = lock.open("w")
    except OSError as error:
        raise InputError(f"{folder}: cannot be written ({error.strerror})") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(f"{folder}: another prepare is at work in it") from error
        except OSError:  # a disk that knows no locks
            pass
        try:
            yield
        finally:
            _leave(folder, lock)


def _leave(folder: Path, lock: Path) -> None:
    """Removes the folder where it holds nothing of worth: no finished task, no other's lock."""
    if folder.is_dir():
        others = {path.name for path in folder.iterdir()} - {lock.name}
        if not any(name.startswith(".lock") or name[:6].isdecimal() for name in others):
            shutil.rmtree(folder, ignore_errors=True)


def _is_finished(output: Path, plan_fingerprint: str) -> bool:
    """Whether this data set is there; InputError where something else is."""
    from audiosep_jax.data.prepared import INFO_FILE, METADATA_FILE

    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return False
    with contextlib.suppress(OSError, ValueError, AttributeError):
        metadata = json.loads((output / METADATA_FILE).read_text(encoding="utf-8"))
        if (output / INFO_FILE).is_file() and metadata.get("plan") == plan_fingerprint:
            return True
    raise InputError(
        f"{output}: is there already, and not made from these recordings with these settings; "
        "choose another --output or remove it"
    )


# ------------------------------------------------------------------------------- what is said


def _shard_lines(folder: Path, plan: "Plan", spent: "Spent") -> list[str]:
    left = [task for task in range(len(plan.sizes)) if _finished_part(folder, task) is None]
    rest = f"{len(left)} of {len(plan.sizes)} tasks are left to other machines" if left else "done"
    return [*_cost(spent), f"wrote into {folder}; {rest}; without --shard it is put together"]


def _cost(spent: "Spent") -> list[str]:
    if not spent.num_recordings:
        return []
    each = 1000 * spent.core_seconds / spent.num_recordings
    return [
        f"{spent.num_recordings} recordings, {each:.2f} ms each on a core, "
        f"at most {spent.peak_megabytes} MB in a process"
    ]


def _summary(report: dict[str, Any], output: Path) -> list[str]:
    lines = [
        f"{split}: {row['records']} records of {row['recordings']} recordings, "
        f"{row['seconds'] / 3600:.2f} h"
        for split, row in report["splits"].items()
    ]
    if report["num_skipped"]:
        where = output / "prepare_report.json"
        lines.append(f"skipped {report['num_skipped']} recordings, {where} says why")
    return [*lines, f"wrote {output}"]


def _first(skipped: Sequence[Any]) -> str:
    return f"; the first was left out: {skipped[0].id} ({skipped[0].reason})" if skipped else ""


# ---------------------------------------------------------------------------------- arguments


def _parser() -> Parser:
    description = "Decode, check, resample and cut a data set into records to train with."
    parser = Parser("python -m audiosep_jax.prepare", description, EXAMPLE)
    add = parser.add_argument
    add("source", metavar="SOURCE", choices=list(SOURCES), help="kind of data set, see below")
    add("--output", type=Path, required=True, metavar="DIR", help="data set to write")
    add("--root", type=Path, metavar="PATH", help="where the download lies")
    add("--valid_root", type=Path, metavar="PATH", help="of manifest and folders: held-out clips")
    add("--valid_folds", type=_folds, default=(5,), metavar="N,N", help="of esc50 (default: 5)")
    add("--num_clips", type=int, default=20000, metavar="N", help="of synthetic (default: 20000)")
    add("--sample_rate", type=int, default=32000, metavar="HZ", help="of records (default: 32000)")
    add("--min_seconds", type=float, default=1.0, metavar="S", help="shorter is skipped (1)")
    add("--workers", type=int, default=0, metavar="N", help="processes (default: one a core)")
    add("--shard", type=shard, default=(0, 1), metavar="I/N", help="do part I of 0 to N-1 only")
    add("--merge", type=Path, nargs="*", metavar="DIR.parts", help="decode nothing, join parts")
    return parser


def _folds(text: str) -> tuple[int, ...]:
    return tuple(int(fold) for fold in text.split(","))


def _check(options: argparse.Namespace) -> None:
    """What can be said before anything is loaded."""
    if options.source == "synthetic":
        if options.root:
            raise InputError("--root: synthetic clips lie nowhere")
    elif options.root is None:
        raise InputError(f"--root is missing: where {options.source} lies")
    if options.valid_root and options.source not in ("manifest", "folders"):
        raise InputError(f"--valid_root: {options.source} has splits of its own")
    for name in ("root", "valid_root"):
        place = vars(options)[name]
        if place is not None and not place.exists():
            raise InputError(f"--{name}: {place}: no such file or folder")
    if not 1000 <= options.sample_rate <= 192_000:
        raise InputError(f"--sample_rate must lie in 1000 to 192000, not {options.sample_rate}")
    if not 0 <= options.min_seconds <= 3600:
        raise InputError(f"--min_seconds must lie in 0 to 3600, not {options.min_seconds:g}")
    if options.workers < 0 or options.num_clips < 1:
        raise InputError("--workers must be 0 or more, --num_clips 1 or more")
    if options.merge is not None and options.shard[1] > 1:
        raise InputError("--merge joins all shards: leave --shard out")
    if not options.output.name or options.output.is_file():
        raise InputError(f"--output: {options.output} cannot be a folder")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
