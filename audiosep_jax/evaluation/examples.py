"""Spectrograms of the mixtures that came out best, in the middle, and worst."""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from audiosep_jax.evaluation import figures, runner
from audiosep_jax.evaluation.lists import Item


def draw(
    rows: Sequence[Mapping[str, Any]],
    items: Sequence[Item],
    estimator: runner.Estimator,
    sample_rate_hz: int,
    output: Path,
) -> list[str]:
    """Separates the examples once more and draws them; names of the pictures below `output`."""
    chosen = figures.example_rows([dict(row) for row in rows])
    names = {
        row["row"]: (figures.example_name(kind, rank), row)
        for kind, found in chosen.items()
        for rank, row in enumerate(found, start=1)
    }
    lengths = {row: found["num_samples"] for row, (_, found) in names.items()}
    config = runner.RunConfig(progress=False)
    shapes = runner.shapes_of(estimator, sample_rate_hz)
    batches = runner.plan(items, lengths, runner.batch_rows(config.batch_size), shapes)
    with ThreadPoolExecutor(config.num_threads) as pool:
        for results in runner.estimate_batches(batches, estimator, sample_rate_hz, config, pool):
            for result in results:
                if not isinstance(result, runner.Estimate):
                    continue  # its files have gone since
                name, row = names[result.item.row]
                sounds = (result.mixture.mixture_S, result.mixture.target_S, result.estimate_S)
                figures.draw_example(row, *sounds, sample_rate_hz, output / name)
    return [name for name, _ in names.values()]
