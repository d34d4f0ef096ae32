"""What `--not`, `--iterations`, presence and spans are worth, on mixtures of ESC-50's layout.

Example:
    python benchmarks/query_options.py --checkpoint runs/esc50 --root esc10

Clips of one fold, five seconds each, queried by their class: mixtures of two at -10..10 dB for
presence and spans, of three at equal power (wanted, unwanted, another) for the rest.
"""

import argparse
import csv
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from audiosep_jax.audio import files as audio_files
from audiosep_jax.separation.presence import presence, spans
from audiosep_jax.separation.refining import Without
from audiosep_jax.separation.separator import Separator

SECONDS = 5
HOP_SECONDS = 0.1
QUIETEST_POWER = 1e-6  # of a clip that is used


class Clips:
    """The clips of a fold by class, at the model's rate."""

    def __init__(self, root: Path, fold: str, sample_rate_hz: int) -> None:
        with (root / "meta/esc50.csv").open() as file:
            rows = [row for row in csv.DictReader(file) if row["fold"] == fold]
        self.names = sorted({row["category"].replace("_", " ") for row in rows})
        self._rate_hz = sample_rate_hz
        self._paths: list[list[Path]] = [[] for _ in self.names]
        for row in rows:
            path = root / "audio" / row["filename"]
            path = path if path.exists() else path.with_suffix(".ogg")
            self._paths[self.names.index(row["category"].replace("_", " "))].append(path)

    def draw(self, rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
        """(classes, clips `(count, S)` of one power) of different classes."""
        while True:
            classes_K = rng.choice(len(self.names), count, replace=False)
            clips_KS = np.stack([self._clip(rng.choice(self._paths[k])) for k in classes_K])
            power_K = np.mean(clips_KS**2, axis=1)
            if (power_K > QUIETEST_POWER).all():
                return classes_K, 0.05 * clips_KS / np.sqrt(power_K)[:, None]

    def _clip(self, path: Path) -> np.ndarray:
        audio_CS, rate_hz = audio_files.read(path)
        audio_S = audio_files.resample(audio_files.to_mono(audio_CS)[None], rate_hz, self._rate_hz)[
            0
        ]
        num_samples = SECONDS * self._rate_hz
        return np.pad(audio_S[:num_samples], (0, max(0, num_samples - len(audio_S))))


class _Given:
    """A stream of estimates that are known."""

    def __init__(self, estimate_NCS: np.ndarray) -> None:
        self._estimate_NCS = estimate_NCS

    def feed(self, audio_CS: np.ndarray) -> np.ndarray:
        return self._estimate_NCS

    def finish(self) -> np.ndarray:
        return self._estimate_NCS[..., :0]


def main(argv: Sequence[str]) -> None:
    arguments = _parser().parse_args(argv)
    separator = Separator.load(arguments.checkpoint)
    rate_hz = separator.model.sample_rate_hz
    clips = Clips(arguments.root, arguments.fold, rate_hz)
    condition_NE = separator.embed_text(clips.names)
    rng = np.random.default_rng(arguments.seed)
    print(f"step {separator.step}, {arguments.mixtures} mixtures of each kind")
    _presence(separator, clips, condition_NE, rng, arguments.mixtures)
    _refining(separator, clips, condition_NE, rng, arguments.mixtures)


def _presence(
    separator: Separator, clips: Clips, condition_NE: np.ndarray, rng: Any, count: int
) -> None:
    """AUC of present against absent queries, and F1 of spans in tenths of a second."""
    rate_hz = separator.model.sample_rate_hz
    scores: dict[str, list[tuple[float, bool]]] = {"presence": [], "energy share": []}
    right = active = true = 0  # tenths of seconds
    for _ in range(count):
        classes_K, clips_KS = clips.draw(rng, 2)
        clips_KS[0] *= 10 ** (rng.uniform(-10, 10) / 20)
        mixture_S = clips_KS.sum(0).astype(np.float32)
        estimate_NS = separator.separate_conditions(mixture_S, rate_hz, condition_NE)
        mixture_T, estimate_NT = _activity(mixture_S, rate_hz), _activity(estimate_NS, rate_hz)
        for row, estimate_T in enumerate(estimate_NT):
            there = row in classes_K
            scores["presence"].append((presence(estimate_T, mixture_T), there))
            scores["energy share"].append((float(estimate_T.sum() / mixture_T.sum()), there))
            if there:
                found_T: np.ndarray = np.zeros(len(mixture_T), bool)
                for start, end in spans(estimate_T, mixture_T, HOP_SECONDS, SECONDS):
                    found_T[round(start / HOP_SECONDS) : round(end / HOP_SECONDS)] = True
                clip_T = _activity(clips_KS[list(classes_K).index(row)], rate_hz)
                truth_T = (clip_T > clip_T.max() * 1e-3) & (clip_T > 0.01 * mixture_T)
                right += int((found_T & truth_T).sum())
                active += int(found_T.sum())
                true += int(truth_T.sum())
    for name, pairs in scores.items():
        given = np.array([score for score, present in pairs if present])
        absent = np.array([score for score, present in pairs if not present])
        auc = np.mean((given[:, None] > absent) + 0.5 * (given[:, None] == absent))
        medians = f"median {np.median(given):.2f} where present, {np.median(absent):.2f} where not"
        print(f"{name}: AUC {auc:.3f}, {medians}")
    shares = f"precision {right / active:.2f}, recall {right / true:.2f}"
    print(f"spans: F1 {2 * right / (active + true):.2f}, {shares}")


def _activity(audio: np.ndarray, sample_rate_hz: int) -> np.ndarray:
    """Mean squares of tenths of seconds, along the last axis."""
    hop = round(HOP_SECONDS * sample_rate_hz)
    return (audio.reshape(*audio.shape[:-1], -1, hop).astype(np.float64) ** 2).mean(-1)


def _refining(
    separator: Separator, clips: Clips, condition_NE: np.ndarray, rng: Any, count: int
) -> None:
    """SDR of the wanted clip by each way, and how much of the unwanted one is in the result."""
    rate_hz = separator.model.sample_rate_hz
    sdr: dict[str, list[float]] = {}
    left: dict[str, list[float]] = {}
    for _ in range(count):
        classes_K, (wanted_S, unwanted_S, other_S) = clips.draw(rng, 3)
        mixture_S = (wanted_S + unwanted_S + other_S).astype(np.float32)

        def of(audio_S: np.ndarray, row: int, classes_K: Any = classes_K) -> np.ndarray:
            one_NE = condition_NE[classes_K[row : row + 1]]
            return separator.separate_conditions(audio_S, rate_hz, one_NE)[0]

        target_S, negative_S = of(mixture_S, 0), of(mixture_S, 1)
        stream = Without(_Given(np.stack([target_S, negative_S])[:, None]), 1, rate_hz)
        masked = [stream.feed(mixture_S[None]), stream.finish()]
        second_S = of(target_S, 0)
        ways = {
            "mixture": mixture_S,
            "query alone": target_S,
            "--not, by the share of each bin": np.concatenate(masked, axis=-1)[0, 0],
            "--not, taken out of the mixture before": of(mixture_S - negative_S, 0),
            "--iterations 2": second_S,
            "--iterations 3": of(second_S, 0),
        }
        for name, audio_S in ways.items():
            error = np.mean((audio_S - wanted_S) ** 2)
            sdr.setdefault(name, []).append(10 * np.log10(np.mean(wanted_S**2) / error))
            leak = np.dot(audio_S, unwanted_S) / np.dot(unwanted_S, unwanted_S)
            left.setdefault(name, []).append(20 * np.log10(max(abs(leak), 1e-6)))
    for name, values in sdr.items():
        spread = np.std(np.array(values) - sdr["query alone"]) / len(values) ** 0.5
        more = np.mean(values) - np.mean(sdr["query alone"])
        print(
            f"{name}: SDR {np.mean(values):.2f} dB ({more:+.2f} +- {spread:.2f} over the query "
            f"alone), of the unwanted clip {np.mean(left[name]):.1f} dB"
        )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n")[0],
        epilog="python benchmarks/query_options.py --checkpoint runs/esc50 --root esc10",
    )
    parser.add_argument("--checkpoint", required=True, help="workdir of train.py")
    parser.add_argument("--root", type=Path, required=True, help="folder laid out as ESC-50")
    parser.add_argument("--fold", default="4", help="that was not trained on (default: 4)")
    parser.add_argument("--mixtures", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    return parser


if __name__ == "__main__":
    main(sys.argv[1:])
