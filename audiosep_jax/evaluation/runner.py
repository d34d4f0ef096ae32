"""Score the mixtures of a list: threads read ahead and score behind, all devices separate.

A batch holds clips of one length, or clips of rare lengths that are padded to one of few shapes, so
that little is compiled. The batches follow from the list alone: a run that was killed and continues
computes the same numbers.
"""

import collections
import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from tqdm import tqdm

from audiosep_jax import workers
from audiosep_jax.audio import files as audio_files
from audiosep_jax.audio.files import AudioError
from audiosep_jax.cli import use_compilation_cache
from audiosep_jax.encoders import KINDS
from audiosep_jax.evaluation import baselines, mixtures
from audiosep_jax.evaluation.baselines import Body
from audiosep_jax.evaluation.lists import Item
from audiosep_jax.evaluation.mixtures import Mixture, SilentError
from audiosep_jax.evaluation.protocols import Protocol
from audiosep_jax.evaluation.results import Row, RowLog
from audiosep_jax.evaluation.scores import Scored, ScoreFunction, sdr_scores
from audiosep_jax.metrics import fitted, sdr_improvement, si_sdr
from audiosep_jax.model.network import Engine, ModelConfig
from audiosep_jax.model.resunet import ResUNetConfig
from audiosep_jax.model.stft import num_frames
from audiosep_jax.model.tiles import bucket, can_stream, one_pass
from audiosep_jax.separation.separator import Separator
from audiosep_jax.training.parallel import parallel_eval_step, place_state, split_batch

_READ_AHEAD = 2  # batches
_SENT_TOGETHER = 4  # batches or recordings of a task of a cluster
RARE = 16  # a length with fewer clips than this does not justify a compilation of its own


@dataclasses.dataclass(frozen=True, eq=False)
class Estimator:
    """Body that makes estimates, the sample rates, and the embeddings of all queries."""

    body: Body
    variables: Any
    sample_rate_hz: int  # of the body
    scoring_hz: int
    conditions: Mapping[str, np.ndarray]  # (E,) by query
    network: ModelConfig | None = None  # set if clips of rare lengths may share shapes
    engine: Engine | None = None  # runs the network, one clip after another; None for JAX
    estimates: Path | None = None  # folder of another system's estimates


class Batch(NamedTuple):
    """Items that are computed together; all of one length if `frames` is None."""

    items: Sequence[Item]
    frames: int | None = None  # of the shape that rare lengths share


class Estimate(NamedTuple):
    """Estimate of one mixture at the sample rate of scoring."""

    item: Item
    mixture: Mixture
    estimate_S: np.ndarray
    wrong_S: np.ndarray | None = None  # estimate with the item's wrong query, if it has one


class Unscored(NamedTuple):
    """An item that cannot be scored; a silent one has the fingerprint of its files."""

    item: Item
    reason: str
    fingerprint: str = ""


# ---------------------------------------------------------------------- estimators


def make_estimator(
    separator: Separator | None,
    baseline: str,
    queries: Sequence[str],
    scoring_hz: int,
    estimates: Path | None = None,
    kind: str = "text",
) -> Estimator:
    """Estimator of a baseline of `protocols.BASELINES`, or of the separator if it is "".

    Baselines without a network need no separator; masks then use the published STFT. With a folder
    of `estimates`, which another system wrote, nothing is separated. The queries are of a kind of
    `encoders.KINDS`.
    """
    if estimates:
        return Estimator(_read, {}, scoring_hz, scoring_hz, {}, estimates=estimates)
    distinct = list(dict.fromkeys(queries))
    model = separator.model if separator else _published_model(scoring_hz)
    body = baselines.body_of(baseline, model)
    if separator and baseline in baselines.WITH_NETWORK:
        if kind == "blind":
            rows_NE = separator.slots(len(distinct))
        elif KINDS[kind].is_file:  # one after another, since sounds may take much memory
            rows_NE = np.concatenate([separator.embed(kind, KINDS[kind].read(x)) for x in distinct])
        else:
            rows_NE = separator.embed_text(distinct)
        conditions = dict(zip(distinct, rows_NE, strict=True))
        engine, rates = separator.runner, (model.sample_rate_hz, scoring_hz)
        # A network that streams can keep the padding of short clips at zero in every layer.
        network = model if engine or can_stream(model) else None
        return Estimator(body, separator.variables, *rates, conditions, network, engine)
    # Without an STFT nothing needs the model's sample rate.
    rate_hz = scoring_hz if baseline in baselines.WITHOUT_STFT else model.sample_rate_hz
    conditions = dict.fromkeys(distinct, np.zeros(1, np.float32))
    return Estimator(body, {}, rate_hz, scoring_hz, conditions)


def _read(_: Any, batch: Mapping[str, jax.Array]) -> jax.Array:
    """Body for estimates that were read: they take the place of the conditions."""
    return batch["condition"]


def scoring_rate(asked: int | None, protocol: Protocol, separator: Separator | None) -> int:
    """Sample rate of scoring: the one asked for, the protocol's, or the model's."""
    model = separator.model if separator else ResUNetConfig()
    return asked or protocol.sample_rate_hz or model.sample_rate_hz


def _published_model(sample_rate_hz: int) -> ModelConfig:
    """Published STFT at another rate: a window of 64 ms, rounded to a power of two."""
    window_samples = 2 ** round(math.log2(0.064 * sample_rate_hz))
    return ResUNetConfig(
        sample_rate_hz=sample_rate_hz,
        window_samples=window_samples,
        hop_samples=window_samples * 5 // 32,
    )


# ---------------------------------------------------------------------- the run


def score_items(
    items: Sequence[Item],
    estimator: Estimator,
    log: RowLog,
    done: Mapping[int, Row],
    scores: Sequence[ScoreFunction] = (sdr_scores,),
    *,
    batch_size: int = 1,
    num_threads: int = 4,
    cluster: str = "",
) -> None:
    """Add a row to the log for every item that is not done: its scores, or why it has none."""

    def length(item: Item) -> int | Unscored:
        try:
            return mixtures.planned_samples(item, estimator.scoring_hz)
        except AudioError as error:
            return Unscored(item, str(error))

    batch_size = batch_rows(min(batch_size, len(items)))
    lengths: dict[int, int] = {}
    with ThreadPoolExecutor(num_threads) as pool:
        for item, found in zip(items, pool.map(length, items), strict=True):
            if isinstance(found, int):
                lengths[item.row] = found
            elif item.row not in done:
                log.add(make_row(found, estimator.scoring_hz, scores))
    batches = plan(items, lengths, batch_size, estimator)
    batches = [x for x in batches if any(item.row not in done for item in x.items)]
    total, left = len(lengths), sum(len(batch.items) for batch in batches)
    score = functools.partial(_rows, estimator, scores, batch_size, num_threads)
    with tqdm(total=total, initial=total - left, unit="mixture") as bar:
        for row in spread(cluster, score, batches):
            if row["row"] not in done:
                log.add(row)
            bar.update()


def _rows(
    estimator: Estimator,
    scores: Sequence[ScoreFunction],
    batch_size: int,
    num_threads: int,
    batches: Sequence[Batch],
) -> Iterator[Row]:
    """Yield the rows of batches; threads read ahead and score behind."""
    with ThreadPoolExecutor(num_threads) as pool:
        row_of = functools.partial(make_row, sample_rate_hz=estimator.scoring_hz, scores=scores)
        for results in estimate_batches(batches, estimator, batch_size, pool):
            yield from pool.map(row_of, results)


def spread(
    cluster: str, work: Callable[[Sequence[Any]], Iterator[Row]], tasks: Sequence[Any]
) -> Iterator[Row]:
    """Yield the rows of `work(tasks)`; a few tasks at once from each worker of a cluster."""

    def rows(tasks: Sequence[Any]) -> list[Row]:
        use_compilation_cache()
        return list(work(tasks))

    if not cluster:
        yield from work(tasks)
        return
    groups = [tasks[n : n + _SENT_TOGETHER] for n in range(0, len(tasks), _SENT_TOGETHER)]
    with workers.cluster(cluster) as submit:
        for _, found in workers.finished(submit, rows, groups):
            yield from found


def plan(
    items: Sequence[Item],
    lengths: Mapping[int, int],
    num_rows: int,
    estimator: Estimator,
) -> list[Batch]:
    """Batches of the items with a length, longest clips first, otherwise in the order of the list.

    `lengths` are samples at the rate of scoring, by row. All clips of a batch have one length,
    unless their lengths are rare and the estimator has a network that can hold padding at zero.
    """
    model, rate_hz = estimator.network, estimator.sample_rate_hz
    counts = collections.Counter(lengths.values())
    groups: dict[tuple[int, int | None], list[Item]] = {}
    for item in items:
        if item.row in lengths:
            length, frames = lengths[item.row], None
            if model is not None and counts[length] < RARE:
                num_samples = -(-length * rate_hz // estimator.scoring_hz)
                length = frames = padded_frames(model, num_samples)
            groups.setdefault((length, frames), []).append(item)
    batches = [
        Batch(group[start : start + num_rows], frames)
        for (_, frames), group in groups.items()
        for start in range(0, len(group), num_rows)
    ]
    return sorted(batches, key=lambda x: max(lengths[y.row] for y in x.items), reverse=True)


def estimate_batches(
    batches: Sequence[Batch],
    estimator: Estimator,
    batch_size: int,
    pool: ThreadPoolExecutor,
) -> Iterator[list[Estimate | Unscored]]:
    """Yield for every batch its estimates, and the items that cannot be read.

    While a batch is computed, the next ones are read and the one before is yielded.
    """
    variables = place_state(estimator.variables)
    num_rows = batch_rows(batch_size)
    reading: collections.deque[list[Future[_Loaded | Unscored]]] = collections.deque()
    waiting = iter(batches)

    def read_on(num_batches: int) -> None:
        for batch in itertools.islice(waiting, num_batches):
            reading.append(
                [pool.submit(_load, item, estimator, batch.frames) for item in batch.items]
            )

    read_on(_READ_AHEAD)
    running: tuple[list[_Loaded | Unscored], Any] | None = None
    while reading:
        loaded = [future.result() for future in reading.popleft()]
        read_on(1)
        out = _dispatch(estimator, variables, loaded, num_rows)
        if running:
            yield _collected(*running, estimator)
        running = loaded, out
    if running:
        yield _collected(*running, estimator)


class _Loaded(NamedTuple):
    """A mixture at the sample rate of scoring, and as input of a batch at the model's rate."""

    item: Item
    mixture: Mixture
    inputs: dict[str, np.ndarray]
    part: slice  # of the output that belongs to the clip


def loaded(
    item: Item, sample_rate_hz: int, estimates: Path | None
) -> tuple[Mixture, list[np.ndarray]] | Unscored:
    """The mixture of an item and, from a folder if there is one, its estimates."""
    try:
        made = mixtures.load(item, sample_rate_hz)
        mixtures.check_sounds(item, made)
        paths = mixtures.estimate_paths(item, estimates) if estimates else []
        num_samples = len(made.mixture_S)
        return made, [mixtures.load_estimate(path, num_samples, sample_rate_hz) for path in paths]
    except SilentError as error:
        return Unscored(item, str(error), mixtures.fingerprint_of(item))
    except (AudioError, OSError) as error:
        return Unscored(item, str(error))


def _load(item: Item, estimator: Estimator, frames: int | None) -> _Loaded | Unscored:
    scoring_hz, model_hz = estimator.scoring_hz, estimator.sample_rate_hz
    result = loaded(item, scoring_hz, estimator.estimates)
    if isinstance(result, Unscored):
        return result
    made, given = result
    both_CS = np.stack([made.mixture_S, made.target_S])
    mixture_S, target_S = audio_files.resample(both_CS, scoring_hz, model_hz)
    if estimator.engine and estimator.network:  # it takes padded clips only
        frames = frames or padded_frames(estimator.network, len(mixture_S))
    inputs = {"mixture": mixture_S, "target": target_S}
    num_inputs, first = len(mixture_S), 0
    if frames is not None and estimator.network is not None:
        inputs = padded(estimator.network, mixture_S, frames)
        first = estimator.network.window_samples // 2
    queries = [item.query, item.wrong_query] if item.wrong_query else [item.query]
    values = given or [estimator.conditions[query] for query in queries]
    inputs |= zip(("condition", "wrong_condition"), values, strict=False)
    return _Loaded(item, made, inputs, slice(first, first + num_inputs))


def _dispatch(
    estimator: Estimator, variables: Any, loaded: Sequence[_Loaded | Unscored], num_rows: int
) -> list[Any]:
    """Start to compute the estimates of those that could be read, and those of wrong queries."""
    good = [x.inputs for x in loaded if isinstance(x, _Loaded)]
    if not good:
        return []
    if estimator.engine:
        names = [x for x in ("condition", "wrong_condition") if x in good[0]]
        return [np.stack([_by_engine(estimator, x, name) for x in good]) for name in names]
    # The last batch is filled up with its first rows again: one shape, one compilation.
    index = np.resize(np.arange(len(good)), num_rows)
    batch = {key: np.stack([good[i][key] for i in index]) for key in good[0]}
    conditions = [batch.pop(x) for x in ("condition", "wrong_condition") if x in batch]
    step = _step(estimator.body, estimator.network if "total" in batch else None)
    return [step(variables, split_batch({**batch, "condition": x}))["estimate"] for x in conditions]


def _by_engine(estimator: Estimator, inputs: Mapping[str, Any], condition: str) -> np.ndarray:
    """Estimate of one padded clip."""
    audio_S, total, engine = inputs["mixture"], inputs["total"], estimator.engine
    condition_E, model = inputs[condition], estimator.network
    assert model is not None
    estimate_S = one_pass(model, estimator.variables, audio_S, condition_E, total, engine)
    return np.asarray(estimate_S)


@functools.lru_cache(maxsize=4)  # all checkpoints of a watched run use the same programs
def _step(body: Body, padded_network: ModelConfig | None) -> Any:
    """Parallel step of a batch: of one length, or of padded clips if a network is given."""
    if padded_network is None:
        return parallel_eval_step(lambda v, x: {"estimate": body(v, x)})
    return parallel_eval_step(lambda v, x: {"estimate": separate_padded(padded_network, v, x)})


def _collected(
    loaded: Sequence[_Loaded | Unscored], out: list[Any], estimator: Estimator
) -> list[Estimate | Unscored]:
    """Wait for the estimates of a batch and convert them to the sample rate of scoring."""
    hosts = [np.asarray(x) for x in out]
    estimates = zip(*(host.reshape(-1, host.shape[-1]) for host in hosts), strict=True)

    def scored(x: _Loaded, estimates_KS: Sequence[np.ndarray]) -> Estimate | Unscored:
        back = []
        for estimate_S in estimates_KS:
            estimate_S = estimate_S[x.part]
            if not np.isfinite(estimate_S).all():
                return Unscored(x.item, f"{x.item.id}: its estimate is not finite")
            rates = estimator.sample_rate_hz, estimator.scoring_hz
            estimate_S = audio_files.resample(estimate_S[None], *rates)[0]
            back.append(fitted(estimate_S, len(x.mixture.target_S)))
        return Estimate(x.item, x.mixture, *back)

    return [scored(x, next(estimates)) if isinstance(x, _Loaded) else x for x in loaded]


def make_row(
    result: Estimate | Unscored, sample_rate_hz: int, scores: Sequence[ScoreFunction]
) -> Row:
    """Facts and scores of an estimate, or the reason why it has none."""
    item = result.item
    row: Row = {
        "row": item.row,
        "id": item.id,
        "query": item.query,
        "label": item.label,
        "clip": item.clips[0] if item.clips else item.target.name,
        "snr_db": item.snr_db,
    }
    if isinstance(result, Unscored):
        silent = {"fingerprint": result.fingerprint, "silent": True} if result.fingerprint else {}
        return row | silent | {"reason": result.reason}
    target_S, mixture_S = result.mixture.target_S, result.mixture.mixture_S
    row |= {"num_samples": len(target_S), "fingerprint": result.mixture.fingerprint}
    if item.kind == "blind" and result.wrong_S is not None:
        result = _assigned(result, result.wrong_S)
    scored = Scored(target_S, result.estimate_S, mixture_S, sample_rate_hz, item.query)
    for score in scores:
        row |= score(scored)
    if result.wrong_S is not None:
        wrong = float(sdr_improvement(target_S, result.wrong_S, mixture_S))
        row |= {"sdri_wrong_query": wrong, "query_gap": row["sdri"] - wrong}
    return row


def _assigned(result: Estimate, other_S: np.ndarray) -> Estimate:
    """Exchange the two estimates if they fit the target and the rest better that way (PIT)."""
    target_S, mixture_S = result.mixture.target_S, result.mixture.mixture_S
    references_2S = np.stack([target_S, mixture_S - target_S])
    estimates_2S = np.stack([result.estimate_S, other_S])
    if si_sdr(references_2S, estimates_2S).sum() >= si_sdr(references_2S, estimates_2S[::-1]).sum():
        return result
    return result._replace(estimate_S=other_S, wrong_S=result.estimate_S)


# ---------------------------------------------------------------------- padded clips
#
# A benchmark such as Voicebank-DEMAND has almost as many lengths as clips, and a compilation for
# each would take far longer than the separation. Clips of rare lengths are padded to one of few
# numbers of frames. Frames behind a clip's end are zeroed in every layer, so the estimate is that
# of the clip alone.


def padded_frames(model: ModelConfig, num_samples: int) -> int:
    """Frames of the shape that clips of this length share with others."""
    return bucket(model, num_frames(num_samples, model.hop_samples))


def padded(model: ModelConfig, mixture_S: np.ndarray, frames: int) -> dict[str, np.ndarray]:
    """Mixture with half a reflected window at both ends and zeros behind; and its frame count."""
    audio_S = np.pad(mixture_S, model.window_samples // 2, mode="reflect")
    num_samples = (frames - 1) * model.hop_samples + model.window_samples
    total = np.asarray(num_frames(len(mixture_S), model.hop_samples), np.int32)
    return {"mixture": fitted(audio_S, num_samples), "total": total}


def separate_padded(
    model: ModelConfig, variables: Any, batch: Mapping[str, jax.Array]
) -> jax.Array:
    """Estimates `(B, S)` of padded mixtures, with half a window in front and padding behind."""
    one = functools.partial(one_pass, model, variables)
    return jax.vmap(one)(batch["mixture"], batch["condition"], batch["total"])


def batch_rows(batch_size: int) -> int:
    """Rows of a batch: `batch_size` rounded up to a multiple of the number of devices."""
    devices = jax.local_device_count()
    return -(-batch_size // devices) * devices
