"""Score a separator asked by sentences that compare two speakers, on voices it never heard.

    python benchmarks/speaker_cues.py --voices voices/valid --checkpoint runs/cues

A choice is right if the estimate is nearer, in SI-SDR, to the voice asked for than to the other.
"""

import argparse
import itertools
from pathlib import Path

import numpy as np
from enrolment import NUM_RECORDINGS, recordings, sound
from study import interval

from audiosep_jax.data import cues
from audiosep_jax.data.augment import keep_span
from audiosep_jax.data.mixing import mix_at_snr
from audiosep_jax.metrics import fitted, si_sdr, si_sdr_improvement
from audiosep_jax.separation.separator import Separator

SECONDS = 3.0  # of a mixture
LEVEL_DB = 5.0  # between the speakers, where the sentence is about the level; otherwise 0
LEAST_SHARE = 0.4  # of a mixture in which a speaker is heard

Result = tuple[str, bool, float]  # pair of speakers, right or not, SI-SDRi in dB


def mixtures(found: dict[str, list[Path]], rate_hz: int, snr_db: float) -> list[tuple]:
    """(pair, mixture_S, target_S) of every recording with that of each other speaker."""
    rng, made, num_samples = np.random.default_rng(0), [], round(SECONDS * rate_hz)
    sounds = {
        name: [fitted(sound(path, rate_hz), num_samples) for path in paths]
        for name, paths in found.items()
    }
    for pair, k in itertools.product(itertools.permutations(found, 2), range(NUM_RECORDINGS)):
        target_S, other_S = (
            keep_span(sounds[name][k], rng.uniform(LEAST_SHARE, 1), rng.random()) for name in pair
        )
        made.append(("-".join(sorted(pair)), *mix_at_snr(target_S, other_S, snr_db)))
    return made


def results(separator: Separator, found: dict[str, list[Path]]) -> dict[str, list[Result]]:
    """Results by sentence: the first wording of each that is true of a mixture's target."""
    rate_hz = separator.model.sample_rate_hz
    asked = {
        snr_db: [x[0] for what, sign, x in cues.CUES if snr_db == sign * LEVEL_DB * (not what)]
        for snr_db in (0.0, LEVEL_DB, -LEVEL_DB)
    }
    by_sentence: dict[str, list[Result]] = {x[0]: [] for _, _, x in cues.CUES}
    vectors = dict(zip(cues.SENTENCES, separator.embed("text", cues.SENTENCES), strict=True))
    for snr_db, sentences in asked.items():
        for pair, mixture_S, target_S in mixtures(found, rate_hz, snr_db):
            rest_S = mixture_S - target_S
            held = cues.holding(target_S, rest_S, rate_hz)
            for sentence in (x for x in sentences if x in held):
                estimate_S = separator.separate_conditions(
                    mixture_S, rate_hz, vectors[sentence][None]
                )[0]
                wanted, other = (float(si_sdr(x, estimate_S)) for x in (target_S, rest_S))
                gain_db = float(si_sdr_improvement(target_S, estimate_S, mixture_S))
                by_sentence[sentence].append((pair, wanted > other, gain_db))
    return by_sentence


def main() -> None:
    """Print the scores."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--voices", type=Path, required=True, help="folder of a folder for each speaker"
    )
    parser.add_argument("--checkpoint", required=True)
    arguments = parser.parse_args()
    separator = Separator.load(arguments.checkpoint, engine="jax")
    by_sentence = results(separator, recordings(arguments.voices, NUM_RECORDINGS))
    rows = {**by_sentence, "all": list(itertools.chain(*by_sentence.values()))}
    for sentence, found in rows.items():
        pairs, right_N, gain_db_N = zip(*found, strict=True)
        # Mixtures of the same two speakers are not independent.
        right, gain = (
            interval(np.array(right_N), pairs, ".0%"),
            interval(np.array(gain_db_N), pairs),
        )
        print(f"{sentence}: {right} right, SI-SDRi {gain} dB, n={len(found)}")


if __name__ == "__main__":
    main()
