"""What an evaluation runs with, as its options say: separator, rate, estimates and scores."""

import argparse
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from audiosep_jax.evaluation import baselines, runner, scores
from audiosep_jax.evaluation.clap_scores import ClapScore
from audiosep_jax.evaluation.lists import Item
from audiosep_jax.evaluation.protocols import Protocol
from audiosep_jax.evaluation.runner import Estimator, ScoreFunction
from audiosep_jax.model.network import ModelConfig
from audiosep_jax.model.resunet import ResUNetConfig
from audiosep_jax.separation.separator import Separator


def separator_of(arguments: argparse.Namespace) -> Separator | None:
    """The checkpoint's, where there is one."""
    if not arguments.checkpoint:
        return None
    return Separator.from_pretrained(
        arguments.checkpoint,
        text_model=arguments.text_model,
        option="--checkpoint DIR",
        text_option="--text_model DIR",
    )


def sample_rate_of(
    arguments: argparse.Namespace, protocol: Protocol, separator: Separator | None
) -> int:
    """Of scoring: as asked, the protocol's, or the model's."""
    model_hz = (separator.model if separator else ResUNetConfig()).sample_rate_hz
    return int(arguments.sample_rate_hz or protocol.sample_rate_hz or model_hz)


def estimator_of(
    arguments: argparse.Namespace,
    separator: Separator | None,
    items: Sequence[Item],
    sample_rate_hz: int,
) -> tuple[Estimator, list[str]]:
    """What makes the estimates, and the query of each mixture."""
    baseline = arguments.baseline
    random = baseline == "random_query"
    queries = baselines.random_queries(items) if random else [item.query for item in items]
    distinct = list(dict.fromkeys(queries))
    model = separator.model if separator else _published_model(sample_rate_hz)
    variables: Any = {}
    if separator and baseline in ("", "random_query"):
        variables, vectors = separator.variables, separator.embed_text(distinct)
    else:
        vectors = np.zeros((len(distinct), 1), np.float32)
    # No separation needs no conversion either.
    model_hz = sample_rate_hz if baseline in baselines.WITHOUT_MODEL else model.sample_rate_hz
    conditions = dict(zip(distinct, vectors, strict=True))
    body = baselines.body_of(baseline, model)
    network = model if variables else None
    return Estimator(body, variables, model_hz, conditions, network), queries


def _published_model(sample_rate_hz: int) -> ModelConfig:
    """The published STFT at another rate: 2048 and 320 samples at 32 kHz, 1024 and 160 at 16."""
    window_samples = 2 ** round(math.log2(0.064 * sample_rate_hz))
    return ResUNetConfig(
        sample_rate_hz=sample_rate_hz,
        window_samples=window_samples,
        hop_samples=window_samples * 5 // 32,
    )


def scores_of(
    arguments: argparse.Namespace, protocol: Protocol, queries: Sequence[str]
) -> list[ScoreFunction]:
    """What each mixture is scored by."""
    functions: list[ScoreFunction] = [runner.default_scores]
    if arguments.speech or protocol.speech:
        scores.check_packages()
        functions.append(scores.speech_scores)
    if arguments.clap_score:
        functions.append(ClapScore(queries, arguments.clap_model, option="--clap_model DIR"))
    return functions
