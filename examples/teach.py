"""Teach a separator a new sound from ten recordings, in ten minutes on two cores.

    python examples/teach.py --checkpoint small --new new --new_test new_test \
        --others others --others_test others_test --workdir runs/teach

Trains an adapter with `configs/teach.py`, and prints the gain on held-out clips of the new sound
and the change for the other sounds in dB, with 95 % intervals from the same mixtures. Each place is
a folder with a folder of clips for each class, whose name is the query, or a manifest.
"""

import argparse
import csv
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from audiosep_jax.cli import exit_code
from audiosep_jax.evaluation import command, compare
from audiosep_jax.evaluation.mixtures import clips_of
from audiosep_jax.training import adapters
from audiosep_jax.training.config import from_file, take_overrides
from train import train

CONFIG = Path(__file__).resolve().parents[1] / "configs" / "teach.py"


def main(argv: list[str] | None = None) -> dict[str, dict[str, Any]]:
    """Train, evaluate before and after; return the differences by list and score."""
    overrides, words = take_overrides(sys.argv[1:] if argv is None else argv)
    options = _parser().parse_args(words)
    workdir, places = options.workdir, (options.new, options.others, options.others_test)
    workdir.mkdir(parents=True, exist_ok=True)
    *kinds, kind = ("manifest" if place.is_file() else "folders" for place in places)
    overrides |= {
        "init_from": options.checkpoint,
        "data.roots": f"{options.new},{options.others}",
        "data.sources": ",".join(kinds),
        "data.weights": "1,1",
        "data.valid_root": str(options.others_test),
        "data.source": kind,
    }
    if not train(from_file(str(CONFIG), overrides), workdir):
        raise SystemExit(f"stopped and saved in {workdir}; the same command resumes")

    differences = {}
    others = clips_of(options.others_test, [])
    for name, targets in (("new", clips_of(options.new_test, [])), ("others", others)):
        listed = workdir / f"{name}.csv"
        write_pairs(listed, targets, others, options.num_pairs)
        folders = [workdir / "results" / f"{name}-{when}" for when in ("before", "after")]
        for folder, adapter in zip(folders, ("", workdir / adapters.FILE), strict=True):
            words = ["--checkpoint", options.checkpoint, "--protocol", "mixtures"]
            words += ["--metadata", listed, "--audio", ".", "--output", folder, "--no_figures"]
            words += ["--adapter", adapter] if adapter else []
            if command.main([*map(str, words), "--overwrite"]):
                raise SystemExit(f"{folder}: could not be evaluated")
        content = compare.compare([compare.read_evaluation(folder) for folder in folders])
        differences[name] = {x: content["scores"][x][folders[1].name] for x in ("si_sdri", "sdri")}
    for name, scores in differences.items():
        for score, found in scores.items():
            low, high = (format(found[x] or 0, "+.2f") for x in ("low", "high"))
            change = f"{found['difference']:+.2f} dB ({low} to {high})"
            print(f"{name}: {score} changes by {change} to {found['mean']:.2f} dB")
    return differences


def write_pairs(path: Path, targets, noises, num_pairs: int) -> None:
    """Write a list of mixtures at 0 dB: the targets in turn, each with a noise of another class."""
    rng = np.random.default_rng(0)
    with path.open("w", newline="") as file:
        out = csv.writer(file)
        out.writerow(("query", "target", "noise", "noise_query", "snr"))
        for number in range(num_pairs):
            target = targets[number % len(targets)]
            while set((noise := noises[int(rng.integers(len(noises)))]).captions) & {
                *target.captions
            }:
                pass
            files = (os.path.relpath(clip.path) for clip in (target, noise))
            out.writerow((target.captions[0], *files, noise.captions[0], 0))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--checkpoint", default="small", help="weights to teach, as separate.py takes them")
    add("--new", type=Path, required=True, help="ten clips of the new sound")
    add("--new_test", type=Path, required=True, help="held-out clips of it")
    add("--others", type=Path, required=True, help="clips of other sounds, to mix with")
    add("--others_test", type=Path, required=True, help="held-out clips of these sounds")
    add("--workdir", type=Path, default=Path("runs/teach"))
    add("--num_pairs", type=int, default=100, help="mixtures of each list")
    return parser


if __name__ == "__main__":
    sys.exit(exit_code(lambda: main() and None))
