"""Score the separation of two speakers without a query, and count swaps in a conversation.

    python benchmarks/two_speakers.py --voices voices/valid --checkpoint runs/blind
    python benchmarks/two_speakers.py --voices voices/valid --checkpoint runs/blind --by_voice
    python benchmarks/two_speakers.py --voices voices/valid --checkpoint runs/blind --minutes 10

The first command separates mixtures of all pairs of speakers at 0 dB, as `enrolment.py` makes them,
and assigns the two parts in the better order. The second one asks for each speaker by another
recording: his part is the one whose voice vector is more similar. The third one makes a
conversation of two speakers who take turns and overlap, runs `separate.py --blind 2 --residual` on
it, and counts the turns in which a speaker is louder in the other file than in his turn before.
With weights of one slot, the second part is what the first leaves, and the command is
`--blind 1 --residual`.
"""

import argparse
import itertools
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from enrolment import NUM_RECORDINGS, SECONDS, recordings, sound
from study import interval

from audiosep_jax.audio import files as audio_files
from audiosep_jax.data.mixing import mix_at_snr
from audiosep_jax.encoders import ge2e
from audiosep_jax.metrics import fitted, si_sdr_improvement
from audiosep_jax.separation.separator import Separator

TURN_SECONDS = (2.0, 6.0)
OVERLAP = 0.25  # share of a turn that the next one overlaps
PEAK = 0.3


def two_parts(separator: Separator, mixture_S: np.ndarray) -> np.ndarray:
    """Two parts `(2, S)`: those of two slots, or that of one and what it leaves of the mixture."""
    model = separator.model
    slots_RE = separator.slots(min(2, model.slots))
    part_RS = separator.separate_conditions(mixture_S, model.sample_rate_hz, slots_RE)
    return np.concatenate([part_RS, mixture_S[None] - part_RS])[[0, 1]]


def pair_scores(
    separator: Separator, found: dict[str, list[Path]], voices: ge2e.VoiceEncoder | None
) -> np.ndarray:
    """SI-SDRi in dB `(N, 2)` of both speakers of each mixture.

    With `voices`, each has the part that is more similar to another recording of his; otherwise
    the parts are in the better order.
    """
    rate_hz = separator.model.sample_rate_hz
    sounds = {name: [sound(path, rate_hz) for path in paths] for name, paths in found.items()}
    rows = []
    for (one, other), k in itertools.product(
        itertools.combinations(found, 2), range(NUM_RECORDINGS)
    ):
        first, second = (fitted(sounds[x][k], round(SECONDS * rate_hz)) for x in (one, other))
        mixture_S, first_S = mix_at_snr(first, second, 0, 0.9)
        speakers_2S = np.stack([first_S, mixture_S - first_S])
        parts_2S = two_parts(separator, mixture_S)
        mixture_2S, allowed = np.stack([mixture_S] * 2), [[0, 1], [1, 0]]
        if voices:
            asked = [audio_files.read_mono(found[x][k - 1]) for x in (one, other)]
            own_2E, part_2E = voices(asked), voices([(x, rate_hz) for x in parts_2S])
            allowed = [(own_2E @ part_2E.T).argmax(1).tolist()]
        orders = [
            np.asarray(si_sdr_improvement(speakers_2S, parts_2S[order], mixture_2S))
            for order in allowed
        ]
        rows.append(max(orders, key=np.mean))
    return np.array(rows)


def conversation(found: dict[str, list[Path]], minutes: float, rate_hz: int) -> np.ndarray:
    """Make two speakers `(2, S)` who take turns; each begins before the other has ended."""
    rng, num_samples = np.random.default_rng(0), round(minutes * 60 * rate_hz)
    names = list(found)[:2]
    speech = [np.concatenate([sound(path, rate_hz) for path in found[x]]) for x in names]
    speech = [PEAK * x / np.abs(x).max() for x in speech]
    speakers_2S, start, who = np.zeros((2, num_samples), np.float32), 0, 0
    while start < num_samples:
        length = min(round(rng.uniform(*TURN_SECONDS) * rate_hz), num_samples - start)
        begin = int(rng.integers(len(speech[who]) - length))
        speakers_2S[who, start : start + length] = speech[who][begin : begin + length]
        start, who = start + max(1, round(length * (1 - OVERLAP))), 1 - who
    return speakers_2S


def swaps(speakers_2S: np.ndarray, parts_2S: np.ndarray, rate_hz: int) -> tuple[int, int]:
    """Count swaps, and the seconds in which exactly one speaker talks, which alone are compared."""
    seconds = speakers_2S.shape[1] // rate_hz

    def energy(audio_2S: np.ndarray) -> np.ndarray:
        blocks = audio_2S[:, : seconds * rate_hz].reshape(2, seconds, rate_hz)
        return np.square(blocks).mean(-1)

    speaker_2T, part_2T = energy(speakers_2S), energy(parts_2S)
    alone_T = speaker_2T.min(0) < 1e-3 * speaker_2T.max(0)
    same_T = speaker_2T.argmax(0) == part_2T.argmax(0)
    changes = same_T[alone_T]
    return int(np.sum(changes[1:] != changes[:-1])), int(alone_T.sum())


def score_conversation(checkpoint: str, found: dict[str, list[Path]], minutes: float) -> None:
    """Separate a conversation with the command; print its memory, error and swaps."""
    model = Separator.load(checkpoint, engine="jax").model
    rate_hz, num_slots = model.sample_rate_hz, min(2, model.slots)
    speakers_2S = conversation(found, minutes, rate_hz)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "talk.wav"
        audio_files.write(path, speakers_2S.sum(0)[None], rate_hz, subtype="FLOAT")
        command = [sys.executable, "separate.py", str(path), "--checkpoint", checkpoint]
        options = ["--blind", str(num_slots), "--residual", "--output", folder]
        subprocess.run([*command, *options], check=True)
        names = ("part 1", "part 2", "residual") if num_slots == 2 else ("part", "residual")
        parts = [audio_files.read_mono(Path(folder) / f"talk - {x}.wav")[0] for x in names]
    error = np.abs(np.sum(parts, axis=0) - speakers_2S.sum(0)).max()
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6
    count, seconds = swaps(speakers_2S, np.stack(parts[:2]), rate_hz)
    print(f"{minutes:g} minutes: peak memory {peak:.2f} GB, parts add up to {error:.1e}")
    print(f"{count} swaps in {seconds} s in which one speaker talks alone")


def main() -> None:
    """Print the scores."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--voices", type=Path, required=True, help="folder of a folder for each speaker"
    )
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument(
        "--minutes", type=float, help="length of a conversation to score instead of the pairs"
    )
    parser.add_argument("--by_voice", action="store_true", help="choose parts by voice")
    parser.add_argument("--text_model", default="", help="weights of the voice encoder")
    arguments = parser.parse_args()
    found = recordings(arguments.voices, NUM_RECORDINGS)
    if arguments.minutes:
        score_conversation(arguments.checkpoint, found, arguments.minutes)
        return
    voices = ge2e.VoiceEncoder(arguments.text_model) if arguments.by_voice else None
    score_N2 = pair_scores(Separator.load(arguments.checkpoint, engine="jax"), found, voices)
    groups = ["-".join(x) for x in itertools.combinations(found, 2) for _ in range(NUM_RECORDINGS)]
    print(
        f"SI-SDRi {interval(score_N2.mean(1), groups)} dB, median {np.median(score_N2):.2f}, "
        f"{np.mean(score_N2 < 0):.1%} of speakers below 0 dB, {len(groups)} mixtures"
    )


if __name__ == "__main__":
    main()
