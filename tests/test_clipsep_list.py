"""examples/clipsep_list.py: the pairs and segments are those of CLIPSep's evaluation."""

import random
import subprocess
import sys
from pathlib import Path

from audiosep_jax.evaluation.lists import items_of, read_list
from audiosep_jax.evaluation.protocols import PROTOCOLS

SCRIPT = Path(__file__).parents[1] / "examples" / "clipsep_list.py"


def test_pairs_and_segments_are_those_of_clipsep(tmp_path):
    targets, noises, output = (tmp_path / name for name in ("a.csv", "b.csv", "list.csv"))
    targets.write_text("x/0.wav,f/0,12,dog barking\nx/1.wav,f/1,212,acoustic_guitar\n")
    noises.write_text("".join(f"n/{k}.wav,g/{k},{4 + k},rain\n" for k in range(9)))
    subprocess.run([sys.executable, SCRIPT, targets, noises, "--output", output], check=True)

    drawn = []
    for number in range(2):
        random.seed(number)
        drawn.append(random.randint(0, 8))
    assert drawn == [6, 2]  # in every version of Python
    mixtures = PROTOCOLS["mixtures"]
    items = items_of(mixtures, read_list(mixtures, output, tmp_path), tmp_path, tmp_path)
    assert [item.noises for item in items] == [(tmp_path / f"n/{k}.wav",) for k in drawn]
    assert [item.target_start_seconds for item in items] == [3.0, 103.0]
    assert [item.noise_start_seconds for item in items] == [2.0, 0.0]
    assert [(item.query, item.seconds) for item in items] == [
        ("dog barking", 5.0),
        ("acoustic guitar", 5.0),
    ]
    assert "f/1/000106.jpg" in output.read_text()
