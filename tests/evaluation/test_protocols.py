"""The table of benchmarks says what the reference says."""

import pytest

from audiosep_jax.evaluation.protocols import MEANS_OF_SIX, PROTOCOLS, SIX

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
    "libri2mix": (3000 * 2, "mean", "another recording of the speaker", 8000),
    "libri2mix_blind": (3000 * 2, "mean", "none, the best assignment", 8000),
    "wsj0_2mix": (3000 * 2, "mean", "another recording of the speaker", 8000),
    "wsj0_2mix_blind": (3000 * 2, "mean", "none, the best assignment", 8000),
    "mixtures": (None, "mean", "sentence of the list", None),
    "absence": (None, "mean", "sentence of the list", None),
}


@pytest.mark.parametrize("name", STATED)
def test_protocol(name):
    row = PROTOCOLS[name]
    assert (row.count, row.aggregation, row.query_kind, row.sample_rate_hz) == STATED[name]
    assert row.headline[-1:] in (("si_sdr",), ("sdri",), ())


def test_all_are_stated():
    assert tuple(STATED) == tuple(PROTOCOLS)
    assert PROTOCOLS["dcase2024"].headline == ("sdr", "sdri", "si_sdr")


def test_the_mean_of_the_published_scores_is_the_published_mean():
    assert SIX == ("audioset", "vggsound", "audiocaps", "clotho", "music", "esc50")
    for name in ("sdri", "si_sdr"):
        mean = sum(PROTOCOLS[x].published["AudioSep"][name] for x in SIX) / len(SIX)
        assert mean == pytest.approx(MEANS_OF_SIX["AudioSep"][name], abs=0.006)
