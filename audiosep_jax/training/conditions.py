"""Conditions of training: embeddings of all captions, or of the targets' own sounds.

In the paper's hybrid supervision the clean target itself is the query of some batches. Targets are
resampled ahead of time, in the thread of the data pipeline. Then the audio tower runs on all
devices, each of which embeds its own rows.
"""

import hashlib
import itertools
import os
import tempfile
from collections.abc import Iterator, MutableMapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, BinaryIO

import jax
import numpy as np

from audiosep_jax.data.captions import Captions
from audiosep_jax.data.source import Source
from audiosep_jax.encoders import KINDS, make_caption_encoder
from audiosep_jax.encoders.encoder import check_dimensions, query_of
from audiosep_jax.encoders.table import caption_table
from audiosep_jax.errors import InputError
from audiosep_jax.training import processes
from audiosep_jax.training.config import Config
from audiosep_jax.training.parallel import parallel_eval_step, place_state
from audiosep_jax.training.steps import Batch
from audiosep_jax.workers import available_cores

if TYPE_CHECKING:
    from audiosep_jax.encoders.pretrained import AudioEncoder

_WAVE = "query_wave"  # (B, samples) at the tower's rate, in batches whose queries are the targets
_ROWS_SENT = 2**15  # at once: the copies on the devices take a few times their 64 MB


def distinct_captions(*data_sets: Captions) -> list[str]:
    """Every caption of the data sets once, in alphabetical order."""
    return sorted({text for captions in data_sets for text in captions.texts})


def captions_hash(captions: list[str]) -> str:
    """Hash of a list of captions and their order; InputError if one is no Unicode text."""
    try:
        text = "\0".join(captions).encode()
    except UnicodeEncodeError as error:  # JSON can hold halves of characters
        part = error.object[max(0, error.start - 20) : error.end + 20]
        raise InputError(f"a caption is no Unicode text: {part!a}") from error
    return hashlib.sha256(text).hexdigest()[:16]


def check_captions(source: Source, encoder: str) -> None:
    """Raise InputError if a caption is of a kind that does not go with the text encoder."""
    for number, text in enumerate(source.captions.texts):
        kind, value = query_of(text)
        if encoder not in (*KINDS[kind].encoders, "none"):
            clips = enumerate(source.captions.all_numbers())
            name = source.name(next(index for index, own in clips if number in own))
            needed = " or ".join(KINDS[kind].encoders)
            raise InputError(f"{name}: its {kind} {value!r} needs text.encoder={needed}")


class ConditionTable(MutableMapping[str, np.ndarray]):
    """The `(E,)` of each caption, E being `features`, in a temporary file.

    Embeddings of 300,000 captions take 600 MB, of which a batch needs a few rows. The file is read
    row by row: mapped into memory, it would soon count for the process as a whole.
    """

    def __init__(self, captions: Sequence[str], features: int) -> None:
        self._numbers = {caption: number for number, caption in enumerate(captions)}
        self._is_set = np.zeros(len(captions), bool)
        self._features, self._row_bytes = features, 4 * features
        self._file = _file_of(self._row_bytes * len(captions))

    def __setitem__(self, caption: str, row_E: np.ndarray) -> None:
        if len(row_E) != self._features:
            check_dimensions({caption: row_E}, self._features)
        number = self._numbers[caption]
        self._write(number, row_E)
        self._is_set[number] = True

    def __getitem__(self, caption: str) -> np.ndarray:
        return self._read(self._numbers[caption], 1)[0]

    def __delitem__(self, caption: str) -> None:
        self._is_set[self._numbers[caption]] = False

    def __contains__(self, caption: object) -> bool:
        number = self._numbers.get(str(caption))
        return number is not None and bool(self._is_set[number])

    def __iter__(self) -> Iterator[str]:
        return (caption for caption, number in self._numbers.items() if self._is_set[number])

    def __len__(self) -> int:
        return int(self._is_set.sum())

    def share(self) -> None:
        """Send the rows of process 0 to all processes."""
        if jax.process_count() > 1:
            for first in range(0, len(self._numbers), _ROWS_SENT):
                count = min(_ROWS_SENT, len(self._numbers) - first)
                rows_NE = self._read(first, count)
                self._write(first, processes.broadcast(rows_NE, rows_NE))
        self._is_set[:] = True

    def _read(self, first: int, count: int) -> np.ndarray:
        size = self._row_bytes
        data = os.pread(self._file.fileno(), size * count, size * first)
        return np.frombuffer(data, np.float32).reshape(count, self._features)

    def _write(self, first: int, rows: np.ndarray) -> None:
        data = np.asarray(rows, np.float32).tobytes()
        os.pwrite(self._file.fileno(), data, self._row_bytes * first)


def _file_of(num_bytes: int) -> BinaryIO:
    """Open a new file without a name: on the disk, or in memory if the disk has no space."""
    new_file: Any = tempfile.TemporaryFile
    try:
        file: BinaryIO = new_file()
        if hasattr(os, "posix_fallocate"):  # where there is no space, this fails, not a write
            os.posix_fallocate(file.fileno(), 0, max(1, num_bytes))
        return file
    except OSError:
        return os.fdopen(os.memfd_create("conditions"), "w+b")


def make_conditions(config: Config, captions: list[str]) -> tuple[ConditionTable | None, str]:
    """Return the `(E,)` of each caption, and the encoder's fingerprint (in process 0 only).

    Process 0 computes the embeddings and sends them to the others. Without an encoder there are
    none.
    """
    if config.text.encoder == "none":
        return None, "none"
    fingerprint, table = "", ConditionTable(captions, config.model.condition_features)
    with processes.failing_together():
        if processes.is_main():
            kinds = [query_of(caption)[0] for caption in captions]
            own = "voice" if config.text.encoder == "voice" else "text"
            for kind in dict.fromkeys((own, *kinds)):
                encoder = make_caption_encoder(kind, config.text)
                fingerprint = fingerprint or encoder.fingerprint
                own_captions = itertools.compress(captions, (x == kind for x in kinds))
                caption_table(encoder, own_captions, table=table)
                del encoder  # and with it its weights, which a device holds
    table.share()
    return table, fingerprint


class TargetQueries:
    """Conditions of the batches whose queries are the targets' sounds.

    The share `config.text.use_text_ratio` of the batches keeps its captions. `prepare` is called in
    any thread, before the rows are split over devices; `embed` after that, in all processes.
    """

    def __init__(self, encoder: "AudioEncoder", config: Config) -> None:
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
    """`TargetQueries` with the audio tower of `config.text`; None if every query is a caption."""
    if config.text.use_text_ratio == 1:
        return None
    from audiosep_jax.encoders.pretrained import AudioEncoder

    return TargetQueries(AudioEncoder(config.text.source), config)


def asks_by_sound(seed: int, step: int, use_text_ratio: float) -> bool:
    """Draw whether the batch that follows `step` steps has its targets as queries."""
    # The key makes the draw independent of those of the mixtures.
    rng = np.random.default_rng(np.random.SeedSequence([seed, step], spawn_key=(1,)))
    return bool(rng.random() >= use_text_ratio)
