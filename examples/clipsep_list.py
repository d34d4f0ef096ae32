"""Make a list of mixtures from two of CLIPSep's public lists, with the pairs of its evaluation.

    python examples/clipsep_list.py test-good.csv test-no-music.csv --output vggsound_clean.csv
    python examples/clipsep_list.py MUSIC/solo/test.csv test-good-no-music.csv \
        --output music_clean.csv
    audiosep evaluate --protocol mixtures --metadata vggsound_clean.csv --audio CLIPSep/clipsep \
        --output results/vggsound_clean

The recordings of the first list are the targets. CLIPSep's lists have no header; their columns are
a recording, a folder of frames, one a second, their number, and the label.
"""

import argparse
import csv
import random
from pathlib import Path

SECONDS = 5.0  # of a mixture, around the middle frame
COLUMNS = ["id", "target", "noise", "query", "image", "target_start", "noise_start", "seconds"]


def read(path: Path) -> list[list[str]]:
    """Rows of one of CLIPSep's lists."""
    with path.open(newline="") as file:
        return [row for row in csv.reader(file) if len(row) == 4]


def start_seconds(frames: int) -> float:
    """Start of the segment whose middle is that of the second which the middle frame shows."""
    return max(0.0, frames // 2 - 0.5 - SECONDS / 2)


def main() -> None:
    """Write the list."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("targets", type=Path)
    parser.add_argument("noises", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    noises = read(args.noises)
    with args.output.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for number, (target, folder, frames, label) in enumerate(read(args.targets)):
            # CLIPSep draws the interferer of each target with the target's number as the seed.
            noise, _, noise_frames, _ = noises[random.Random(number).randint(0, len(noises) - 1)]
            starts = start_seconds(int(frames)), start_seconds(int(noise_frames))
            picture = f"{folder}/{int(frames) // 2:06d}.jpg"
            query = label.replace("_", " ")
            writer.writerow([number, target, noise, query, picture, *starts, SECONDS])


if __name__ == "__main__":
    main()
