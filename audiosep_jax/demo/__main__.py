"""Serves the web page; `--help` shows an example."""

import argparse
import contextlib
import importlib.util
import math
import os
import signal
import socket
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, NoReturn

from audiosep_jax.cli import Parser
from audiosep_jax.demo.temporary import own_folder
from audiosep_jax.errors import InputError

if TYPE_CHECKING:
    from audiosep_jax.separation.separator import Separator

# JAX and Gradio are imported where they are used: help and mistakes answer at once.

EXAMPLE = """example:
  python -m audiosep_jax.demo --checkpoint runs/demo
serves a page at http://127.0.0.1:7860 on which recordings are dropped and sentences typed.
Without --checkpoint the published weights are used, which are fetched once; the page itself
fetches nothing. --host 0.0.0.0 lets other machines in, without a password.
Needs pip install 'audiosep-jax[demo]'."""


def main(argv: Sequence[str]) -> int:
    """Exit code: 0 when it is stopped, or 2 with one line on stderr."""
    try:
        _serve(_parser().parse_args(argv))
    except InputError as error:
        print("error:", *str(error).split(), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        pass
    return 0


def _serve(arguments: argparse.Namespace) -> None:
    # ------------------------------------------------------------------ checks, cheapest first
    for option in ("max_seconds", "max_megabytes", "concurrency"):
        value = vars(arguments)[option]
        if not (math.isfinite(value) and value > 0):
            raise InputError(f"--{option} {value}: must be more than 0")
    for package in ("gradio", "matplotlib"):
        if importlib.util.find_spec(package) is None:
            raise InputError(f"the page needs {package}: pip install 'audiosep-jax[demo]'")

    with contextlib.closing(_listen(arguments.host, arguments.port)) as sock:
        # -------------------------------------------------------------- load, serve, clean up
        separator = _load(arguments.checkpoint, arguments.text_model)
        # `kill` ends it as Ctrl-C does, so that its files are removed.
        signal.signal(signal.SIGTERM, _interrupt)
        with own_folder() as folder:
            # Set before Gradio is imported, which makes the folder at once.
            os.environ["GRADIO_TEMP_DIR"] = str(folder / "uploads")
            from audiosep_jax.demo.page import Limits
            from audiosep_jax.demo.server import Site

            limits = Limits(arguments.max_seconds, arguments.max_megabytes, arguments.concurrency)
            site = Site(separator, folder / "answers", sock, limits)
            print(f"http://{_address(sock)}", flush=True)
            site.run()


def _load(checkpoint: str, text_model: str) -> "Separator":
    from absl import logging

    from audiosep_jax.compilation_cache import use_compilation_cache
    from audiosep_jax.separation.separator import Separator

    use_compilation_cache()
    logging.set_verbosity(logging.ERROR)  # what Orbax tells of a load
    separator = Separator.from_pretrained(
        checkpoint,
        text_model=text_model,
        option="--checkpoint DIR",
        text_option="--text_model DIR",
    )
    separator.embed_text(["a sound"])  # fetches the text encoder now, not for the first reader
    return separator


def _listen(host: str, port: int) -> socket.socket:
    """A socket that takes connections; they wait until the page is served."""
    if port not in range(1 << 16):
        raise InputError(f"--port {port}: must lie in 0..65535")
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family, backlog=128)
    except (OSError, UnicodeError) as error:
        reason = str(getattr(error, "strerror", None) or error).partition(" (while")[0]
        raise InputError(f"--host {host} --port {port}: cannot be served on ({reason})") from error


def _address(sock: socket.socket) -> str:
    host, port = sock.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt


def _parser() -> Parser:
    description = "A web page that separates what sentences describe from recordings."
    parser = Parser("python -m audiosep_jax.demo", description, EXAMPLE)
    add = parser.add_argument
    add(
        "--checkpoint",
        default="audiosep",
        metavar="WHAT",
        help="workdir of train.py, of which the best checkpoint is used, or a checkpoint in it; "
        "folder, file or hub id of weights, AudioSep's too (default: the published weights)",
    )
    add(
        "--text_model",
        default="",
        metavar="DIR",
        help="folder or hub id of the text encoder (default: that of training)",
    )
    add("--host", default="127.0.0.1", help="address to serve on (default: %(default)s)")
    add("--port", type=int, default=7860, help="0 for any free one (default: %(default)s)")
    add(
        "--max_seconds",
        type=float,
        default=300.0,
        metavar="S",
        help="longest recording that is taken (default: %(default)g)",
    )
    add(
        "--max_megabytes",
        type=float,
        default=100.0,
        metavar="MB",
        help="largest upload that is taken (default: %(default)g)",
    )
    add(
        "--concurrency",
        type=int,
        default=1,
        metavar="N",
        help="requests worked on at once; others wait in a queue (default: %(default)s)",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
