"""The page of `audiosep export --format web`, in Chromium."""

import base64
import dataclasses
import hashlib
import io
import math
import os
import re
import shutil
import socket
import tarfile
import time

import chromium
import numpy as np
import pytest
import soundfile
from selenium.webdriver.common.by import By
from separator_examples import TINY, shy_variables
from tiny_models import write_static

from audiosep_jax.encoders.encoder import TextConfig
from audiosep_jax.errors import InputError
from audiosep_jax.separation import web
from audiosep_jax.separation.export import export_web, main
from audiosep_jax.separation.separator import Separator
from audiosep_jax.training.trained import SHIPPED_FOLDER

pytestmark = pytest.mark.slow

RATE_HZ = 8000
MODEL = dataclasses.replace(
    TINY,
    sample_rate_hz=RATE_HZ,
    window_samples=256,
    hop_samples=64,
    condition_features=96,
    activity="gate",
)
WAIT_SECONDS = 60


@pytest.fixture(scope="module")
def separator():
    text = TextConfig(encoder="static", model=str(SHIPPED_FOLDER / "text"))
    return Separator(MODEL, shy_variables(MODEL), text, None, 7)


@pytest.fixture(scope="module")
def npm():
    """Skip where onnxruntime-web cannot be fetched."""
    if shutil.which("npm") is None:
        assert os.environ.get("CI") != "true", "CI needs npm"
        pytest.skip("npm is not installed")


@pytest.fixture(scope="module")
def folder(npm, separator, tmp_path_factory):
    place = tmp_path_factory.mktemp("export") / "page"
    return export_web(separator, place, text=["rain"])


@pytest.fixture
def site(folder):
    with chromium.serving(folder) as address:
        yield address


def soon(condition):
    """The first true value of a condition that is asked again and again."""
    end = time.monotonic() + WAIT_SECONDS
    while not (found := condition()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)
    return found


def text_of(browser, name):
    return browser.find_element(By.ID, name).text


def open_page(browser, address):
    browser.get(address)
    soon(lambda: text_of(browser, "status") not in ("", "Loading the network …"))
    assert text_of(browser, "status").startswith("Ready.")


def drop(browser, path):
    browser.find_element(By.ID, "file").send_keys(str(path))
    return soon(lambda: text_of(browser, "memory"))


def type_in(browser, text):
    box = browser.find_element(By.ID, "sentences")
    box.clear()
    box.send_keys(text)


def outcome(browser):
    """The status line once the work is over."""
    return soon(lambda: (x := text_of(browser, "status")) != "Separating …" and x)


def noise(path, seconds, channels=1):
    audio_SC = 0.2 * np.random.default_rng(0).standard_normal((round(seconds * RATE_HZ), channels))
    soundfile.write(path, audio_SC, RATE_HZ, subtype="FLOAT")
    return audio_SC.T.astype(np.float32)


def snr_db(actual, expected):
    assert actual.shape == expected.shape
    error = np.mean((actual.astype(np.float64) - expected) ** 2)
    return 10 * math.log10(np.mean(expected.astype(np.float64) ** 2) / max(error, 1e-30))


def test_separates_as_the_library_and_needs_no_server(browser, folder, separator, saved, tmp_path):
    with chromium.serving(folder) as address:
        open_page(browser, address)
    mixture_CS = noise(tmp_path / "street.wav", 9.3, channels=2)
    need = r"street\.wav: 9\.3 s\. Separating it takes up to \d+ MB of memory\."
    assert re.fullmatch(need, drop(browser, tmp_path / "street.wav"))
    box = browser.find_element(By.ID, "sentences")
    assert box.get_attribute("value") == "rain"
    box.send_keys("\na dog / barking")
    browser.find_element(By.ID, "separate").click()
    assert outcome(browser) == "Done."
    titles = [x.text for x in browser.find_elements(By.CSS_SELECTOR, "#results h2")]
    assert titles == ["Recording", "rain", "a dog / barking", "Everything else"]
    durations = "return [...document.querySelectorAll('#results audio')].map(x => x.duration)"
    lengths = soon(lambda: all(x := browser.execute_script(durations)) and x)
    assert lengths == pytest.approx([9.3] * 4, abs=1e-3)

    for link in browser.find_elements(By.CSS_SELECTOR, "#results a[download]"):
        link.click()
    names = ["rain", "a dog _ barking", "Everything else"]
    paths = [saved / f"street - {name}.wav" for name in names]
    soon(lambda: all(path.exists() for path in paths))
    *actual_NCS, rest_CS = (soundfile.read(path, dtype="float32")[0].T for path in paths)
    expected_NCS = separator.separate(mixture_CS, RATE_HZ, ["rain", "a dog / barking"])
    for actual_CS, expected_CS in zip(actual_NCS, expected_NCS, strict=True):
        assert snr_db(actual_CS, expected_CS) > 100
    np.testing.assert_allclose(rest_CS + sum(actual_NCS), mixture_CS, atol=1e-6)
    assert soundfile.info(paths[0]).subtype == "FLOAT"


SENTENCES = [
    "a dog barking",
    "Rain, wind & thunder! don't $5 #1 (x) [y]",
    "Café Straße naïve дождь и гром",
    "ΟΔΥΣΣΕΥΣ İstanbul",
    "雨の音 rain",
    "dog\u200bbark dog\u0301 e\u0301 dog\ufffd",
    "a\tb\u3000c\u2028d",
    "[MASK] dog [mask]",
    "x" * 100,
    "dog " + "x" * 101,
    "fire🔥 dog",
    "🔥",
    "",
    "𓀀",
    "[UNK]",
]
EMBED = """
const [sentences, done] = arguments;
(async () => {
  const { Words } = await import(new URL("words.js", location));
  const about = await (await fetch("page.json")).json();
  const words = new Words(about.words, await (await fetch("words.bin")).arrayBuffer());
  return sentences.map((sentence) => {
    try { return [...words.embed(sentence)]; } catch (error) { return error.message; }
  });
})().then(done, (error) => done(String(error)));
"""


def test_sentences_have_our_vectors(browser, site, separator):
    browser.get(site)
    encoder = separator.encoder("text")
    for sentence, row in zip(
        SENTENCES, browser.execute_async_script(EMBED, SENTENCES), strict=True
    ):
        try:
            expected_E = encoder([sentence])[0]
        except InputError:
            assert row == f"The text encoder knows no word of “{sentence}”."
        else:
            np.testing.assert_allclose(row, expected_E, rtol=0, atol=1e-7, err_msg=sentence)


def test_records_cancels_and_names_what_is_wrong(browser, site, tmp_path):
    open_page(browser, site)
    (tmp_path / "notes.wav").write_text("no sound at all")
    browser.find_element(By.ID, "file").send_keys(str(tmp_path / "notes.wav"))
    wrong = "notes.wav: this browser cannot read it as a recording."
    soon(lambda: text_of(browser, "status") == wrong)

    browser.find_element(By.ID, "record").click()
    soon(lambda: text_of(browser, "record") == "Stop")
    time.sleep(1)
    browser.find_element(By.ID, "record").click()
    told = soon(lambda: text_of(browser, "memory"))
    assert 0 < float(re.match(r"recording: (\S+) s", told)[1]) < 60
    type_in(browser, "𓀀")
    browser.find_element(By.ID, "separate").click()
    assert outcome(browser) == "The text encoder knows no word of “𓀀”."
    type_in(browser, "rain")
    browser.find_element(By.ID, "separate").click()
    assert outcome(browser) == "Done."

    noise(tmp_path / "long.wav", 600)
    soon(lambda: drop(browser, tmp_path / "long.wav").startswith("long.wav: 600.0 s"))
    for begun in ("true", "progress.value > 0"):  # while it is decoded, and between two tiles
        cancel = (
            "const done = arguments[0], [form, progress, cancel] = ['form', 'progress', 'cancel']"
            ".map((x) => document.getElementById(x)); form.requestSubmit();"
            f"const timer = setInterval(() => {{ if ({begun}) {{ clearInterval(timer);"
            " cancel.click(); done(progress.value); } }, 1);"
        )
        assert browser.execute_async_script(cancel) < 0.5
        assert outcome(browser) == "Cancelled."


def test_everything_has_a_name_that_can_be_read_out(browser, site):
    open_page(browser, site)
    names = {"file": "Recording: drop", "record": "Record", "sentences": "What to separate"}
    for name, start in names.items():
        assert browser.find_element(By.ID, name).accessible_name.startswith(start)


def test_scripts_cannot_send_anything_away(browser, folder, tmp_path):
    """A changed script, which the page and its worker run, tries another server."""
    shutil.copytree(folder, tmp_path / "page")
    script = tmp_path / "page" / "sound.js"
    with socket.create_server(("127.0.0.1", 0)) as other, chromium.serving(tmp_path / "page") as at:
        other.settimeout(0)
        address = f"http://127.0.0.1:{other.getsockname()[1]}/"
        script.write_text(f"fetch('{address}').catch(() => 0);\n" + script.read_text())
        chromium.requested(browser)
        open_page(browser, at)
        with pytest.raises(BlockingIOError):
            other.accept()
        urls = chromium.requested(browser)
        assert len([x for x in urls if x.startswith(at)]) > 3
        assert [x for x in urls if not x.startswith((at, address, "blob:", "data:"))] == []
        refused = [x["message"] for x in browser.get_log("browser") if address in x["message"]]
        assert any("Content Security Policy" in x for x in refused)


def test_other_text_encoders_have_the_sentences_of_the_export(browser, npm, tmp_path):
    model = dataclasses.replace(MODEL, condition_features=512)
    separator = Separator(model, shy_variables(model), TextConfig(), None, 7)
    with pytest.raises(InputError, match="no browser runs the text encoder hashed"):
        export_web(separator, tmp_path / "page")
    assert not [*tmp_path.iterdir()]
    table = TextConfig(encoder="static", model=str(write_static(tmp_path / "table")))
    other = dataclasses.replace(separator, text=table, _encoders={})
    assert web.write_words(other, tmp_path) is None  # its tokenizer is not BERT's
    export_web(separator, tmp_path / "page", text=["rain", "a dog"], dtype="float16")
    with chromium.serving(tmp_path / "page") as address:
        open_page(browser, address)
        noise(tmp_path / "street.wav", 1)
        drop(browser, tmp_path / "street.wav")
        assert "encoder hashed does not run in a browser" in text_of(browser, "offered")
        boxes = browser.find_elements(By.CSS_SELECTOR, "#offered input")
        assert [x.accessible_name for x in boxes] == ["rain", "a dog"]
        boxes[1].click()
        browser.find_element(By.ID, "separate").click()
        assert outcome(browser) == "Done."
        titles = [x.text for x in browser.find_elements(By.CSS_SELECTOR, "#results h2")]
        assert titles == ["Recording", "a dog", "Everything else"]


# ---------------------------------------------------------------------- without a browser


def package(path, content=b"x"):
    with tarfile.open(path, "w:gz") as archive:
        for name in web.RUNTIME:
            member = tarfile.TarInfo(f"package/dist/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def test_only_the_pinned_package_is_taken(tmp_path, monkeypatch):
    good, other = package(tmp_path / "good.tgz"), package(tmp_path / "other.tgz", b"y")
    sha512 = base64.b64encode(hashlib.sha512(good.read_bytes()).digest()).decode()
    monkeypatch.setattr(web, "SHA512", sha512)
    web.write_runtime(tmp_path / "runtime", good)
    files = {x.name: x.read_bytes() for x in (tmp_path / "runtime").iterdir()}
    assert files == dict.fromkeys(web.RUNTIME, b"x")
    with pytest.raises(InputError, match=r"other\.tgz: is damaged, or not the package"):
        web.write_runtime(tmp_path / "second", other)
    with pytest.raises(InputError, match=r"none\.tgz: cannot be read"):
        web.write_runtime(tmp_path / "second", tmp_path / "none.tgz")
    assert not (tmp_path / "second").exists()


def test_npm_that_fails_is_told(tmp_path, monkeypatch):
    monkeypatch.setenv("AUDIOSEP_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match="npm, which is not installed"):
        web.write_runtime(tmp_path / "runtime")
    (tmp_path / "npm").write_text("#!/bin/sh\necho 'no network' >&2\nexit 1\n")
    (tmp_path / "npm").chmod(0o755)
    with pytest.raises(InputError, match=r"npm cannot fetch onnxruntime-web@.* \(no network\)"):
        web.write_runtime(tmp_path / "runtime")


def test_a_folder_that_exists_is_left_alone(tmp_path, separator, capsys):
    with pytest.raises(InputError, match="exists already"):
        export_web(separator, tmp_path)
    assert main([str(tmp_path / "a.onnx"), "--runtime", "x.tgz"]) == 2
    assert "error: --runtime: is no option of --format onnx" in capsys.readouterr().err
