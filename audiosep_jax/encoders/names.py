"""Parameters of the towers from state dicts, in Hugging Face's or LAION's names.

Our modules carry Hugging Face's names, so the tower itself says which tensors it needs. LAION's
names are translated into Hugging Face's first.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np

from audiosep_jax.encoders.clap_audio import Htsat
from audiosep_jax.encoders.clap_text import ClapText
from audiosep_jax.encoders.clip_image import ClipImage
from audiosep_jax.encoders.clip_text import ClipText
from audiosep_jax.encoders.sentence_text import SentenceText
from audiosep_jax.errors import InputError

# Prefix of CLAP's tensors in an AudioSep checkpoint, which holds the separator as well.
AUDIOSEP_PREFIX = "query_encoder.model."
# Flax's names of leaves, and PyTorch's.
LEAF_NAMES = {"kernel": "weight", "scale": "weight", "embedding": "weight"}

# From LAION's to Hugging Face's names: the first pattern that matches the start of a name counts.
LAION_BLOCK = r"audio_branch\.(layers\.\d+\.blocks\.\d+)\."
HF_BLOCK = r"audio_model.audio_encoder.\1."
LAION_RENAMES = (
    (r"text_branch\.", "text_model."),
    (r"text_projection\.0\.", "text_projection.linear1."),
    (r"text_projection\.2\.", "text_projection.linear2."),
    (LAION_BLOCK + r"norm1\.", HF_BLOCK + "layernorm_before."),
    (LAION_BLOCK + r"norm2\.", HF_BLOCK + "layernorm_after."),
    (LAION_BLOCK + r"attn\.proj\.", HF_BLOCK + "attention.output.dense."),
    (LAION_BLOCK + r"attn\.", HF_BLOCK + "attention.self."),
    (LAION_BLOCK + r"mlp\.fc1\.", HF_BLOCK + "intermediate.dense."),
    (LAION_BLOCK + r"mlp\.fc2\.", HF_BLOCK + "output.dense."),
    (r"audio_branch\.bn0\.", "audio_model.audio_encoder.batch_norm."),
    (r"audio_branch\.", "audio_model.audio_encoder."),
    (r"audio_projection\.0\.", "audio_projection.linear1."),
    (r"audio_projection\.2\.", "audio_projection.linear2."),
)

# Buffers, which hold no learnt values: they are computed here.
BUFFERS = (
    r"((text|vision)_model\.)?embeddings\.(position_ids|token_type_ids)$",
    r".*\.relative_position_index$",
    r".*\.attn_mask$",
    r".*\.num_batches_tracked$",
    r"audio_model\.audio_encoder\.(spectrogram_extractor|logmel_extractor)\.",
)
# Learnt parts of the contrastive loss and of HTSAT's classifier; no embedding depends on them.
OTHER_HEADS = (
    r"logit_scale",
    r"(text|audio)_transform\.",
    r"audio_model\.audio_encoder\.(tscam_conv|head)\.",
)

Params = dict[str, Any]
State = Mapping[str, np.ndarray]


def tower_params(
    tower: ClapText | ClipText | SentenceText | Htsat | ClipImage, state: State
) -> Params:
    """Make a tower's parameters; `state` may hold other towers, or all of an AudioSep checkpoint.

    Raises:
        InputError: a tensor is missing, of another shape, or has no place in the tower.
    """
    tokens = jnp.zeros((1, 1), jnp.int32)
    own, example = "text", [tokens, tokens]
    if isinstance(tower, Htsat):
        own, example = "audio", [jnp.zeros((1, 1, tower.config.num_mel_bins))]
    elif isinstance(tower, ClipImage):
        size = tower.config.image_size
        own, example = "vis", [jnp.zeros((1, size, size, 3))]
    shapes = jax.eval_shape(tower.init, jax.random.key(0), *example)["params"]
    tensors = dict(_split_qkv(_canonical(state)))
    flat = flax.traverse_util.flatten_dict(shapes)
    params = {path: _take(tensors, path, wanted.shape) for path, wanted in flat.items()}
    others = rf"(?!{own})(text|audio|vision|visual)_(model|projection)\."
    ignored = re.compile("|".join((*BUFFERS, *OTHER_HEADS, others)))
    for name in tensors.keys() - {hf_name(path) for path in params}:
        if not ignored.match(name):
            raise InputError(f"{name}: the file holds this tensor, but the model has no such part")
    return flax.traverse_util.unflatten_dict(params)


def hf_name(path: tuple[str, ...]) -> str:
    """Return Hugging Face's name of the parameter at `path` of our tree."""
    *modules, leaf = path
    return ".".join([*modules, LEAF_NAMES.get(leaf, leaf)])


def _canonical(state: State) -> dict[str, np.ndarray]:
    """Translate names to Hugging Face's, without the prefix that a container added."""
    inside = any(name.startswith(AUDIOSEP_PREFIX) for name in state)
    prefix = AUDIOSEP_PREFIX if inside else "module."  # which PyTorch's data parallelism adds
    chosen = [name for name in state if name.startswith(prefix) or not inside]
    return {_rename(name.removeprefix(prefix)): state[name] for name in chosen}


def _rename(name: str) -> str:
    for pattern, replacement in LAION_RENAMES:
        renamed, count = re.subn(f"^{pattern}", replacement, name)
        if count:
            return renamed
    return name


def _split_qkv(tensors: State) -> Iterator[tuple[str, np.ndarray]]:
    """Split LAION's stacked query, key and value of the audio tower into three tensors."""
    for name, tensor in tensors.items():
        head, stacked, leaf = name.rpartition(".qkv.")
        if stacked:
            for part, rows in zip(("query", "key", "value"), np.split(tensor, 3), strict=True):
                yield f"{head}.{part}.{leaf}", rows
        else:
            yield name, tensor


def _take(tensors: State, path: tuple[str, ...], shape: tuple[int, ...]) -> np.ndarray:
    """Return the tensor of `path` in Flax's layout: matrices (in, out), kernels (h, w, in, out)."""
    name = hf_name(path)
    if name not in tensors:
        raise InputError(f"{name}: the file lacks this tensor; is it the weights of this model?")
    tensor = np.asarray(tensors[name])
    if path[-1] == "kernel":
        tensor = tensor.transpose(2, 3, 1, 0) if tensor.ndim == 4 else tensor.T
    if tensor.shape != shape:
        raise InputError(
            f"{name}: shape {np.shape(tensors[name])} in the file does not fit the model's config"
        )
    return tensor
