"""Scores the mixtures of a list: read ahead by threads, separated on all devices, scored behind.

Batches are of clips of one length, or of clips of rare lengths filled up to one of few shapes, so
that little is compiled. Which clips share a batch follows from the list alone: a run that was
killed and goes on computes the same numbers.
"""

import collections
import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from audiosep_jax.audio import files as audio_files
from audiosep_jax.audio.files import AudioError
from audiosep_jax.errors import InputError
from audiosep_jax.evaluation import mixtures, padded
from audiosep_jax.evaluation.baselines import Body
from audiosep_jax.evaluation.lists import Item
from audiosep_jax.evaluation.mixtures import Mixture
from audiosep_jax.evaluation.rows import Row, RowsFile
from audiosep_jax.metrics import fitted, separation_scores
from audiosep_jax.model.network import ModelConfig
from audiosep_jax.training.steps import parallel_eval_step, place_state, split_batch

# Scores of one clip: reference_S, estimate_S, mixture_S, sample_rate_hz, query.
ScoreFunction = Callable[[np.ndarray, np.ndarray, np.ndarray, int, str], Mapping[str, float]]
_READ_AHEAD = 2  # batches
RARE = 16  # clips of one length, fewer of which are not worth a compilation


@dataclasses.dataclass(frozen=True, eq=False)
class Estimator:
    """What makes estimates, at which rate, out of which conditions."""

    body: Body
    variables: Any
    sample_rate_hz: int
    conditions: Mapping[str, np.ndarray]  # (E,) of every query
    network: ModelConfig | None = None  # where the body is one: rare lengths share shapes


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """How to get through a list; none of it changes a result."""

    batch_size: int = 1  # of all devices together, rounded up to a multiple of them
    num_threads: int = 4
    progress: bool = True


@dataclasses.dataclass(frozen=True)
class Batch:
    """Items that are computed together; all of one length where `frames` is None."""

    items: tuple[Item, ...]
    num_samples: tuple[int, ...]  # of each, at the rate of scoring
    frames: int | None = None  # of the shape that rare lengths share


@dataclasses.dataclass(frozen=True, eq=False)
class Estimate:
    """What came out for one mixture, at the rate of scoring."""

    item: Item
    mixture: Mixture
    estimate_S: np.ndarray


def default_scores(
    reference_S: np.ndarray,
    estimate_S: np.ndarray,
    mixture_S: np.ndarray,
    sample_rate_hz: int,
    query: str,
) -> Mapping[str, float]:
    """Those of every protocol: SDR, SI-SDR and their improvements."""
    del sample_rate_hz, query
    return separation_scores(reference_S, estimate_S, mixture_S)


def score_items(
    items: Sequence[Item],
    estimator: Estimator,
    sample_rate_hz: int,
    rows: RowsFile,
    done: Mapping[int, Row],
    config: RunConfig,
    scores: Sequence[ScoreFunction] = (default_scores,),
) -> None:
    """Adds a row for every item that is not done: scores, or the reason why there are none."""
    with ThreadPoolExecutor(config.num_threads) as pool:
        lengths, reasons = _lengths(items, sample_rate_hz, pool)
        for item in items:
            if item.row in reasons and item.row not in done:
                rows.add(_facts(item) | {"reason": reasons[item.row]})
        batches = [
            batch
            for batch in plan(
                items, lengths, batch_rows(config.batch_size), shapes_of(estimator, sample_rate_hz)
            )
            if any(item.row not in done for item in batch.items)
        ]
        total = len(items) - len(reasons)
        left = sum(len(batch.items) for batch in batches)
        with tqdm(
            total=total, initial=total - left, unit="mixture", disable=not config.progress
        ) as bar:
            for results in estimate_batches(batches, estimator, sample_rate_hz, config, pool):
                kept = [result for result in results if _item(result).row not in done]
                for row in pool.map(lambda x: _row(x, sample_rate_hz, scores), kept):
                    rows.add(row)
                bar.update(len(results))


def plan(
    items: Sequence[Item],
    lengths: Mapping[int, int],
    batch_rows: int,
    shared_frames: Callable[[int], int] | None = None,
) -> list[Batch]:
    """Batches, longest clips first, in the order of the list.

    `shared_frames` tells of a length how many frames the shape has that it shares with others;
    where it is None, or the length is not rare, all clips of a batch have one length.
    """
    counts = collections.Counter(lengths[item.row] for item in items if item.row in lengths)
    groups: dict[tuple[int, int | None], list[Item]] = {}
    for item in items:
        if item.row in lengths:
            length, frames = lengths[item.row], None
            if shared_frames and counts[length] < RARE:
                length = frames = shared_frames(length)
            groups.setdefault((length, frames), []).append(item)
    batches = []
    for (_, frames), group in groups.items():
        for start in range(0, len(group), batch_rows):
            part = tuple(group[start : start + batch_rows])
            batches.append(Batch(part, tuple(lengths[item.row] for item in part), frames))
    return sorted(batches, key=lambda batch: max(batch.num_samples), reverse=True)


def shapes_of(estimator: Estimator, sample_rate_hz: int) -> Callable[[int], int] | None:
    """Of a length at the rate of scoring, the frames of the shape it shares, for a network."""
    model = estimator.network
    if model is None:
        return None
    return lambda n: padded.filled_frames(model, -(-n * model.sample_rate_hz // sample_rate_hz))


def estimate_batches(
    batches: Sequence[Batch],
    estimator: Estimator,
    sample_rate_hz: int,
    config: RunConfig,
    pool: ThreadPoolExecutor,
) -> Iterator[list[Estimate | tuple[Item, str]]]:
    """For every batch its estimates, or (item, reason) for an item that cannot be read.

    While a batch is computed the next ones are read and the one before is handed out.
    """
    steps = _steps(estimator)
    variables = place_state(estimator.variables)
    num_rows = batch_rows(config.batch_size)
    reading: collections.deque[list[Future[Any]]] = collections.deque()
    waiting = iter(batches)

    def read_on() -> None:
        for batch in itertools.islice(waiting, 1):
            reading.append(
                [
                    pool.submit(_load, item, length, sample_rate_hz, estimator, batch.frames)
                    for item, length in zip(batch.items, batch.num_samples, strict=True)
                ]
            )

    for _ in range(_READ_AHEAD):
        read_on()
    running: tuple[list[Any], Any] | None = None
    while reading:
        loaded = [future.result() for future in reading.popleft()]
        read_on()
        out = _dispatch(steps, variables, loaded, num_rows)
        if running:
            yield _collected(*running, estimator, sample_rate_hz)
        running = loaded, out
    if running:
        yield _collected(*running, estimator, sample_rate_hz)


@dataclasses.dataclass(frozen=True, eq=False)
class _Loaded:
    """A mixture at the rate of scoring, and as the batch takes it at the model's rate."""

    item: Item
    mixture: Mixture
    inputs: dict[str, np.ndarray]
    part: slice  # of the estimate that comes out


def _load(
    item: Item,
    num_samples: int,
    sample_rate_hz: int,
    estimator: Estimator,
    frames: int | None,
) -> _Loaded | tuple[Item, str]:
    try:
        made = mixtures.load(item, sample_rate_hz)
    except AudioError as error:
        return item, str(error)
    if len(made.target_S) != num_samples:
        found = f"holds {len(made.target_S)} samples where its header promises {num_samples}"
        return item, f"{item.target}: {found}"

    def at_model_rate(audio_S: np.ndarray) -> np.ndarray:
        return audio_files.resample(audio_S[None], sample_rate_hz, estimator.sample_rate_hz)[0]

    inputs = {"mixture": at_model_rate(made.mixture_S), "target": at_model_rate(made.target_S)}
    num_inputs, first = len(inputs["mixture"]), 0
    if frames is not None and estimator.network is not None:
        inputs = padded.filled(estimator.network, inputs["mixture"], frames)
        first = estimator.network.window_samples // 2
    inputs["condition"] = estimator.conditions[item.query]
    return _Loaded(item, made, inputs, slice(first, first + num_inputs))


def _steps(estimator: Estimator) -> dict[bool, Any]:
    """What a batch goes through: of one length, and (True) of filled up clips."""
    return _steps_of(estimator.body, estimator.network)


@functools.lru_cache(maxsize=4)  # of a watched run every checkpoint goes through the same
def _steps_of(body: Body, model: ModelConfig | None) -> dict[bool, Any]:
    steps = {False: parallel_eval_step(lambda v, x: {"estimate": body(v, x)})}
    if model is not None:
        steps[True] = parallel_eval_step(
            lambda v, x: {"estimate": padded.separate_filled(model, v, x)}
        )
    return steps


def _dispatch(
    steps: Mapping[bool, Any], variables: Any, loaded: Sequence[Any], num_rows: int
) -> Any:
    """Starts the computation of those that could be read; None where there are none."""
    good = [x.inputs for x in loaded if isinstance(x, _Loaded)]
    if not good:
        return None
    # The last batch is filled up with its first rows again: one shape, one compilation.
    index = np.resize(np.arange(len(good)), num_rows)
    batch = {key: np.stack([good[i][key] for i in index]) for key in good[0]}
    return steps["total" in batch](variables, split_batch(batch))["estimate"]


def _collected(
    loaded: Sequence[Any], out: Any, estimator: Estimator, sample_rate_hz: int
) -> list[Estimate | tuple[Item, str]]:
    """Waits for the estimates of a batch and brings them to the rate of scoring."""
    if out is None:
        return list(loaded)
    host = np.asarray(out)
    estimates = iter(host.reshape(-1, host.shape[-1]))
    results: list[Estimate | tuple[Item, str]] = []
    for x in loaded:
        if not isinstance(x, _Loaded):
            results.append(x)
            continue
        estimate_S = next(estimates)[x.part]
        if not np.isfinite(estimate_S).all():
            raise InputError(f"the estimate of {x.item.id} is not finite: the weights are broken")
        back_S = audio_files.resample(estimate_S[None], estimator.sample_rate_hz, sample_rate_hz)[0]
        results.append(Estimate(x.item, x.mixture, fitted(back_S, len(x.mixture.target_S))))
    return results


def _row(
    result: Estimate | tuple[Item, str], sample_rate_hz: int, scores: Sequence[ScoreFunction]
) -> Row:
    """What is kept of a mixture."""
    if not isinstance(result, Estimate):
        item, reason = result
        return _facts(item) | {"reason": reason}
    target_S, mixture_S = result.mixture.target_S, result.mixture.mixture_S
    row = _facts(result.item)
    row |= {"num_samples": len(target_S), "fingerprint": result.mixture.fingerprint}
    for score in scores:
        row |= score(target_S, result.estimate_S, mixture_S, sample_rate_hz, result.item.query)
    return row


def _item(result: Estimate | tuple[Item, str]) -> Item:
    return result.item if isinstance(result, Estimate) else result[0]


def _facts(item: Item) -> Row:
    return {
        "row": item.row,
        "id": item.id,
        "query": item.query,
        "label": item.label,
        "clip": item.clips[0] if item.clips else item.target.name,
        "snr_db": item.snr_db,
    }


def _lengths(
    items: Sequence[Item], sample_rate_hz: int, pool: ThreadPoolExecutor
) -> tuple[dict[int, int], dict[int, str]]:
    """(samples, reason why there are none) of each item by row, from the headers of its files."""

    def length(item: Item) -> int | str:
        try:
            return mixtures.planned_samples(item, sample_rate_hz)
        except AudioError as error:
            return str(error)

    found = dict(zip((item.row for item in items), pool.map(length, items), strict=True))
    lengths = {row: x for row, x in found.items() if isinstance(x, int)}
    return lengths, {row: x for row, x in found.items() if isinstance(x, str)}


def check_unchanged(items: Sequence[Item], done: Mapping[int, Row]) -> None:
    """InputError where files of mixtures that were scored before hold something else now."""
    for item in items:
        if item.row not in done:
            continue
        try:
            changed = mixtures.fingerprint_of(item) != done[item.row]["fingerprint"]
        except OSError:  # gone since: what was scored counts
            continue
        if changed:
            raise InputError(
                f"{item.target}, or what it is mixed with, has changed since it was scored; "
                "choose another --output, or --overwrite"
            )


def missing_files(items: Sequence[Item]) -> list[Path]:
    """Files that the items need and that are not there, each once."""
    files = dict.fromkeys(path for item in items for path in item.files)
    return [path for path in files if not path.is_file()]


def batch_rows(batch_size: int) -> int:
    devices = jax.local_device_count()
    return -(-batch_size // devices) * devices
