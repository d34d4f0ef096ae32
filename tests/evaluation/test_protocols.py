"""The table of benchmarks says what the reference says."""

import pytest

from audiosep_jax.evaluate import PROTOCOLS as COMMAND_PROTOCOLS
from audiosep_jax.evaluation.protocols import PROTOCOLS

# count, aggregation, query, rate of each.
STATED = {
    "audioset": (527 * 10, "mean of class medians", "text label", 32000),
    "vggsound": (1000, "mean", "text label", 32000),
    "audiocaps": (964 * 5, "mean", "caption", 32000),
    "clotho": (1045 * 5, "mean", "caption", 32000),
    "music": (5004, "mean of class means", "text label", 32000),
    "esc50": (2000, "mean", "text label", 32000),
    "dcase2024": (3000, "mean", "caption", 16000),
    "voicebank_demand": (824, "mean", "one sentence of ours", 16000),
    "mixtures": (None, "mean", "sentence of the list", None),
}


@pytest.mark.parametrize("name", STATED)
def test_protocol(name):
    row = PROTOCOLS[name]
    assert (row.count, row.aggregation, row.query_kind, row.sample_rate_hz) == STATED[name]
    assert row.headline[-1] in ("si_sdr", "sdri")


def test_command_offers_all():
    assert COMMAND_PROTOCOLS == tuple(STATED) == tuple(PROTOCOLS)
    assert PROTOCOLS["dcase2024"].headline == ("sdr", "sdri", "si_sdr")
