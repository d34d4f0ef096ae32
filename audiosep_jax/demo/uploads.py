"""Access to files: a visitor of the page may name the files that they uploaded, and no others."""

import json
import os
import secrets
import stat
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from starlette.datastructures import MutableHeaders
from starlette.formparsers import MultiPartException
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from audiosep_jax.errors import InputError

API = "/gradio_api"
COOKIE = "audiosep_visitor"
MAX_JSON_BYTES = 1 << 20
# The requests with a body that the page makes. Gradio has more of them, such as one that runs
# ffmpeg on any file (/process_recording).
_JSON_ROUTES = ("queue/join", "call/", "run/", "api/", "cancel", "reset")


class Uploads:
    """Files below a folder and the visitors that may name them. Safe for threads."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        self._lock = threading.Lock()
        self._visitors: dict[str, set[str]] = {}  # by path

    def add(self, visitor: str, paths: Iterable[str]) -> None:
        """Let a visitor name these files, and forget files that were removed."""
        with self._lock:
            removed = [path for path in self._visitors if not os.path.lexists(path)]
            for path in removed:
                del self._visitors[path]
            for path in paths:
                self._visitors.setdefault(path, set()).add(visitor)

    def check(self, visitor: str, path: str) -> None:
        """Raise InputError unless the visitor may name this file.

        The file must be regular and below the folder, and no part of its path may be a link. This
        never opens the file: opening a device or a pipe could block.
        """
        with self._lock:
            owned = visitor in self._visitors.get(path, ())
        if not owned or not self._is_regular(path):
            raise InputError(
                "Only files that you have uploaded to this page in the last hour can be used"
            )

    def _is_regular(self, path: str) -> bool:
        resolved = Path(path).resolve()
        if str(resolved) != path or not resolved.is_relative_to(self.folder):
            return False
        try:
            status = os.lstat(path)
        except OSError:
            return False
        return stat.S_ISREG(status.st_mode) and status.st_nlink == 1


class UploadsOnly:
    """ASGI middleware that refuses requests which name files of anybody else.

    Gradio checks that a path is below its upload folder. It fetches http addresses, and it lets one
    visitor name the uploads of another. This runs before Gradio reads a request, so that nothing
    is opened, hashed or fetched for a request that is refused. A cookie identifies the visitor.
    """

    def __init__(self, app: ASGIApp, uploads: Uploads) -> None:
        self._app, self._uploads = app, uploads

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        visitor, send = _identified(scope, send)
        route = scope["path"].removeprefix(f"{API}/")
        try:
            if route == "upload":
                receive, send = _ending_with_client(receive), self._noting_uploads(send, visitor)
            elif route.startswith("file"):
                self._uploads.check(visitor, route.removeprefix("file="))
            elif scope["method"] not in ("GET", "HEAD", "OPTIONS"):
                receive = await self._checked_body(route, scope["path"], receive, visitor)
        except InputError as error:
            await JSONResponse({"detail": str(error)}, 403)(scope, receive, send)
            return
        await self._app(scope, receive, send)

    async def _checked_body(self, route: str, path: str, receive: Receive, visitor: str) -> Receive:
        """Read the body, check every file in it, and return what lets the app read it again."""
        if not route.startswith(_JSON_ROUTES) and path.rstrip("/") != "/login":
            raise InputError("The page has no such request")
        body, more = b"", True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
            if len(body) > MAX_JSON_BYTES:
                raise InputError(f"The request is longer than {MAX_JSON_BYTES} bytes")
        for file in _paths(_parsed(body)):
            self._uploads.check(visitor, file)
        waiting: list[Message] = [{"type": "http.request", "body": body}]

        async def again() -> Message:
            return waiting.pop() if waiting else await receive()

        return again

    def _noting_uploads(self, send: Send, visitor: str) -> Send:
        """Note the paths that Gradio answers an upload with."""
        content = b""

        async def noting(message: Message) -> None:
            nonlocal content
            content += message.get("body", b"")
            if message["type"] == "http.response.body" and not message.get("more_body", False):
                paths = _parsed(content)
                if isinstance(paths, list):
                    self._uploads.add(visitor, [x for x in paths if isinstance(x, str)])
            await send(message)

        return noting


def visitor_of(cookies: dict[str, str]) -> str:
    """Visitor that the cookies of a request name; empty if they name none."""
    return cookies.get(COOKIE, "")


def _identified(scope: Scope, send: Send) -> tuple[str, Send]:
    """Visitor of a request, and a `send` that gives a cookie to visitors who have none."""
    visitor = visitor_of(Request(scope).cookies)
    if visitor:
        return visitor, send
    visitor = secrets.token_urlsafe(24)
    cookie = f"{COOKIE}={visitor}; Path=/; HttpOnly; SameSite=Lax"

    async def with_cookie(message: Message) -> None:
        if message["type"] == "http.response.start":
            MutableHeaders(scope=message).append("set-cookie", cookie)
        await send(message)

    return visitor, with_cookie


def _ending_with_client(receive: Receive) -> Receive:
    """Raise on a body that breaks off the exception on which Gradio removes the partial file."""
    complete = False

    async def ending() -> Message:
        nonlocal complete
        message = await receive()
        if message["type"] == "http.disconnect" and not complete:
            raise MultiPartException("The upload broke off.")
        complete = complete or not message.get("more_body", False)
        return message

    return ending


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
