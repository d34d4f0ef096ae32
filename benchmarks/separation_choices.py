"""One mask for all channels or one each, and what to do above the model's band: by SDR.

    python benchmarks/separation_choices.py --checkpoint runs/esc50 --root ESC-50

Mixes clips of different classes from the fold that training left out, at 0 dB, each panned to a
place of its own, and compares the estimate of the first with its image, both channels together.
"""

import argparse
from pathlib import Path

import numpy as np

from audiosep_jax.audio import files as audio_files
from audiosep_jax.data.sources import esc50_clips
from audiosep_jax.separation.separator import Separator

# Places from 0, left, to 1, right, of target and interferer.
PANNINGS = {
    "both in the middle": (0.5, 0.5),
    "target in the middle, other left": (0.5, 0.1),
    "target left, other in the middle": (0.1, 0.5),
    "a little apart": (0.4, 0.6),
    "left and right": (0.1, 0.9),
}
CHOICES = (("mid", "drop"), ("channels", "drop"), ("mid", "keep"), ("channels", "keep"))
UNSCALED = "mid, band above added to the target whole"
STRICT = "mid, drop"


def sdr_db(target_CS: np.ndarray, estimate_CS: np.ndarray) -> float:
    error = np.mean((target_CS - estimate_CS) ** 2)
    return float(10 * np.log10(np.mean(target_CS**2) / max(float(error), 1e-12)))


def panned(audio_S: np.ndarray, place: float) -> np.ndarray:
    """Of constant power."""
    angle = place * np.pi / 2
    return np.stack([np.cos(angle) * audio_S, np.sin(angle) * audio_S]).astype(np.float32)


def pairs(root: Path, fold: int, count: int, seed: int) -> list[tuple[np.ndarray, np.ndarray, str]]:
    """(target_S, other_S, sentence) at 44.1 kHz and 0 dB, of two classes."""
    clips, rng = esc50_clips(root, [fold]), np.random.default_rng(seed)
    found: list[tuple[np.ndarray, np.ndarray, str]] = []
    while len(found) < count:
        a, b = (clips[i] for i in rng.choice(len(clips), 2, replace=False))
        if a.captions == b.captions:
            continue
        (x_CS, rate_hz), (y_CS, _) = audio_files.read(a.path), audio_files.read(b.path)
        count_samples = min(x_CS.shape[1], y_CS.shape[1])
        target_S, other_S = x_CS[0, :count_samples], y_CS[0, :count_samples]
        if rate_hz == 44100 and min(np.std(target_S), np.std(other_S)) > 1e-3:
            other_S = other_S * np.std(target_S) / np.std(other_S)
            found.append((target_S, other_S, a.captions[0]))
    return found


def scores(separator: Separator, pair: tuple, places: tuple[float, float]) -> dict[str, float]:
    """SDR of each choice less that of the mixture."""
    target_CS, other_CS = panned(pair[0], places[0]), panned(pair[1], places[1])
    mixture_CS = target_CS + other_CS
    before = sdr_db(target_CS, mixture_CS)
    found = {}
    for stereo, above in CHOICES:
        options = {"stereo": stereo, "above_nyquist": above}
        estimate_CS = separator.separate(mixture_CS, 44100, pair[2], **options)  # type: ignore[arg-type]
        found[f"{stereo}, {above}"] = sdr_db(target_CS, estimate_CS) - before
        if f"{stereo}, {above}" == STRICT:
            model_hz = separator.model.sample_rate_hz
            heard_CS = audio_files.resample(mixture_CS, 44100, model_hz)
            heard_CS = audio_files.resample(heard_CS, model_hz, 44100)[:, : mixture_CS.shape[1]]
            added_CS = estimate_CS + mixture_CS - heard_CS
            found[UNSCALED] = sdr_db(target_CS, added_CS) - before
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--root", type=Path, required=True, help="a folder as ESC-50's")
    parser.add_argument("--fold", type=int, default=5)
    parser.add_argument("--count", type=int, default=40)
    arguments = parser.parse_args()
    separator = Separator.from_pretrained(arguments.checkpoint)
    mixed = pairs(arguments.root, arguments.fold, arguments.count, seed=0)
    print(f"SDRi in dB, mean of {len(mixed)} mixtures")
    for name, places in PANNINGS.items():
        rows = [scores(separator, pair, places) for pair in mixed]
        print(f"\n{name}")
        for choice in rows[0]:
            values = [row[choice] for row in rows]
            print(f"  {choice:<42} {np.mean(values):6.2f}  (median {np.median(values):5.2f})")


if __name__ == "__main__":
    main()
