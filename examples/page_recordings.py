"""Make the recordings of the web page and of the README, and score how `small` separates them.

    python examples/page_recordings.py DATA

mixes two recordings each, neither of which the model was trained with, at 0 dB. DATA holds them
as `docs/data.md` describes. The street has the median SDRi of the 48 mixtures with a dog in
`small_lists/esc10.csv`; a picture of it goes into the README.

Recordings: a dog by Ligidium, a helicopter by doctor567 and rain by Zepp2010 (freesound.org, from
ESC-10), and a drum by Michi Henning (Wikimedia Commons), all CC0; "Ashiel Mystery", read by Garth
Comira (LibriSpeech, CC BY 4.0); a trumpet by Mihai Sorohan (freesound.org, CC BY 3.0).
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image

from audiosep_jax import Separator
from audiosep_jax.audio import files as audio_files
from audiosep_jax.metrics import sdr, si_sdr
from audiosep_jax.plots import spectrogram_figure

ROOT = Path(__file__).resolve().parents[1]
RATE_HZ, SECONDS, PEAK = 16000, 5, 0.7
WRONG_QUERY = "a rooster crowing"  # scored against the first part
MIXTURES = {
    "street": {
        "a dog barking": "esc10/audio/4-192236-A-0",
        "a helicopter flying": "esc10/audio/4-161579-B-40",
    },
    "rain": {
        "a person speaking": "recordings/speech_male_mystery",
        "rain": "esc10/audio/4-163264-A-10",
    },
    "duo": {
        "a trumpet": "recordings/trumpet_solo",
        "hand drums": "real/music/africa",
    },
}


def read(path: Path) -> np.ndarray:
    """Return the beginning of a recording in mono at RATE_HZ, `(S,)`; the path has no suffix."""
    audio_CS, rate_hz = audio_files.read(next(path.parent.glob(f"{path.name}.*")))
    audio_CS = audio_files.resample(audio_CS, rate_hz, RATE_HZ)
    return audio_files.to_mono(audio_CS)[: RATE_HZ * SECONDS]


def mix(paths: list[Path]) -> np.ndarray:
    """Return recordings of equal energies whose sum has the peak PEAK, `(N, S)`."""
    part_NS = np.stack([read(path) for path in paths])
    part_NS /= np.linalg.norm(part_NS, axis=1, keepdims=True)
    return part_NS * PEAK / np.abs(part_NS.sum(0)).max()


def main(data: str, recordings: Path = ROOT / "audiosep_jax" / "demo") -> None:
    """Write the mixtures and the picture, and print the SDRi of each query and of a wrong one."""
    separator = Separator.load("small")
    for name, paths in MIXTURES.items():
        part_NS, path = mix([Path(data) / x for x in paths.values()]), recordings / f"{name}.flac"
        audio_files.write(path, part_NS.sum(0)[None], RATE_HZ, format="FLAC", subtype="PCM_16")
        mixture_S = audio_files.read(path)[0][0]
        estimate_NS = separator.separate(mixture_S, RATE_HZ, [*paths, WRONG_QUERY])
        target_NS = np.stack([*part_NS, part_NS[0]])
        for score in (sdr, si_sdr):
            gain_N = score(target_NS, estimate_NS) - score(target_NS, 0 * target_NS + mixture_S)
            told = [f"{x} {y:.1f} dB" for x, y in zip([*paths, WRONG_QUERY], gain_N, strict=True)]
            print(f"{name}, {score.__name__}i: {', '.join(told)}")
        if name == "street":
            dog = next(iter(paths))
            panels = {"recording": mixture_S, dog: estimate_NS[0], "the dog alone": part_NS[0]}
            draw(panels, ROOT / "docs" / "street.png")


def draw(panels: dict[str, np.ndarray], picture: Path) -> None:
    """Draw spectrograms in a palette of 48 colours, which makes the file a third as large."""
    spectrogram_figure(panels, RATE_HZ, picture)
    Image.open(picture).convert("RGB").quantize(48).save(picture, optimize=True)


if __name__ == "__main__":
    main(sys.argv[1])
