"""Clips, lists and a slow reference of the scores, shared by the tests of evaluation."""

import csv
import math

import numpy as np

from audiosep_jax.audio import files as audio_files

RATE_HZ = 8000
CLASSES = ("dog", "rain", "church bells")


def slow_sdr(reference, estimate):
    """SDR by its definition, one sample after the other."""
    signal = math.fsum(float(r) ** 2 for r in reference) / len(reference)
    pairs = zip(reference, estimate, strict=True)
    error = math.fsum((float(e) - float(r)) ** 2 for r, e in pairs) / len(reference)
    return 10 * math.log10(max(signal, 1e-10) / max(error, 1e-10))


def slow_si_sdr(reference, estimate):
    epsilon = 2.0**-23  # of float32
    product = math.fsum(float(r) * float(e) for r, e in zip(reference, estimate, strict=True))
    scale = (epsilon + product) / (math.fsum(float(r) ** 2 for r in reference) + epsilon)
    signal = math.fsum((scale * float(r)) ** 2 for r in reference)
    pairs = zip(reference, estimate, strict=True)
    error = math.fsum((float(e) - scale * float(r)) ** 2 for r, e in pairs)
    return 10 * math.log10((epsilon + signal) / (epsilon + error))


def write_clips(folder, count, num_samples=1600, rate_hz=RATE_HZ):
    """`clip0.wav`, ... of coloured noise, each of its own loudness; the samples by name."""
    rng = np.random.default_rng(5)
    clips = {}
    for number in range(count):
        clip_S = np.convolve(rng.standard_normal(num_samples), rng.standard_normal(5), "same")
        clip_S = (0.02 * (number + 1) * clip_S).astype(np.float32)
        clips[f"clip{number}.wav"] = clip_S
        audio_files.write(folder / f"clip{number}.wav", clip_S[None], rate_hz)
    return clips


def write_list(path, header, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def pairs_list(path, count, snrs=("-5", "", "7")):
    """A list for `--protocol mixtures` of `count` pairs out of `count` + 1 clips."""
    rows = [
        (f"m{n}", CLASSES[n % 3], f"clip{n}.wav", f"clip{n + 1}.wav", snrs[n % len(snrs)])
        for n in range(count)
    ]
    return write_list(path, ("id", "query", "target", "noise", "snr"), rows)
