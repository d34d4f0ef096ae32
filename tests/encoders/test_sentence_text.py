"""The sentence tower against PyTorch's BERT with small random weights."""

import numpy as np
import pytest
from golden_towers import random_tokens

from audiosep_jax.encoders import make_encoder
from audiosep_jax.encoders.encoder import TextConfig
from audiosep_jax.encoders.layers import embed
from audiosep_jax.encoders.names import tower_params
from audiosep_jax.encoders.sentence_text import SentenceConfig, SentenceText
from audiosep_jax.errors import InputError

SIZES = {
    "vocab_size": 60,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 24,
    "max_position_embeddings": 20,
}
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "dog", "bark", "##s", "rain"]


@pytest.fixture(scope="module")
def bert():
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    # A large spread, or all layers would almost be the identity.
    return transformers.BertModel(transformers.BertConfig(**SIZES, initializer_range=0.5)).eval()


def expected_embedding(bert, ids, mask):
    import torch

    with torch.no_grad():
        inputs = {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}
        hidden = bert(**inputs).last_hidden_state.numpy()
    mean = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdims=True)
    return mean / np.linalg.norm(mean, axis=1, keepdims=True)


def test_equals_the_mean_of_bert(bert):
    tower = SentenceText(SentenceConfig.from_dict(bert.config.to_dict()))
    params = tower_params(tower, {name: x.numpy() for name, x in state(bert).items()})
    ids, mask = random_tokens(0, 12, (3, 12, 7), pad_id=0)
    ids %= SIZES["vocab_size"]
    expected = expected_embedding(bert, ids, mask)
    np.testing.assert_allclose(embed(tower, params, ids, mask), expected, rtol=0, atol=1e-5)


def test_sentences_from_a_folder(bert, tmp_path):
    from transformers import BertTokenizerFast

    bert.save_pretrained(tmp_path)
    vocabulary = tmp_path / "vocab.txt"
    vocabulary.write_text("\n".join(WORDS))
    BertTokenizerFast(str(vocabulary)).save_pretrained(tmp_path)
    encoder = make_encoder(TextConfig("sentence", model=str(tmp_path)))
    ids = np.array([[2, 4, 5, 6, 7, 3], [2, 8, 3, 0, 0, 0]])
    expected = expected_embedding(bert, ids, (ids > 0).astype(np.int64))
    np.testing.assert_allclose(encoder(["A dog barks", "rain"]), expected, rtol=0, atol=1e-5)


def test_another_model_is_refused():
    with pytest.raises(InputError, match="model_type='roberta': the sentence encoder needs a BERT"):
        SentenceConfig.from_dict({"model_type": "roberta"})


def state(bert):
    """State dict without the pooler, which no embedding depends on."""
    return {name: x for name, x in bert.state_dict().items() if not name.startswith("pooler.")}
