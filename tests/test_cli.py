"""Command lines: options, messages, exit codes and signals."""

import argparse
import io
import os
import signal
import sys

import pytest

from audiosep_jax.cli import Parser, exit_code, local_path, naming, say, shard
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


def test_the_code_of_a_command_is_passed_on():
    assert exit_code(lambda: 1) == 1
    assert exit_code(lambda: None) == 0


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_unwinds_the_command(number, code, capsys, request):
    before = signal.signal(number, signal.SIG_DFL)  # nohup ignores SIGHUP
    request.addfinalizer(lambda: signal.signal(number, before))
    cleaned = []

    def command():
        try:
            os.kill(os.getpid(), number)
            signal.pause()
        finally:
            cleaned.append(True)

    assert exit_code(command, "; --resume continues") == code
    assert cleaned == [True]
    assert capsys.readouterr().err == "stopped; --resume continues\n"
    assert signal.getsignal(number) is signal.SIG_DFL


def test_an_ignored_hangup_remains_ignored():
    """As nohup sets it."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert exit_code(lambda: os.kill(os.getpid(), signal.SIGHUP)) == 0
    finally:
        signal.signal(signal.SIGHUP, before)


def test_ctrl_c_is_130(capsys):
    def command():
        raise KeyboardInterrupt

    assert exit_code(command) == 130
    assert capsys.readouterr().err == "stopped\n"


def test_names_that_the_terminal_cannot_show_are_no_error(monkeypatch):
    shown = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(shown, encoding="ascii"))
    assert exit_code(lambda: print("ü \udcff", flush=True)) == 0
    assert shown.getvalue() == b"\\xfc \\udcff\n"


@pytest.mark.parametrize(
    ("message", "told"),
    [
        ("no such folder", "--checkpoint runs/x: no such folder"),
        ("runs/x: no such folder", "--checkpoint runs/x: no such folder"),
        ("runs/x/config.json: is empty", "--checkpoint runs/x/config.json: is empty"),
    ],
)
def test_messages_name_the_option(message, told):
    with pytest.raises(InputError) as caught, naming("--checkpoint", "runs/x"):
        raise InputError(message)
    assert str(caught.value) == told


def test_lines_control_no_terminal(capsys):
    say("a\nb", "\x1b[31mred\x07")
    assert capsys.readouterr().err == "a b ?[31mred?\n"


def test_streams_that_are_closed_or_full_end_nothing(monkeypatch, capfd):
    def work():
        print("a path")
        say("a line")
        return 3

    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    assert exit_code(work) == 3
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stderr", full)
        assert exit_code(work) == 3


@pytest.mark.parametrize("text", ["", "gs://bucket/a.wav"])
def test_a_path_is_neither_empty_nor_an_address(text):
    """`""` is what the shell makes of an unset variable, and would mean this folder."""
    with pytest.raises(argparse.ArgumentTypeError):
        local_path(text)
