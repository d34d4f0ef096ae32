"""Conditions of training: embeddings of all captions, or of the targets' own sounds.

In the paper's hybrid supervision the clean target itself is the query of some batches.
`TargetQueries` makes their conditions in two parts. Resampling takes a while on a CPU and is done
ahead of time, in the thread of the data pipeline. The audio tower runs on all devices, each of
which embeds its own rows.
"""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np

from audiosep_jax.data.captions import Captions
from audiosep_jax.data.cores import available_cores
from audiosep_jax.encoders import make_encoder
from audiosep_jax.encoders.encoder import TextConfig, check_dimensions
from audiosep_jax.encoders.hashed import words_of
from audiosep_jax.encoders.table import caption_table
from audiosep_jax.training import processes
from audiosep_jax.training.config import Config
from audiosep_jax.training.parallel import parallel_eval_step, place_state
from audiosep_jax.training.steps import Batch

if TYPE_CHECKING:
    from audiosep_jax.encoders.pretrained import AudioEncoder

_WAVE = "query_wave"  # (B, samples) at the tower's rate, in batches whose queries are the targets
_ROWS_SENT = 2**15  # at once: the copies on the devices take a few times their 64 MB


def distinct_captions(*data_sets: Captions) -> list[str]:
    """Every caption of the data sets once, in alphabetical order."""
    return sorted({text for captions in data_sets for text in captions.texts})


def captions_hash(captions: list[str]) -> str:
    """Hash of a list of captions and their order."""
    return hashlib.sha256("\0".join(captions).encode()).hexdigest()[:16]


def known_words(config: TextConfig, captions: list[str]) -> list[str]:
    """Words of the captions, if the text encoder knows no others; else none."""
    return words_of(captions) if config.encoder == "hashed" else []


def make_conditions(config: Config, captions: list[str]) -> tuple[dict[str, np.ndarray], str]:
    """Return the `(E,)` of each caption, and the encoder's fingerprint (in process 0 only).

    Process 0 computes the embeddings and sends them to the others.
    """
    fingerprint = ""
    rows_NE = np.zeros((len(captions), config.model.condition_features), np.float32)
    with processes.failing_together():
        if processes.is_main():
            encoder = make_encoder(config.text)
            table, fingerprint = caption_table(encoder, captions), encoder.fingerprint
            check_dimensions(table, config.model.condition_features)
            del encoder  # and with it its weights, which a device holds
            rows_NE = np.stack([table[caption] for caption in captions])
    for start in range(0, len(captions), _ROWS_SENT):
        part = slice(start, start + _ROWS_SENT)
        rows_NE[part] = processes.broadcast(rows_NE[part], rows_NE[part])
    return dict(zip(captions, rows_NE, strict=True)), fingerprint


class TargetQueries:
    """Conditions of the batches whose queries are the targets' sounds.

    The share `config.text.use_text_ratio` of the batches keeps its captions.

    queries = TargetQueries(encoder, config)
    batch = queries.prepare(step, batch)  # in any thread, before the rows are split over devices
    batch = queries.embed(batch)  # after that; in the same steps in all processes
    """

    def __init__(self, encoder: "AudioEncoder", config: Config) -> None:
        """Place the tower's parameters on all devices."""

        def embed(params: Any, batch: Batch) -> Batch:
            return {"condition": encoder.embed_waves(params, batch[_WAVE])}

        self._encoder, self._config = encoder, config
        self._embed = parallel_eval_step(embed, config.parallel)
        self._params = place_state(encoder.params, config.parallel)
        self._threads = ThreadPoolExecutor(available_cores(), thread_name_prefix="resample")

    def prepare(self, step: int, batch: Batch) -> Batch:
        """Resample the targets for the tower, if the batch after `step` steps asks by sound."""
        if not asks_by_sound(self._config.seed, step, self._config.text.use_text_ratio):
            return batch
        rate_hz = self._config.model.sample_rate_hz
        waves = self._threads.map(lambda x_S: self._encoder.fit(x_S, rate_hz), batch["target"])
        return {**batch, _WAVE: np.stack(list(waves))}

    def embed(self, batch: Batch) -> Batch:
        """Replace the conditions of a prepared and split batch by embeddings of its targets."""
        if _WAVE not in batch:
            return batch
        rest = {name: rows for name, rows in batch.items() if name != _WAVE}
        return rest | self._embed(self._params, {_WAVE: batch[_WAVE]})


def target_queries(config: Config) -> TargetQueries | None:
    """Build `TargetQueries`; None if every query is a caption."""
    if config.text.use_text_ratio == 1:
        return None
    from audiosep_jax.encoders.pretrained import AudioEncoder

    return TargetQueries(AudioEncoder(config.text.source), config)


def asks_by_sound(seed: int, step: int, use_text_ratio: float) -> bool:
    """Draw whether the batch that follows `step` steps has its targets as queries."""
    # The key makes the draw independent of those of the mixtures.
    rng = np.random.default_rng(np.random.SeedSequence([seed, step], spawn_key=(1,)))
    return bool(rng.random() >= use_text_ratio)
