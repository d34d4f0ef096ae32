"""CLAP's, CLIP's and sentence towers as encoders, from published files and without PyTorch."""

import dataclasses
import functools
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from audiosep_jax import files
from audiosep_jax.audio import files as audio_files
from audiosep_jax.encoders import clap_text, names
from audiosep_jax.encoders.clap_audio import (
    HTSAT_BASE,
    Htsat,
    HtsatConfig,
    MelConfig,
    features,
    fit_clip,
)
from audiosep_jax.encoders.clap_text import ClapText, ClapTextConfig
from audiosep_jax.encoders.clip_image import ClipImage, ClipImageConfig
from audiosep_jax.encoders.clip_text import ClipText, ClipTextConfig
from audiosep_jax.encoders.encoder import DEFAULT_MODELS
from audiosep_jax.encoders.layers import embed, unit_norm
from audiosep_jax.encoders.pictures import SIZE
from audiosep_jax.encoders.sentence_text import SentenceConfig, SentenceText
from audiosep_jax.errors import InputError
from audiosep_jax.weights import hub
from audiosep_jax.weights.torch_files import read_state_dict

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Part of every fingerprint: raise it when the same files come to give other embeddings.
VERSION = 1
WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # the first that exists is read
TOKENIZER_FILES = ("tokenizer.json", "tokenizer*.json")  # the second adds its config, if any
PREPROCESSOR = "preprocessor_config.json"
TEXT_NAMES = ("text_model.", "text_projection.", "embeddings.", "encoder.")
AUDIO_NAMES = ("audio_model.", "audio_projection.")
IMAGE_NAMES = ("vision_model.", "visual_projection.")
# Sentences are padded to one of these lengths, so that few programs are compiled. The longest is
# CLIP's context, and the length that CLAP was trained with.
TOKEN_LENGTHS = (16, 32, 77)
_CONFIGS: dict[str, Any] = {
    "clap": ClapTextConfig,
    "clip": ClipTextConfig,
    "sentence": SentenceConfig,
}
_TOWERS: dict[str, Any] = {"clap": ClapText, "clip": ClipText, "sentence": SentenceText}


# ---------------------------------------------------------------------------- files


@dataclasses.dataclass(frozen=True)
class ModelFiles:
    """Weights, and the folder with their sizes; the folder is None for a single checkpoint."""

    weights: Path
    folder: Path | None

    def config(self, name: str = "config.json") -> dict[str, Any]:
        """Read a JSON file of the folder."""
        return files.read_json_object(self.folder / name) if self.folder else {}

    def state(self, prefixes: tuple[str, ...]) -> dict[str, np.ndarray]:
        """Read the tensors whose names start so; all of a checkpoint, which has other names."""
        return read_state_dict(self.weights, prefixes=prefixes if self.folder else ("",))

    def fingerprint(self, kind: str, *others: Path) -> str:
        """Name of the function that a tower with these files computes."""
        digest = hashlib.sha256(f"{VERSION}".encode())
        for path in (self.weights, *others):
            if path.is_file():  # a tokenizer needs no config
                digest.update(hub.file_hash(path).encode())
        return f"{kind}-{digest.hexdigest()[:32]}"


def find_model(source: str, names: Sequence[str]) -> ModelFiles:
    """Find the files of a hub id, a folder or a checkpoint; fetch them if they are on a hub.

    Args:
        source: what to look for.
        names: files that must be in the folder beside its config and weights.
    """
    if os.path.isfile(source):
        return ModelFiles(Path(source), None)
    folder = hub.snapshot(source, ("config.json", *names, hub.OR.join(WEIGHTS)))
    weights = next(folder / name for name in WEIGHTS if (folder / name).is_file())
    return ModelFiles(weights, folder)


# ---------------------------------------------------------------------------- sentences


class TowerEncoder:
    """A text tower with its tokenizer; both are read when the first sentence comes.

    Args:
        kind: `clap`, `clip` or `sentence`.
        source: a hub id or a folder; for CLAP also a checkpoint with LAION's names in it.
        batch_size: sentences that the tower embeds at once.
    """

    def __init__(self, kind: str, source: str = "", *, batch_size: int = 256) -> None:
        self._files = find_model(source or DEFAULT_MODELS[kind], TOKENIZER_FILES)
        self._kind, self.batch_size, self.config = kind, batch_size, clap_text.LAION_TEXT_CONFIG
        if self._files.folder is not None:
            self._folder = self._files.folder
            self.config = _CONFIGS[kind].from_dict(self._files.config())
        elif kind == "clap":
            self._folder = hub.snapshot(DEFAULT_MODELS[kind], ("config.json", *TOKENIZER_FILES))
        else:
            raise InputError(f"{source}: is a file; {kind} needs a folder or hub id")
        self._tower = _TOWERS[kind](self.config)
        most = min(self.config.max_tokens, TOKEN_LENGTHS[-1])
        self.lengths = (*(length for length in TOKEN_LENGTHS if length < most), most)
        others = [self._folder / name for name in ("tokenizer.json", "tokenizer_config.json")]
        others += [self._folder / "config.json"] if self._files.folder else []
        self.fingerprint = self._files.fingerprint(kind, *others)

    def __call__(self, sentences: Sequence[str]) -> np.ndarray:
        """Return `(N, E)` float32, each row of length 1, in the order of the sentences."""
        ids_NL, mask_NL = tokenize(self._tokenizer, sentences, self.lengths)
        if ids_NL.max(initial=0) >= self.config.vocab_size:
            raise InputError(f"{self._folder}: the tokenizer has more words than the tower")
        counts_N = mask_NL.sum(axis=1)
        # Sentences of similar length share a batch. All batches are dispatched before the result
        # of the first is waited for.
        order_N = np.argsort(counts_N, kind="stable")
        starts = range(0, len(order_N), self.batch_size)
        batches = [order_N[start : start + self.batch_size] for start in starts]
        pending = [self._embed(ids_NL[rows], mask_NL[rows]) for rows in batches]
        embedding_NE = np.empty((len(ids_NL), self.config.projection_dim), np.float32)
        for rows, rows_NE in zip(batches, pending, strict=True):
            embedding_NE[rows] = np.asarray(rows_NE)[: len(rows)]
        if not np.isfinite(embedding_NE).all():
            raise InputError(f"text encoder {self.fingerprint}: its weights give NaN or infinity")
        return embedding_NE

    def _embed(self, ids_NL: np.ndarray, mask_NL: np.ndarray) -> jax.Array:
        """Embed a batch, padded to one of a few shapes; the rows beyond N are to be ignored."""
        longest = int(mask_NL.sum(axis=1).max())
        num_tokens = next(length for length in self.lengths if length >= longest)
        extra = ((0, _power_of_two(len(ids_NL)) - len(ids_NL)), (0, 0))
        padded = [np.pad(x[:, :num_tokens], extra, "edge") for x in (ids_NL, mask_NL)]
        return embed(self._tower, self._params, *padded)

    @functools.cached_property
    def _params(self) -> Any:
        return _on_device(names.tower_params(self._tower, self._files.state(TEXT_NAMES)))

    @functools.cached_property
    def _tokenizer(self) -> "PreTrainedTokenizerBase":
        tokenizer = load_tokenizer(self._folder)
        # CLAP counts positions from the padding token.
        if self._kind == "clap" and tokenizer.pad_token_id != self.config.pad_token_id:
            pads = f"{tokenizer.pad_token_id}, the tower with {self.config.pad_token_id}"
            raise InputError(f"{self._folder}: the tokenizer pads with token {pads}")
        return tokenizer


def load_tokenizer(folder: Path) -> "PreTrainedTokenizerBase":
    """Load the tokenizer whose files are in `folder`."""
    # It takes seconds to import, and a run whose captions are all in the table does not need it.
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    except Exception as error:  # the tokenizers' own errors have no base class
        path = folder / "tokenizer.json"
        reason = (
            files.not_the_file(path) or f"cannot be read ({' '.join(str(error).split())[:200]})"
        )
        raise InputError(f"{path}: {reason}") from error


def tokenize(
    tokenizer: "PreTrainedTokenizerBase",
    sentences: Sequence[str],
    lengths: tuple[int, ...] = TOKEN_LENGTHS,
) -> tuple[np.ndarray, np.ndarray]:
    """Turn sentences into ids and mask (N, L) int32, padded on the right.

    L is the first of `lengths` that holds the longest sentence. A sentence longer than the last of
    `lengths` is cut there and keeps its end-of-text token.
    """
    for i, sentence in enumerate(sentences):
        if not isinstance(sentence, str) or any("\ud800" <= x <= "\udfff" for x in sentence):
            raise InputError(f"sentence {i}, {sentence!r}, is not valid text")
    if tokenizer.pad_token_id is None:
        raise InputError(f"tokenizer {tokenizer.name_or_path!r} has no padding token")
    ids: list[list[int]] = []
    if sentences:
        # Not padded by the tokenizer: some pad on the left, some ignore a fixed length.
        limit = {"truncation": True, "max_length": lengths[-1], "padding": False}
        ids = tokenizer(list(sentences), **limit)["input_ids"]
    longest = max(map(len, ids), default=0)
    num_tokens = next(length for length in lengths if length >= longest)
    input_ids_NL = np.full((len(ids), num_tokens), tokenizer.pad_token_id, np.int32)
    attention_mask_NL = np.zeros_like(input_ids_NL)
    for i, row in enumerate(ids):
        input_ids_NL[i, : len(row)] = row
        attention_mask_NL[i, : len(row)] = 1
    return input_ids_NL, attention_mask_NL


# ---------------------------------------------------------------------------- sounds


class AudioEncoder:
    """CLAP's audio tower, from the same files as its text tower, read when the first sound comes.

    encoder = AudioEncoder("laion/larger_clap_general")
    condition_NE = encoder([(speech_S, 44100), (rain_S, 16000)])
    """

    def __init__(self, source: str = DEFAULT_MODELS["clap"], *, batch_size: int = 32) -> None:
        """Find the files of a hub id, a folder, or a checkpoint with LAION's names in it."""
        self._files = find_model(source, (PREPROCESSOR,))
        self.batch_size = batch_size
        folder, others = self._files.folder, []
        config, self.mel = HTSAT_BASE, MelConfig()
        if folder is not None:
            config = HtsatConfig.from_dict(self._files.config())
            self.mel = MelConfig.from_dict(self._files.config(PREPROCESSOR))
            others = [folder / "config.json", folder / PREPROCESSOR]
        self.tower = Htsat(config)
        self.fingerprint = self._files.fingerprint("clap-audio", *others)

    def __call__(self, sounds: Sequence[tuple[np.ndarray, int]]) -> np.ndarray:
        """Return `(N, E)` float32 unit vectors of mono sounds `(S,)`, each with its rate in Hz.

        Of a sound longer than 10 s the middle is embedded; a shorter one is repeated.
        """
        embedding_NE = np.empty((len(sounds), self.tower.config.projection_dim), np.float32)
        for start in range(0, len(sounds), self.batch_size):
            batch = sounds[start : start + self.batch_size]
            wave_BS = np.stack([self.fit(audio_S, rate_hz) for audio_S, rate_hz in batch])
            extra = ((0, _power_of_two(len(batch)) - len(batch)), (0, 0))  # few shapes to compile
            rows_NE = self.embed_waves(self.params, jnp.asarray(np.pad(wave_BS, extra)))
            embedding_NE[start : start + len(batch)] = np.asarray(rows_NE)[: len(batch)]
        return embedding_NE

    def embed_audio(self, audio: np.ndarray, sample_rate_hz: int) -> np.ndarray:
        """Return `(N, E)` float32 unit vectors of one mono clip `(S,)` or of `(N, S)`."""
        return self([(audio_S, sample_rate_hz) for audio_S in np.atleast_2d(audio)])

    def fit(self, audio_S: np.ndarray, sample_rate_hz: int) -> np.ndarray:
        """Resample one sound and fit it to the tower's clip: float32 `(self.mel.clip_samples,)`.

        It needs no accelerator and may run in any thread.
        """
        audio_S = np.asarray(audio_S)
        if audio_S.ndim != 1 or audio_S.size == 0 or not np.isfinite(audio_S).all():
            raise InputError(
                f"a clip of shape {audio_S.shape} must be (samples,), not empty, and finite"
            )
        audio_BS = audio_S.astype(np.float32, copy=False)[None]
        wave_BS = audio_files.resample(audio_BS, sample_rate_hz, self.mel.sampling_rate)
        return fit_clip(self.mel, wave_BS)[0]

    def embed_waves(self, params: Any, wave_BS: jax.Array) -> jax.Array:
        """Embed clips made by `fit`: `(B, E)`. A pure function, for use within `jit` or `pmap`."""
        return embed(self.tower, params, features(self.mel, wave_BS))

    @functools.cached_property
    def params(self) -> Any:
        """Parameters of the tower, on the first local device."""
        return _on_device(names.tower_params(self.tower, self._files.state(AUDIO_NAMES)))


# ---------------------------------------------------------------------------- pictures


class ImageEncoder:
    """CLIP's image tower, from the same files as its text tower, read when the first picture comes.

    encoder = ImageEncoder("openai/clip-vit-base-patch32")
    condition_NE = encoder([*pictures.read("dog.jpg"), *pictures.read("film.mp4")])
    """

    def __init__(self, source: str = DEFAULT_MODELS["clip"], *, batch_size: int = 32) -> None:
        """Find the files of a hub id or a folder."""
        self._files, self.batch_size = find_model(source, (PREPROCESSOR,)), batch_size
        folder = self._files.folder
        if folder is None:
            raise InputError(f"{source}: is a file; clip needs a folder or hub id")
        configs = [self._files.config(name) for name in ("config.json", PREPROCESSOR)]
        self.tower = ClipImage(ClipImageConfig.from_dict(*configs))
        if self.tower.config.image_size != SIZE:
            has = self.tower.config.image_size
            raise InputError(f"{source}: takes pictures of {has} pixels; only {SIZE} are known")
        others = (folder / "config.json", folder / PREPROCESSOR)
        self.fingerprint = self._files.fingerprint("clip-image", *others)

    def __call__(self, pictures: Sequence[np.ndarray]) -> np.ndarray:
        """Return `(N, E)` float32 unit vectors of what `pictures.read` returns.

        The vector of a film is the mean of those of its frames, scaled to length 1.
        """
        if not len(pictures):
            return np.empty((0, self.tower.config.projection_dim), np.float32)
        frames_FHWC = np.concatenate(pictures)
        rows_FE = []
        for start in range(0, len(frames_FHWC), self.batch_size):
            batch = self.tower.config.normalize(frames_FHWC[start : start + self.batch_size])
            extra = ((0, _power_of_two(len(batch)) - len(batch)), (0, 0), (0, 0), (0, 0))
            rows_FE.append(embed(self.tower, self.params, np.pad(batch, extra))[: len(batch)])
        starts_N = np.cumsum([0, *(len(frames) for frames in pictures[:-1])])
        sums_NE = np.add.reduceat(np.concatenate(rows_FE), starts_N)
        return np.asarray(unit_norm(jnp.asarray(sums_NE)))

    @functools.cached_property
    def params(self) -> Any:
        """Parameters of the tower, on the first local device."""
        return _on_device(names.tower_params(self.tower, self._files.state(IMAGE_NAMES)))


def _on_device(params: Any) -> Any:
    """Copy parameters out of their file, to the first local device, in float32."""
    # np.array copies: on a CPU, device_put alone would keep a reference to the mapped file.
    params = jax.tree.map(lambda x: np.array(x, np.float32), params)
    return jax.device_put(params, jax.local_devices()[0])


def _power_of_two(count: int) -> int:
    return 1 << (count - 1).bit_length()
