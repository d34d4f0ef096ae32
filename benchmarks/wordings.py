"""How often a text encoder maps a new wording to the right class.

    python benchmarks/wordings.py --wordings corpus/held_out_wordings.json hashed static sentence
    python benchmarks/wordings.py hashed static=table sentence=folder

A query is right if, among all known wordings, the most similar one (by cosine) is of its class.
`examples/small_corpus.py` writes the list. Without one, `wordings_esc50.txt` is used: the classes
of ESC-50, speech and instruments, whose only known wording is the name. Intervals are 95 %, by
resampling classes.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np

from audiosep_jax.encoders import make_encoder
from audiosep_jax.encoders.encoder import TextConfig, TextEncoder
from audiosep_jax.evaluation.results import bootstrap

# Class | new wordings with a word of its name | synonyms without one
ESC50 = Path(__file__).with_name("wordings_esc50.txt")
Wordings = dict[str, dict[str, list[str]]]


def esc50() -> Wordings:
    """Read `ESC50` in the layout of `held_out_wordings.json`."""
    lines = [line.split(" | ") for line in ESC50.read_text("utf-8").splitlines()]
    return {
        name: {"seen": [name], "unseen": new.split(", "), "unseen_synonyms": synonyms.split(", ")}
        for name, new, synonyms in lines
    }


def hits(encoder: TextEncoder, wordings: Wordings, kind: str) -> np.ndarray:
    """Compare each query of a kind with all known wordings: its class and 1 if it is right."""
    known = [(i, text) for i, x in enumerate(wordings.values()) for text in x["seen"]]
    asked = [(i, text) for i, x in enumerate(wordings.values()) for text in x[kind]]
    known_NE, asked_ME = (encoder([text for _, text in rows]) for rows in (known, asked))
    nearest_M = np.argmax(asked_ME @ known_NE.T, axis=1)
    return np.array([(i, known[j][0] == i) for (i, _), j in zip(asked, nearest_M, strict=True)])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("encoders", nargs="+", metavar="ENCODER[=MODEL]")
    parser.add_argument("--wordings", help="JSON; by default the classes of ESC-50")
    arguments = parser.parse_args()
    wordings = esc50()
    if arguments.wordings:
        with open(arguments.wordings, encoding="utf-8") as file:
            wordings = json.load(file)
    for name in arguments.encoders:
        kind, _, model = name.partition("=")
        start = time.perf_counter()
        encoder = make_encoder(TextConfig(kind, model=model))
        encoder(["a dog barks"])
        seconds = time.perf_counter() - start
        scores = (score(hits(encoder, wordings, kind)) for kind in ("unseen", "unseen_synonyms"))
        print(f"{kind:9} wordings {next(scores)}  synonyms {next(scores)}  first {seconds:.2f} s")


def score(hits_M2: np.ndarray) -> str:
    """Share of right queries in percent, with its interval."""
    classes_M, right_M = hits_M2.T
    weights_DM = bootstrap(classes_M, [np.arange(len(classes_M))])
    low, high = np.quantile(weights_DM @ right_M / weights_DM.sum(axis=1), (0.025, 0.975))
    return f"{100 * right_M.mean():3.0f} % ({100 * low:.0f} to {100 * high:.0f})"


if __name__ == "__main__":
    main()
