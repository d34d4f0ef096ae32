"""What is told beside the numbers."""

import argparse

from audiosep_jax.evaluation.protocols import PROTOCOLS
from audiosep_jax.evaluation.record import command_of, results_of


def test_command_is_the_same_for_all_processes():
    words = ["--audio", "my clips", "--output", "out"]
    expected = "python -m audiosep_jax.evaluate --audio 'my clips' --output out"
    for extra in ([], ["--shard", "1/2"], ["--shard=0/2"], ["--overwrite"]):
        assert command_of([*words[:2], *extra, *words[2:]]) == expected


def test_the_query_that_is_told_is_the_one_that_was_asked():
    protocol = PROTOCOLS["voicebank_demand"]
    row = {"row": 0, "id": "a", "query": "x", "label": "x", "clip": "a.wav", "fingerprint": ""}
    rows = [{**row, "snr_db": None, "sdri": 1.0}]

    def told(query, column):
        asked = {"query": query, "query_column": column}
        arguments = argparse.Namespace(**asked, baseline="", metadata=None, checkpoint="")
        content = results_of(arguments, [], protocol, None, 16000, rows)
        return content["query"], content["query_column"], len(content["notes"])

    assert told("", "") == ("human speech", None, 1)  # the note on how many there are
    assert told("a voice", "") == ("a voice", None, 1)
    assert told("", "who") == (None, "who", 2)
