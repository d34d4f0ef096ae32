"""Absent sounds: whether a separator tells them from present ones, and what it extracts for them.

Every recording is asked for its target and for a sound that is not in it, the wrong query of its
line. A recording that is longer than a mixture of the list joins several: around the one with the
target come others, brought to the same power, which hold the sound of neither query.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from audiosep_jax.audio.files import AudioError
from audiosep_jax.data.mixing import caption_key
from audiosep_jax.errors import InputError
from audiosep_jax.evaluation import mixtures
from audiosep_jax.evaluation.baselines import sounds_of
from audiosep_jax.evaluation.lists import Item
from audiosep_jax.evaluation.protocols import Aggregation
from audiosep_jax.evaluation.results import Row, RowLog, aggregate, bootstrap, interval_of
from audiosep_jax.evaluation.runner import Estimate, Unscored, loaded, make_row, spread
from audiosep_jax.separation.files import Meter
from audiosep_jax.separation.separator import Separator
from audiosep_jax.separation.stream import Stream

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
    sounds, seconds = sounds_of(items), [_seconds(item) for item in items]
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


def _seconds(item: Item) -> float:
    """Length of a mixture, 0 if its files cannot be used."""
    try:
        return mixtures.planned_samples(item, 1000) / 1000
    except AudioError:
        return 0.0


# ---------------------------------------------------------------------- scores


def score_items(
    items: Sequence[Item],
    separator: Separator | None,
    estimates: Path | None,
    sample_rate_hz: int,
    log: RowLog,
    done: Mapping[int, Row],
    cluster: str = "",
) -> None:
    """Add a row to the log for every item that is not done; of read `estimates`, or separated."""
    texts = list(dict.fromkeys(text for x in items for text in (x.query, x.wrong_query)))
    rows_NE = separator.embed_text(texts) if separator else [None] * len(texts)
    conditions = dict(zip(texts, rows_NE, strict=True))
    sent = separator and dataclasses.replace(separator, _encoders={})
    work = functools.partial(_rows, sent, conditions, estimates, sample_rate_hz)
    left = [item for item in items if item.row not in done]
    for row in tqdm(spread(cluster, work, left), unit="recording", total=len(left)):
        log.add(row)


def _rows(
    separator: Separator | None,
    conditions: Mapping[str, Any],
    estimates: Path | None,
    sample_rate_hz: int,
    items: Sequence[Item],
) -> Iterator[Row]:
    for item in items:
        result = loaded(item, sample_rate_hz, estimates)
        if isinstance(result, Unscored):
            yield make_row(result, sample_rate_hz, ())
            continue
        made, given = result
        meter = Meter(2, 1, sample_rate_hz)
        estimate_NS = np.array(given)
        if separator:
            condition_NE = np.stack([conditions[item.query], conditions[item.wrong_query]])
            stream = separator.stream(sample_rate_hz, condition_NE, live=False)
            estimate_NS = _separated(stream, made.mixture_S, meter)
        else:
            meter.probabilities.append(np.ones((2, 1)))
        meter.add(made.mixture_S[None], estimate_NS[:, None])
        row = make_row(Estimate(item, made, estimate_NS[0]), sample_rate_hz, ())
        yield row | _scores(meter)


def _separated(stream: Stream, mixture_S: np.ndarray, meter: Meter) -> np.ndarray:
    """Estimates `(N, S)`, whose probabilities the meter gets."""
    ready_NCS = stream.feed(mixture_S[None])
    meter.probabilities.append(stream.activity_NT)
    rest_NCS = stream.finish()
    meter.probabilities.append(stream.activity_NT)
    return np.concatenate([ready_NCS, rest_NCS], axis=-1)[:, 0]


def _scores(meter: Meter) -> dict[str, float]:
    told = meter.result((), "", "", 1.0)
    return {
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
