"""Access to files: visitors of the page may name the files that they uploaded, and no others."""

import contextlib
import json
import math
import os
import secrets
import stat
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.formparsers import MultiPartException
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from audiosep_jax.errors import InputError

API = "/gradio_api/"
COOKIE = "audiosep_visitor"
# The requests with a body that the page makes. Gradio has more of them, such as one that runs
# ffmpeg on any file (/process_recording).
_ROUTES = tuple(API + x for x in ("queue/join", "call/", "run/", "api/", "cancel", "reset"))
_ROUTES += ("/login",)
_MAX_BODY_BYTES = 1 << 20
_MAX_LOGINS, _LOGIN_SECONDS = 10, 600.0  # failed logins of an address, and their period


class Uploads:
    """Files below a folder and the visitors that may name them. Safe for threads."""

    def __init__(self, folder: Path, max_bytes: float = math.inf) -> None:
        self._folder, self._lock = folder.resolve(), threading.Lock()
        self._max_bytes = max_bytes
        self._visitors: dict[str, set[str]] = {}  # by path

    def add(self, visitor: str, paths: Iterable[str]) -> None:
        """Let a visitor name these files, and forget files that were removed."""
        with self._lock:
            self._visitors = {x: y for x, y in self._visitors.items() if os.path.lexists(x)}
            for path in paths:
                self._visitors.setdefault(path, set()).add(visitor)

    def check_space(self, num_bytes: int) -> None:
        """Raise InputError if the files of all visitors would become too large."""
        for path in self._folder.rglob("*"):
            with contextlib.suppress(OSError):  # removed meanwhile
                num_bytes += path.stat().st_size if path.is_file() else 0
        if num_bytes > self._max_bytes:
            raise InputError("The page holds as many files as it may; try again in an hour")

    def check(self, visitor: str, path: str) -> None:
        """Raise InputError unless the visitor may name this file.

        The file must be regular and below the folder, and no part of its path may be a link. This
        never opens the file, since opening a device or a pipe could block.
        """
        with self._lock:
            allowed = visitor in self._visitors.get(path, ()) and os.path.lexists(path)
        if allowed:
            resolved, status = Path(path).resolve(), os.lstat(path)
            allowed = str(resolved) == path and resolved.is_relative_to(self._folder)
            allowed = allowed and stat.S_ISREG(status.st_mode) and status.st_nlink == 1
        if not allowed:
            raise InputError(
                "Only files that you have uploaded to this page in the last hour can be used"
            )


class _Logins:
    """Counts login attempts by address; after ten that failed in ten minutes, refuses more."""

    def __init__(self) -> None:
        self._times: dict[str, list[float]] = {}

    def count(self, address: str, send: Send) -> Send:
        """Count an attempt; the returned `send` clears the count if the login succeeds.

        Raises:
            InputError: too many attempts of the address failed.
        """
        after = time.monotonic() - _LOGIN_SECONDS
        self._times = {
            x: [t for t in y if t > after] for x, y in self._times.items() if y[-1] > after
        }
        times = self._times.setdefault(address, [])
        if len(times) >= _MAX_LOGINS:
            raise InputError("Too many logins failed; try again in ten minutes")
        times.append(time.monotonic())

        async def noting(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] < 400:
                self._times.pop(address, None)
            await send(message)

        return noting


class UploadsOnly:
    """ASGI middleware that refuses requests which name files of other visitors or of the server.

    Gradio checks that a path is below its upload folder, but it fetches http addresses and lets one
    visitor name the uploads of another. This runs before Gradio reads a request, so that nothing
    is opened, hashed or fetched for a request that is refused. A cookie identifies the visitor.
    """

    def __init__(self, app: ASGIApp, uploads: Uploads) -> None:
        self._app, self._uploads, self._logins = app, uploads, _Logins()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        visitor, headers = Request(scope).cookies.get(COOKIE), Headers(scope=scope)
        if not visitor:
            visitor = secrets.token_urlsafe(24)
            # A page in another site's frame, as Spaces show it, keeps only a partitioned cookie.
            secure = "https" in (headers.get("x-forwarded-proto") or scope["scheme"])
            sites = "SameSite=None; Secure; Partitioned" if secure else "SameSite=Lax"
            send = _with_cookie(send, f"{COOKIE}={visitor}; Path=/; HttpOnly; {sites}")
        path = scope["path"]
        try:
            if scope["method"] == "POST" and headers.get("sec-fetch-site") == "cross-site":
                raise InputError("Requests from other web sites are refused")
            if path.startswith("/login") and scope["method"] == "POST":
                send = self._logins.count((scope["client"] or ("",))[0], send)
            if path == API + "upload":
                self._uploads.check_space(int(headers.get("content-length") or 0))
                receive, send = _ending_with_client(receive), self._noting_uploads(send, visitor)
            elif path.startswith(API + "file"):
                self._uploads.check(visitor, path.removeprefix(API + "file="))
            elif scope["method"] not in ("GET", "HEAD", "OPTIONS"):
                if not path.startswith(_ROUTES):
                    raise InputError("The page has no such request")
                body = await _body(Request(scope, receive))
                for file in _paths(_parsed(body)):
                    self._uploads.check(visitor, file)
                receive = _again(body, receive)
        except InputError as error:
            await JSONResponse({"detail": str(error)}, 403)(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    def _noting_uploads(self, send: Send, visitor: str) -> Send:
        """Note the paths that Gradio answers an upload with."""
        content = b""

        async def noting(message: Message) -> None:
            nonlocal content
            content += message.get("body", b"")
            if message["type"] == "http.response.body" and not message.get("more_body"):
                paths = _parsed(content)
                self._uploads.add(visitor, paths if isinstance(paths, list) else [])
            await send(message)

        return noting


def _with_cookie(send: Send, cookie: str) -> Send:
    async def with_cookie(message: Message) -> None:
        if message["type"] == "http.response.start":
            MutableHeaders(scope=message).append("set-cookie", cookie)
        await send(message)

    return with_cookie


def _ending_with_client(receive: Receive) -> Receive:
    """Raise on a body that breaks off the exception on which Gradio removes the partial file."""
    complete = False

    async def ending() -> Message:
        nonlocal complete
        message = await receive()
        if message["type"] == "http.disconnect" and not complete:
            raise MultiPartException("The upload broke off.")
        complete = not message.get("more_body")
        return message

    return ending


async def _body(request: Request) -> bytes:
    """Read the body of a request; InputError if it is longer than any that the page sends."""
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > _MAX_BODY_BYTES:
            raise InputError("The request is too long")
    return body


def _again(body: bytes, receive: Receive) -> Receive:
    """Deliver a body that was read already, then what comes after it."""
    waiting: list[Message] = [{"type": "http.request", "body": body}]

    async def again() -> Message:
        return waiting.pop() if waiting else await receive()

    return again


def _parsed(content: bytes) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        return None  # Gradio parses it in the same way, and refuses it


def _paths(value: Any) -> Iterable[str]:
    """Every path in a request, however deep, since Gradio looks for files at any depth."""
    waiting = [value]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            if isinstance(value.get("path"), str):
                yield value["path"]
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value
