"""Mixtures a second from the input pipeline, by source, threads and worker processes.

    python benchmarks/pipeline.py
    python benchmarks/pipeline.py --sources prepared wav --threads 8 16 --workers 0 2 --batch 96
    python benchmarks/pipeline.py --prepared data/audiocaps --augment
    python benchmarks/pipeline.py --sources ogg --rate_hz 16000 --cache_megabytes 512 --augment

Without --prepared, 5 s clips of noise are written to a temporary folder as WAV, FLAC or Ogg Vorbis,
or prepared there. A row is the best of --repeats runs, each of --seconds after the first batches.
"""

import argparse
import dataclasses
import functools
import itertools
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import soundfile

from audiosep_jax.data.augment import AugmentConfig
from audiosep_jax.data.mixing import MixingConfig
from audiosep_jax.data.pipeline import threads_and_workers, train_batches
from audiosep_jax.data.source import Source
from audiosep_jax.data.sources import DataConfig, build_source
from audiosep_jax.workers import available_cores

NUM_CLASSES = 10
WARM_UP_BATCHES = 3
SOURCES = ("prepared", "wav", "flac", "ogg", "synthetic")
AUGMENTATIONS = {
    "gain": AugmentConfig(gain_probability=1.0),
    "polarity": AugmentConfig(polarity_probability=1.0),
    "band limits": AugmentConfig(band_limit_probability=1.0),
    "speed": AugmentConfig(speed_probability=1.0),
    "equaliser": AugmentConfig(equalise_probability=1.0),
    "reverberation": AugmentConfig(reverb_probability=1.0),
    "silent interferer": AugmentConfig(silence_probability=1.0),
    "absent target": AugmentConfig(absent_probability=1.0),
    "a little of each": AugmentConfig(
        gain_probability=0.5,
        polarity_probability=0.5,
        band_limit_probability=0.1,
        speed_probability=0.5,
        equalise_probability=0.5,
        reverb_probability=0.1,
        silence_probability=0.05,
        absent_probability=0.2,
    ),
}


def write_noise(root: Path, suffix: str, options: argparse.Namespace) -> None:
    """Write class folders of int16 noise, which hardly compresses: the worst case."""
    rng = np.random.default_rng(0)
    num_samples = round(options.clip_seconds * options.rate_hz)
    for number in range(options.clips):
        folder = root / f"class_{number % NUM_CLASSES}"
        folder.mkdir(parents=True, exist_ok=True)
        audio_S = rng.integers(-8000, 8000, num_samples, np.int16)
        subtype = "VORBIS" if suffix == "ogg" else "PCM_16"
        path = folder / f"{number:05d}.{suffix}"
        soundfile.write(path, audio_S, options.rate_hz, subtype=subtype)


def data_config(name: str, folder: Path, options: argparse.Namespace) -> DataConfig:
    """Return the config of a source, whose files are written if they do not exist."""
    config = DataConfig(
        segment_seconds=options.segment_seconds, cache_megabytes=options.cache_megabytes
    )
    if name == "synthetic":
        return dataclasses.replace(config, source="synthetic", num_synthetic_clips=options.clips)
    if name == "prepared" and options.prepared:
        return dataclasses.replace(config, source="prepared", root=options.prepared)
    suffix = "wav" if name == "prepared" else name
    if not (folder / suffix).exists():
        write_noise(folder / suffix, suffix, options)
    if name != "prepared":
        return dataclasses.replace(config, source="folders", root=str(folder / suffix))
    prepared = folder / "prepared"
    command = f"-m audiosep_jax prepare folders --root {folder / suffix} --output {prepared}"
    command += f" --sample_rate {options.rate_hz}"
    subprocess.run([sys.executable, *command.split()], check=True, stdout=subprocess.DEVNULL)
    return dataclasses.replace(config, source="prepared", root=str(prepared))


def clips_per_second(
    source: Source, data: DataConfig, options: argparse.Namespace, augment: AugmentConfig
) -> float:
    """Measure the mixtures a second; return the best of the repeats."""
    captions = set(source.captions.texts)
    conditions = dict.fromkeys(captions, np.zeros(512, np.float32))
    mixing = MixingConfig(max_mix_num=options.max_mix_num, num_crops=options.num_crops)
    best = 0.0
    for repeat in range(options.repeats):
        stream = train_batches(
            *(source, conditions, mixing, data, augment),
            **{"seed": repeat, "batch_size": options.batch, "first_step": 0},
        )
        seen = 2 * options.clips // options.batch if data.cache_megabytes else 0
        for _ in itertools.islice(stream, max(seen, WARM_UP_BATCHES)):
            pass
        start, num_batches = time.perf_counter(), 0
        while time.perf_counter() - start < options.seconds:
            next(stream)
            num_batches += 1
        best = max(best, num_batches * options.batch / (time.perf_counter() - start))
        stream.close()
    return best


def settings(options: argparse.Namespace) -> Iterator[tuple[int, int]]:
    """Yield the threads and workers to try; no threads only without workers."""
    for workers, threads in itertools.product(options.workers, options.threads):
        if threads or not workers:
            yield threads, workers


def run(options: argparse.Namespace, folder: Path) -> None:
    """Print the table."""
    cores = available_cores()
    print(
        f"{cores} cores, batches of {options.batch}, "
        f"mixtures of up to {options.max_mix_num} clips, "
        f"{options.segment_seconds:g} s at {options.rate_hz} Hz\n"
    )
    print("| source | threads | workers | mixtures/s |\n|---|---|---|---|")
    for name in options.sources:
        config = data_config(name, folder, options)
        source = build_source(config, "train", options.rate_hz)
        measure = functools.partial(clips_per_second, source)
        for threads, workers in settings(options):
            data = dataclasses.replace(config, num_threads=threads, num_workers=workers)
            rate = measure(data, options, AugmentConfig())
            print(f"| {name} | {threads} | {workers} | {rate:.0f} |", flush=True)
        auto = threads_and_workers(config, cores)
        print(f"| {name} | auto: {auto[0]} | auto: {auto[1]} | see there |", flush=True)
        if options.augment:
            for what, augment in AUGMENTATIONS.items():
                rate = measure(config, options, augment)
                print(f"| {name}, always {what} | {auto[0]} | {auto[1]} | {rate:.0f} |", flush=True)


def main(argv: Sequence[str]) -> None:
    """Run the command line `argv`."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sources", nargs="+", choices=SOURCES, default=SOURCES)
    parser.add_argument("--prepared", default="", help="a prepared data set with a split train")
    parser.add_argument("--threads", nargs="+", type=int, default=(0, 1, 2))
    parser.add_argument("--workers", nargs="+", type=int, default=(0, 1, 2))
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--max_mix_num", type=int, default=2)
    parser.add_argument("--clips", type=int, default=400)
    parser.add_argument("--clip_seconds", type=float, default=5.0)
    parser.add_argument("--segment_seconds", type=float, default=5.0)
    parser.add_argument("--rate_hz", type=int, default=32000)
    parser.add_argument("--num_crops", type=int, default=1)
    parser.add_argument("--cache_megabytes", type=int, default=0, help="of decoded clips")
    parser.add_argument("--seconds", type=float, default=2.0, help="measured in each run")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--augment", action="store_true", help="each augmentation by itself too")
    options = parser.parse_args(argv)
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    with tempfile.TemporaryDirectory() as folder:
        run(options, Path(folder))


if __name__ == "__main__":
    main(sys.argv[1:])
