"""What the commands have in common."""

import argparse

import pytest

from audiosep_jax.cli import Parser, exit_code, shard
from audiosep_jax.errors import InputError


def test_shard_by_its_form():
    assert [shard(text) for text in ("0/1", "0/8", "7/8")] == [(0, 1), (0, 8), (7, 8)]
    for text in ("8/8", "9/8", "2", "2/8/1", "-1/8", "a/b", "", "0/0", "²/8", " 1/8"):
        with pytest.raises(argparse.ArgumentTypeError, match="must be i/n"):
            shard(text)


def test_mistakes_are_one_line_and_two(capsys):
    parser = Parser("x", "does x", "example")
    parser.add_argument("--shard", type=shard)
    assert exit_code(lambda: parser.parse_args(["--shard", "0/2"])) == 0
    for words in (["--shard", "2/2"], ["--shar", "0/2"], ["more"]):
        assert exit_code(lambda words=words: parser.parse_args(words)) == 2
        told = capsys.readouterr()
        assert told.err.startswith("error: ")
        assert (told.err.count("\n"), told.out) == (1, "")


def test_a_message_of_several_lines_is_told_in_one(capsys):
    def command():
        raise InputError("a.wav:\n  is empty")

    assert exit_code(command) == 2
    assert capsys.readouterr().err == "error: a.wav: is empty\n"
