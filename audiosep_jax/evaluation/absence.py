"""Absent sounds: whether a separator tells them from present ones, and what it extracts for them.

Every recording is asked for its target and for a sound that is not in it, the wrong query of its
line. A recording that is longer than a mixture of the list joins several: around the one with the
target come others, brought to the same power, which hold the sound of neither query.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from audiosep_jax.data.mixing import caption_key
from audiosep_jax.errors import InputError
from audiosep_jax.evaluation import mixtures
from audiosep_jax.evaluation.baselines import sounds_of
from audiosep_jax.evaluation.lists import Item
from audiosep_jax.evaluation.protocols import Aggregation
from audiosep_jax.evaluation.results import Row, aggregate, bootstrap, interval_of
from audiosep_jax.evaluation.runner import Estimator, Unscored, estimated, facts
from audiosep_jax.separation.files import Meter

SEED = 0
_TINY = 1e-10  # of the mixture's energy: nothing was extracted

Values = Mapping[str, np.ndarray]


# ---------------------------------------------------------------------- recordings


def recordings(items: Sequence[Item], lengths_seconds: Sequence[float]) -> list[Item]:
    """Recordings of at least each length, labelled with it, one for every mixture of the list.

    Raises:
        InputError: a mixture has no wrong query, or too few others lack the sounds of its queries.
    """
    if not all(item.wrong_query for item in items):
        raise InputError("the list has no wrong queries, which absent sounds are asked for with")
    sounds, seconds = sounds_of(items), [mixtures.seconds_of(item) for item in items]
    found: list[Item] = []
    for length_seconds in lengths_seconds:
        rng = np.random.default_rng(np.random.SeedSequence(SEED))
        for number, item in enumerate(items):
            asked = {caption_key(item.query), caption_key(item.wrong_query)}
            free = [k for k, own in enumerate(sounds) if seconds[k] and not own & asked]
            others, missing = [], length_seconds - seconds[number]
            while missing > 1e-3 and seconds[number]:
                if not free:
                    raise InputError(f"every mixture has a sound that {item.id} is asked for")
                others.append(free[int(rng.integers(len(free)))])
                missing -= seconds[others[-1]]
            place = int(rng.integers(len(others) + 1))
            name = f"{item.id}-{length_seconds:g}s"
            found.append(
                dataclasses.replace(
                    item,
                    row=len(found),
                    id=name,
                    label=f"{length_seconds:g} s",
                    rendered=(f"segment-{name}.wav", f"mixture-{name}.wav"),
                    before=tuple(items[k] for k in others[:place]),
                    after=tuple(items[k] for k in others[place:]),
                )
            )
    return found


# ---------------------------------------------------------------------- scores


def scored_row(estimator: Estimator, item: Item) -> Row:
    """Make the row of a recording: its facts, and its scores or the reason why it has none."""
    result = estimated(estimator, item)
    if isinstance(result, Unscored):
        return facts(result)
    meter = Meter(2, 1, estimator.scoring_hz)
    meter.probabilities.append(result.activity_KT)
    meter.add(result.mixture.mixture_S[None], result.estimate_KS[:, None])
    told = meter.result((), "", "", 1.0)
    return facts(result) | {
        "presence": float(told.presence_N[0]),
        "presence_absent": float(told.presence_N[1]),
        "missed": float(not told.spans[0]),
        "false_alarm": float(bool(told.spans[1])),
        "false_energy_db": 10 * math.log10(max(float(told.share_N[1]), _TINY)),
    }


# ---------------------------------------------------------------------- summary


def auroc(present_N: np.ndarray, absent_N: np.ndarray, weights_DN: np.ndarray) -> np.ndarray:
    """Probability `(D,)` that a present sound scores higher than an absent one; ties count half.

    `weights_DN` says how often each recording counts in each of D draws.
    """
    higher_NN = (present_N[:, None] > absent_N) + 0.5 * (present_N[:, None] == absent_N)
    return ((weights_DN @ higher_NN) * weights_DN).sum(1) / weights_DN.sum(1) ** 2


def _averaged(name: str, how: Aggregation) -> Callable[[Values, np.ndarray], np.ndarray]:
    return lambda values, draws_DN: aggregate(
        values[name], [np.arange(len(values[name]))], how, draws_DN
    )


MEASURES: dict[str, Callable[[Values, np.ndarray], np.ndarray]] = {
    "AUROC of presence": lambda x, draws_DN: auroc(x["presence"], x["presence_absent"], draws_DN),
    "share of missed targets": _averaged("missed", "mean"),
    "share of false alarms": _averaged("false_alarm", "mean"),
    "median of false energy, dB": _averaged("false_energy_db", "mean of class medians"),
}


def summary(rows: Sequence[Row], _: Aggregation) -> dict[str, Any]:
    """`scores` as `results.summary` returns them: every measure for every length."""
    scores: dict[str, Any] = {}
    scored = [row for row in rows if "reason" not in row]
    for label in dict.fromkeys(row["label"] for row in scored):
        own = [row for row in scored if row["label"] == label]
        names = [name for name in own[0] if isinstance(own[0][name], float)]
        values = {name: np.array([row[name] for row in own], float) for name in names}
        draws_DN = bootstrap([row["clip"] for row in own], [np.arange(len(own))])
        for name, measure in MEASURES.items():
            value = measure(values, np.ones((1, len(own)), np.int32))[0]
            low, high = interval_of(measure(values, draws_DN))
            scores[f"{name}, {label}"] = {"mean": float(value), "low": low, "high": high}
    return {"scores": scores, "classes": {}}
