"""The page of `audiosep export --format web` in Chromium: its results, its time and its memory.

    python benchmarks/browser.py --minutes 10
    python benchmarks/browser.py --minutes 10 --rate_hz 48000 --channels 2 --isolated

The page separates the example of the package, repeated to the given length. Its results are
compared with those of `Separator.separate` by SNR (the target is 80 dB) if rate and channels are
those of the example, since browsers resample in their own way. The memory is what all processes of
the browser have more than with an empty page. The server ends once the page is loaded.
"""

import argparse
import re
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import chromium
import numpy as np
import psutil
import soundfile
from networks import snr_db

from audiosep_jax.audio.resampling import resample
from audiosep_jax.separation.export import export_web
from audiosep_jax.separation.separator import Separator

EXAMPLE = Path(__file__).resolve().parents[1] / "audiosep_jax" / "demo" / "street.flac"
ISOLATED = {
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
}
MEGABYTE = 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=5 / 60)
    parser.add_argument("--rate_hz", type=int, default=16_000)
    parser.add_argument("--channels", type=int, default=1)
    parser.add_argument("--text", nargs="+", default=["a dog barking"])
    parser.add_argument("--isolated", action="store_true", help="let the network use threads")
    parser.add_argument("--checkpoint", default="small")
    arguments = parser.parse_args()
    separator = Separator.load(arguments.checkpoint)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        audio_SC = _recording(arguments.minutes, arguments.rate_hz, arguments.channels)
        soundfile.write(folder / "street.wav", audio_SC, arguments.rate_hz, subtype="PCM_16")
        export_web(separator, folder / "page", text=arguments.text)
        headers = ISOLATED if arguments.isolated else {}
        results_NCS = _in_browser(folder, headers, len(audio_SC) / arguments.rate_hz)
        if arguments.rate_hz == separator.model.sample_rate_hz:
            audio_CS = soundfile.read(folder / "street.wav", dtype="float32")[0].T
            expected_NCS = separator.separate(audio_CS, arguments.rate_hz, arguments.text)
            for text, *both in zip(arguments.text, expected_NCS, results_NCS, strict=True):
                print(f"{text}: {snr_db(*both):.1f} dB")


def _recording(minutes: float, rate_hz: int, channels: int) -> np.ndarray:
    audio_S, example_hz = soundfile.read(EXAMPLE, dtype="float32")
    audio_S = resample(audio_S[None], example_hz, rate_hz)[0]
    num_samples = round(60 * minutes * rate_hz)
    return np.repeat(np.resize(audio_S, num_samples)[:, None], channels, axis=1)


def _in_browser(folder: Path, headers: dict[str, str], seconds: float) -> list[np.ndarray]:
    """Separate in the page; return what it saves, all but the rest."""
    (folder / "saved").mkdir()
    with chromium.opened(folder / "saved") as driver:
        driver.get("about:blank")
        with _Memory(driver.service.process.pid) as memory:
            with chromium.serving(folder / "page", headers) as address:
                driver.get(address)
                print(_wait(driver, "status", "Ready"))
            driver.find_element("id", "file").send_keys(str(folder / "street.wav"))
            announced = _wait(driver, "memory", "street.wav")
            start = time.perf_counter()
            driver.find_element("id", "separate").click()
            print(_wait(driver, "status", "Done"))
            took = time.perf_counter() - start
        most = float(re.findall(r"(\d+) MB", announced)[0])
        isolated = driver.execute_script("return crossOriginIsolated")
        print(f"isolated: {isolated}; {took:.1f} s for {seconds:.0f} s, {took / seconds:.2f} times")
        print(f"memory: {memory.most / MEGABYTE:.0f} MB of the {most:.0f} MB announced")
        own = {x for x in chromium.requested(driver) if not x.startswith((address, "about:"))}
        print("requests elsewhere:", {x for x in own if not x.startswith(("blob:", "data:"))} or 0)
        return _saved(driver, folder / "saved")


def _wait(driver: Any, name: str, start: str) -> str:
    while not (text := str(driver.find_element("id", name).text)).startswith(start):
        assert text in ("", "Separating …", "Loading the network …") or start in "street.wav", text
        time.sleep(0.1)
    return text


def _saved(driver: Any, folder: Path) -> list[np.ndarray]:
    *links, _ = driver.find_elements("css selector", "#results a[download]")
    results = []
    for link in links:
        link.click()
        path = folder / link.get_attribute("download")
        while not path.exists():
            time.sleep(0.1)
        results.append(soundfile.read(path, dtype="float32", always_2d=True)[0].T)
    return results


class _Memory:
    """Most bytes that the browser's processes own together, above those at the start."""

    def __init__(self, pid: int) -> None:
        self._process, self._ended = psutil.Process(pid), threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self.most = 0

    def __enter__(self) -> "_Memory":
        self._start = self._now()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(0.2):
            self.most = max(self.most, self._now() - self._start)

    def _now(self) -> int:
        total = 0
        for process in self._process.children(recursive=True):
            try:
                total += process.memory_full_info().pss
            except psutil.Error:
                continue  # it has ended
        return total


if __name__ == "__main__":
    main()
