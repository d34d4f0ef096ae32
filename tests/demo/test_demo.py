"""The web page without a browser: what it takes, where its files go, what may pass."""

import asyncio
import contextlib
import os
import platform
import re
import signal
import socket
import subprocess
import sys
import tempfile
import urllib.error
from pathlib import Path

import numpy as np
import pytest
import soundfile
from starlette.formparsers import MultiPartException
from tiny_run import RATE_HZ, save_run

from audiosep_jax.audio import files as audio_files
from audiosep_jax.demo import __main__ as command
from audiosep_jax.demo import memory, page, work
from audiosep_jax.demo.guard import FORM_BYTES, Guard
from audiosep_jax.demo.shelf import Cancelled, Shelf
from audiosep_jax.demo.temporary import own_folder
from audiosep_jax.errors import InputError
from audiosep_jax.separation.separator import Separator
from benchmarks.demo_load import Reader, memory_megabytes, sounds

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    save_run(folder)
    return folder


@pytest.fixture(scope="module")
def separator(workdir):
    return Separator.load(workdir)


def recording(path, seconds=0.1, seed=0, **options):
    audio_S = 0.2 * np.random.default_rng(seed).standard_normal(round(seconds * RATE_HZ))
    soundfile.write(path, audio_S, RATE_HZ, **options)
    return path


# ---------------------------------------------------------------------- one request


def test_sentences_are_lines_each_once():
    assert work.sentences("  a dog\tbarking \n\n rain\r\na dog barking\n") == [
        "a dog barking",
        "rain",
    ]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "Say what to separate"),
        (" \n\t\n", "Say what to separate"),
        ("\n".join("abcdefghi"), "9 sentences are too many: at most 8"),
        ("x" * 301, "A sentence of 301 characters is too long: at most 300"),
    ],
)
def test_a_text_that_is_no_request_is_told(text, told):
    with pytest.raises(InputError, match=told):
        work.sentences(text)


def test_a_recording_longer_than_allowed_is_told_and_not_decoded(tmp_path, separator):
    path, folder = recording(tmp_path / "street.flac", seconds=2), tmp_path / "answer"
    with pytest.raises(InputError, match=r"street\.flac: lasts 2 s; at most 1\.5 s are taken$"):
        work.separate(separator, path, ["rain"], folder, 1.5, lambda *_: None)
    assert not folder.exists()


def test_an_answer_holds_what_the_library_returns(tmp_path, separator):
    path = recording(tmp_path / "in.wav", seconds=12, subtype="PCM_16")
    queries, told = ["rain", "Recording"], []
    answer = work.separate(separator, path, queries, tmp_path, 60, lambda *x: told.append(x))
    assert [(sound.title, sound.save_as) for sound in answer.sounds] == [
        ("Recording", "in - Recording.wav"),
        ("rain", "in - rain.wav"),
        ("Recording", "in - Recording.wav"),
        ("Everything else", "in - Everything else.wav"),
    ]
    mixture_CS, rate_hz = audio_files.read(path)
    expected_NCS = separator.separate(mixture_CS, rate_hz, queries)
    written = [audio_files.read(tmp_path / sound.file)[0] for sound in answer.sounds]
    np.testing.assert_array_equal(written[0], mixture_CS)
    np.testing.assert_allclose(written[1:3], expected_NCS, atol=1e-5)
    np.testing.assert_array_equal(written[1] + written[2] + written[3], mixture_CS)
    assert (tmp_path / answer.picture).read_bytes().startswith(b"\x89PNG")
    assert told[0] == (0, 12)
    assert told[-1] == pytest.approx((12, 12))


def test_separating_ends_where_the_reader_no_longer_waits(tmp_path, separator):
    path = recording(tmp_path / "in.wav", seconds=12)
    told = []

    def tell(done_seconds, all_seconds):
        told.append(done_seconds)
        if done_seconds:
            raise Cancelled

    with pytest.raises(Cancelled):
        work.separate(separator, path, ["rain", "wind"], tmp_path, 60, tell)
    assert len(told) == 2
    assert 0 < told[1] < 12
    assert sorted(x.name for x in tmp_path.glob("*")) == ["in.wav", "recording.wav"]


def test_a_sentence_is_letters_on_the_page():
    told = '<b onclick="x()">${1} {{2}}</b> & "3"'
    sound = work.Sound(told, "target-1.wav", f"in - {told}.wav")
    html = page.answer_html(work.Answer((sound,)), "results/token")
    assert "&lt;b onclick=&quot;x()&quot;&gt;&#36;&#123;1}" in html
    assert not re.search(r"<b|\$|\{", html)


# ---------------------------------------------------------------------- where files go


def finished(shelf, session):
    with shelf.job(session) as job:
        (job.folder / "a.wav").write_text(job.token)
    return job


def test_an_answer_stays_until_the_next_of_its_session(tmp_path):
    shelf = Shelf(tmp_path)
    first, other = finished(shelf, "one"), finished(shelf, "two")
    assert shelf.file(first.token, "a.wav").read_text() == first.token
    second = finished(shelf, "one")
    assert shelf.file(first.token, "a.wav") is None
    assert not first.folder.exists()
    assert shelf.file(second.token, "a.wav").read_text() == second.token
    assert shelf.file(other.token, "a.wav").read_text() == other.token


def test_only_files_of_the_answer_are_handed_out(tmp_path):
    shelf = Shelf(tmp_path / "answers")
    (tmp_path / "secret").write_text("x")
    job = finished(shelf, "one")
    for name in ("..", "../secret", "../../secret", str(tmp_path / "secret"), "", ".", "*"):
        assert shelf.file(job.token, name) is None
    with shelf.job("two") as running:
        (running.folder / "a.wav").write_text("half")
        assert shelf.file(running.token, "a.wav") is None


def test_cancel_stops_the_sessions_job_and_no_other(tmp_path):
    shelf = Shelf(tmp_path)
    with contextlib.suppress(Cancelled), shelf.job("one") as mine:
        with shelf.job("two") as other:
            assert shelf.cancel("one")
            other.check()
        with pytest.raises(Cancelled):
            mine.check()
    assert not shelf.cancel("one")
    assert [folder.name for folder in tmp_path.iterdir()] == [other.token]


def test_who_leaves_in_the_middle_leaves_nothing(tmp_path):
    shelf = Shelf(tmp_path)
    before = finished(shelf, "one")
    with pytest.raises(Cancelled), shelf.job("one") as job:
        shelf.leave("one")
    assert not before.folder.exists()
    assert not job.folder.exists()


def test_sweep_takes_old_answers_only(tmp_path):
    now = [100.0]
    shelf = Shelf(tmp_path, clock=lambda: now[0])
    old = finished(shelf, "one")
    now[0] = 150.0
    new = finished(shelf, "two")
    now[0] = 170.0
    shelf.sweep(60.0)
    assert (old.folder.exists(), new.folder.exists()) == (False, True)
    shelf.clear()
    assert not list(tmp_path.iterdir())


def test_what_killed_servers_left_is_removed_and_nothing_else(tmp_path, monkeypatch):
    program = (
        "from audiosep_jax.demo.temporary import own_folder\n"
        "with own_folder() as folder: print(folder, flush=True); input()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(tmp_path)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        killed = Path(process.stdout.readline().strip())
        (killed / "uploads").mkdir()
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
        with own_folder():
            assert killed.is_dir()  # in use
        process.kill()
    with own_folder() as running:
        beginning, foreign = tmp_path / f"{killed.name}_new", tmp_path / "other"
        beginning.mkdir()  # has no lock yet
        (tmp_path / f"{killed.name}_link").symlink_to(foreign)
        foreign.mkdir()
        (foreign / "in-use").touch()
        with own_folder() as new:
            left = {path for path in tmp_path.iterdir() if not path.is_symlink()}
            assert left == {running, beginning, foreign, new}
        assert not new.exists()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries keep little")
def test_memory_that_is_not_used_goes_back_to_the_system():
    # Blocks too small to be mapped one by one, and one behind them that stays.
    blocks = [np.ones(6000) for _ in range(2000)]
    del blocks[:-1]
    kept = memory_megabytes(os.getpid())
    memory.give_back()
    assert kept - memory_megabytes(os.getpid()) > 80  # of 92


# ---------------------------------------------------------------------- what may pass


def pass_through(guard_bytes, chunks, headers=(), last="http.request"):
    """(messages sent, bytes that were taken in) of a request whose body comes in chunks."""
    sent, taken = [], []

    async def app(scope, receive, send):
        more = True
        while more:
            more = (await receive()).get("more_body", False)
        await send({"type": "http.response.start", "status": 200, "headers": []})

    left = [{"type": "http.request", "body": x, "more_body": True} for x in chunks]
    left += [{"type": last, "body": b""}]

    async def receive():
        message = left.pop(0)
        taken.append(len(message["body"]))
        return message

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "headers": list(headers)}
    with contextlib.suppress(MultiPartException):
        asyncio.run(Guard(app, guard_bytes)(scope, receive, send))
    return sent, sum(taken)


def test_a_body_announced_as_too_large_is_refused_unread():
    over = [(b"content-length", b"%d" % (1001 + FORM_BYTES))]
    sent, taken = pass_through(1000, [bytes(1001 + FORM_BYTES)], over)
    assert (sent[0]["status"], taken) == (413, 0)
    assert (b"connection", b"close") in sent[0]["headers"]
    fits = [(b"content-length", b"%d" % (1000 + FORM_BYTES))]
    sent, taken = pass_through(1000, [bytes(1000 + FORM_BYTES)], fits)
    assert (sent[0]["status"], taken) == (200, 1000 + FORM_BYTES)


def test_a_body_that_was_not_announced_is_read_to_the_limit():
    sent, taken = pass_through(1000, [bytes(1000)] * 500)
    assert not sent
    assert taken == 1000 * -(-(1001 + FORM_BYTES) // 1000)


def test_a_body_that_breaks_off_raises_what_gradio_cleans_up_after():
    sent, _ = pass_through(1000, [bytes(10)], last="http.disconnect")
    assert not sent
    sent, _ = pass_through(1000, [bytes(10)])
    assert sent[0]["status"] == 200
    assert any(b"default-src 'self'" in value for _, value in sent[0]["headers"])


# ---------------------------------------------------------------------- the command


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--max_seconds", "0"], "--max_seconds 0.0: must be more than 0"),
        (["--max_megabytes", "nan"], "--max_megabytes nan: must be more than 0"),
        (["--concurrency", "-1"], "--concurrency -1: must be more than 0"),
        (["--port", "70000"], "--port 70000: must lie in 0..65535"),
        (["--host", "no.such.host.invalid"], "--host no.such.host.invalid"),
        (["--port", "x"], "argument --port"),
        (["--wrong"], "unrecognized arguments: --wrong; --help shows an example"),
        (["--checkpoint", "no/such/run", "--port", "0"], "no/such/run"),
    ],
)
def test_mistakes_are_one_line(capsys, arguments, told):
    assert command.main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert told in err


def test_a_taken_port_and_a_missing_gradio_are_told(capsys, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert command.main(["--port", port]) == 2
    assert f"--port {port}: cannot be served on (Address already in use)" in capsys.readouterr().err
    monkeypatch.setattr(command.importlib.util, "find_spec", lambda name: None)
    assert command.main([]) == 2
    assert "pip install 'audiosep-jax[demo]'" in capsys.readouterr().err


def test_mistakes_answer_before_anything_heavy_is_imported():
    program = (
        "import sys; from audiosep_jax.demo.__main__ import main; main(['--concurrency', '0']);"
        "print(sorted({'gradio', 'jax', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "[]\n"


@pytest.fixture(scope="module")
def served(workdir, tmp_path_factory):
    """(address, folder for temporary files, process) of the command, for the tests below."""
    folder = tmp_path_factory.mktemp("tmp")
    options = [
        "--checkpoint",
        workdir,
        "--port",
        "0",
        "--max_megabytes",
        "0.2",
        "--max_seconds",
        "2",
    ]
    process = subprocess.Popen(
        [sys.executable, "-m", "audiosep_jax.demo", *map(str, options)],
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process.stdout.readline().strip(), folder, process
    finally:
        process.kill()
        process.communicate()


def test_the_command_serves_and_cleans_up(served, tmp_path):
    url, folder, process = served
    reader = Reader(url)
    content = recording(tmp_path / "in.wav", subtype="FLOAT").read_bytes()
    path = reader.upload("in.wav", content)
    event, (html, _) = reader.separate(path, "rain\nwind")
    assert event == "complete"
    recording_S, *parts = sounds(reader, html)
    np.testing.assert_array_equal(recording_S, soundfile.read(tmp_path / "in.wav")[0])
    np.testing.assert_allclose(sum(parts), recording_S, atol=1e-6)

    # A mistake is told in a line, without the server's folders.
    event, told = reader.separate(reader.upload("not.wav", b"no sound"), "rain")
    assert (event, told["error"]) == (
        "error",
        "not.wav: cannot be read as audio (Format not recognised)",
    )
    event, told = reader.separate("http://127.0.0.1:1/in.wav", "rain")
    assert (event, told["error"]) == ("error", "Only files can be separated, not addresses")

    # Over the limit, announced or not: refused, and no part of it stays.
    uploads = set(folder.rglob("uploads/*"))
    with pytest.raises((urllib.error.HTTPError, ConnectionError, urllib.error.URLError)):
        reader.upload("big.wav", bytes(300_000))
    assert set(folder.rglob("uploads/*")) == uploads

    # Whoever leaves takes the answer along; a signal takes the rest.
    answers = list(folder.rglob("answers/*"))
    assert len(answers) == 1
    reader.close()
    for _ in range(200):
        if not list(folder.rglob("answers/*")):
            break
        asyncio.run(asyncio.sleep(0.05))
    assert not list(folder.rglob("answers/*"))
    open_page = Reader(url)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    open_page.close()
    assert (process.returncode, list(folder.iterdir())) == (0, [])
    assert "Traceback" not in err
