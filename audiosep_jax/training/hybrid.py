"""The paper's hybrid supervision: now and then the clean target itself is the query."""

from collections.abc import Generator, Iterable
from typing import Protocol

import numpy as np

from audiosep_jax.encoders.encoder import TextConfig


class EmbedsAudio(Protocol):
    """What `audio_encoders.clap.AudioEncoder` is."""

    def embed_audio(self, audio: np.ndarray, sample_rate_hz: int) -> np.ndarray:
        """`(N, E)` of `(N, S)`."""


def make_audio_encoder(config: TextConfig) -> EmbedsAudio | None:
    """The audio encoder beside the text encoder; None where every query is a sentence."""
    if config.use_text_ratio == 1:
        return None
    from audiosep_jax.encoders.pretrained import AudioEncoder

    return AudioEncoder(config.source)


def asks_by_audio(seed: int, step: int, use_text_ratio: float) -> bool:
    """Whether the batch that makes `step + 1` out of `step` has audio embeddings as conditions."""
    # A key of its own, so that the draw has nothing to do with those of the mixtures.
    rng = np.random.default_rng(np.random.SeedSequence([seed, step], spawn_key=(1,)))
    return bool(rng.random() >= use_text_ratio)


def hybrid_batches(
    batches: Iterable[dict[str, np.ndarray]],
    encoder: EmbedsAudio,
    *,
    seed: int,
    first_step: int,
    use_text_ratio: float,
    sample_rate_hz: int,
) -> Generator[dict[str, np.ndarray], None, None]:
    """The batches, whole ones of them with the embedding of their targets as the condition."""
    for step, batch in enumerate(batches, start=first_step):
        if asks_by_audio(seed, step, use_text_ratio):
            condition_BE = encoder.embed_audio(batch["target"], sample_rate_hz)
            batch = {**batch, "condition": condition_BE}
        yield batch
