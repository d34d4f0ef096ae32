"""What stands between the network and the page: how much may be sent, and what may be fetched."""

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from starlette.formparsers import MultiPartException

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

# A form around a file: names, types and boundaries.
FORM_BYTES = 1 << 16
MEGABYTE = 1_000_000
# The browser itself then refuses whatever a page would load from elsewhere. Gradio compiles
# templates at run time, so 'unsafe-eval', and has styles and scripts in its pages.
CONTENT_POLICY = (
    "default-src 'self' data: blob:; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
    "style-src 'self' 'unsafe-inline'; object-src 'none'; base-uri 'self'; form-action 'self'"
)
HEADERS = (
    (b"content-security-policy", CONTENT_POLICY.encode()),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
)


class Guard:
    """An ASGI app around another: bodies over the limit are refused before they are read."""

    def __init__(self, app: App, max_bytes: int) -> None:
        self._app, self._max_bytes = app, max_bytes

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        announced = dict(scope["headers"]).get(b"content-length", b"0")
        if int(announced) > self._max_bytes + FORM_BYTES:
            await _refuse(send, int(announced), self._max_bytes)
            return
        await self._app(scope, self._limited(receive), _with_headers(send))

    def _limited(self, receive: Receive) -> Receive:
        """Ends a body that was not announced where it passes the limit, or breaks off.

        The exception is the one on which Gradio removes the part of the file that it has.
        """
        received, complete = 0, False

        async def limited() -> Message:
            nonlocal received, complete
            message = await receive()
            if message["type"] == "http.disconnect" and not complete:
                raise MultiPartException("The sender is gone.")
            if message["type"] == "http.request":
                received += len(message.get("body", b""))
                complete = not message.get("more_body", False)
            if received > self._max_bytes + FORM_BYTES:
                raise MultiPartException(f"Over the maximum allowed size of {self._max_bytes}.")
            return message

        return limited


async def _refuse(send: Send, announced_bytes: int, max_bytes: int) -> None:
    text = (
        f"Too large: {announced_bytes / MEGABYTE:.1f} MB, at most {max_bytes / MEGABYTE:g} MB "
        "are taken; 0 bytes of it were read.\n"
    )
    # The connection closes, for what is still on its way in it is not read.
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"connection", b"close"), *HEADERS]
    await send({"type": "http.response.start", "status": 413, "headers": headers})
    await send({"type": "http.response.body", "body": text.encode()})


def _with_headers(send: Send) -> Send:
    async def with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", ()), *HEADERS]
        await send(message)

    return with_headers
