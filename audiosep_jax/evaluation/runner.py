"""Score the mixtures of a list: threads read them and score what is made of each.

A mixture is separated by itself, so its scores do not depend on the others or on their order.
"""

import contextlib
import dataclasses
import functools
import math
import queue
import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from audiosep_jax import workers
from audiosep_jax.audio.files import AudioError
from audiosep_jax.cli import use_compilation_cache
from audiosep_jax.encoders import KINDS
from audiosep_jax.evaluation import baselines, mixtures
from audiosep_jax.evaluation.lists import Item
from audiosep_jax.evaluation.mixtures import Mixture, SilentError
from audiosep_jax.evaluation.protocols import Protocol
from audiosep_jax.evaluation.results import Row, RowLog
from audiosep_jax.evaluation.scores import Scored, ScoreFunction
from audiosep_jax.metrics import sdr_improvement, separation_scores, si_sdr
from audiosep_jax.model.network import ModelConfig
from audiosep_jax.model.resunet import ResUNetConfig
from audiosep_jax.separation.batch import devices_to_use
from audiosep_jax.separation.separator import Separator

_SENT_TOGETHER = 4  # mixtures of a task of a cluster
_QUEUE_LOCK = threading.Lock()  # since Python 3.12, threads may compute a cached property twice


class Estimate(NamedTuple):
    """Estimates of one mixture at the sample rate of scoring."""

    item: Item
    mixture: Mixture
    estimate_KS: np.ndarray  # for the query and, if the item has one, for the wrong query
    activity_KT: np.ndarray  # probabilities that they sound; 1 if there are none


class Unscored(NamedTuple):
    """An item that cannot be scored; a silent one has the fingerprint of its files."""

    item: Item
    reason: str
    fingerprint: str = ""


# ---------------------------------------------------------------------- estimators


@dataclasses.dataclass(frozen=True, eq=False)
class Estimator:
    """Maker of estimates: a separator, a baseline of `protocols.BASELINES`, or files."""

    scoring_hz: int
    baseline: str
    model: ModelConfig  # whose STFT the masks of baselines have
    separator: Separator | None = None  # set if the network is used
    conditions: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)  # by query
    folder: Path | None = None  # of the estimates that another system wrote

    def __call__(self, item: Item, made: Mixture) -> tuple[np.ndarray, np.ndarray]:
        """Return estimates `(K, S)` and probabilities `(K, T)`; AudioError names a file."""
        if self.separator:
            queries = [item.query, item.wrong_query] if item.wrong_query else [item.query]
            return self._separated(made.mixture_S, np.stack([self.conditions[x] for x in queries]))
        if self.folder:
            size = len(made.mixture_S), self.scoring_hz
            paths = mixtures.estimate_paths(item, self.folder)
            found = [mixtures.load_estimate(path, *size) for path in paths]
        else:
            sounds = made.mixture_S, made.target_S, self.scoring_hz
            found = [baselines.estimate(self.baseline, self.model, *sounds)]
        return np.stack(found), np.ones((len(found), 1))

    def _separated(
        self, mixture_S: np.ndarray, condition_KE: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        with _QUEUE_LOCK:
            free = self._free
        mine = free.get()
        try:
            stream = mine.stream(self.scoring_hz, condition_KE, above_nyquist="drop", live=False)
            first_KCS, first_KT = stream.feed(mixture_S[None]), stream.activity_NT
            rest_KCS, rest_KT = stream.finish(), stream.activity_NT
        finally:
            free.put(mine)
        estimate_KCS = np.concatenate([first_KCS, rest_KCS], axis=-1)
        return estimate_KCS[:, 0], np.concatenate([first_KT, rest_KT], axis=-1)

    @functools.cached_property
    def _free(self) -> "queue.SimpleQueue[Separator]":
        """The separator on each device that is not separating."""
        assert self.separator is not None
        free: queue.SimpleQueue[Separator] = queue.SimpleQueue()
        for device in devices_to_use():
            free.put(self.separator.on_device(device))
        return free


def make_estimator(
    separator: Separator | None,
    baseline: str,
    items: Sequence[Item],
    scoring_hz: int,
    estimates: Path | None = None,
) -> Estimator:
    """Estimator of a baseline, of the separator if it is "", or of files in a folder `estimates`.

    Baselines without a network need no separator; masks then use the published STFT.
    """
    model = separator.model if separator else _published_model(scoring_hz)
    if not separator or baseline not in baselines.WITH_NETWORK:
        return Estimator(scoring_hz, baseline, model, folder=estimates)
    queries = (text for item in items for text in (item.query, item.wrong_query) if text)
    distinct, kind = list(dict.fromkeys(queries)), items[0].kind
    if kind == "blind":
        rows_NE = separator.slots(len(distinct))
    elif KINDS[kind].is_file:  # one after another, since sounds may take much memory
        rows_NE = np.concatenate([separator.embed(kind, KINDS[kind].read(x)) for x in distinct])
    else:
        rows_NE = separator.embed_text(distinct)
    conditions = dict(zip(distinct, rows_NE, strict=True))
    network = dataclasses.replace(separator, _encoders={})  # which workers do not need
    return Estimator(scoring_hz, baseline, model, network, conditions)


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
    row_of: Callable[[Item], Row],
    log: RowLog,
    done: Mapping[int, Row],
    *,
    num_threads: int = 4,
    cluster: str = "",
) -> None:
    """Add `row_of(item)` to the log for every item that is not done."""
    left = [item for item in items if item.row not in done]
    bar = tqdm(total=len(items), initial=len(items) - len(left), unit="mixture")
    with bar, contextlib.closing(_rows(row_of, left, num_threads, cluster)) as rows:
        for row in rows:
            log.add(row)
            bar.update()


def _rows(
    row_of: Callable[[Item], Row], items: Sequence[Item], num_threads: int, cluster: str
) -> Generator[Row, None, None]:
    """Yield the row of each item from threads, here or in each worker of a cluster."""
    if not cluster:
        with workers.threads(num_threads) as submit:
            yield from (row for _, row in workers.finished(submit, row_of, items))
        return

    def rows_of(group: Sequence[Item]) -> list[Row]:
        use_compilation_cache()
        return list(_rows(row_of, group, num_threads, ""))

    groups = [items[n : n + _SENT_TOGETHER] for n in range(0, len(items), _SENT_TOGETHER)]
    with workers.cluster(cluster) as submit:
        for _, rows in workers.finished(submit, rows_of, groups):
            yield from rows


def estimated(estimator: Estimator, item: Item) -> Estimate | Unscored:
    """Read or mix a mixture, and make its estimates."""
    try:
        made = mixtures.load(item, estimator.scoring_hz)
        mixtures.check_sounds(item, made)
        estimate_KS, activity_KT = estimator(item, made)
    except SilentError as error:
        return Unscored(item, str(error), mixtures.fingerprint_of(item))
    except (AudioError, OSError) as error:
        return Unscored(item, str(error))
    if not np.isfinite(estimate_KS).all():
        return Unscored(item, f"{item.id}: its estimate is not finite")
    return Estimate(item, made, estimate_KS, activity_KT)


def scored_row(estimator: Estimator, scores: Sequence[ScoreFunction], item: Item) -> Row:
    """Make the row of a mixture: its facts, and its scores or the reason why it has none."""
    result = estimated(estimator, item)
    row = facts(result)
    if isinstance(result, Unscored):
        return row
    target_S, mixture_S = result.mixture.target_S, result.mixture.mixture_S
    estimate_KS = result.estimate_KS
    if item.kind == "blind" and len(estimate_KS) == 2:
        estimate_KS = _assigned(target_S, mixture_S, estimate_KS)
    scored = Scored(target_S, estimate_KS[0], mixture_S, estimator.scoring_hz, item.query)
    row |= separation_scores(*scored[:3])
    for score in scores:
        row |= score(scored)
    for wrong_S in estimate_KS[1:]:
        wrong = float(sdr_improvement(target_S, wrong_S, mixture_S))
        row |= {"sdri_wrong_query": wrong, "query_gap": row["sdri"] - wrong}
    return row


def facts(result: Estimate | Unscored) -> Row:
    """Facts of a mixture, and the reason why it has no scores."""
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
    made = result.mixture
    return row | {"num_samples": len(made.target_S), "fingerprint": made.fingerprint}


def _assigned(target_S: np.ndarray, mixture_S: np.ndarray, estimate_KS: np.ndarray) -> np.ndarray:
    """Order of two estimates that fits the target and the rest of the mixture better (PIT)."""
    reference_KS = np.stack([target_S, mixture_S - target_S])
    orders = estimate_KS, estimate_KS[::-1]
    return max(orders, key=lambda order_KS: float(si_sdr(reference_KS, order_KS).sum()))
