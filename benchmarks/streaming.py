"""The SNR of a stream of ResUNet30 against one pass over the whole recording.

    python benchmarks/streaming.py --seconds 60

The weights are random and use every layer; the recording is noise. The SNR is taken over all
samples and over the worst tenth of a second; the target is 100 dB. One pass over 60 s takes 6 GB.
"""

import argparse
import functools

import jax
import numpy as np
from absl import logging
from networks import random_separator, snr_db

from audiosep_jax.model import make_model
from audiosep_jax.model.resunet import ResUNetConfig


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=60.0)
    arguments = parser.parse_args()
    logging.set_verbosity(logging.ERROR)
    model = ResUNetConfig()
    separator, rng = random_separator(model), np.random.default_rng(1)
    num_samples = round(arguments.seconds * model.sample_rate_hz)
    audio_CS = 0.1 * rng.standard_normal((1, num_samples), np.float32)
    condition_NE = rng.standard_normal((1, model.condition_features), np.float32)
    condition_NE /= np.linalg.norm(condition_NE)
    stream = separator.stream(model.sample_rate_hz, condition_NE, 1, 2.56)
    parts = [stream.feed(block_CS) for block_CS in np.array_split(audio_CS, 20, axis=1)]
    streamed_S = np.concatenate([*parts, stream.finish()], axis=-1)[0, 0]
    whole = jax.jit(functools.partial(make_model(model).apply, train=False))
    whole_S = np.asarray(whole(separator.variables, audio_CS, condition_NE))[0]
    share = np.sum(whole_S**2) / np.sum(audio_CS**2)
    print(f"{arguments.seconds:g} s, the estimate has {share:.3f} of the mixture's energy")
    print(f"SNR of the stream against one pass: {snr_db(whole_S, streamed_S):.1f} dB")
    tenth = model.sample_rate_hz // 10
    worst = min(
        snr_db(whole_S[start : start + tenth], streamed_S[start : start + tenth])
        for start in range(0, num_samples, tenth)
    )
    print(f"in the worst tenth of a second: {worst:.1f} dB")


if __name__ == "__main__":
    main()
