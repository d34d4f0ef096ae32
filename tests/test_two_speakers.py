"""The benchmark of two speakers: its conversation, and how it counts swaps."""

import importlib
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

RATE_HZ = 1000


@pytest.fixture
def two_speakers(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    yield importlib.import_module("two_speakers")
    sys.modules.pop("two_speakers")


def test_swaps_are_counted_where_one_speaker_talks_alone(two_speakers, tmp_path):
    found = {}
    for name, tone in (("a", 0.3), ("b", 0.7)):
        path = tmp_path / f"{name}.wav"
        soundfile.write(path, np.sin(np.arange(8 * RATE_HZ) * tone), RATE_HZ)
        found[name] = [path]
    speakers_2S = two_speakers.conversation(found, 1, RATE_HZ)
    assert (np.abs(speakers_2S).max(axis=1) > 0.2).all()
    count, seconds = two_speakers.swaps(speakers_2S, speakers_2S, RATE_HZ)
    assert count == 0
    assert seconds > 15
    parts_2S = speakers_2S.copy()
    middle = 30 * RATE_HZ
    parts_2S[:, middle:] = parts_2S[::-1, middle:]
    assert two_speakers.swaps(speakers_2S, parts_2S, RATE_HZ) == (1, seconds)
    assert two_speakers.swaps(speakers_2S, speakers_2S[::-1], RATE_HZ)[0] == 0
