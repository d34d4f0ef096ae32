"""A hub on loopback: the routes that its real client uses, a record of them, and faults."""

import base64
import contextlib
import hashlib
import json
import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

ROOT = Path(__file__).resolve().parents[1]
COMMIT = "c0ffee" + 34 * "0"


class Hub:
    """Repositories `{"models/owner/name": {path: content}}`; files above 1000 bytes are LFS's."""

    def __init__(self, repositories):
        self.repositories = repositories
        self.requests = []  # (method, path, Range or "")
        self.cut_after = None  # bytes after which the next body breaks off
        self.damage = False  # bodies have one bit turned

    @property
    def endpoint(self):
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    def downloads(self):
        """Names of the files whose content was asked for."""
        return [
            path.split("/")[-1]
            for how, path, _ in self.requests
            if (how, "/resolve/" in path) == ("GET", True)
        ]


def is_lfs(content):
    return len(content) > 1000


def etag(content):
    """SHA-256 of what LFS holds, else git's hash."""
    if is_lfs(content):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _info(name, files):
    siblings = [{"rfilename": path} for path in files]
    return {"id": name, "sha": COMMIT, "siblings": siblings, "private": False, "tags": []}


def _tree(files):
    for path, content in files.items():
        lfs = {"oid": etag(content), "size": len(content), "pointerSize": 130}
        entry = {"type": "file", "path": path, "size": len(content), "oid": etag(content)[:40]}
        yield entry | ({"lfs": lfs} if is_lfs(content) else {})


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *unused):
        pass

    def do_HEAD(self):
        self._answer(body=False)

    def do_GET(self):
        self._answer(body=True)

    def do_POST(self):
        """A commit of small files: create, say how to send them, send them."""
        body = self.rfile.read(int(self.headers["Content-Length"]))
        path = unquote(urlsplit(self.path).path).removeprefix("/api/")
        self.hub.requests.append(("POST", self.path, ""))
        if path == "repos/create":
            name = json.loads(body)["name"]
            self.hub.repositories.setdefault(f"models/someone/{name}", {})
            answer = {"url": f"{self.hub.endpoint}/someone/{name}"}
        elif path == "validate-yaml":  # the model card's header
            answer = {"errors": [], "warnings": []}
        elif "/preupload/" in path:
            sent = [x["path"] for x in json.loads(body)["files"]]
            modes = [{"path": x, "uploadMode": "regular", "shouldIgnore": False} for x in sent]
            answer = {"files": modes}
        else:
            files = self.hub.repositories[path.split("/commit/")[0]]
            for entry in map(json.loads, body.splitlines()):
                if entry["key"] == "file":
                    value = entry["value"]
                    files[value["path"]] = base64.b64decode(value["content"])
            address = f"{self.hub.endpoint}/someone/mine/commit/{COMMIT}"
            answer = {"commitUrl": address, "commitOid": COMMIT}
        self._send(200, json.dumps(answer).encode(), {"Content-Type": "application/json"})

    def _answer(self, *, body):
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append((self.command, path, self.headers.get("Range", "")))
        kind, _, rest = path.removeprefix("/").partition("/")
        if kind == "api":
            return self._api(rest)
        if kind not in ("spaces", "datasets"):
            kind, rest = "models", path[1:]
        name, _, place = rest.partition("/resolve/")
        revision, _, file = place.partition("/")
        content = self.hub.repositories.get(f"{kind}/{name}", {}).get(file)
        if content is None or revision not in ("main", COMMIT):
            return self._send(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
        return self._file(content, body=body)

    def _api(self, path):
        kind, owner, name, *rest = path.split("/")
        files = self.hub.repositories.get(f"{kind}/{owner}/{name}")
        if files is None:
            return self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"})
        if rest[:1] == ["revision"] and rest[1] not in ("main", COMMIT):
            return self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        answer = list(_tree(files)) if rest[:1] == ["tree"] else _info(f"{owner}/{name}", files)
        return self._send(200, json.dumps(answer).encode(), {"Content-Type": "application/json"})

    def _file(self, content, *, body):
        headers = {"ETag": f'"{etag(content)}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        if is_lfs(content):
            headers |= {"X-Linked-Etag": f'"{etag(content)}"', "X-Linked-Size": str(len(content))}
        status, start = 200, 0
        if "Range" in self.headers:
            status, start = 206, int(self.headers["Range"].removeprefix("bytes=").split("-")[0])
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        if self.hub.damage:
            content = bytes([content[0] ^ 1]) + content[1:]
        self._send(status, content[start:], headers, body=body)

    def _send(self, status, content, headers, *, body=True):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        cut, self.hub.cut_after = (
            (self.hub.cut_after, None) if body and is_lfs(content) else (None, self.hub.cut_after)
        )
        if body:
            self.wfile.write(content[:cut])
        if cut is not None:
            self.close_connection = True


@contextlib.contextmanager
def serving(repositories):
    """The hub, answering while the block runs."""
    hub = Hub(repositories)
    handler = type("Handler", (_Handler,), {"hub": hub})
    hub.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=hub.server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield hub
    finally:
        hub.server.shutdown()
        hub.server.server_close()
        thread.join()


def environment(folder, endpoint, **changes):
    """Caches of their own below `folder`, and the given hub."""
    keep = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    caches = {"HF_HOME": str(folder / "hf"), "AUDIOSEP_JAX_CACHE": str(folder / "ours")}
    client = {"HF_ENDPOINT": endpoint, "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    return keep | caches | client | {"PYTHONPATH": str(ROOT)} | changes
