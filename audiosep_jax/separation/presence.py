"""How much of the described sound is there at all, and when: from energies of tenths of seconds."""

import numpy as np

# A span starts where the estimate takes the one share of the mixture's power, and ends below the
# other.
SHARE_ON, SHARE_OFF = 0.2, 0.05
RANGE_DB = 30.0  # what is further below the estimate's loudest tenth is not active
SILENT_POWER = 1e-10  # -100 dB of full scale: nothing to hear
LARGEST_GAP_SECONDS = 0.25  # spans closer than this are one


def presence(estimate_T: np.ndarray, mixture_T: np.ndarray) -> float:
    """0 (nothing) to 1: the share of the mixture's power that the estimate takes where it sounds.

    The mean of that share over time, weighted with the estimate's own power: a short bark that
    takes all of the power while it lasts scores 1 in an hour of anything else.

    Args:
        estimate_T, mixture_T: mean squares of each tenth of a second.
    """
    total = float(estimate_T.sum())
    if total <= SILENT_POWER * len(estimate_T):
        return 0.0
    return float((estimate_T * _share(estimate_T, mixture_T)).sum() / total)


def spans(
    estimate_T: np.ndarray, mixture_T: np.ndarray, hop_seconds: float, seconds: float
) -> list[tuple[float, float]]:
    """(start, end) in seconds of when the sound is active, in order, none touching the next.

    A span needs a tenth of a second in which the estimate takes `SHARE_ON` of the mixture's power;
    it reaches as far to either side as the share stays above `SHARE_OFF`; all within `RANGE_DB` of
    the estimate's loudest.
    """
    loud_T = estimate_T > max(
        SILENT_POWER, float(estimate_T.max(initial=0)) * 10 ** (-RANGE_DB / 10)
    )
    share_T = _share(estimate_T, mixture_T)
    stays_T, starts_T = loud_T & (share_T >= SHARE_OFF), loud_T & (share_T >= SHARE_ON)
    edges = np.flatnonzero(np.diff(stays_T.astype(int), prepend=0, append=0))
    found: list[tuple[float, float]] = []
    for first, last in zip(edges[::2], edges[1::2], strict=True):
        if not starts_T[first:last].any():
            continue
        start, end = first * hop_seconds, min(last * hop_seconds, seconds)
        if found and start - found[-1][1] < LARGEST_GAP_SECONDS:
            start = found.pop()[0]
        found.append((round(float(start), 3), round(float(end), 3)))
    return found


def _share(estimate_T: np.ndarray, mixture_T: np.ndarray) -> np.ndarray:
    """0 to 1, also where rounding or phase makes an estimate louder than the mixture."""
    return np.minimum(estimate_T / np.maximum(mixture_T, SILENT_POWER), 1)
