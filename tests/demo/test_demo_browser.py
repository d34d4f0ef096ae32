"""The web page in a real browser: Debian's Chromium, without a screen, driven by Selenium."""

import io
import socket
import threading
import time

import chromium
import numpy as np
import pytest
import soundfile
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait
from tiny_run import RATE_HZ, save_run

from audiosep_jax.audio import files as audio_files
from audiosep_jax.demo import work
from audiosep_jax.demo.page import Limits
from audiosep_jax.demo.server import Server
from audiosep_jax.separation.separator import Separator

pytestmark = pytest.mark.slow

WAIT_SECONDS = 60
SENTENCES = ["a dog <b>barking</b> ${1+1} {{2}}", "rain"]


def soon(condition, what=""):
    """The first true value of a condition that is asked again and again."""
    end = time.monotonic() + WAIT_SECONDS
    while not (found := condition()):
        assert time.monotonic() < end, f"waited in vain: {what or condition}"
        time.sleep(0.05)
    return found


class Gate:
    """Holds every separation at its first tile while it is closed."""

    def __init__(self, separate):
        self._separate = separate
        self.opened, self.waiting, self.tiles, self.outcomes = threading.Event(), 0, 0, []
        self.opened.set()

    def __call__(self, *arguments, **options):
        *arguments, progress = arguments

        def tell(done_seconds, all_seconds):
            self.tiles += 1
            self.waiting += 1
            try:
                while not self.opened.wait(0.02):
                    progress(done_seconds, all_seconds)
            finally:
                self.waiting -= 1
            progress(done_seconds, all_seconds)

        try:
            answer = self._separate(*arguments, tell, **options)
        except BaseException as error:
            self.outcomes.append(type(error).__name__)
            raise
        self.outcomes.append("done")
        return answer


@pytest.fixture(scope="module")
def gate():
    gate, original = Gate(work.separate_for_page), work.separate_for_page
    work.separate_for_page = gate
    yield gate
    work.separate_for_page = original


@pytest.fixture(scope="module")
def separator(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    save_run(folder)
    return Separator.load(folder)


@pytest.fixture(scope="module")
def site(separator, gate, tmp_path_factory):
    """The page, served by this process at `address`."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    folder = tmp_path_factory.mktemp("files")
    site = Server(separator, folder, "127.0.0.1", port, Limits(5.0, 0.5, 2))
    site.address, site.folder = f"http://127.0.0.1:{port}/", folder
    yield site
    gate.opened.set()
    site.close()


@pytest.fixture
def page(browser, site, gate):
    """The page, freshly opened in the first window; the gate is open before and after."""
    gate.opened.set()
    browser.get(site.address)
    see(browser, "#recording input[type=file]")
    yield browser
    gate.opened.set()


def see(browser, selector):
    """The elements that a selector finds, once there are some."""
    return WebDriverWait(browser, WAIT_SECONDS).until(
        lambda driver: driver.find_elements(By.CSS_SELECTOR, selector), selector
    )


def recording(path, seed, seconds=0.5):
    audio_S = 0.2 * np.random.default_rng(seed).standard_normal(round(seconds * RATE_HZ))
    soundfile.write(path, audio_S, RATE_HZ, subtype="FLOAT")
    return path


def drop(browser, path):
    see(browser, "#recording input[type=file]")[0].send_keys(str(path))


def ask(browser, path, text):
    """Fills in the form and presses the button, as soon as the recording is up."""
    drop(browser, path)
    see(
        browser,
        "#recording [aria-label='Remove'], #recording [aria-label='Clear'], "
        "#recording .waveform-container, #recording audio",
    )
    browser.find_element(By.CSS_SELECTOR, "#sentences textarea").send_keys(text)
    browser.find_element(By.ID, "separate").click()


def titles(browser):
    return [x.text for x in browser.find_elements(By.CSS_SELECTOR, "#answer h3")]


def fetched(browser, selector, attribute):
    """Bytes of what an element of the page points at, as the page itself gets them."""
    script = (
        "const [selector, attribute, done] = arguments;"
        "fetch(document.querySelector(selector)[attribute]).then(x => x.arrayBuffer())"
        ".then(x => done(Array.from(new Uint8Array(x))))"
    )
    return bytes(browser.execute_async_script(script, selector, attribute))


def error_told(browser):
    """The message in the corner, with its heading off."""
    text = soon(lambda: [x.text for x in see(browser, ".toast-body") if x.text], "an error")[0]
    return text.split("\n")[-1]


def test_separates_plays_and_saves(page, separator, saved, tmp_path):
    path = recording(tmp_path / "street.wav", seed=1)
    ask(page, path, "\n".join(SENTENCES))
    see(page, "#answer audio")
    assert titles(page) == ["Recording", *SENTENCES, "Everything else"]
    assert not page.find_elements(By.CSS_SELECTOR, "#answer b")

    # Every sound is loaded and as long as the recording; one is played to its end.
    durations = "return [...document.querySelectorAll('#answer audio')].map(x => x.duration)"
    lengths = soon(lambda: all(x := page.execute_script(durations)) and x, "durations")
    assert lengths == pytest.approx([0.5] * 4, abs=1e-3)
    play = (
        "const done = arguments[0], sound = document.querySelectorAll('#answer audio')[1];"
        "sound.onended = () => done(sound.currentTime); sound.play().catch(x => done(String(x)))"
    )
    assert page.execute_async_script(play) == pytest.approx(0.5, abs=0.05)
    width = "return document.querySelector('#picture img').naturalWidth"
    assert soon(lambda: page.execute_script(width), "the picture") > 500

    # What is saved is the server's file, and holds what the library gives.
    page.find_elements(By.CSS_SELECTOR, "#answer a[download]")[2].click()
    got = soon(lambda: list(saved.glob("*.wav")), "the saved file")[0]
    assert got.name == "street - rain.wav"
    assert got.read_bytes() == fetched(page, "#answer li:nth-child(3) audio", "src")
    mixture_CS, rate_hz = audio_files.read(path)
    expected_NCS = separator.separate(mixture_CS, rate_hz, SENTENCES)
    np.testing.assert_allclose(audio_files.read(got)[0], expected_NCS[1], atol=1e-6)


def test_an_example_is_separated_by_one_click_and_remixed(page, saved):
    see(page, "#examples button")[1].click()
    see(page, "#answer audio")
    assert titles(page) == ["Recording", "a person speaking", "rain", "Everything else"]
    box = page.find_element(By.CSS_SELECTOR, "#sentences textarea")
    assert box.get_attribute("value") == "a person speaking\nrain"
    assert page.find_elements(By.CSS_SELECTOR, "#recording .waveform-container")
    found = [x.text for x in page.find_elements(By.CSS_SELECTOR, "#answer .found")]
    assert len(found) == 2
    assert all(x.startswith("Presence 0.") for x in found)

    numbers = [x for x in see(page, "#mixer input[type=number]") if x.is_displayed()]
    labels = [x.text for x in page.find_elements(By.CSS_SELECTOR, "#mixer label")]
    assert [x for x in labels if x] == ["a person speaking", "rain", "Everything else"]
    for number, percent in zip(numbers, (150, 20, 0), strict=True):
        number.send_keys(Keys.CONTROL, "a")
        number.send_keys(str(percent), Keys.TAB)
    page.find_element(By.ID, "mix").click()
    see(page, "#mixed a[download]")[0].click()
    assert not nameless(page)
    path = soon(lambda: list(saved.glob("remix.wav")), "the saved remix")[0]
    parts = [fetched(page, f"#answer li:nth-child({number}) audio", "src") for number in (2, 3, 4)]
    part_NS = [soundfile.read(io.BytesIO(part))[0] for part in parts]
    expected_S = 1.5 * part_NS[0] + 0.2 * part_NS[1]
    np.testing.assert_allclose(soundfile.read(path)[0], expected_S, atol=1e-4)


def test_a_file_that_is_no_recording_is_told_in_words(page, tmp_path):
    path = tmp_path / "notes.wav"
    path.write_text("no sound at all")
    ask(page, path, "rain")
    assert error_told(page) == "notes.wav: cannot be read as audio (Format not recognised)"
    assert not titles(page)


def test_what_is_too_long_or_too_large_is_told(page, site, tmp_path):
    ask(page, recording(tmp_path / "long.wav", 2, seconds=6), "rain")
    assert error_told(page) == "long.wav: lasts more than the 5 s that are accepted"
    page.refresh()
    (tmp_path / "large.wav").write_bytes(bytes(600_000))
    drop(page, tmp_path / "large.wav")
    assert "exceed the maximum allowed size" in error_told(page)


def test_cancel_stops_between_tiles(page, gate, site, tmp_path):
    gate.opened.clear()
    before, tiles = len(gate.outcomes), gate.tiles
    ask(page, recording(tmp_path / "street.wav", seed=3), "rain")
    soon(lambda: gate.waiting == 1, "the first tile")
    page.find_element(By.ID, "cancel").click()
    soon(lambda: gate.waiting == 0, "the stop")
    assert (gate.outcomes[before:], gate.tiles - tiles) == (["Cancelled"], 1)
    soon(lambda: "Cancelled" in page.find_element(By.ID, "status").text, "the word")
    # The page is as before, and separates again.
    gate.opened.set()

    def answered_again():
        # Gradio passes a press over while its part of the cancelling is under way.
        page.find_element(By.ID, "separate").click()
        time.sleep(1)
        return titles(page)

    assert soon(answered_again, "an answer") == ["Recording", "rain", "Everything else"]


def test_two_readers_at_once_get_each_their_own(page, gate, site, tmp_path):
    gate.opened.clear()
    paths = [recording(tmp_path / f"{name}.wav", seed=x) for x, name in ((4, "one"), (5, "two"))]
    first = page.current_window_handle
    ask(page, paths[0], "rain")
    page.switch_to.new_window("tab")
    second = page.current_window_handle
    page.get(site.address)
    ask(page, paths[1], "wind")
    soon(lambda: gate.waiting == 2, "both at work")
    gate.opened.set()
    for window, path, sentence in ((second, paths[1], "wind"), (first, paths[0], "rain")):
        page.switch_to.window(window)
        see(page, "#answer audio")
        assert titles(page) == ["Recording", sentence, "Everything else"]
        audio_S, _ = soundfile.read(io.BytesIO(fetched(page, "#answer audio", "src")))
        np.testing.assert_array_equal(audio_S, soundfile.read(path)[0])

    # The answer is removed when its page is closed.
    source = page.find_element(By.CSS_SELECTOR, "#answer audio").get_attribute("src")
    answer = site.folder / "answers" / source.split("/")[-2]
    assert list(answer.glob("*.wav"))
    page.get("about:blank")
    soon(lambda: not answer.exists(), "the removal")
    page.switch_to.window(second)
    page.get("about:blank")  # it stays open: closing a tab makes some versions of the driver hang
    page.switch_to.window(first)


def nameless(page):
    """Controls without an accessible name, which a screen reader would say."""
    return [
        x.get_attribute("outerHTML")
        for x in page.find_elements(By.CSS_SELECTOR, "button, textarea, input, audio, a")
        if x.is_displayed() and not x.accessible_name
    ]


def test_everything_has_a_name_that_can_be_read_out(page):
    named = {
        "#sentences textarea": "What to separate",
        "#unwanted textarea": "Without (optional)",
        "#separate": "Separate",
        "#cancel": "Cancel",
        "#examples button": "A dog and a helicopter",
    }
    for selector, name in named.items():
        assert name in page.find_element(By.CSS_SELECTOR, selector).accessible_name
    assert not nameless(page)


def test_fits_a_phone(page):
    size = {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        widths = "return [innerWidth, document.documentElement.scrollWidth]"
        assert page.execute_script(widths) == [390, 390]
        right = "return document.querySelector(arguments[0]).getBoundingClientRect().right"
        for selector in (
            "#recording",
            "#sentences",
            "#separate",
            "#cancel",
            "#examples",
            "#answer",
        ):
            assert 0 < page.execute_script(right, selector) <= 390
    finally:
        page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_nothing_comes_from_elsewhere(page, site):
    """Over all tests before, too: the log is kept since the browser started."""
    urls = chromium.requested(page)
    assert len([url for url in urls if url.startswith(site.address)]) > 5
    own = (site.address, "data:", "blob:", "about:")
    assert [url for url in urls if not url.startswith(own)] == []
    fonts = "return [...document.fonts].filter(x => x.status != 'unloaded').map(x => x.family)"
    assert page.execute_script(fonts) == []
