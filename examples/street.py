"""Make the example of the README and the web page: a dog near a helicopter, separated by `small`.

    python examples/street.py ESC-50/audio

mixes two recordings of ESC-10 that were not trained with at 0 dB, writes the mixture and a picture
of the result, and prints the scores. Of the 48 mixtures with a dog in `small_lists/esc10.csv`, this
one has the median SDRi. Both recordings are CC0, by Ligidium and doctor567 (freesound.org).
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
MIXTURE, PICTURE = ROOT / "audiosep_jax" / "demo" / "street.flac", ROOT / "docs" / "street.png"
DOG, NOISE = "4-192236-A-0", "4-161579-B-40"
QUERY, WRONG_QUERY = "a dog barking", "a violin"
RATE_HZ, SECONDS, PEAK = 16000, 5, 0.7


def read(folder: Path, name: str) -> np.ndarray:
    """Return a recording in mono at RATE_HZ, `(S,)`."""
    audio_CS, rate_hz = audio_files.read(next(folder.glob(f"{name}.*")))
    audio_CS = audio_files.resample(audio_CS, rate_hz, RATE_HZ)
    return audio_files.to_mono(audio_CS)[: RATE_HZ * SECONDS]


def main(folder: str, mixture: Path = MIXTURE, picture: Path = PICTURE) -> np.ndarray:
    """Write the mixture and the picture; return the SDR of the mixture and of both estimates."""
    dog_S, noise_S = (read(Path(folder), name) for name in (DOG, NOISE))
    noise_S = noise_S * np.linalg.norm(dog_S) / np.linalg.norm(noise_S)
    gain = PEAK / np.abs(dog_S + noise_S).max()
    mixture_CS = gain * (dog_S + noise_S)[None]
    audio_files.write(mixture, mixture_CS, RATE_HZ, format="FLAC", subtype="PCM_16")
    mixture_S = audio_files.read(mixture)[0][0]

    estimate_NS = Separator.load("small").separate(mixture_S, RATE_HZ, [QUERY, WRONG_QUERY])
    panels = {"recording": mixture_S, QUERY: estimate_NS[0], "the dog alone": gain * dog_S}
    spectrogram_figure(panels, RATE_HZ, picture)
    Image.open(picture).convert("RGB").quantize(48).save(picture, optimize=True)  # a third as large
    every_NS = np.stack([mixture_S, *estimate_NS])
    dog_NS = np.broadcast_to(gain * dog_S, every_NS.shape)
    for score in (sdr, si_sdr):
        print(score.__name__, *(f"{x:.1f} dB" for x in score(dog_NS, every_NS)))
    return np.asarray(sdr(dog_NS, every_NS))


if __name__ == "__main__":
    main(sys.argv[1])
