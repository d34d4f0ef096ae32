"""The start of training on millions of clips: seconds and memory until the first batch.

    python benchmarks/pipeline_scale.py
    python benchmarks/pipeline_scale.py --rows 1000000 2000000 --captions 300000 --workers 0 2

Writes a manifest and a prepared data set with that number of rows, all of the same short clip. A
new process reads each of them, with the condition of every caption. Memory is the resident set, so
memory that processes share counts in each of them.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import cast

import numpy as np
import psutil
import soundfile

RATE_HZ = 32000
SECONDS = 1.0
FEATURES = 512
FILES = 1000  # in a folder, and records in a shard
BATCH = 96


def rows(count: int, captions: int) -> Iterator[tuple[str, str]]:
    """Yield the path and the caption of each row."""
    for number in range(count):
        caption = f"the sound of thing number {number % captions} in a room with some reverberation"
        yield f"{number // FILES:05d}/{number % FILES:04d}.wav", caption


def write_manifest(folder: Path, count: int, captions: int) -> Path:
    """Write a manifest of `count` paths, all of which are links to one file."""
    audio_S = 0.1 * np.random.default_rng(0).standard_normal(round(SECONDS * RATE_HZ))
    first = folder / "00000"
    first.mkdir(parents=True)
    soundfile.write(folder / "clip.wav", audio_S, RATE_HZ)
    for number in range(FILES):
        (first / f"{number:04d}.wav").symlink_to(folder / "clip.wav")
    for number in range(1, -(-count // FILES)):
        (folder / f"{number:05d}").symlink_to(first)
    path = folder / "manifest.json"
    with path.open("w") as file:
        lines = (json.dumps({"wav": wav, "caption": text}) for wav, text in rows(count, captions))
        file.write('{"data": [\n' + next(lines))
        file.writelines(f",\n{line}" for line in lines)
        file.write("\n]}\n")
    return path


def write_prepared(folder: Path, count: int, captions: int) -> Path:
    """Write a prepared data set of `count` records; its shards are links to a few of them."""
    small = folder / "small"
    write_manifest(small, FILES, FILES)
    output = folder / "prepared"
    command = f"-m audiosep_jax prepare manifest --root {small / 'manifest.json'} --output {output}"
    subprocess.run(
        [sys.executable, *command.split(), "--sample_rate", str(RATE_HZ), "--workers", "1"],
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    info = json.loads((output / "dataset_info.json").read_text())
    (split,) = info["splits"]
    name = f"{info['name']}-{split['name']}"
    shards = sorted(output.glob(f"{name}.array_record-*"))
    content = [path.read_bytes() for path in shards]
    lengths = [int(length) for length in split["shardLengths"]]
    repeats, num_bytes = -(-count // FILES), 0
    for path in shards:
        path.unlink()
    total = repeats * len(shards)
    for number in range(total):
        path = output / f"{name}.array_record-{number:05d}-of-{total:05d}"
        if number < len(shards):
            path.write_bytes(content[number])
        else:
            first = number % len(shards)
            path.hardlink_to(output / f"{name}.array_record-{first:05d}-of-{total:05d}")
        num_bytes += path.stat().st_size
    split |= {"shardLengths": [str(x) for x in lengths * repeats], "numBytes": str(num_bytes)}
    (output / "dataset_info.json").write_text(json.dumps(info))
    with (output / f"{name}.records.jsonl").open("w") as file:
        for wav, caption in rows(repeats * FILES, captions):
            file.write(json.dumps({"id": wav, "start_seconds": 0.0, "captions": [caption]}) + "\n")
    return output


def measure(kind: str, root: str, num_workers: int) -> None:
    """Print a row of the table: start a stream as train.py does, in this process."""
    start, process = time.perf_counter(), psutil.Process()
    marks = []

    def mark(name: str) -> None:
        seconds, cpu = time.perf_counter() - start, time.process_time()
        marks.append(
            (f"{seconds:.1f} s", f"{cpu:.1f} s", f"{process.memory_info().rss >> 20} MB", name)
        )

    import audiosep_jax.training.steps  # noqa: F401
    from audiosep_jax.data.batches import ClipSampler
    from audiosep_jax.data.mixing import MixingConfig
    from audiosep_jax.data.pipeline import train_batches
    from audiosep_jax.data.sources import DataConfig, Kind, build_source
    from audiosep_jax.training.conditions import ConditionTable, distinct_captions

    mark("after imports")
    data = DataConfig(cast(Kind, kind), root, num_workers=num_workers, segment_seconds=SECONDS)
    source = build_source(data, "train", RATE_HZ)
    mark("after the list of clips")
    sampler = ClipSampler(source)
    _ = source.fingerprint
    captions = distinct_captions(sampler.captions)
    mark("after checks and fingerprint")
    conditions, row_E = ConditionTable(captions, FEATURES), np.ones(FEATURES, np.float32)
    for caption in captions:
        conditions[caption] = row_E
    conditions.share()
    del captions, caption
    mark("after conditions")
    batches = train_batches(
        sampler, conditions, MixingConfig(), data, seed=0, batch_size=BATCH, first_step=0
    )
    next(batches)
    mark("at the first batch")
    for _ in range(4 * max(1, num_workers)):
        next(batches)
    workers = [
        f"{child.memory_info().rss >> 20} MB"
        for child in process.children()
        if "resource_tracker" not in " ".join(child.cmdline())
    ]
    cells = [*marks[-1][:3], ", ".join(workers) or "-", "; ".join(map(" ".join, marks[:-1]))]
    print(" | ".join(cells), "|", flush=True)
    batches.close()


def main(argv: Sequence[str]) -> None:
    """Run the command line `argv`."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kinds", nargs="+", default=("manifest", "prepared"))
    parser.add_argument("--rows", nargs="+", type=int, default=(1_000, 1_000_000, 2_000_000))
    parser.add_argument("--captions", type=int, default=300_000)
    parser.add_argument("--workers", nargs="+", type=int, default=(0, 2))
    parser.add_argument("--measure", nargs=2, metavar=("KIND", "ROOT"), help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    if options.measure:
        measure(options.measure[0], options.measure[1], options.workers[0])
        return
    print("| source | rows | workers | first batch | CPU | memory | of each worker | before |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    for kind in options.kinds:
        for count in options.rows:
            with tempfile.TemporaryDirectory() as folder:
                write = write_manifest if kind == "manifest" else write_prepared
                root = write(Path(folder) / "data", count, options.captions)
                for num_workers in options.workers:
                    print(f"| {kind} | {count:,} | {num_workers} | ", end="", flush=True)
                    command = [sys.executable, __file__, "--workers", str(num_workers)]
                    subprocess.run([*command, "--measure", kind, str(root)], check=True)


if __name__ == "__main__":
    main(sys.argv[1:])
