"""CLAPScore of each estimate, without a reference: how near it lies to its query."""

from collections.abc import Mapping, Sequence

import numpy as np

from audiosep_jax.encoders import make_encoder
from audiosep_jax.encoders.encoder import TextConfig
from audiosep_jax.encoders.pretrained import AudioEncoder
from audiosep_jax.metrics import clap_score


class ClapScore:
    """A score function of `runner.score_items`, whose towers are loaded once.

    The score is the cosine of the query's and the estimate's CLAP embeddings, -1 to 1; that of
    a silent estimate is 0.
    """

    def __init__(self, queries: Sequence[str], model: str = "", *, option: str) -> None:
        """`model`: folder or hub id of CLAP, the default's where empty; `option` names it."""
        text = TextConfig(encoder="clap", model=model)
        distinct = list(dict.fromkeys(queries))
        vectors = make_encoder(text)(distinct)
        self._text: Mapping[str, np.ndarray] = dict(zip(distinct, vectors, strict=True))
        self._encoder = AudioEncoder(text.source)

    def __call__(
        self,
        reference_S: np.ndarray,
        estimate_S: np.ndarray,
        mixture_S: np.ndarray,
        sample_rate_hz: int,
        query: str,
    ) -> dict[str, float]:
        del reference_S, mixture_S
        if not np.any(estimate_S):
            return {"clap_score": 0.0}
        audio_NE = self._encoder.embed_audio(estimate_S, sample_rate_hz)
        return {"clap_score": float(clap_score(self._text[query][None], audio_NE)[0])}
