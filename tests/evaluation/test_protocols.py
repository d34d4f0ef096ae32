"""The table of benchmarks says what the reference says."""

import pytest

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


def test_all_are_stated():
    assert tuple(STATED) == tuple(PROTOCOLS)


def test_the_mean_of_the_published_scores_is_the_published_mean():
    six = [x.published["AudioSep"] for x in PROTOCOLS.values() if "AudioSep" in x.published]
    assert len(six) == 6
    for name, stated in (("sdri", 8.75), ("si_sdr", 7.77)):
        assert sum(x[name] for x in six) / 6 == pytest.approx(stated, abs=0.006)
