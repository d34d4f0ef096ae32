"""Sounds and files for the tests of this folder."""

import io

import numpy as np
import pytest
import soundfile

from audiosep_jax.audio import files as audio_files
from audiosep_jax.audio.files import AudioError

RATE_HZ = 22050


def sines(num_samples=6000, num_channels=2, rate_hz=RATE_HZ, amplitude=0.5):
    time_S = np.arange(num_samples) / rate_hz
    rows = [np.sin(2 * np.pi * 300 * (k + 1) * time_S) for k in range(num_channels)]
    return (amplitude * np.stack(rows)).astype(np.float32)


def save(path, audio_CS, **options):
    soundfile.write(path, audio_CS.T, options.pop("rate_hz", RATE_HZ), **options)
    return path


def fails(path):
    """The one-line message of the AudioError that reading `path` raises."""
    with pytest.raises(AudioError) as caught:
        audio_files.read(path)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message


def encoded(suffix, num_samples=50_000, seed=0, **options):
    """Content of a file of noise."""
    audio_SC = 0.1 * np.random.default_rng(seed).standard_normal((num_samples, 2))
    file = io.BytesIO()
    options = {"format": suffix.upper()} | options
    soundfile.write(file, audio_SC, options.pop("rate_hz", RATE_HZ), **options)
    return file.getvalue()
