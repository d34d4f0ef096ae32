"""Clips that show in a mixture, and the stream of batches made of them."""

import dataclasses
import functools
import itertools

import numpy as np

from audiosep_jax.audio.files import AudioError
from audiosep_jax.data.captions import Captions
from audiosep_jax.data.mixing import MixingConfig
from audiosep_jax.data.pipeline import train_batches
from audiosep_jax.data.source import Source
from audiosep_jax.data.sources import DataConfig

S = 64  # samples in a segment, one second of them
SERIAL = DataConfig(segment_seconds=1.0, num_threads=0, num_workers=0)
MIXING = MixingConfig()


@dataclasses.dataclass(frozen=True)
class Tones(Source):
    """Clip k is a faint sine in bin k + 1 of every segment, so that a mixture shows its parts."""

    all_captions: tuple[tuple[str, ...], ...]
    bad: frozenset[int] = frozenset()
    silent: frozenset[int] = frozenset()
    sample_rate_hz: int = S

    @functools.cached_property
    def captions(self):
        return Captions(self.all_captions)

    def name(self, index):
        return f"tone/{index}"

    def load(self, index):
        if index in self.bad:
            raise AudioError(f"tone/{index}: is out of tune")
        amplitude = 0.0 if index in self.silent else 0.01
        phase_S = 2 * np.pi * (index + 1) * np.arange(3 * S // 2) / S
        return (amplitude * np.sin(phase_S)).astype(np.float32)


def tones(num_clips, **options):
    return Tones(tuple((f"tone {k:02d}",) for k in range(num_clips)), **options)


def conditions_of(source):
    """One-hot, so that a batch shows which caption was drawn."""
    captions = sorted(source.captions.texts)
    return dict(zip(captions, np.eye(len(captions), dtype=np.float32), strict=True))


def tone_numbers(audio_BS):
    return np.argmax(np.abs(np.fft.rfft(audio_BS, axis=-1)), axis=-1) - 1


def batches(source, num_steps, *, data=SERIAL, mixing=MIXING, **options):
    options = {"seed": 0, "batch_size": 4, "first_step": 0} | options
    stream = train_batches(source, conditions_of(source), mixing, data, **options)
    try:
        return [
            {key: np.array(value) for key, value in batch.items()}
            for batch in itertools.islice(stream, num_steps)
        ]
    finally:
        stream.close()


def targets(rows):
    return np.concatenate([tone_numbers(batch["target"]) for batch in rows])


def assert_same(actual, expected):
    assert len(actual) == len(expected)
    for one, other in zip(actual, expected, strict=True):
        assert one.keys() == other.keys() == {"mixture", "target", "condition", "bad_clips"}
        for key in one:
            np.testing.assert_array_equal(one[key], other[key], err_msg=key)
