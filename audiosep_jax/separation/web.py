"""A page that separates in the browser alone, as a folder of static files with onnxruntime-web."""

import base64
import hashlib
import json
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from audiosep_jax import files
from audiosep_jax.encoders.static import StaticEncoder
from audiosep_jax.errors import InputError
from audiosep_jax.model.network import ModelConfig
from audiosep_jax.model.tiles import tile_bytes
from audiosep_jax.separation.stream import tiling_for

if TYPE_CHECKING:
    from audiosep_jax.separation.separator import Separator

PAGE = Path(__file__).parents[1] / "web"  # the files that every page has
# `npm view onnxruntime-web@VERSION dist.integrity` tells the hash of a version.
PACKAGE, VERSION = "onnxruntime-web", "1.30.0"
SHA512 = "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
RUNTIME = ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")
TILE_SECONDS = 4.0
CHANNELS = 2  # the page mixes recordings of more down to one
# These were measured with Chromium.
BROWSER_BYTES, GRAPH_COPIES = 250_000_000, 4
# The one kind of tokenizer that `web/words.js` knows.
NORMALIZER = {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True}
NORMALIZER |= {"strip_accents": None, "lowercase": True}


def sizes(model: ModelConfig, graph_bytes: int) -> dict[str, int]:
    """Return the frames of a tile, and the memory in bytes that no recording and query adds to."""
    frames = tiling_for(model, 1, TILE_SECONDS, live=True).tile_frames
    network = GRAPH_COPIES * graph_bytes + CHANNELS * tile_bytes(model, frames)
    return {"tile_frames": frames, "fixed_bytes": BROWSER_BYTES + network}


def write_runtime(folder: Path, package: Path | None = None) -> None:
    """Write the files of onnxruntime-web that the page needs.

    Args:
        package: file that `npm pack` wrote. By default, npm fetches it once; the cache keeps it.

    Raises:
        InputError: npm is missing, cannot reach its registry, or the package is another one.
    """
    if package:
        _unpack(package, folder)
    else:
        cached = files.made_once(files.cache_folder(PACKAGE, VERSION), _fetch)
        shutil.copytree(cached, folder)


def _fetch(folder: Path) -> None:
    npm, wanted = shutil.which("npm"), f"{PACKAGE}@{VERSION}"
    hint = f"or give the file that `npm pack {wanted}` writes on another machine"
    if npm is None:
        raise InputError(
            f"{PACKAGE} is fetched with npm, which is not installed: install it, {hint}"
        )
    with tempfile.TemporaryDirectory() as place:
        command = [npm, "pack", wanted, "--silent"]
        ran = subprocess.run(command, cwd=place, capture_output=True, text=True, check=False)
        if ran.returncode:
            reason = " ".join((ran.stderr or ran.stdout).split())[:200] or f"exit {ran.returncode}"
            raise InputError(f"npm cannot fetch {wanted} ({reason}); check its registry, {hint}")
        _unpack(next(Path(place).iterdir()), folder)


def _unpack(package: Path, folder: Path) -> None:
    """Unpack the files of the runtime; InputError if the package is not the pinned one."""
    try:
        content = package.read_bytes()
    except OSError as error:
        raise InputError(f"{package}: cannot be read ({error.strerror or error})") from error
    if base64.b64encode(hashlib.sha512(content).digest()).decode() != SHA512:
        raise InputError(f"{package}: is damaged, or not the package {PACKAGE}@{VERSION}")
    files.make_folder(folder)
    with tarfile.open(package) as archive:
        for name in RUNTIME:
            member = archive.extractfile(f"package/dist/{name}")
            assert member is not None
            (folder / name).write_bytes(member.read())


def write_words(separator: "Separator", folder: Path) -> dict[str, Any] | None:
    """Write the word vectors, and return the tokenizer; None if browsers cannot run the encoder."""
    encoder = separator.encoder("text")
    if not isinstance(encoder, StaticEncoder):
        return None
    tokenizer = json.loads(encoder.tokenizer.to_str())
    model, splitter = tokenizer["model"], tokenizer["pre_tokenizer"] or {}
    kinds = tokenizer["normalizer"], splitter.get("type"), model["type"]
    if kinds != (NORMALIZER, "BertPreTokenizer", "WordPiece"):
        return None
    kind = np.int8 if encoder.table_VE.dtype == np.int8 else np.float32
    (folder / "words.bin").write_bytes(encoder.table_VE.astype(kind).tobytes())
    return {
        "tokens": model["vocab"],
        "unknown": model["vocab"][model["unk_token"]],
        "prefix": model["continuing_subword_prefix"],
        "longest": model["max_input_chars_per_word"],
        "special": {x["content"]: x["id"] for x in tokenizer["added_tokens"]},
        "features": encoder.table_VE.shape[1],
        "dtype": np.dtype(kind).name,
    }
