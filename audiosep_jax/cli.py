"""Command lines: options, error messages, exit codes and signals, the same for all commands."""

import argparse
import contextlib
import io
import math
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn, TextIO

from audiosep_jax import files, remote
from audiosep_jax.errors import InputError, named

_MAX_PROGRAM_BYTES = 2 << 30  # of all compiled programs; the least recently used are removed


class Parser(argparse.ArgumentParser):
    """Parser that takes options by their full names only and raises InputError on mistakes."""

    def __init__(self, program: str, description: str, example: str) -> None:
        super().__init__(
            prog=program,
            description=description,
            epilog=example,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def error(self, message: str) -> NoReturn:
        """Raise InputError with the message on one line, without the usage."""
        raise InputError(f"{message}; --help shows an example")


def shard(text: str) -> tuple[int, int]:
    """Parse `i/n`, i from 0 to n - 1, as (index, count): the type of `--shard`."""
    parts = text.split("/")
    if len(parts) == 2 and all(part.isascii() and part.isdecimal() for part in parts):
        index, count = map(int, parts)
        if index < count:
            return index, count
    raise argparse.ArgumentTypeError(f"{text} must be i/n with i from 0 to n - 1, such as 0/4")


def add_cluster(parser: argparse._ActionsContainer) -> None:
    """Add --cluster, the first argument of `workers.cluster`."""
    spread = (
        "spread the work over the workers of this Dask scheduler, such as tcp://10.0.0.1:8786; "
        "needs pip install 'audiosep-jax[cluster]'"
    )
    parser.add_argument("--cluster", default="", metavar="ADDRESS", help=spread)


def local_path(text: str) -> Path:
    """Parse a path; refuse an address, such as gs://bucket, and an empty name."""
    if not text:  # as an unset variable of a shell; it would mean this folder
        raise argparse.ArgumentTypeError("a path is empty")
    if "://" in text:
        raise argparse.ArgumentTypeError(f"{text} is not a local path; mount or copy it first")
    return Path(text)


def place(text: str) -> Path:
    """Parse a local path or a URL, whose files are listed; see `remote`."""
    path = remote.path_of(text)
    if path is None:
        return local_path(text)
    try:
        remote.show(path)
    except InputError as error:  # argparse would not show its message
        raise argparse.ArgumentTypeError(str(error)) from error
    return path


def number(kind: type[int] | type[float], low: float, high: float = math.inf) -> Any:
    """Type of an option: a number from `low` to `high`."""

    def parse(text: str) -> float:
        value = kind(text)
        if not low <= value <= high:  # nor NaN
            raise argparse.ArgumentTypeError(f"{text} is not in {low:g}..{high:g}")
        return value

    parse.__name__ = kind.__name__  # argparse names it: "invalid int value"
    return parse


class Terminated(BaseException):
    """A signal asks the process to end, which it does after cleaning up."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.exit_code = 128 + number


def exit_code(command: Callable[[], object], hint: str = "") -> int:
    """Run a command and return its exit code, or 0 if it returns none.

    InputError becomes one line on stderr and 2. Ctrl-C, SIGTERM and SIGHUP unwind the command, so
    that it removes its temporary files; the codes are 130, 143 and 129.

    Args:
        hint: printed after "stopped", for example how to continue.
    """
    # A command that was started without them can print nevertheless.
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files may be no text
    with _signals_raise():
        try:
            code = command()
            return code if isinstance(code, int) else 0
        except InputError as error:
            say("error:", str(error))
            return 2
        except (KeyboardInterrupt, Terminated) as stop:
            say(f"stopped{hint}")
            return stop.exit_code if isinstance(stop, Terminated) else 130


@contextlib.contextmanager
def _signals_raise() -> Iterator[None]:
    """Raise Terminated in the main thread on SIGTERM and SIGHUP, unless they are ignored."""

    def terminate(number: int, _: object) -> NoReturn:
        raise Terminated(number)

    raising = []
    if threading.current_thread() is threading.main_thread():  # only there may handlers be set
        numbers = [getattr(signal, name, None) for name in ("SIGTERM", "SIGHUP")]
        raising = [x for x in numbers if x and signal.getsignal(x) is signal.SIG_DFL]
    for number in raising:
        signal.signal(number, terminate)
    try:
        yield
    finally:
        for number in raising:
            signal.signal(number, signal.SIG_DFL)


@contextlib.contextmanager
def naming(option: str, value: str = "") -> Iterator[None]:
    """Put the option, and the value that was given for it, in front of an InputError's message."""
    try:
        yield
    except InputError as error:
        message, value = str(error), named(value)
        if value and message.startswith(value):
            raise InputError(f"{option} {message}") from error
        raise InputError(f"{' '.join([option, value]).strip()}: {message}") from error


def say(*words: str) -> None:
    """Print one line on stderr, with `?` for characters that would control a terminal."""
    line = " ".join(named(" ".join(words)).split())
    encoding = sys.stderr.encoding or "utf-8"
    line = line.encode(encoding, "backslashreplace").decode(encoding)
    line = "".join(x if x.isprintable() else "?" for x in line)
    try:
        print(line, file=sys.stderr, flush=True)
    except OSError:  # a full disk or a closed terminal does not end the work
        discard(sys.stderr)


def discard(stream: TextIO) -> None:
    """Let a stream of the process go nowhere, after it could not be written to."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def use_compilation_cache() -> None:
    """Keep compiled programs in the package's cache folder; call it before the first compilation.

    The environment variable JAX_COMPILATION_CACHE_DIR names another folder, and
    JAX_ENABLE_COMPILATION_CACHE=false disables the cache. If the folder cannot be written, JAX
    warns and compiles as without a cache.
    """
    import jax

    if jax.config.values["jax_compilation_cache_dir"] is not None:
        return
    jax.config.update("jax_compilation_cache_dir", str(files.cache_folder("xla")))
    if "JAX_COMPILATION_CACHE_MAX_SIZE" not in os.environ:
        jax.config.update("jax_compilation_cache_max_size", _MAX_PROGRAM_BYTES)
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)
