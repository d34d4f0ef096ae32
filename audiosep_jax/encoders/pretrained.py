"""CLAP's and CLIP's text towers as encoders, from published files and without PyTorch."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from audiosep_jax.encoders import clap_text, clip_text, model_files
from audiosep_jax.encoders import names as tower_names
from audiosep_jax.encoders.encoder import DEFAULT_MODELS, MODEL_OPTION
from audiosep_jax.encoders.model_files import ModelFiles
from audiosep_jax.encoders.tokenize import TOKEN_LENGTHS, tokenize
from audiosep_jax.errors import InputError
from audiosep_jax.weights import hub

# Part of every fingerprint: raise it when the same files come to give other embeddings.
VERSION = 1
TOKENIZER_FILES = ("tokenizer.json", "tokenizer*.json")  # the second brings its config, if any
TEXT_NAMES = ("text_model.", "text_projection.")


@dataclasses.dataclass(frozen=True)
class Tower:
    """A text tower on the accelerator: ids and mask (N, L) to unit vectors (N, E)."""

    embed: Callable[[np.ndarray, np.ndarray], jax.Array]
    dimensions: int
    vocab_size: int
    max_tokens: int
    pad_token_id: int | None = None  # None where padding may be any token

    def lengths(self) -> tuple[int, ...]:
        """Fixed numbers of tokens, of which the last is the most that the tower takes."""
        most = min(self.max_tokens, TOKEN_LENGTHS[-1])
        return (*(length for length in TOKEN_LENGTHS if length < most), most)


class TowerEncoder:
    """A text tower with its tokenizer, both read when the first sentence comes."""

    def __init__(
        self, fingerprint: str, load: Callable[[], tuple[Any, Tower]], batch_size: int = 256
    ) -> None:
        self.fingerprint = fingerprint
        self.batch_size = batch_size
        self._load = load

    @functools.cached_property
    def _loaded(self) -> tuple[Any, Tower]:
        return self._load()

    def __call__(self, sentences: Sequence[str]) -> np.ndarray:
        """`(N, E)` float32, each row of length 1, in the order of the sentences."""
        _check_text(sentences)
        tokenizer, tower = self._loaded
        ids_NL, mask_NL = tokenize(tokenizer, sentences, tower.lengths())
        _check_tokens(tokenizer, tower, ids_NL)
        counts_N = mask_NL.sum(axis=1)
        # All batches are under way before the first is waited for.
        pending = [
            (rows, _embed_rows(tower, ids_NL[rows], mask_NL[rows], int(counts_N[rows[-1]])))
            for rows in batches_by_length(counts_N, self.batch_size)
        ]
        embedding_NE = np.empty((len(ids_NL), tower.dimensions), np.float32)
        for rows, rows_NE in pending:
            embedding_NE[rows] = np.asarray(rows_NE)[: len(rows)]
        if not np.isfinite(embedding_NE).all():
            raise InputError(f"text encoder {self.fingerprint}: its weights give NaN or infinity")
        return embedding_NE


def clap_encoder(
    source: str = DEFAULT_MODELS["clap"], *, batch_size: int = 256, option: str = MODEL_OPTION
) -> TowerEncoder:
    """CLAP's text encoder from a hub id, a folder, or a checkpoint with LAION's names in it."""
    files = model_files.find_model(source, TOKENIZER_FILES, option=option)
    if files.folder is None:
        config, place = clap_text.LAION_TEXT_CONFIG, DEFAULT_MODELS["clap"]
        tokenizer = hub.snapshot(place, ("config.json", *TOKENIZER_FILES), option=option)
    else:
        config, tokenizer = clap_text.ClapTextConfig.from_dict(files.config()), files.folder

    def load() -> tuple[Any, Tower]:
        params = tower_names.clap_text_params(config, files.state(TEXT_NAMES))
        tower = Tower(
            functools.partial(clap_text.embed, config, _on_device(params)),
            config.projection_dim,
            config.vocab_size,
            config.max_position_embeddings - config.pad_token_id - 1,
            config.pad_token_id,
        )
        return load_tokenizer(tokenizer), tower

    return TowerEncoder(_fingerprint("clap", files, tokenizer), load, batch_size)


def clip_encoder(
    source: str = DEFAULT_MODELS["clip"], *, batch_size: int = 256, option: str = MODEL_OPTION
) -> TowerEncoder:
    """CLIP's text encoder from a hub id or a folder."""
    files = model_files.find_model(source, TOKENIZER_FILES, option=option)
    if files.folder is None:
        raise InputError(f"{source}: is a file; {option} takes a folder with CLIP's config.json")
    config, tokenizer = clip_text.ClipTextConfig.from_dict(files.config()), files.folder

    def load() -> tuple[Any, Tower]:
        params = tower_names.clip_text_params(config, files.state(TEXT_NAMES))
        tower = Tower(
            functools.partial(clip_text.embed, config, _on_device(params)),
            config.projection_dim,
            config.vocab_size,
            config.max_position_embeddings,
        )
        return load_tokenizer(tokenizer), tower

    return TowerEncoder(_fingerprint("clip", files, tokenizer), load, batch_size)


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer whose files lie in `folder`."""
    # It takes seconds to import, and a run whose captions are all known needs none.
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    except Exception as error:  # the tokenizers' own errors have no base class
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{folder}: its tokenizer cannot be read ({reason})") from error


def batches_by_length(counts_N: np.ndarray, batch_size: int) -> Iterator[np.ndarray]:
    """Rows of each batch, short sentences first, the longest of a batch last in it."""
    order_N = np.argsort(counts_N, kind="stable")
    for start in range(0, len(order_N), batch_size):
        yield order_N[start : start + batch_size]


def _embed_rows(tower: Tower, ids_NL: np.ndarray, mask_NL: np.ndarray, longest: int) -> jax.Array:
    """Embeddings in one of a few shapes, so with rows behind the last that are to be ignored."""
    num_tokens = next(length for length in tower.lengths() if length >= longest)
    num_rows = 1 << (len(ids_NL) - 1).bit_length()
    extra = ((0, num_rows - len(ids_NL)), (0, 0))
    ids_NL, mask_NL = ids_NL[:, :num_tokens], mask_NL[:, :num_tokens]
    return tower.embed(np.pad(ids_NL, extra, "edge"), np.pad(mask_NL, extra, "edge"))


def _fingerprint(kind: str, files: ModelFiles, tokenizer: Path) -> str:
    """Of everything that an embedding depends on."""
    paths = [files.weights, tokenizer / "tokenizer.json", tokenizer / "tokenizer_config.json"]
    paths += [files.folder / "config.json"] if files.folder else []
    paths = [path for path in paths if path.is_file()]  # a tokenizer needs no config
    return model_files.fingerprint(kind, VERSION, paths)


def _on_device(params: Any) -> Any:
    return jax.device_put(model_files.to_float32(params), jax.local_devices()[0])


def _check_text(sentences: Sequence[str]) -> None:
    for i, sentence in enumerate(sentences):
        if isinstance(sentence, str) and any("\ud800" <= x <= "\udfff" for x in sentence):
            raise InputError(f"sentence {i}, {sentence!r}, is not valid text")


def _check_tokens(tokenizer: Any, tower: Tower, ids_NL: np.ndarray) -> None:
    """A tokenizer of another model would give embeddings of nothing, and no error."""
    place = tokenizer.name_or_path
    if tower.pad_token_id not in (None, tokenizer.pad_token_id):
        pads = f"{tokenizer.pad_token_id}, the tower with {tower.pad_token_id}"
        raise InputError(f"{place}: the tokenizer pads with token {pads}")
    if ids_NL.max(initial=0) >= tower.vocab_size:
        raise InputError(
            f"{place}: the tokenizer gives token {ids_NL.max()}, the tower knows {tower.vocab_size}"
        )
