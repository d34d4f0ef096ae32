"""Mix the recordings of a manifest in pairs, to train as if they could not be taken apart.

    python benchmarks/mixed_recordings.py --manifest corpus/train_sounds.json --output corpus/mixed
    python benchmarks/study.py mixtures --corpus corpus --list small_lists/esc10.csv \
        --output runs/study

Each recording is the first of one pair and the second of another, and the two never share a
caption. The second has a level within 5 dB of the first. The shorter one begins at a random place
of the longer one. `OUTPUT/mixed.json` lists what sounds in each pair, and not where.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import soundfile

from audiosep_jax.audio import files as audio_files
from audiosep_jax.data.clips import Clips, manifest_clips
from audiosep_jax.data.mixing import energy, snr_ratio

RATE_HZ = 16000
LEVEL_DB = 5.0
PEAK = 0.9


def read(path: Path) -> np.ndarray:
    audio_S, rate_hz = audio_files.read_mono(path)
    return audio_files.resample(audio_S[None], rate_hz, RATE_HZ)[0]


def partners(clips: Clips, rng: np.random.Generator) -> list[int]:
    """Draw the second of each pair: a permutation in which no two of a pair share a caption."""
    captions = [set(clip.captions) for clip in clips]
    order = rng.permutation(len(clips)).tolist()
    while clashes := [i for i, other in enumerate(order) if captions[i] & captions[other]]:
        for i in clashes:
            k = int(rng.integers(len(order)))
            order[i], order[k] = order[k], order[i]
    return order


def mixed(first_S: np.ndarray, second_S: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Add the second at a random level and place; the result is as long as the longer one."""
    level_db = rng.uniform(-LEVEL_DB, LEVEL_DB)
    second_S = second_S * snr_ratio(energy(first_S), energy(second_S), level_db)
    long_S, short_S = sorted((first_S, second_S), key=len, reverse=True)
    begin = int(rng.integers(len(long_S) - len(short_S) + 1))
    mixture_S = np.array(long_S)
    mixture_S[begin : begin + len(short_S)] += short_S
    return mixture_S * (PEAK / np.abs(mixture_S).max())


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--manifest", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    clips, rng = manifest_clips(arguments.manifest), np.random.default_rng(0)
    arguments.output.mkdir(parents=True, exist_ok=True)
    rows = []
    for number, other in enumerate(partners(clips, rng)):
        pair = clips[number], clips[other]
        first_S, second_S = (read(clip.path) for clip in pair)
        name = f"{number:04}.flac"
        soundfile.write(arguments.output / name, mixed(first_S, second_S, rng), RATE_HZ)
        rows.append({"wav": name, "sources": [list(clip.captions) for clip in pair]})
    text = json.dumps({"data": rows}, indent=1)
    (arguments.output / "mixed.json").write_text(text, "utf-8")
    print(f"{arguments.output / 'mixed.json'}: {len(rows)} recordings of two sounds")


if __name__ == "__main__":
    main()
