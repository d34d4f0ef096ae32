"""The command `audiosep demo`, which serves the web page."""

import argparse
import contextlib
import dataclasses
import importlib.util
import ipaddress
import os
import socket
import threading
from collections.abc import Sequence

from audiosep_jax import files
from audiosep_jax.cli import Parser, exit_code, number
from audiosep_jax.demo.storage import own_folder
from audiosep_jax.errors import InputError
from audiosep_jax.separation.options import add_checkpoint, add_loading, load_separator

# JAX and Gradio are imported where they are used, so that help and mistakes answer at once.

EXAMPLE = """example:
  audiosep demo --checkpoint runs/demo
serves a page at http://127.0.0.1:7860 on which recordings are dropped and sentences typed.
Without --checkpoint the weights in the package are used; --checkpoint audiosep takes the published
ones, which are fetched once. The page itself fetches nothing. To let other machines use it, give
--host 0.0.0.0 and --auth_file. Needs pip install 'audiosep-jax[demo]'."""


def main(argv: Sequence[str]) -> int:
    """Serve until Ctrl-C or a signal, which remove the page's files; return the exit code."""
    return exit_code(lambda: _serve(_parser().parse_args(argv)))


def _serve(arguments: argparse.Namespace) -> None:
    # ------------------------------------------------------------------ checks, cheapest first
    passwords = _passwords(arguments)
    for package in ("gradio", "matplotlib"):
        if importlib.util.find_spec(package) is None:
            raise InputError(f"the page needs {package}: pip install 'audiosep-jax[demo]'")
    host, port = _free_address(arguments.host, arguments.port)
    separator = load_separator(arguments.checkpoint, arguments)
    separator.embed_text(["a sound"])  # fetches the text encoder before the first visitor comes

    # ------------------------------------------------------------------ serve, clean up
    with own_folder() as folder:
        os.environ["GRADIO_TEMP_DIR"] = str(folder)  # Gradio reads it when it is imported
        from audiosep_jax.demo.page import Limits
        from audiosep_jax.demo.server import Server

        names = (field.name for field in dataclasses.fields(Limits))
        limits = Limits(**{name: vars(arguments)[name] for name in names})
        with contextlib.closing(Server(separator, folder, host, port, limits, passwords)):
            print(f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}", flush=True)
            threading.Event().wait()


def _passwords(arguments: argparse.Namespace) -> list[tuple[str, str]]:
    """Users and passwords; InputError if other machines could use the page without any."""
    if arguments.auth_file is None:
        if arguments.no_auth or _is_loopback(arguments.host):
            return []
        raise InputError(
            f"--host {arguments.host}: other machines could use the page; give --auth_file FILE, "
            "which has a line user:password for each user, or --no_auth to let everybody in"
        )
    lines = [line.strip() for line in files.read_text(arguments.auth_file).splitlines()]
    pairs = [(user, password) for user, _, password in (x.partition(":") for x in lines if x)]
    if not pairs or not all(user and password for user, password in pairs):
        raise InputError(f"{arguments.auth_file}: each line must be user:password")
    return pairs


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _free_address(host: str, port: int) -> tuple[str, int]:
    """Address and port to serve on; a free port for 0."""
    try:
        family, *_, address = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0]
        with socket.create_server((address[0], port), family=family) as found:
            host, port = found.getsockname()[:2]
            return host, port
    except (OSError, OverflowError, UnicodeError) as error:
        reason = str(getattr(error, "strerror", None) or error).partition(" (while")[0]
        raise InputError(f"--host {host} --port {port}: cannot be served on ({reason})") from error


def _parser() -> Parser:
    description = "Serve a web page that separates sounds, described in sentences, from recordings."
    parser = Parser("audiosep demo", description, EXAMPLE)
    add_checkpoint(parser)
    add_loading(parser)
    add = parser.add_argument
    add("--host", default="127.0.0.1", help="address to serve on (default: %(default)s)")
    add("--port", type=int, default=7860, help="port; 0 for any free one (default: %(default)s)")
    users = "text file with a line user:password for each user; required if others can reach --host"
    add("--auth_file", metavar="FILE", help=users)
    add("--no_auth", action="store_true", help="serve other machines without passwords")
    positive = number(float, 0.001, 1e9)
    longest = "longest recording that is accepted, in seconds (default: %(default)g)"
    add("--max_seconds", type=positive, default=300.0, metavar="S", help=longest)
    largest = "largest upload that is accepted, in megabytes (default: %(default)g)"
    add("--max_megabytes", type=positive, default=100.0, metavar="MB", help=largest)
    total = "all files that the page holds at a time, in megabytes (default: %(default)g)"
    add("--max_total_megabytes", type=positive, default=10_000.0, metavar="MB", help=total)
    at_once = "requests that run at once; others wait in a queue (default: %(default)s)"
    add("--concurrency", type=number(int, 1), default=1, metavar="N", help=at_once)
    return parser
