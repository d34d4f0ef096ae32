"""The web page under many readers at once: is anything lost, and does memory come back?

    python benchmarks/demo_load.py --readers 20 --seconds 60 --rounds 4

Starts `audiosep demo` with a small untrained network (or --checkpoint), lets every
reader upload a recording of its own, separate it and fetch the sounds, again and again, over the
HTTP that the page's script speaks. An answer counts where its parts add up to the recording that
this reader sent. Memory is the server's resident set: when it is warm, the most of a round, and
after the round's last reader has left. Then uploads over the limit, with their length announced
and without.
"""

import argparse
import contextlib
import http.client
import io
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

RATE_HZ, CLIP_SECONDS = 8000, 2.0
MAX_MEGABYTES, CHUNK = 1.0, bytes(1 << 14)
SETTLE_SECONDS = 5


class Reader:
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
        self, recording: Any, text: str, unwanted: str = "", *, wrap: bool = True
    ) -> tuple[str, Any]:
        """`complete` and [the page's HTML, the status line], or `error` and its message.

        `recording` is the path of an upload or, with wrap=False, the value of the page's input.
        """
        if wrap:
            recording = {"path": recording, "meta": {"_type": "gradio.FileData"}}
        request = {"data": [recording, text, unwanted], "session_hash": self.session}
        call, kind = "gradio_api/call/separate", {"Content-Type": "application/json"}
        event_id = json.loads(self.get(call, json.dumps(request).encode(), kind))["event_id"]
        events = self.get(f"{call}/{event_id}").decode()
        found = re.findall(r"event: (complete|error)\ndata: (.*)", events)
        return found[-1][0], json.loads(found[-1][1])

    def get(self, address: str, body: bytes | None = None, headers: Any = None) -> bytes:
        request = urllib.request.Request(self.url + address, body, headers or {})
        with self.opener.open(request, timeout=120) as response:
            return bytes(response.read())


def sounds(reader: Reader, html: str) -> list[np.ndarray]:
    """The sounds of an answer, in order: recording, targets, rest."""
    addresses = re.findall(r'<audio [^>]*src="([^"]+)"', html)
    return [soundfile.read(io.BytesIO(reader.get(address)))[0] for address in addresses]


# ---------------------------------------------------------------------- readers


class Load:
    """Readers in threads, until `seconds` are over; counts what came of each request."""

    def __init__(self, url: str, readers: int, seconds: float) -> None:
        self.right = self.wrong = 0
        self.failed: list[str] = []
        self.waited_seconds: list[float] = []
        self._url, self._end = url, time.monotonic() + seconds
        self._threads = [threading.Thread(target=self._read, args=(n,)) for n in range(readers)]

    def run(self) -> "Load":
        for thread in self._threads:
            thread.start()
        for thread in self._threads:
            thread.join()
        return self

    def _read(self, number: int) -> None:
        content, audio_S = _clip(number)
        with contextlib.closing(Reader(self._url)) as reader:
            while True:
                started = time.monotonic()
                try:
                    path = reader.upload(f"clip {number}.wav", content)
                    event, answer = reader.separate(path, f"rain\nsound {number}")
                    assert event == "complete", answer
                    mixture_S, *parts = sounds(reader, answer[0])
                    same = np.array_equal(mixture_S, audio_S)
                    same = same and np.allclose(sum(parts), audio_S, atol=1e-6)
                    self.right += same
                    self.wrong += not same
                except Exception as error:
                    self.failed.append(repr(error))
                self.waited_seconds.append(time.monotonic() - started)
                if time.monotonic() > self._end:
                    return


def _clip(number: int) -> tuple[bytes, np.ndarray]:
    audio_S = 0.2 * np.random.default_rng(number).standard_normal(round(CLIP_SECONDS * RATE_HZ))
    file = io.BytesIO()
    soundfile.write(file, audio_S, RATE_HZ, format="WAV", subtype="FLOAT")
    return file.getvalue(), audio_S.astype(np.float32).astype(np.float64)


def send_too_much(url: str, megabytes: int, *, announced: bool) -> tuple[str, int]:
    """(what the server said, bytes handed to the system until it did) of one upload."""
    connection = http.client.HTTPConnection(url.split("/")[2], timeout=60)
    connection.putrequest("POST", "/gradio_api/upload")
    connection.putheader("Content-Type", "multipart/form-data; boundary=x")
    size = ("Content-Length", str(megabytes * 1_000_000))
    connection.putheader(*(size if announced else ("Transfer-Encoding", "chunked")))
    connection.endheaders()
    head = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.wav"\r\n\r\n'
    sent = 0
    with contextlib.suppress(OSError):
        while sent < megabytes * 1_000_000 and not _answered(connection):
            data = head if sent == 0 else CHUNK
            connection.send(data if announced else b"%x\r\n%b\r\n" % (len(data), data))
            sent += len(data)
    try:
        response = connection.getresponse()
        return f"{response.status} {response.read().decode().strip()}", sent
    except OSError as error:
        return type(error).__name__, sent


def _answered(connection: http.client.HTTPConnection) -> bool:
    connection.sock.settimeout(0.002)
    try:
        return bool(connection.sock.recv(1, 2))  # MSG_PEEK: looked at, not taken
    except TimeoutError:
        return False
    finally:
        connection.sock.settimeout(60)


# ---------------------------------------------------------------------- server


@contextlib.contextmanager
def serve(checkpoint: Path, folder: Path, concurrency: int) -> Iterator[tuple[str, int]]:
    """(address, process id) of the command, with `folder` for its temporary files."""
    options = f"--port 0 --max_megabytes {MAX_MEGABYTES} --concurrency {concurrency}".split()
    process = subprocess.Popen(
        [sys.executable, "-m", "audiosep_jax", "demo", "--checkpoint", str(checkpoint), *options],
        env={**os.environ, "TMPDIR": str(folder)},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout
        yield process.stdout.readline().strip(), process.pid
        process.send_signal(signal.SIGTERM)
        print(f"stopped with {process.wait(30)}, files left: {len(_files(folder))}")
    finally:
        process.kill()
        process.wait()


def write_small_network(folder: Path) -> None:
    """Random weights of a network of one level, as a folder that `--checkpoint` takes."""
    import jax

    from audiosep_jax.encoders import make_encoder
    from audiosep_jax.encoders.encoder import TextConfig
    from audiosep_jax.model.resunet import ResUNetConfig
    from audiosep_jax.training import trained

    model = ResUNetConfig(
        sample_rate_hz=RATE_HZ,
        window_samples=64,
        hop_samples=16,
        stem_channels=3,
        encoder_channels=(4,),
        time_pools=(2,),
        frequency_pools=(2,),
    )
    rng = np.random.default_rng(0)  # positive, as variances have to be
    variables = jax.tree.map(
        lambda x: rng.uniform(0.1, 0.5, x.shape).astype(x.dtype), trained.variable_shapes(model)
    )
    text = TextConfig()
    fingerprint = make_encoder(text).fingerprint
    trained.write_folder(folder, trained.Trained(model, text, fingerprint, variables, 0))


def memory_megabytes(pid: int) -> float:
    """Resident set."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.findall(r"VmRSS:\s+(\d+)", status)[0]) / 1024


class MemoryPeak:
    """The most memory that a process is seen to hold while the block runs."""

    def __init__(self, pid: int) -> None:
        self.megabytes, self._pid, self._over = 0.0, pid, threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def _watch(self) -> None:
        while not self._over.wait(0.1):
            self.megabytes = max(self.megabytes, memory_megabytes(self._pid))

    def __enter__(self) -> "MemoryPeak":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def report_load(load: Load) -> None:
    """What came of a round's requests, and how long each took."""
    total = load.right + load.wrong + len(load.failed)
    print(f"  {total} requests, {load.right} answered right, {load.wrong} wrong, ", end="")
    print(f"{len(load.failed)} failed")
    for line in sorted(set(load.failed)):
        print(f"    {line}")
    waited = np.percentile(load.waited_seconds, [50, 99])
    print(f"  waited {waited[0]:.1f} s (median), {waited[1]:.1f} s (99 of 100)")


def report(arguments: argparse.Namespace, checkpoint: Path, folder: Path) -> None:
    """Runs it all and prints what came of it."""
    with serve(checkpoint, folder, arguments.concurrency) as (url, pid):
        Load(url, arguments.readers, 0).run()  # what grows once: threads, compiled programs
        time.sleep(SETTLE_SECONDS)
        print(f"memory when warm: {memory_megabytes(pid):.0f} MB")
        for number in range(1, arguments.rounds + 1):
            with MemoryPeak(pid) as peak:
                load = Load(url, arguments.readers, arguments.seconds).run()
            time.sleep(SETTLE_SECONDS)
            print(f"round {number}, {arguments.readers} readers, {arguments.seconds:g} s:")
            report_load(load)
            after = f"{memory_megabytes(pid):.0f} MB {SETTLE_SECONDS} s later"
            print(f"  memory: at most {peak.megabytes:.0f} MB, {after}", flush=True)
        kinds = [path.relative_to(folder).parts[1] for path in _files(folder)]
        print(f"files: {kinds.count('answers')} of answers, {kinds.count('uploads')} uploads")
        for announced in (True, False):
            said, sent = send_too_much(url, arguments.too_many_megabytes, announced=announced)
            what = "announced" if announced else "in chunks of unknown number"
            print(f"{arguments.too_many_megabytes} MB {what}: {sent:,} bytes sent, then: {said}")
        parts = [path for path in _files(folder) if path.parent.name == "uploads"]
        print(f"parts of refused uploads left: {len(parts)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--checkpoint", type=Path, help="default: a small untrained network")
    parser.add_argument("--readers", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--concurrency", type=int, default=2)
    parser.add_argument("--too_many_megabytes", type=int, default=200)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = arguments.checkpoint or Path(folder, "network")
        if not arguments.checkpoint:
            write_small_network(checkpoint)
        files = Path(folder, "tmp")
        files.mkdir()
        report(arguments, checkpoint, files)


if __name__ == "__main__":
    main()
