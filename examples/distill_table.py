"""Distil a sentence tower into a table of word vectors for `text.encoder=static`.

    python examples/distill_table.py --output table
    python train.py --config.text.encoder=static --config.text.model=table \\
        --config.model.condition_features=96

As in model2vec, the tower embeds each word piece alone, a principal component analysis keeps most
of their differences, and a frequent piece counts less: its weight is log(1 + rank), because BERT's
vocabulary is ordered by frequency. int8 numbers make it 3 MB. It takes a minute on two cores.
"""

import argparse
import json
from pathlib import Path

import numpy as np

from audiosep_jax.encoders import names
from audiosep_jax.encoders.encoder import DEFAULT_MODELS
from audiosep_jax.encoders.layers import embed
from audiosep_jax.encoders.pretrained import TEXT_NAMES, TOKENIZER_FILES, ModelFiles, find_model
from audiosep_jax.encoders.sentence_text import SentenceConfig, SentenceText
from audiosep_jax.encoders.static import FILES, TABLE
from audiosep_jax.weights.torch_files import write_safetensors

BATCH_SIZE = 512


def main(source: str, output: Path, dimensions: int) -> None:
    """Write the table of the tower `source`, a hub id or a folder."""
    files = find_model(source, TOKENIZER_FILES)
    if files.folder is None:
        raise SystemExit(f"{source}: is a file; name a hub id or a folder")
    tokenizer = json.loads((files.folder / FILES[1]).read_text("utf-8"))
    tokenizer |= {"padding": None, "truncation": None}
    pieces_VE = embed_pieces(files, tokenizer["model"]["vocab"])
    output.mkdir(parents=True, exist_ok=True)
    write_safetensors(output / FILES[0], {TABLE: to_int8(reduced(pieces_VE, dimensions))})
    text = json.dumps(tokenizer, ensure_ascii=False, separators=(",", ":"))
    (output / FILES[1]).write_text(text, "utf-8")


def embed_pieces(files: ModelFiles, vocabulary: dict[str, int]) -> np.ndarray:
    """Embed each word piece between the tokens that begin and end a sentence: (V, E)."""
    tower = SentenceText(SentenceConfig.from_dict(files.config()))
    params = names.tower_params(tower, files.state(TEXT_NAMES))
    first, last = vocabulary["[CLS]"], vocabulary["[SEP]"]
    ids_V3 = np.array([(first, i, last) for i in range(len(vocabulary))], np.int32)
    batches = [ids_V3[i : i + BATCH_SIZE] for i in range(0, len(ids_V3), BATCH_SIZE)]
    return np.concatenate([embed(tower, params, x, np.ones_like(x)) for x in batches])


def reduced(pieces_VE: np.ndarray, dimensions: int) -> np.ndarray:
    """Project rows on their principal components, and weight them by their rank: (V, D)."""
    centred_VE = pieces_VE - pieces_VE.mean(axis=0)
    _, axes_EE = np.linalg.eigh(centred_VE.T @ centred_VE)  # by growing variance
    components_VD = centred_VE @ axes_EE[:, ::-1][:, :dimensions]
    return components_VD * np.log1p(np.arange(len(pieces_VE)))[:, None]


def to_int8(table_VD: np.ndarray) -> np.ndarray:
    """Round to int8 at one scale, which no direction depends on."""
    return np.rint(table_VD * (127 / np.abs(table_VD).max())).astype(np.int8)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--source", default=DEFAULT_MODELS["sentence"], help="hub id or folder")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--dimensions", type=int, default=96)
    arguments = parser.parse_args()
    main(arguments.source, arguments.output, arguments.dimensions)
