"""What the commands have in common: how they take options, and how they tell mistakes."""

import argparse
import sys
from collections.abc import Callable
from typing import NoReturn

from audiosep_jax.errors import InputError


class Parser(argparse.ArgumentParser):
    """Options by their full names, an example in the help, mistakes as InputError."""

    def __init__(self, program: str, description: str, example: str) -> None:
        super().__init__(
            prog=program,
            description=description,
            epilog=example,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def error(self, message: str) -> NoReturn:
        """One line, without the usage."""
        raise InputError(f"{message}; --help shows an example")


def shard(text: str) -> tuple[int, int]:
    """(index, count) of `i/n`, i from 0 to n - 1: the type of `--shard` in all commands."""
    parts = text.split("/")
    if len(parts) == 2 and all(part.isascii() and part.isdecimal() for part in parts):
        index, count = map(int, parts)
        if index < count:
            return index, count
    raise argparse.ArgumentTypeError(f"{text} must be i/n, i from 0 to n - 1, such as 0/4")


def exit_code(command: Callable[[], object]) -> int:
    """0, or 2 where the command raises InputError, whose line goes to stderr."""
    try:
        command()
    except InputError as error:
        print("error:", *str(error).split(), file=sys.stderr)
        return 2
    return 0
