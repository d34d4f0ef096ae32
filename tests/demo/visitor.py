"""A visitor of the page without a browser, who speaks the HTTP of the page's script."""

import http.client
import io
import json
import re
import urllib.request
import uuid
from typing import Any

import numpy as np
import soundfile


class Visitor:
    """One open page, as its script talks to the server; `close` is what closing it does."""

    def __init__(self, url: str, *, heartbeat: bool = True) -> None:
        self.url, self.session = url.rstrip("/") + "/", uuid.uuid4().hex
        cookies = urllib.request.HTTPCookieProcessor()
        self.opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), cookies)
        self._page = http.client.HTTPConnection(self.url.split("/")[2], timeout=60)
        if heartbeat:
            self._page.request("GET", f"/gradio_api/heartbeat/{self.session}")
            assert self._page.getresponse().status == 200

    def close(self) -> None:
        self._page.close()

    def upload(self, name: str, content: bytes) -> str:
        """The path at which the server keeps the file."""
        edge = uuid.uuid4().hex
        head = (
            f'--{edge}\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'
        )
        body = head.encode() + content + f"\r\n--{edge}--\r\n".encode()
        kind = {"Content-Type": f"multipart/form-data; boundary={edge}"}
        return str(json.loads(self.get("gradio_api/upload", body, kind))[0])

    def separate(
        self,
        recording: Any,
        text: str,
        unwanted: str = "",
        picture: Any = None,
        *,
        wrap: bool = True,
    ) -> tuple[str, Any]:
        """`complete` and [the page's HTML, the status line], or `error` and its message.

        `recording` is the path of an upload or, with wrap=False, the value of the page's input, as
        `picture` always is.
        """
        if wrap:
            recording = {"path": recording, "meta": {"_type": "gradio.FileData"}}
        return self.call("separate", [recording, text, unwanted, picture])

    def call(self, name: str, data: list[Any]) -> tuple[str, Any]:
        """`complete` and the outputs of an action of the page, or `error` and its message."""
        request = {"data": data, "session_hash": self.session}
        call, kind = f"gradio_api/call/{name}", {"Content-Type": "application/json"}
        event_id = json.loads(self.get(call, json.dumps(request).encode(), kind))["event_id"]
        events = self.get(f"{call}/{event_id}").decode()
        found = re.findall(r"event: (complete|error)\ndata: (.*)", events)
        return found[-1][0], json.loads(found[-1][1])

    def get(self, address: str, body: bytes | None = None, headers: Any = None) -> bytes:
        request = urllib.request.Request(self.url + address, body, headers or {})
        with self.opener.open(request, timeout=120) as response:
            return bytes(response.read())


def sounds(visitor: Visitor, html: str) -> list[np.ndarray]:
    """The sounds of an answer, in order: recording, targets, rest."""
    addresses = re.findall(r'<audio [^>]*src="([^"]+)"', html)
    return [soundfile.read(io.BytesIO(visitor.get(address)))[0] for address in addresses]
