"""Benchmarks of training on mixtures alone: the corpus of pairs, and the small model of sums."""

import json

import numpy as np
import soundfile

from audiosep_jax.data.clips import manifest_clips
from benchmarks import mixed_recordings, sums


def test_each_recording_is_mixed_twice_with_others(tmp_path, monkeypatch):
    rng, rows = np.random.default_rng(0), []
    for number in range(9):
        seconds = 1 + number % 3
        name = f"{number}.wav"
        soundfile.write(tmp_path / name, 0.1 * rng.standard_normal(8000 * seconds), 8000)
        rows.append({"wav": name, "caption": [f"kind {number % 3}", f"number {number}"]})
    (tmp_path / "all.json").write_text(json.dumps({"data": rows}))
    words = ["x", "--manifest", str(tmp_path / "all.json"), "--output", str(tmp_path / "mixed")]
    monkeypatch.setattr("sys.argv", words)
    mixed_recordings.main()
    clips = manifest_clips(tmp_path / "mixed" / "mixed.json")
    pairs = [clip.captions for clip in clips]
    assert (
        sorted(x[1] for x in pairs)
        == sorted(x[3] for x in pairs)
        == [f"number {number}" for number in range(9)]
    )
    assert all(first != second for first, _, second, _ in pairs)
    assert clips.captions.most_sounds()[1] == 2
    for clip in clips:
        lengths = [1 + int(clip.captions[k].split()[1]) % 3 for k in (1, 3)]
        assert len(soundfile.read(clip.path)[0]) == 16000 * max(lengths)


def test_a_second_sound_keeps_its_level_and_its_place():
    first_S, second_S = np.ones(1000, np.float32), np.full(100, 0.01, np.float32)
    mixture_S = mixed_recordings.mixed(first_S, second_S, np.random.default_rng(3))
    levels = np.unique(mixture_S.round(4))
    assert len(levels) == 2  # with and without the second, which is up to 5 dB louder or quieter
    assert 10 ** (-5 / 20) <= levels[1] / levels[0] - 1 <= 10 ** (5 / 20)
    assert (mixture_S > levels.mean()).sum() == 100


def test_rows_of_the_small_model():
    rng, pool = np.random.default_rng(0), sums.sounds(np.random.default_rng(1), 2)
    np.testing.assert_allclose(sums.power(pool), 1, rtol=1e-6)
    mixture, target, kinds = sums.batch(rng, pool, 50, 2, alone=0.5)
    rest = sums.power(mixture - target)
    assert 15 < (rest == 0).sum() < 35
    assert all(len(set(row)) == 4 for row in kinds.tolist())
    snr_db = 10 * np.log10(sums.power(target)[rest > 0] / rest[rest > 0])
    assert -10.01 < snr_db.min() < snr_db.max() < 10.01
