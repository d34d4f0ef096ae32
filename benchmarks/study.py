"""Compare variants of `configs/small.py` at a small scale: equal data, equal steps, several seeds.

    python benchmarks/study.py choices --corpus corpus --list small_lists/esc10.csv \
        --output runs/study

trains each row of the study with each seed, scores it on the first 120 mixtures of the list, and
prints the table. A row that is finished is not run again; `--rows` selects rows. The examples
`small_corpus.py` and `small_lists.py` make the corpus and the list. Intervals are 95 %, by
resampling mixtures; differences are to the first row, mixture by mixture, over all seeds.
"""

import argparse
import csv
import dataclasses
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from audiosep_jax.evaluation.results import bootstrap, interval_of
from audiosep_jax.model import kind_of

NUM_MIXTURES = 120
# The small model at a scale that one CPU core trains in five minutes: ten classes of sounds, two in
# a mixture, and a network of half a million parameters at 8 kHz.
SCALE = """
data.roots={corpus}/train_sounds.json data.valid_root={corpus}/valid.json
data.weights= data.alike= data.min_seconds=0.5 data.segment_seconds=1.5
batch_size=8 num_steps=1000 log_every_steps=50
mixing.max_mix_num=2 augment.absent_probability=0 loss.activity=0 model.activity=none
model.sample_rate_hz=8000 model.window_samples=512 model.hop_samples=256 model.stem_channels=8
model.encoder_channels=8,24,48,64 model.time_pools=2,2,2,2 model.frequency_pools=4,4,2,2
optim.warmup_steps=70 optim.decay_steps=1000 optim.ema_decay=0.99
valid.num_mixtures=8 valid.batch_size=8 valid.every_steps=1000 valid.num_examples=0
checkpoint.every_steps=500 checkpoint.keep_every_steps=0"""
PLAIN = {"plain ResUNet": ""}  # the first row of every study, which is trained once
STUDIES = {
    "choices": PLAIN
    | {
        "L1 of the waveform alone": "loss.multi_resolution_stft=0 loss.thresholded_snr=0 "
        "loss.waveform_l1=100",
        "no multi-resolution STFT": "loss.multi_resolution_stft=0",
        "up to three sounds": "mixing.max_mix_num=3",
        "absent queries": "augment.absent_probability=0.1 loss.activity=1 model.activity=gate",
        "no speed and no equaliser": "augment.speed_probability=0 augment.equalise_probability=0",
        "crops may be pauses": "mixing.num_crops=1",
        "no moving average": "optim.ema_decay=0",
    },
    # Networks of 133 to 140 MFLOP for a second of audio (`network_costs.py` counts them).
    "networks": PLAIN
    | {
        "ResUNet, dual-path bottleneck": "model.network=dual_path "
        "model.encoder_channels=8,24,48,48",
        "ResUNet, light decoder": "model.encoder_channels=8,32,72,112 "
        "model.decoder_channels=8,16,24,32",
        "band-split transformer": "model.network=bands model.features=40 model.num_blocks=5 "
        "model.heads=2 model.band_bins=16",
        "band-split transformer, causal": "model.network=bands model.features=32 "
        "model.num_blocks=4 model.heads=2 model.past_frames=20 model.future_frames=0 "
        "model.window_samples=128 model.hop_samples=64",
    },
    # Recordings of two sounds each, which `mixed_recordings.py` makes.
    "mixtures": PLAIN
    | {
        "each sound of mixtures": "data.roots={corpus}/mixed/mixed.json mixing.num_queries=2 "
        "loss.remix=0.3",
        "whole mixtures": "data.roots={corpus}/mixed/mixed.json",
    },
}


def run_row(arguments: argparse.Namespace, overrides: list[str], place: Path, seed: int) -> None:
    """Train and score one row with one seed, unless its results are there."""
    if (place / "results" / "results.csv").is_file():
        return
    values = fields_of(arguments.corpus, [*overrides, f"seed={seed}"])
    fields = [f"--config.{name}={value}" for name, value in values.items()]
    train = ["train.py", "--config", "configs/small.py", "--workdir", str(place / "run")]
    place.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    subprocess.run([sys.executable, *train, *fields], check=True)
    (place / "seconds.txt").write_text(f"{time.perf_counter() - start:.0f}\n", "utf-8")
    few = place / "list.csv"
    with arguments.list.open(newline="") as file:
        few.write_text("".join(file.readlines()[: NUM_MIXTURES + 1]), "utf-8")
    score = ["-m", "audiosep_jax", "evaluate", "--checkpoint", str(place / "run")]
    score += ["--protocol", "mixtures", "--metadata", str(few), "--audio"]
    score += [str(arguments.list.parent), "--output", str(place / "results"), "--no_figures"]
    subprocess.run([sys.executable, *score], check=True)


def fields_of(corpus: Path, overrides: list[str]) -> dict[str, str]:
    """Return the overrides of the config for a row; of the network those fields that it has."""
    words = " ".join([SCALE, *overrides]).format(corpus=corpus).split()
    values = dict(word.split("=", 1) for word in words)  # the last value of a field counts
    network = kind_of(values.get("model.network", "resunet"))
    known = {f"model.{field.name}" for field in dataclasses.fields(network.config)}
    return {x: y for x, y in values.items() if x in known or not x.startswith("model.")}


def scores_of(places: list[Path], column: str) -> np.ndarray:
    """Mean over the seeds of one score, by mixture."""
    return np.mean([[float(row[column]) for row in rows_of(place)] for place in places], axis=0)


def rows_of(place: Path) -> list[dict[str, str]]:
    """Scored mixtures in the order of the list."""
    with (place / "results" / "results.csv").open(newline="") as file:
        return sorted(csv.DictReader(file), key=lambda row: int(row["row"]))


def interval(scores_N: np.ndarray, clips: Sequence[str], form: str = ".2f") -> str:
    """Format the mean and its 95 % interval; mixtures of the same clips are drawn together."""
    weights_DN = bootstrap(clips, [np.arange(len(clips))])
    low, high = interval_of(weights_DN @ scores_N / weights_DN.sum(axis=1))
    return f"{scores_N.mean():{form}} ({low:{form}} to {high:{form}})"


def print_table(done: dict[str, list[Path]]) -> None:
    """Print the scores of each row and its differences to the first row."""
    first = next(iter(done.values()))
    clips = [row["clip"] for row in rows_of(first[0])]
    print("| | SI-SDRi | difference | SDRi | wrong query | training |\n|---|---|---|---|---|---|")
    for name, places in done.items():
        si_sdri_N, first_N = (scores_of(x, "si_sdri") for x in (places, first))
        cells = [interval(si_sdri_N, clips)]
        cells += [interval(si_sdri_N - first_N, clips) if places is not first else ""]
        cells += [f"{scores_of(places, x).mean():.2f}" for x in ("sdri", "sdri_wrong_query")]
        seconds = np.mean([float((x / "seconds.txt").read_text("utf-8")) for x in places])
        print(f"| {name} | {' | '.join(cells)} | {seconds:.0f} s |")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("study", choices=STUDIES)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--list", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--rows", nargs="+", help="names of rows (default: all)")
    arguments = parser.parse_args()
    done: dict[str, list[Path]] = {}
    for name, overrides in STUDIES[arguments.study].items():
        if arguments.rows and name not in arguments.rows:
            continue
        for seed in arguments.seeds:
            place = arguments.output / f"{name.replace(' ', '_')}-{seed}"
            run_row(arguments, overrides.split(), place, seed)
            done.setdefault(name, []).append(place)
        print_table(done)


if __name__ == "__main__":
    main()
