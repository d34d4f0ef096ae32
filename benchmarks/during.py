"""Score spans (`--during`): what muting outside of them adds to a separator's estimate.

    python benchmarks/during.py --list small_lists/esc10.csv

mixes the list's clips, in 5 s: one event with a background that never stops, and two events of one
class that overlap by half. The spans are those of the target, or have edges that are wrong by up to
0.1 s, or lie 0.1 s outside. Scores are SI-SDRi in dB, with 95 % intervals by resampling targets.
"""

import argparse
import csv
from pathlib import Path
from typing import NamedTuple

import numpy as np
from enrolment import sound
from study import interval

from audiosep_jax.data.mixing import energy, mix_at_snr, snr_ratio
from audiosep_jax.metrics import si_sdr_improvement
from audiosep_jax.separation.during import Span
from audiosep_jax.separation.separator import Separator
from audiosep_jax.separation.stream import gain_of

SECONDS, LONGEST_SECONDS = 5.0, 1.5  # of a mixture, and of an event
EVENTS = ("dog", "rooster", "sneezing", "crying baby")
BACKGROUNDS = ("rain", "sea waves", "crackling fire", "helicopter", "chainsaw")
EDGE_SECONDS = 0.1


class Mixture(NamedTuple):
    """A mixture, its target, and when that sounds."""

    clip: str
    query: str
    mixture_S: np.ndarray
    target_S: np.ndarray
    span: Span


def clips_of(path: Path, rate_hz: int) -> dict[str, dict[str, np.ndarray]]:
    """Clips of the list's targets by class and name."""
    with path.open(newline="") as file:
        names = {(row["class"], row["target"]) for row in csv.DictReader(file)}
    clips: dict[str, dict[str, np.ndarray]] = {}
    for kind, name in sorted(names):
        clips.setdefault(kind, {})[name] = sound(path.parent / name, rate_hz)
    return clips


def event(audio_S: np.ndarray, rate_hz: int) -> np.ndarray:
    """Cut the loudest sound of a clip: within 25 dB of its peak, with gaps below 0.1 s."""
    hop = rate_hz // 100
    power_T = np.square(audio_S[: len(audio_S) // hop * hop]).reshape(-1, hop).mean(1)
    loud_T = power_T > power_T.max() * 10**-2.5
    first = last = int(power_T.argmax())
    most = round(LONGEST_SECONDS * 100)
    while last - first < most and loud_T[max(0, first - 10) : first].any():
        first -= 1
    while last - first < most and loud_T[last + 1 : last + 11].any():
        last += 1
    return audio_S[first * hop : (last + 1) * hop]


def placed(audio_S: np.ndarray, start: int, num_samples: int) -> np.ndarray:
    return np.pad(audio_S, (start, num_samples - start - len(audio_S)))


def on_background(clips: dict[str, dict[str, np.ndarray]], rate_hz: int) -> list[Mixture]:
    """Mix every event with each kind of background, at 0 to 10 dB while it sounds."""
    rng, made, num_samples = np.random.default_rng(0), [], round(SECONDS * rate_hz)
    for kind in EVENTS:
        for name, audio_S in clips[kind].items():
            event_S = event(audio_S, rate_hz)
            for background in BACKGROUNDS:
                noises = list(clips[background].values())
                noise_S = np.resize(noises[rng.integers(len(noises))], num_samples)
                start = int(rng.integers(num_samples - len(event_S)))
                local_S = noise_S[start : start + len(event_S)]
                noise_S = noise_S * np.float32(
                    snr_ratio(energy(event_S), energy(local_S), rng.uniform(0, 10))
                )
                target_S = placed(event_S, start, num_samples)
                span = start / rate_hz, (start + len(event_S)) / rate_hz
                made.append(Mixture(name, kind, target_S + noise_S, target_S, span))
    return made


def two_of_a_class(clips: dict[str, dict[str, np.ndarray]], rate_hz: int) -> list[Mixture]:
    """Mix every event with two others of its class, which begin or end in its middle, at 0 dB."""
    rng, made, num_samples = np.random.default_rng(0), [], round(SECONDS * rate_hz)
    for kind in sorted(clips.keys() - {"clock tick"}):  # whose ticks are too short to overlap
        names = list(clips[kind])
        events = [event(clips[kind][name], rate_hz) for name in names]
        for i, k in ((i, k) for i in range(len(names)) for k in (1, 3)):
            both = events[i], events[(i + k) % len(events)]
            length = min(map(len, both))
            start = int(rng.integers(length, num_samples - 2 * length))
            starts = start, start + (length // 2 if k == 1 else -length // 2)
            target_S, other_S = (
                placed(x[:length], at, num_samples) for x, at in zip(both, starts, strict=True)
            )
            span = start / rate_hz, (start + length) / rate_hz
            made.append(Mixture(names[i], kind, *mix_at_snr(target_S, other_S, 0), span))
    return made


def with_wrong_edges(mixtures: list[Mixture]) -> list[Span]:
    """Spans whose edges are wrong by up to `EDGE_SECONDS`, drawn evenly."""
    rng, spans = np.random.default_rng(1), []
    for start, end in (mixture.span for mixture in mixtures):
        before, after = rng.uniform(-EDGE_SECONDS, EDGE_SECONDS, 2)
        first = max(0.0, start + before)
        spans.append((first, max(first + 0.05, end + after)))
    return spans


def improvement(mixture: Mixture, estimate_S: np.ndarray) -> float:
    """SI-SDRi in dB."""
    signals = (mixture.target_S, estimate_S.astype(np.float32), mixture.mixture_S)
    return float(si_sdr_improvement(*(audio_S[None] for audio_S in signals))[0])


def scores(separator: Separator, mixtures: list[Mixture]) -> dict[str, np.ndarray]:
    """SI-SDRi in dB of every mixture, by what is scored."""
    rate_hz = separator.model.sample_rate_hz
    rows: dict[str, list[float]] = {}
    for mixture, wrong in zip(mixtures, with_wrong_edges(mixtures), strict=True):
        start, end = mixture.span
        wide = max(0.0, start - EDGE_SECONDS), end + EDGE_SECONDS
        spans = {"": mixture.span, ", edges wrong": wrong, ", edges outside": wide}
        second_S = np.arange(len(mixture.mixture_S)) / rate_hz
        estimate_S = separator.separate(mixture.mixture_S, rate_hz, mixture.query)
        rows.setdefault("estimate", []).append(improvement(mixture, estimate_S))
        for how, span in spans.items():
            gain_S = gain_of([span], second_S)
            for name, audio_S in {"mixture": mixture.mixture_S, "estimate": estimate_S}.items():
                muted = rows.setdefault(f"{name}, muted{how}", [])
                muted.append(improvement(mixture, audio_S * gain_S))
    return {name: np.array(values) for name, values in rows.items()}


def main() -> None:
    """Print the scores."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--list", type=Path, required=True)
    parser.add_argument("--checkpoint", default="small")
    arguments = parser.parse_args()
    separator = Separator.load(arguments.checkpoint)
    clips = clips_of(arguments.list, separator.model.sample_rate_hz)
    for make in (on_background, two_of_a_class):
        mixtures = make(clips, separator.model.sample_rate_hz)
        print(f"{make.__name__}: {len(mixtures)} mixtures")
        for name, score_N in scores(separator, mixtures).items():
            print(f"  {name}: {interval(score_N, [x.clip for x in mixtures])}")


if __name__ == "__main__":
    main()
