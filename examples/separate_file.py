"""Separate a recording from Python: as an array, as a file of any length, and as a live stream.

python examples/separate_file.py runs/demo/example/mixture.wav "heavy rain" runs/demo
"""

import sys

import numpy as np

from audiosep_jax import Separator
from audiosep_jax.audio import files as audio_files


def main(path: str, query: str, checkpoint: str) -> None:
    """Separate `query` from the recording at `path` in three ways."""
    separator = Separator.load(checkpoint)

    # An array that fits into memory: (channels, samples), float32.
    audio_CS, sample_rate_hz = audio_files.read(path)
    estimate_CS = separator.separate(audio_CS, sample_rate_hz, query)
    audio_files.write("estimate.wav", estimate_CS, sample_rate_hz)
    print(f"wrote estimate.wav, {estimate_CS.shape[1] / sample_rate_hz:.1f} s")

    # A file of any length, in bounded memory. Estimate and residual add up to the recording.
    condition_NE = separator.embed_text([query])
    result = separator.separate_file(path, ["target.wav"], condition_NE, residual="rest.wav")
    print(f"wrote target.wav with {result.share_N[0]:.0%} of the energy, and rest.wav")

    # Sound that arrives in blocks, such as from a microphone.
    stream = separator.stream(sample_rate_hz, condition_NE, len(audio_CS), tile_seconds=0.5)
    blocks = [stream.feed(block_CS) for block_CS in np.array_split(audio_CS, 50, axis=1)]
    streamed_NCS = np.concatenate([*blocks, stream.finish()], axis=-1)
    print(f"streamed {streamed_NCS.shape[-1] / sample_rate_hz:.1f} s in 50 blocks")


if __name__ == "__main__":
    main(*sys.argv[1:])
