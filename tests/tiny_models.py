"""Small random encoders: CLAP and CLIP folders in the hub's layout, word tables, voices."""

import json

import flax
import jax
import jax.numpy as jnp
import numpy as np
from golden_towers import TINY_AUDIO, TINY_TEXT, recipe
from safetensors.numpy import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from audiosep_jax.data.synthetic import KINDS
from audiosep_jax.encoders.clap_audio import Htsat, HtsatConfig
from audiosep_jax.encoders.clap_text import ClapText, ClapTextConfig
from audiosep_jax.encoders.clip_image import ClipImage, ClipImageConfig
from audiosep_jax.encoders.clip_text import ClipText, ClipTextConfig
from audiosep_jax.encoders.ge2e import DIMENSIONS
from audiosep_jax.encoders.hashed import words_of
from audiosep_jax.encoders.names import hf_name
from audiosep_jax.weights.torch_files import write_safetensors, write_torch

LETTERS = sorted(pre_tokenizers.ByteLevel.alphabet())
CLAP_TOKENS = ["<s>", "<pad>", "</s>", "<unk>", *LETTERS, "<mask>"]
CLIP_TOKENS = [*LETTERS, *(f"{x}</w>" for x in LETTERS), "<|startoftext|>", "<|endoftext|>"]
TEXT = {**TINY_TEXT, "num_hidden_layers": 1}
AUDIO = {**TINY_AUDIO, "depths": [1, 1]}
CLAP_CONFIG = {
    "model_type": "clap",
    "projection_dim": 8,
    "text_config": {**TEXT, "vocab_size": len(CLAP_TOKENS), "max_position_embeddings": 82},
    "audio_config": AUDIO,
}
CLIP_CONFIG = {
    "model_type": "clip",
    "projection_dim": 8,
    "text_config": {
        **TEXT,
        "vocab_size": len(CLIP_TOKENS),
        "bos_token_id": len(CLIP_TOKENS) - 2,
        "eos_token_id": len(CLIP_TOKENS) - 1,
    },
    "vision_config": {**TEXT, "patch_size": 56},
}
# 0.62 s of 16 kHz: as many frames as the small audio tower takes.
PREPROCESSOR = {
    "feature_size": AUDIO["num_mel_bins"],
    "sampling_rate": 16_000,
    "hop_length": 160,
    "max_length_s": 0.62,
    "fft_window_size": 512,
    "frequency_max": 7000.0,
}


def text_config(folder, kind):
    """The tower's config as a folder's config.json has it."""
    values = json.loads((folder / "config.json").read_text())
    cls = ClapTextConfig if kind == "clap" else ClipTextConfig
    return cls.from_dict(values)


def write_clap(folder, *, seed=0, pickled=False, projection_dim=8):
    """A folder that `AutoTokenizer`, our text tower and our audio tower all read."""
    config = {**CLAP_CONFIG, "projection_dim": projection_dim}
    folder.mkdir(parents=True, exist_ok=True)
    backend = Tokenizer(models.BPE(vocab=_ids(CLAP_TOKENS), merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    backend.save(str(folder / "tokenizer.json"))
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR))
    tokens, mel_BTF = jnp.zeros((1, 4), jnp.int32), jnp.zeros((1, 64, 16))
    state = random_state(ClapText(ClapTextConfig.from_dict(config)), seed, tokens, tokens)
    state |= random_state(Htsat(HtsatConfig.from_dict(config)), seed + 1, mel_BTF)
    _write_weights(folder, state, pickled)
    return folder


def write_clip(folder, *, seed=0, pickled=False, projection_dim=8):
    """A folder that `AutoTokenizer` and our CLIP towers read."""
    config = {**CLIP_CONFIG, "projection_dim": projection_dim}
    folder.mkdir(parents=True, exist_ok=True)
    end = len(CLIP_TOKENS) - 1
    backend = Tokenizer(
        models.BPE(_ids(CLIP_TOKENS), [], unk_token="<|endoftext|>", end_of_word_suffix="</w>")
    )
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.post_processor = processors.RobertaProcessing(
        ("<|endoftext|>", end), ("<|startoftext|>", end - 1)
    )
    backend.save(str(folder / "tokenizer.json"))
    (folder / "config.json").write_text(json.dumps(config))
    tokens = jnp.zeros((1, 4), jnp.int32)
    state = random_state(ClipText(ClipTextConfig.from_dict(config)), seed, tokens, tokens)
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.5, 0.4, 0.3]}))
    pixels_NHWC = jnp.zeros((1, 224, 224, 3))
    state |= random_state(ClipImage(ClipImageConfig.from_dict(config, {})), seed + 1, pixels_NHWC)
    _write_weights(folder, state, pickled)
    return folder


def write_static(folder, table_VE=None, words=("dog", "bark", "rain")):
    """A folder that `StaticEncoder` reads; by default the words of synthetic clips, 8 numbers each.

    The first row of a table is for unknown words.
    """
    if table_VE is None:
        words = words_of(sentence for _, sentences in KINDS.values() for sentence in sentences)
        table_VE = np.random.default_rng(0).standard_normal((len(words) + 1, 8), np.float32)
    folder.mkdir(parents=True, exist_ok=True)
    ids = {word: number for number, word in enumerate(["[UNK]", *words])}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.enable_padding(length=7, pad_id=3)  # as some files ask for; it is no part of a mean
    tokenizer.save(str(folder / "tokenizer.json"))
    save_file({"embeddings": table_VE}, folder / "model.safetensors")
    return folder


def write_voice(path, num_hidden=4):
    """Write weights for `VoiceEncoder` in the layout of `resemblyzer`, with narrower layers."""
    shapes = {"linear.weight": (DIMENSIONS, num_hidden), "linear.bias": (DIMENSIONS,)}
    for layer, num_inputs in enumerate((40, num_hidden, num_hidden)):
        shapes[f"lstm.weight_ih_l{layer}"] = 4 * num_hidden, num_inputs
        shapes[f"lstm.weight_hh_l{layer}"] = 4 * num_hidden, num_hidden
        shapes[f"lstm.bias_ih_l{layer}"] = shapes[f"lstm.bias_hh_l{layer}"] = (4 * num_hidden,)
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {name: recipe.tensor(name, shape) for name, shape in shapes.items()}
    state["lstm.weight_ih_l0"] *= 3000  # the powers of the mel bands are small
    write_torch(path, state, lightning=False)
    return path


def random_state(module, seed, *example):
    """State dict in PyTorch's layout: weights around 0, scales and variances around 1."""
    shapes = jax.eval_shape(module.init, jax.random.key(0), *example)["params"]
    flat = flax.traverse_util.flatten_dict(shapes)
    rng = np.random.default_rng(seed)
    return {hf_name(path): _random_tensor(path, leaf.shape, rng) for path, leaf in flat.items()}


def _random_tensor(path, shape, rng):
    tensor = rng.standard_normal(shape).astype(np.float32) * 0.3
    if path[-1] in ("scale", "running_var"):
        tensor = np.abs(tensor) + 1
    if path[-1] == "kernel":
        return np.ascontiguousarray(tensor.transpose(3, 2, 0, 1) if tensor.ndim == 4 else tensor.T)
    return tensor


def _write_weights(folder, state, pickled):
    if pickled:
        write_torch(folder / "pytorch_model.bin", state, lightning=False)
    else:
        write_safetensors(folder / "model.safetensors", state)


def _ids(tokens):
    return {token: i for i, token in enumerate(tokens)}
