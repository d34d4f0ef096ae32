"""Score a separator of speakers, and its voice encoder, on voices that training never heard.

    python benchmarks/enrolment.py --voices voices/valid --checkpoint runs/voice
    python benchmarks/enrolment.py --voices voices/train --write_mean mean_voice.npy

The second command writes the vector that `VoiceEncoder` subtracts, `encoders/mean_voice.npy`.
"""

import argparse
import itertools
from pathlib import Path

import numpy as np
from study import interval

from audiosep_jax.audio import files as audio_files
from audiosep_jax.data.mixing import mix_at_snr
from audiosep_jax.encoders import ge2e
from audiosep_jax.metrics import fitted, si_sdr_improvement
from audiosep_jax.separation.separator import Separator

SECONDS = 4.0  # of a mixture
NUM_RECORDINGS = 6  # of each speaker; each is the target once with every other speaker


def equal_error_rate(embedding_NE: np.ndarray, owners: list[str]) -> float:
    """Share of errors at the threshold where both kinds of them are equally frequent."""
    pairs = list(itertools.combinations(range(len(owners)), 2))
    cosine = np.array([embedding_NE[i] @ embedding_NE[j] for i, j in pairs])
    same = np.array([owners[i] == owners[j] for i, j in pairs])
    same_S, other_S = np.sort(cosine[same]), np.sort(cosine[~same])
    missed = np.searchsorted(same_S, cosine) / len(same_S)
    accepted = 1 - np.searchsorted(other_S, cosine) / len(other_S)
    best = np.argmin(np.abs(missed - accepted))
    return float(missed[best] + accepted[best]) / 2


def recordings(folder: Path, count: int) -> dict[str, list[Path]]:
    """`count` recordings of each speaker who has them, evenly chosen."""
    found = {x.name: sorted(x.glob("*.flac")) for x in sorted(folder.iterdir())}
    return {
        name: [paths[len(paths) * k // count] for k in range(count)]
        for name, paths in found.items()
        if len(paths) >= count
    }


def sound(path: Path, rate_hz: int) -> np.ndarray:
    """Read a recording, and resample it."""
    audio_S, own_hz = audio_files.read_mono(path)
    return audio_files.resample(audio_S[None], own_hz, rate_hz)[0]


def mean_voice(voices: Path, model: str) -> np.ndarray:
    """Mean of the speakers' mean vectors, before it is subtracted from any."""
    ge2e.MEAN_E = np.zeros(ge2e.DIMENSIONS, np.float32)
    encoder, rows = ge2e.VoiceEncoder(model), []
    for paths in recordings(voices, 4).values():
        rows.append(encoder([audio_files.read_mono(path) for path in paths]).mean(0))
    return np.mean(rows, axis=0)


def scores(separator: Separator, found: dict[str, list[Path]]) -> dict[str, np.ndarray]:
    """SI-SDRi in dB of every mixture of two speakers at 0 dB, by who is asked for.

    Everybody is asked for by another recording than that of the mixture.
    """
    rate_hz = separator.model.sample_rate_hz
    vectors = {
        name: separator.embed("voice", list(map(audio_files.read_mono, paths)))
        for name, paths in found.items()
    }
    rows: dict[str, list[float]] = {"target": [], "interferer": [], "third": []}
    for (name, other), k in itertools.product(
        itertools.permutations(found, 2), range(NUM_RECORDINGS)
    ):
        third = next(x for x in itertools.cycle(found) if x not in (name, other))
        target_S, interferer_S = (
            fitted(sound(found[x][k], rate_hz), round(SECONDS * rate_hz)) for x in (name, other)
        )
        mixture_S, target_S = mix_at_snr(target_S, interferer_S, 0, 0.9)
        condition_NE = np.stack([vectors[x][k - 1] for x in (name, other, third)])
        estimate_NS = separator.separate_conditions(mixture_S, rate_hz, condition_NE)
        for kind, estimate_S in zip(rows, estimate_NS, strict=True):
            score = si_sdr_improvement(target_S[None], estimate_S[None], mixture_S[None])
            rows[kind].append(float(score[0]))
    return {kind: np.array(values) for kind, values in rows.items()}


def main() -> None:
    """Print the scores."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--voices", type=Path, required=True, help="folder of a folder for each speaker"
    )
    parser.add_argument("--checkpoint", default="")
    parser.add_argument("--text_model", default="", help="weights of the voice encoder")
    parser.add_argument("--write_mean", type=Path)
    arguments = parser.parse_args()
    if arguments.write_mean:
        np.save(arguments.write_mean, mean_voice(arguments.voices, arguments.text_model))
        return
    found = recordings(arguments.voices, NUM_RECORDINGS)
    separator = Separator.load(arguments.checkpoint, text_model=arguments.text_model, engine="jax")
    embedding_NE = np.concatenate(
        [separator.embed("voice", list(map(audio_files.read_mono, x))) for x in found.values()]
    )
    owners = [name for name, paths in found.items() for _ in paths]
    print(f"equal error rate {equal_error_rate(embedding_NE, owners):.1%} of {len(owners)} voices")
    names = list(itertools.permutations(found, 2))
    # Mixtures of the same two speakers are not independent.
    groups = ["-".join(sorted(pair)) for pair in names for _ in range(NUM_RECORDINGS)]
    for kind, score_N in scores(separator, found).items():
        print(
            f"{kind}: SI-SDRi {interval(score_N, groups)} dB, median {np.median(score_N):.2f}, "
            f"{np.mean(score_N < 0):.1%} below 0 dB, n={len(score_N)}"
        )


if __name__ == "__main__":
    main()
