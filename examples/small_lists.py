"""Write the lists of mixtures that the small model is evaluated with, and the sounds they name.

    python examples/small_lists.py --data data --output small_lists
    audiosep evaluate --checkpoint small --protocol mixtures --metadata small_lists/esc10.csv \
        --audio small_lists --output results/esc10
"""

import argparse
import csv
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from small_corpus import (
    HELD_OUT_VOICES,
    NUM_VALID_PROMPTS,
    RATE_HZ,
    generator,
    levelled,
    prompts,
    read,
    table,
    trim,
    wordings,
    write_csv,
)

from audiosep_jax.data.clips import Clip
from audiosep_jax.evaluation.mixtures import clips_of, make_pairs

SECONDS = 5
SPEECH_ROWS = 40  # of each voice
INSTRUMENT_ROWS = 12  # of each instrument
# Classes of the recordings that have another name.
CLASS_OF = {
    "bongo": "bongos",
    "flute traversiere": "flute",
    "guitar": "acoustic guitar",
    "horn": "french horn",
}


def esc10_list(esc10: Path, clips: list[Clip], output: Path) -> None:
    """500 pairs at 0 dB, with a column for each kind of wording.

    A class has one wording in each column, so that a wrong query never describes the target.
    """
    make_pairs(clips, esc10, output / "esc10.csv", num_pairs=500, snrs_db=[0.0], seed=1)
    with (output / "esc10.csv").open(newline="") as file:
        rows: list[dict[str, Any]] = list(csv.DictReader(file))
    for row in rows:
        seen, unseen, synonyms = wordings()[row["class"]]
        row |= {"phrase": seen[1], "sentence": seen[-1]}
        row |= {"unseen_1": unseen[0], "unseen_2": unseen[1]}
        row |= {"synonym_1": synonyms[0], "synonym_2": synonyms[1]}
    write_csv(output / "esc10.csv", rows)


def speech_list(data: Path, clips: list[Clip], output: Path) -> None:
    """Voices that are not trained on, 5 s each, in sounds of fold 4 at 0 dB; not in crying."""
    speech = data / "real" / "speech"
    voices = {x: prompts(speech / f"asterisk-{x}")[:-NUM_VALID_PROMPTS] for x in HELD_OUT_VOICES}
    voices |= {p.stem: [p] for p in sorted((data / "recordings").glob("speech_*"))}
    noises = [clip for clip in clips if clip.captions[0] != "crying baby"]
    rows = []
    for voice, paths in voices.items():
        audio_S = np.concatenate([levelled(trim(read(path))) for path in paths])
        for number in range(SPEECH_ROWS):
            begin = number * SECONDS * RATE_HZ % (len(audio_S) - SECONDS * RATE_HZ)
            wav, noise = f"speech/{voice}_{number:02}.flac", generator(voice, number).choice(noises)
            soundfile.write(output / wav, audio_S[begin : begin + SECONDS * RATE_HZ], RATE_HZ)
            row = {"target": wav, "query": "speech", "noise": f"audio/{noise.path.name}"}
            rows.append(row | {"noise_query": noise.captions[0], "snr": 0, "class": voice})
    write_csv(output / "speech.csv", rows)


def instrument_list(paths: list[Path], output: Path) -> None:
    """Pairs of real instruments that are not alike, at 0 dB."""
    names = [path.stem.replace("_", " ") for path in paths]
    classes = [CLASS_OF.get(name, name) for name in names]
    rows = []
    for number in range(INSTRUMENT_ROWS * len(paths)):
        target = number % len(paths)
        alike = {classes[target]}.union(*(g for g in table()["alike"] if classes[target] in g))
        others = [k for k, name in enumerate(classes) if name not in alike]
        noise = int(generator("pair", number).choice(others))
        row = {"target": f"instruments/{paths[target].name}", "query": classes[target]}
        row |= {"noise": f"instruments/{paths[noise].name}", "noise_query": classes[noise]}
        rows.append(row | {"snr": 0, "class": classes[target]})
    write_csv(output / "instruments.csv", rows)


def main(data: Path, output: Path) -> None:
    """Write the three lists."""
    clips = list(clips_of(data / "esc10", (4,)))
    instruments = sorted((data / "real" / "instruments").glob("*.ogg"))
    sounds = {"audio": [clip.path for clip in clips], "instruments": instruments, "speech": []}
    for name, paths in sounds.items():
        (output / name).mkdir(parents=True, exist_ok=True)
        for path in paths:
            shutil.copyfile(path, output / name / path.name)
    esc10_list(data / "esc10", clips, output)
    speech_list(data, clips, output)
    instrument_list(instruments, output)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="with esc10, real, recordings")
    parser.add_argument("--output", type=Path, required=True, help="folder of the lists")
    main(**vars(parser.parse_args()))
