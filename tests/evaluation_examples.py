"""Clips, lists and a slow reference of the scores, shared by the tests of evaluation."""

import csv
import math

import numpy as np
from tiny_models import write_voice
from tiny_run import save_run, tiny_config

from audiosep_jax.audio import files as audio_files

RATE_HZ = 8000
MIXTURE_IDS = ("1-1-1_2-2-2", "1-1-2_3-3-3", "2-2-3_3-3-4")
ENROLMENTS = (
    "s1/1-1-2_3-3-3",
    "s1/2-2-3_3-3-4",
    "s1/1-1-1_2-2-2",
    "s2/2-2-3_3-3-4",
    "s2/1-1-1_2-2-2",
    "other/x.wav",
)
LIBRIMIX = "Libri2Mix/wav8k/min/test"
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


def write_librimix(folder):
    """The layout of LibriMix, its list, that of the enrolments, and a network of voices."""
    clips = iter(write_clips(folder / "clips", 7, num_samples=4000).values())
    place, rows, lines = folder / LIBRIMIX, [], []
    for k, name in enumerate(MIXTURE_IDS):
        sources = next(clips), next(clips)
        paths = [place / part / f"{name}.wav" for part in ("mix_clean", "s1", "s2")]
        for path, audio_S in zip(paths, (sum(sources), *sources), strict=True):
            audio_files.write(path, audio_S[None], RATE_HZ)
        rows.append((name, *map(str, paths), 4000))
        pairs = zip(name.split("_"), ENROLMENTS[2 * k : 2 * k + 2], strict=True)
        lines += [f"{name} {utterance} {recording}\n" for utterance, recording in pairs]
    audio_files.write(place / "other/x.wav", next(clips)[None], RATE_HZ)
    header = ("mixture_ID", "mixture_path", "source_1_path", "source_2_path", "length")
    write_list(folder / "mixture_test_mix_clean.csv", header, rows)
    (folder / "map_mixture2enrollment").write_text("".join(lines))
    config = tiny_config()
    config.num_steps = 10
    config.model.condition_features = 256
    config.data.source = "speakers"
    config.text.encoder, config.text.model = "voice", str(write_voice(folder / "voice.pt"))
    save_run(folder / "runs/voice", config=config, text_fingerprint=None)
    return folder
