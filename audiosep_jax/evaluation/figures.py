"""Figures of an evaluation: scores by class, by input SNR, their histogram, and single clips."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from audiosep_jax.evaluation.lists import Item
from audiosep_jax.evaluation.results import Row
from audiosep_jax.plots import new_figure, spectrogram_figure

if TYPE_CHECKING:
    from audiosep_jax.evaluation.runner import Estimator

BLUE, ORANGE, GREY = "#0072b2", "#d55e00", "#707070"  # distinct for colour-blind readers
MAX_BARS, MAX_BINS = 40, 50
NUM_EXAMPLES = 10  # best, median and worst ones each
_SNR_STEP_DB = 2.5


def draw(content: Mapping[str, Any], rows: Sequence[Row], folder: Path) -> list[str]:
    """Draw the figures for which the rows have data; return the names of the files in `folder`."""
    scored = [row for row in rows if "reason" not in row]
    part = len(scored) < len(rows)
    title = f"{len(scored):,} of {len(rows):,} mixtures" if part else ""
    drawn = ["histogram.png"]
    histogram(scored, folder / "histogram.png", title)
    if content["classes"]:
        by_class(content["classes"], folder / "by_class.png", title)
        drawn.append("by_class.png")
    if len(_snr_bins(scored)) > 1:
        by_snr(scored, folder / "by_snr.png", title)
        drawn.append("by_snr.png")
    return drawn


def histogram(rows: Sequence[Row], path: Path, title: str = "") -> None:
    """Histogram of SDRi, with mean and median."""
    sdri_N = np.array([row["sdri"] for row in rows])
    with new_figure(path, 7, 3.6) as figure:
        axis = figure.subplots()
        axis.hist(sdri_N, bins=MAX_BINS, color=BLUE, edgecolor="white", linewidth=0.5)
        for name, value, style in (
            ("mean", np.mean(sdri_N), "-"),
            ("median", np.median(sdri_N), "--"),
        ):
            axis.axvline(value, color=ORANGE, linestyle=style, label=f"{name} {value:.2f} dB")
        _label(axis, "SDRi (dB)", "mixtures", title)
        axis.legend(frameon=False)


def by_class(classes: Mapping[str, Mapping[str, float]], path: Path, title: str = "") -> None:
    """Bar chart of SDRi by class, best first; the best and the worst if there are many."""
    order = sorted(classes, key=lambda label: (-classes[label]["sdri"], label))
    if len(order) > MAX_BARS:
        order = [*order[: MAX_BARS // 2], *order[-MAX_BARS // 2 :]]
    with new_figure(path, 7, 1.0 + 0.24 * len(order)) as figure:
        axis = figure.subplots()
        labels = [f"{_short(label)} ({classes[label]['count']})" for label in order]
        axis.barh(range(len(order)), [classes[label]["sdri"] for label in order], color=BLUE)
        axis.set_yticks(range(len(order)), labels)
        axis.invert_yaxis()
        axis.axvline(0, color="black", linewidth=0.8)
        _label(axis, "SDRi (dB)", "", title)


def by_snr(rows: Sequence[Row], path: Path, title: str = "") -> None:
    """SDRi over the SDR of the mixture: every mixture, and mean and quartiles of each bin."""
    mixture_N = np.array([row["mixture_sdr"] for row in rows])
    sdri_N = np.array([row["sdri"] for row in rows])
    with new_figure(path, 7, 4) as figure:
        axis = figure.subplots()
        axis.plot(mixture_N, sdri_N, ".", color=GREY, alpha=0.35, markersize=3, zorder=1)
        bins = _snr_bins(rows)
        low, high = np.transpose([np.quantile(sdri_N[x], [0.25, 0.75]) for x in bins.values()])
        axis.fill_between(list(bins), low, high, color=BLUE, alpha=0.2, label="middle half")
        means = [sdri_N[index].mean() for index in bins.values()]
        axis.plot(list(bins), means, "o-", color=BLUE, label="mean")
        axis.axhline(0, color="black", linewidth=0.8)
        _label(axis, "SDR of the mixture (dB)", "SDRi (dB)", title)
        axis.legend(frameon=False)


def differences(sdri: Mapping[str, np.ndarray], path: Path) -> None:
    """Distribution of each mixture's SDRi minus that of the first evaluation, by name."""
    (base, base_N), *others = sdri.items()
    gains = {name: sdri_N - base_N for name, sdri_N in others}
    with new_figure(path, 7, 3.8) as figure:
        axis = figure.subplots()
        labels = [f"{_short(name)}: {gain_N.mean():+.2f} dB" for name, gain_N in gains.items()]
        axis.hist(list(gains.values()), bins=MAX_BINS, histtype="step", linewidth=1.5, label=labels)
        axis.axvline(0, color="black", linewidth=0.8)
        _label(axis, f"SDRi minus that of {_short(base)} (dB)", "mixtures")
        axis.legend(frameon=False)


# ---------------------------------------------------------------------- examples


def draw_examples(
    rows: Sequence[Row], items: Sequence[Item], estimator: "Estimator", output: Path
) -> list[str]:
    """Draw spectrograms of the best, median and worst mixtures, which are separated again.

    Returns the names of the pictures below `output`.
    """
    from audiosep_jax.evaluation.runner import Unscored, estimated

    drawn = []
    for kind, found in example_rows(rows).items():
        for rank, row in enumerate(found, start=1):
            item = dataclasses.replace(items[row["row"]], wrong_query="")
            made = estimated(estimator, item)
            if isinstance(made, Unscored):  # its files were removed since
                continue
            panels = {
                f"mixture, SDR {row['mixture_sdr']:.1f} dB": made.mixture.mixture_S,
                f"target, query: {row['query']}": made.mixture.target_S,
                f"estimate, SDR {row['sdr']:.1f} dB": made.estimate_KS[0],
            }
            drawn.append(f"examples/{kind}-{rank:02d}.png")
            spectrogram_figure(panels, estimator.scoring_hz, output / drawn[-1])
    return drawn


def example_rows(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Rows with the best, median and worst SDRi, each row at most once."""
    order = sorted(
        (row for row in rows if "reason" not in row), key=lambda x: (-x["sdri"], x["row"])
    )
    number = min(NUM_EXAMPLES, max(1, len(order) // 3))
    best, rest = order[:number], order[number:]
    rest, worst = rest[:-number], rest[-number:]
    middle = max(0, (len(rest) - number) // 2)
    return {"best": best, "median": rest[middle : middle + number], "worst": worst}


def _snr_bins(rows: Sequence[Row]) -> dict[float, np.ndarray]:
    """Indices of the rows in each bin of the mixture's SDR, by the centre of the bin."""
    steps_N = np.round(np.array([row["mixture_sdr"] for row in rows]) / _SNR_STEP_DB)
    return {
        float(step * _SNR_STEP_DB): np.flatnonzero(steps_N == step)
        for step in np.unique(steps_N).tolist()
    }


def _label(axis: Any, x: str, y: str, title: str = "") -> None:
    axis.set_title(title, loc="left", fontsize=9)
    axis.set_xlabel(x)
    axis.set_ylabel(y)
    axis.spines[["top", "right"]].set_visible(False)


def _short(label: str) -> str:
    return label if len(label) <= 40 else label[:39] + "…"
