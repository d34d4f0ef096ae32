"""Debian's Chromium without a screen, driven by Selenium, for tests and benchmarks of pages."""

import contextlib
import functools
import json
import shutil
import tempfile
import threading
from collections.abc import Iterator, Sequence
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from selenium import webdriver

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
OPTIONS = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--autoplay-policy=no-user-gesture-required",
    "--use-fake-device-for-media-stream",  # a microphone that beeps
    "--use-fake-ui-for-media-stream",
    "--window-size=1200,1000",
]
SCRIPT_SECONDS = 60


@contextlib.contextmanager
def opened(saved: Path, options: Sequence[str] = ()) -> Iterator[Any]:
    """Yield a new Chromium, which saves to the folder `saved` and logs its requests."""
    settings = webdriver.ChromeOptions()
    settings.binary_location = str(CHROMIUM)
    settings.add_experimental_option("prefs", {"download.default_directory": str(saved)})
    settings.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        for option in [*OPTIONS, *options, f"--user-data-dir={profile}"]:
            settings.add_argument(option)
        driver = webdriver.Chrome(options=settings, service=webdriver.ChromeService(DRIVER))
        driver.set_script_timeout(SCRIPT_SECONDS)
        try:
            yield driver
        finally:
            with contextlib.suppress(Exception):
                driver.quit()


@contextlib.contextmanager
def serving(folder: Path, headers: dict[str, str] | None = None) -> Iterator[str]:
    """Serve a folder on loopback as `python -m http.server` does, and yield its address."""

    class Handler(SimpleHTTPRequestHandler):
        def end_headers(self) -> None:
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            super().end_headers()

        def log_message(self, *_: object) -> None:
            pass

    handler = functools.partial(Handler, directory=str(folder))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def requested(driver: Any) -> set[str]:
    """Addresses that pages have asked for since the last call."""
    messages = [json.loads(x["message"])["message"] for x in driver.get_log("performance")]
    asked = [x["params"] for x in messages if x["method"] == "Network.requestWillBeSent"]
    # The browser's own page for new tabs is its affair.
    return {x["request"]["url"] for x in asked if not x["documentURL"].startswith("chrome")}
