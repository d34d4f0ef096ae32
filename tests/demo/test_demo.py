"""The web page without a browser: requests, storage, access to files, and the command."""

import contextlib
import http.client
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image
from tiny_models import write_clip
from tiny_run import RATE_HZ, save_run, tiny_config
from visitor import Visitor, sounds

from audiosep_jax.audio import files as audio_files
from audiosep_jax.demo import answer, command, examples, page, work
from audiosep_jax.demo.server import Server
from audiosep_jax.demo.storage import Answers, Cancelled, own_folder
from audiosep_jax.demo.uploads import COOKIE
from audiosep_jax.errors import InputError
from audiosep_jax.separation.separator import Separator

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
FILM = (ROOT / "tests/cases/mute_film.mp4").read_bytes()
REFUSED = (403, "Only files that you have uploaded to this page in the last hour can be used")


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


def soon(condition):
    """Wait until a condition holds."""
    for _ in range(400):
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError("waited 20 s in vain")


# ---------------------------------------------------------------------- one request


def test_sentences_are_lines_each_once():
    assert work.sentences("  a dog\tbarking \n\n rain\r\na dog barking\n") == [
        "a dog barking",
        "rain",
    ]
    assert work.sentences(None) == []  # as a request to the API may have it


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("\n".join("abcdefghi"), "9 sentences are too many: at most 8"),
        ("x" * 301, "Sentences may have 300 characters, not 301"),
    ],
)
def test_too_many_or_too_long_sentences_are_refused(text, message):
    with pytest.raises(InputError, match=message):
        work.sentences(text)


def test_a_recording_that_is_too_large_is_not_decoded(tmp_path, separator):
    """A few kilobytes of FLAC may hold hours of silence, or many channels at a high rate."""
    flac, hours = tmp_path / "street.flac", tmp_path / "hours.flac"
    recording(flac, seconds=2)
    soundfile.write(hours, np.zeros(20_000_000, np.int16), RATE_HZ)
    content = bytearray(hours.read_bytes())
    content[21] &= 0xF0  # the number of samples, 0 for unknown
    content[22:26] = bytes(4)
    hours.write_bytes(content)
    soundfile.write(tmp_path / "wide.flac", np.zeros((9600, 8), np.int16), 96_000)
    folder = tmp_path / "answer"
    for name, words in (
        ("street.flac", "lasts more than the 1.5 s that are accepted"),
        ("hours.flac", "lasts more than the 1.5 s that are accepted"),
        ("wide.flac", "has 768000 samples a second in all of its channels"),
    ):
        with pytest.raises(InputError, match=f"{name}: {words}"):
            work.separate_for_page(
                separator, tmp_path / name, ["rain"], [], folder, 1.5, lambda *_: None
            )
    assert not folder.exists()


def test_an_answer_holds_what_the_library_returns(tmp_path, separator):
    path = recording(tmp_path / "in.wav", seconds=12, subtype="PCM_16")
    queries, progress = ["rain", "Recording"], []
    sounds = work.separate_for_page(
        separator, path, queries, [], tmp_path, 60, lambda *x: progress.append(x)
    )
    assert [(sound.title, sound.path.name) for sound in sounds] == [
        ("Recording", "in - Recording.wav"),
        ("rain", "in - rain.wav"),
        ("Recording", "in - Recording (2).wav"),
        ("Everything else", "in - Everything else.wav"),
    ]
    mixture_CS, rate_hz = audio_files.read(path)
    expected_NCS = separator.separate(mixture_CS, rate_hz, queries)
    written = [audio_files.read(sound.path)[0] for sound in sounds]
    np.testing.assert_array_equal(written[0], mixture_CS)
    np.testing.assert_allclose(written[1:3], expected_NCS, atol=1e-5)
    np.testing.assert_array_equal(written[1] + written[2] + written[3], mixture_CS)
    assert (tmp_path / work.PICTURE).read_bytes().startswith(b"\x89PNG")
    with audio_files.AudioReader(path) as mixture:
        outputs = [tmp_path / "1.wav", tmp_path / "2.wav"]
        found = separator.separate_file(mixture, outputs, separator.embed_text(queries))
    assert [sound.spans for sound in sounds] == [(), *found.spans, ()]
    assert all(found.spans)
    presences = [sound.presence for sound in sounds]
    assert presences == [None, *(pytest.approx(x, abs=1e-4) for x in found.presence_N), None]
    assert progress[0] == (0, 12)
    assert progress[-1] == pytest.approx((12, 12))


def test_unwanted_sounds_are_masked_out_as_in_the_library(tmp_path, separator):
    path = recording(tmp_path / "in.wav", seconds=2, subtype="PCM_16")
    sounds = work.separate_for_page(
        separator, path, ["rain"], ["wind", "a car"], tmp_path, 60, lambda *_: None
    )
    with audio_files.AudioReader(path) as mixture:
        separator.separate_file(
            mixture,
            [tmp_path / "expected.wav"],
            separator.embed_text(["rain"]),
            unwanted_ME=separator.embed_text(["wind", "a car"]),
            subtype="FLOAT",
        )
    actual_CS, expected_CS = (
        audio_files.read(x)[0] for x in (sounds[1].path, tmp_path / "expected.wav")
    )
    np.testing.assert_allclose(actual_CS, expected_CS, atol=1e-6)
    mixture_CS, rate_hz = audio_files.read(path)
    assert np.abs(actual_CS - separator.separate(mixture_CS, rate_hz, ["rain"])[0]).max() > 1e-3


def picture(folder, name="dog.png", seed=0):
    pixels_HWC = np.random.default_rng(seed).integers(0, 256, (60, 90, 3), np.uint8)
    Image.fromarray(pixels_HWC).save(folder / name)
    return folder / name


@pytest.fixture(scope="module")
def clip_separator(tmp_path_factory):
    folder, config = tmp_path_factory.mktemp("clip"), tiny_config()
    write_clip(folder / "clip", projection_dim=config.model.condition_features)
    config.text.encoder, config.text.model = "clip", str(folder / "clip")
    save_run(folder / "run", config=config, text_fingerprint=None)
    return Separator.load(folder / "run")


@pytest.mark.parametrize("wanted", [[], ["rain"]])
def test_a_picture_is_one_more_query(tmp_path, clip_separator, wanted):
    path, image = recording(tmp_path / "in.wav", seconds=1), str(picture(tmp_path))
    sounds = work.separate_for_page(
        clip_separator, path, wanted, [], tmp_path, 60, lambda *_: None, image=image
    )
    titles = ["Recording", *wanted, "What the picture shows", "Everything else"]
    assert [sound.title for sound in sounds] == titles
    audio_CS, rate_hz = audio_files.read(path)
    condition_NE = clip_separator.embed_image(image)
    expected_CS = clip_separator.separate_conditions(audio_CS, rate_hz, condition_NE)[0]
    np.testing.assert_allclose(audio_files.read(sounds[-2].path)[0], expected_CS, atol=1e-6)


def test_a_request_without_a_sentence_is_refused(tmp_path, separator):
    path = recording(tmp_path / "in.wav")
    with pytest.raises(InputError, match="Say what to separate"):
        work.separate_for_page(
            separator, path, work.sentences(" \n\t\n"), ["wind"], tmp_path, 60, lambda *_: None
        )


def test_a_cancelled_separation_ends_at_the_next_tile(tmp_path, separator):
    path = recording(tmp_path / "in.wav", seconds=12)
    progress = []

    def report(done_seconds, all_seconds):
        progress.append(done_seconds)
        if done_seconds:
            raise Cancelled

    with pytest.raises(Cancelled):
        work.separate_for_page(separator, path, ["rain", "wind"], [], tmp_path, 60, report)
    assert len(progress) == 2
    assert 0 < progress[1] < 12
    assert sorted(x.name for x in tmp_path.glob("*")) == ["in - Recording.wav", "in.wav"]


def test_a_sentence_is_shown_as_text():
    sentence = '<b onclick="x()">${1} {{2}}</b> & "3"'
    sound = work.Sound(sentence, Path("/answers/token/in - _b_ 100%.wav"))
    html = answer.sounds_html([sound], "sound")
    for shown in (html, answer.picture_html([sound], Path("/answers/token/spectrograms.png"))):
        assert "&lt;b onclick=&quot;x()&quot;&gt;&#36;&#123;1}" in shown
        assert not re.search(r"<b|\$|\{", shown)
    assert 'src="gradio_api/file=/answers/token/in%20-%20_b_%20100%25.wav"' in html


def test_presence_and_spans_are_told_in_words_and_as_bars():
    sound = work.Sound("rain", Path("a.wav"), 8.0, 0.75, [(1.0, 3.0), (4, 8)])
    html = answer.sounds_html([sound, work.Sound("Everything else", Path("b.wav"), 8.0)], "sound")
    assert re.findall("Presence .*?<", html) == ["Presence 0.75, at 1.0-3.0, 4.0-8.0 s<"]
    bars = re.findall(r"left:([\d.]+)%;width:([\d.]+)%", html)
    assert bars == [("12.50", "25.00"), ("50.00", "50.00")]


# ---------------------------------------------------------------------- storage


def finished(answers, session):
    with answers.job(session) as job:
        (job.folder / "a.wav").write_text(job.folder.name)
    return job.folder


def test_an_answer_stays_until_the_next_of_its_session(tmp_path):
    answers = Answers(tmp_path)
    first, other = finished(answers, "one"), finished(answers, "two")
    with pytest.raises(RuntimeError), answers.job("one"):
        raise RuntimeError
    assert (first / "a.wav").read_text() == first.name
    second = finished(answers, "one")
    assert set(tmp_path.iterdir()) == {second, other}
    answers.close()
    assert not list(tmp_path.iterdir())


def test_a_remix_stays_until_the_next_remix_or_answer(tmp_path):
    answers = Answers(tmp_path)
    assert answers.parts("one") == []
    with answers.job("one") as job:
        job.parts.append(job.folder / "a.wav")
    assert answers.parts("one") == [job.folder / "a.wav"]
    for _ in range(2):
        with answers.job("one", remix=True) as remix:
            pass
        assert set(tmp_path.iterdir()) == {job.folder, remix.folder}
    assert answers.parts("one") == [job.folder / "a.wav"]
    assert {finished(answers, "one")} == set(tmp_path.iterdir())
    with answers.job("one", remix=True):
        pass
    answers.leave("one")
    assert not list(tmp_path.iterdir())


def test_cancel_stops_the_job_of_one_session_only(tmp_path):
    answers = Answers(tmp_path)
    with contextlib.suppress(Cancelled), answers.job("one") as mine:
        with answers.job("two") as other:
            answers.cancel("one")
            other.check()
        with pytest.raises(Cancelled):
            mine.check()
    assert list(tmp_path.iterdir()) == [other.folder]


def test_a_session_that_leaves_in_the_middle_leaves_nothing(tmp_path):
    answers = Answers(tmp_path)
    finished(answers, "one")
    with pytest.raises(Cancelled), answers.job("one"):
        answers.leave("one")
    assert not list(tmp_path.iterdir())


def test_folders_of_killed_servers_are_removed_and_no_others(tmp_path, monkeypatch):
    program = (
        "from audiosep_jax.demo.storage import own_folder\n"
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
        (killed / "answers").mkdir()
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
        with own_folder():
            assert killed.is_dir()  # in use
        process.kill()
    with own_folder() as running:
        starting, foreign = tmp_path / f"{killed.name}_new", tmp_path / "other"
        starting.mkdir()  # has no lock yet
        foreign.mkdir()
        (foreign / "in-use.lock").touch()
        (tmp_path / f"{killed.name}_link").symlink_to(foreign)
        with own_folder() as new:
            left = {path for path in tmp_path.iterdir() if not path.is_symlink()}
            assert left == {running, starting, foreign, new}
            assert (foreign / "in-use.lock").exists()
        assert not new.exists()


# ---------------------------------------------------------------------- access to files


@pytest.fixture(scope="module")
def server(separator, tmp_path_factory):
    """The page, served in this process; `url` is its address."""
    server = serve(separator, tmp_path_factory.mktemp("files"))
    yield server
    server.close()


def serve(separator, folder, passwords=(), max_total_megabytes=100):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    limits = page.Limits(2, 0.2, 2, max_total_megabytes)
    server = Server(separator, folder, "127.0.0.1", port, limits, passwords)
    server.url, server.folder = f"http://127.0.0.1:{port}", folder
    return server


@pytest.fixture
def visitor(server):
    with contextlib.closing(Visitor(server.url)) as reader:
        yield reader


def content(**options):
    file = io.BytesIO()
    recording(file, **{"format": "WAV", "subtype": "FLOAT", **options})
    return file.getvalue()


def post(visitor, route, body):
    """Status and detail of the server's answer to a JSON body."""
    try:
        return 200, json.loads(
            visitor.get(route, json.dumps(body).encode(), {"Content-Type": "application/json"})
        )
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())["detail"]


def file_data(path, **fields):
    return {"path": path, "meta": {"_type": "gradio.FileData"}, **fields}


def joined(visitor, recording):
    """Answer to `POST queue/join`, as the page's own script sends it."""
    body = {"data": [recording, "rain"], "fn_index": 0, "session_hash": visitor.session}
    return post(visitor, "gradio_api/queue/join", body)


def test_a_visitor_gets_the_parts_of_their_own_upload(visitor):
    mixture = content(seed=5)
    event, answer = visitor.separate(visitor.upload("street.wav", mixture), "rain\nwind")
    assert event == "complete"
    mixture_S, *parts = sounds(visitor, answer[0])
    np.testing.assert_array_equal(mixture_S, soundfile.read(io.BytesIO(mixture))[0])
    np.testing.assert_allclose(sum(parts), mixture_S, atol=1e-6)


def test_the_remix_is_the_weighted_sum_of_the_parts(server, visitor):
    path = visitor.upload("in.wav", content(seed=14, subtype="PCM_16"))
    mixture_S, *part_NS = sounds(visitor, visitor.separate(path, "rain\nwind")[1][0])
    remixes = {}
    for levels in [(100, 100, 100), (30, 0, 200)]:
        event, (html,) = visitor.call("remix", [*levels, *[77] * (work.MAX_SOUNDS - 3)])
        assert event == "complete"
        (remixes[levels],) = sounds(visitor, html)
    np.testing.assert_array_equal(remixes[100, 100, 100], mixture_S)
    expected_S = 0.3 * part_NS[0] + 2 * part_NS[2]
    np.testing.assert_allclose(remixes[30, 0, 200], expected_S, atol=1e-6)
    assert len(list(server.folder.rglob("remix.wav"))) == 1
    visitor.close()
    soon(lambda: not list(server.folder.rglob("remix.wav")))


@pytest.mark.parametrize("level", [-1, 201, 1e300, "1", None, [100], float("nan"), float("inf")])
def test_other_levels_are_refused(visitor, level):
    assert visitor.separate(visitor.upload("in.wav", content(seed=15)), "rain")[0] == "complete"
    try:
        event, _ = visitor.call("remix", [level, *[100] * 8])
    except urllib.error.HTTPError as error:
        event = {400: "error", 422: "error"}[error.code]
    assert event == "error"


def test_a_remix_is_for_the_visitor_of_its_answer(server, visitor):
    levels = [100] * work.MAX_SOUNDS
    assert visitor.call("remix", levels)[1]["error"] == "Separate a recording first"
    assert visitor.separate(visitor.upload("in.wav", content(seed=16)), "rain")[0] == "complete"
    html = visitor.call("remix", levels)[1][0]
    with contextlib.closing(Visitor(server.url)) as other:
        other.upload("theirs.wav", content(seed=17))
        with pytest.raises(urllib.error.HTTPError, match="403"):
            sounds(other, html)
        other.session = visitor.session  # as if it had been overheard
        event, told = other.call("remix", levels)
    assert (event, told["error"]) == ("error", REFUSED[1])
    assert len(sounds(visitor, html)) == 1


def test_an_example_is_separated_for_whoever_asked_for_it(visitor, monkeypatch):
    visitor.get("")  # the page, with which the visitor's cookie comes
    for number, example in enumerate(examples.EXAMPLES):
        assert example.recording.stat().st_size < 250_000
        about = soundfile.info(example.recording)
        assert (about.samplerate, about.channels, about.duration) == (16000, 1, 5.0)
        given, *others = visitor.call("example", [number])[1]
        assert others == [example.text, "", None]
        assert visitor.get("gradio_api/file=" + given["path"]) == example.recording.read_bytes()
    with pytest.raises(urllib.error.HTTPError, match="403"):
        Visitor(visitor.url, heartbeat=False).separate(given["path"], example.text)
    for index in (3, -4, "/etc/passwd", None, [0]):
        assert visitor.call("example", [index])[0] == "error"


def test_no_action_takes_files_of_the_server(server, visitor):
    own = visitor.upload("own.wav", content(seed=18))
    assert len(server.blocks.fns) > 4
    for number, action in server.blocks.fns.items():
        for place in range(len(action.inputs) + 1):
            data = [file_data(own)] * (len(action.inputs) + 1)
            data[place] = file_data("/dev/zero")
            body = {"data": data, "fn_index": number, "session_hash": visitor.session}
            assert post(visitor, "gradio_api/queue/join", body) == REFUSED


def test_files_of_the_server_are_refused_before_anything_opens_them(server, tmp_path):
    """A pipe or /dev/zero would block a server that opens it."""
    outside = recording(tmp_path / "private.wav")
    os.mkfifo(tmp_path / "pipe.wav")
    with contextlib.closing(Visitor(server.url)) as attacker:
        own = attacker.upload("own.wav", content(seed=6))
        climbing = os.path.relpath(outside, Path(own).parent)
        paths = [
            str(outside),
            f"{Path(own).parent}/{climbing}",
            f"/proc/self/root{outside}",
            f"/proc/{os.getpid()}/root{own}",
            os.path.relpath(outside),
            f"file://{outside}",
            "/dev/zero",
            "/dev/stdin",
            str(tmp_path / "pipe.wav"),
            str(server.folder),
            f"{own}/../own.wav",
            f"{Path(own).parent}/./own.wav",
            "http://127.0.0.1:1/in.wav",
            "https://example.com/in.wav",
            "concat:/etc/passwd",
            "",
        ]
        for path in paths:
            assert joined(attacker, file_data(path)) == REFUSED, path
            assert joined(attacker, file_data(path, is_stream=True)) == REFUSED, path
            assert joined(attacker, {"path": path}) == REFUSED, path
        assert attacker.separate(own, "rain")[0] == "complete"


@pytest.mark.parametrize(
    ("route", "body"),
    [
        ("gradio_api/call/separate", {"data": [file_data("/dev/zero"), "rain"]}),
        ("gradio_api/call/v2/separate", {"recording": file_data("/dev/zero"), "text": "rain"}),
        ("gradio_api/run/separate", {"data": [file_data("/dev/zero"), "rain"]}),
        ("gradio_api/api/separate", {"data": [file_data("/dev/zero"), "rain"]}),
        ("gradio_api/run/predict", {"data": [None, file_data("/dev/zero")], "fn_index": 0}),
        ("gradio_api/queue/join", {"data": [[{"a": [file_data("/dev/zero")]}]], "fn_index": 0}),
        ("gradio_api/queue/join", {"event_data": {"b": file_data("/dev/zero")}, "fn_index": 0}),
    ],
)
def test_a_file_is_found_in_any_route_and_any_place(visitor, route, body):
    assert post(visitor, route, body) == REFUSED


@pytest.mark.parametrize("kind", ["application/json", "text/plain", "multipart/form-data"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_a_file_is_found_in_any_encoding(visitor, kind, encoding):
    own = visitor.upload("own.wav", content(seed=13))
    body = (
        f'{{"data": [{{"p\\u0061th": "{own}", "path": "/dev/zero", "meta": '
        '{"_type": "gradio.FileData"}}, "rain", ""], "fn_index": 0}'
    )
    with pytest.raises(urllib.error.HTTPError, match="403"):
        visitor.get("gradio_api/queue/join", body.encode(encoding), {"Content-Type": kind})


def test_tricks_with_the_other_fields_of_a_file_open_nothing_else(visitor, tmp_path):
    private = str(recording(tmp_path / "private.wav"))
    own = visitor.upload("own.wav", content(seed=7))
    for value in (private, [private], {"url": f"/file={private}"}, {"name": private}):
        event, _ = visitor.separate(value, "rain", wrap=False)
        assert event == "error"
    fields = {"url": f"http://127.0.0.1:1{private}", "orig_name": f"../..{private}", "size": -1}
    event, answer = visitor.separate(file_data(own, **fields), "rain", wrap=False)
    assert event == "complete"
    np.testing.assert_array_equal(
        sounds(visitor, answer[0])[0], soundfile.read(io.BytesIO(content(seed=7)))[0]
    )


def test_a_picture_is_an_own_upload_that_nothing_else_opens(clip_separator, tmp_path, monkeypatch):
    """Text and films are refused in words; other fields of the box's value lead nowhere."""
    monkeypatch.setenv("GRADIO_TEMP_DIR", "")  # a server sets it; the others' is set again after it
    server = serve(clip_separator, tmp_path / "files")
    private, svg = str(picture(tmp_path)), {"orig_name": "a.svg"}
    with contextlib.closing(server), contextlib.closing(Visitor(server.url)) as visitor:
        sound = visitor.upload("street.wav", content())
        own = visitor.upload("dog.png", picture(tmp_path, "own.png").read_bytes())
        text, film = visitor.upload("text.jpg", b"a text"), visitor.upload("film.jpg", FILM)
        event, answer = visitor.separate(sound, "", "", file_data(own, url=private, **svg))
        assert event == "complete"
        assert len(sounds(visitor, answer[0])) == 3
        for path in (private, "/dev/zero"):
            with pytest.raises(urllib.error.HTTPError, match="403"):
                visitor.separate(sound, "", "", file_data(path))
        for value in (private, {"url": private}, {"path": None, "url": f"data:,{private}"}):
            assert visitor.separate(sound, "", "", value)[0] == "error"
        for path in (text, film):
            event, message = visitor.separate(sound, "", "", file_data(path))
            words = f"{Path(path).name}: cannot be read as a picture"
            assert (event, message["error"]) == ("error", words)


def test_the_upload_of_another_visitor_is_refused(server, visitor):
    path = visitor.upload("mine.wav", content(seed=8))
    event, answer = visitor.separate(path, "rain")
    answer_path = re.findall(r'src="gradio_api/file=([^"]+\.wav)"', answer[0])[0]
    with contextlib.closing(Visitor(server.url)) as other:
        other.upload("theirs.wav", content(seed=9))
        for name in (path, urllib.parse.unquote(answer_path)):
            assert joined(other, file_data(name)) == REFUSED
            with pytest.raises(urllib.error.HTTPError, match="403"):
                other.get("gradio_api/file=" + urllib.parse.quote(name))
    assert event == "complete"
    assert len(visitor.get("gradio_api/file=" + path)) == len(content())


@pytest.mark.parametrize("kind", ["symlink", "hardlink", "pipe", "device", "folder", "parent"])
def test_an_upload_that_became_something_else_is_refused(server, visitor, tmp_path, kind):
    private = recording(tmp_path / "private.wav")
    path = Path(visitor.upload("in.wav", content(seed=len(kind))))
    path.unlink()
    match kind:
        case "symlink":
            path.symlink_to(private)
        case "hardlink":
            path.hardlink_to(private)
        case "pipe":
            os.mkfifo(path)
        case "device":
            path.symlink_to("/dev/zero")
        case "folder":
            path.mkdir()
        case "parent":
            path.parent.rmdir()
            path.parent.symlink_to(private.parent)
            private.rename(private.with_name("in.wav"))
    assert joined(visitor, file_data(str(path))) == REFUSED
    with pytest.raises(urllib.error.HTTPError, match="403"):
        visitor.get("gradio_api/file=" + str(path))
    if kind == "folder":
        path.rmdir()


def test_the_name_of_an_upload_leads_nowhere(server, visitor):
    with pytest.raises(urllib.error.HTTPError, match="400"):
        visitor.upload("..", content(seed=10))
    for name in ("../../../evil.wav", "a/../../b.wav", "..%2f..%2fc.wav", "/etc/d.wav", "x .. y"):
        path = Path(visitor.upload(name, content(seed=10)))
        assert path.parent.parent == server.folder
        assert path.is_file()
        assert visitor.separate(str(path), "rain")[0] == "complete"


@pytest.mark.parametrize("name", ["list.m3u8", "film.mp4", "song.wav", "song.mp3", "list.txt"])
@pytest.mark.parametrize("kind", ["ffconcat", "hls", "concat", "mpd", "sdp", "subtitles"])
def test_a_list_of_files_in_disguise_is_refused(visitor, tmp_path, name, kind):
    """ffmpeg would otherwise read the files, or the addresses, that an upload names."""
    private = recording(tmp_path / "private.wav", 1.0)
    text = {
        "ffconcat": f"ffconcat version 1.0\nfile '{private}'\n",
        "hls": f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{private}\n#EXT-X-ENDLIST\n",
        "concat": f"concat:{private}|{private}\n",
        "mpd": f"<?xml version='1.0'?><MPD><Period><BaseURL>{private}</BaseURL></Period></MPD>",
        "sdp": "v=0\nm=audio 9 RTP/AVP 0\nc=IN IP4 127.0.0.1\n",
        "subtitles": f"[ScriptInfo]\nFile: {private}\n",
    }[kind]
    event, answer = visitor.separate(visitor.upload(name, text.encode()), "rain")
    assert event == "error"
    assert "cannot be read as audio" in answer["error"]
    assert str(tmp_path) not in answer["error"]


@pytest.mark.parametrize(
    "route",
    [
        "gradio_api/file=/etc/passwd",
        "gradio_api/file=/proc/self/root/etc/passwd",
        "gradio_api/file=..%2F..%2Fetc%2Fpasswd",
        "gradio_api/file=http://127.0.0.1:1/",
        "gradio_api/file=https://example.com/",
        "gradio_api/file=/dev/zero",
        "gradio_api/file/etc/passwd",
        "gradio_api//file=/etc/passwd",
        "file=/etc/passwd",
        "gradio_api/proxy=https://example.com/",
        "gradio_api/file={folder}/in-use.lock",
        "gradio_api/file={root}/pyproject.toml",
    ],
)
def test_other_files_are_not_handed_out(server, visitor, route):
    route = route.format(folder=server.folder, root=ROOT)
    with pytest.raises(urllib.error.HTTPError, match=r"40[0-9]"):
        visitor.get(route)


def test_requests_that_the_page_does_not_make_are_refused(visitor):
    """Gradio's /process_recording would run ffmpeg on any file."""
    for route in ("process_recording", "component_server", "vibe-edit", "stream/x", "upload/"):
        assert post(visitor, f"gradio_api/{route}", {})[0] == 403


def test_requests_that_no_page_sends_are_refused_before_they_are_read(visitor):
    body = json.dumps({"data": [None, "rain", ""], "fn_index": 0}).encode()
    kind = {"Content-Type": "text/plain", "Sec-Fetch-Site": "cross-site"}
    for route in ("gradio_api/queue/join", "gradio_api/upload"):  # as another web site makes them
        with pytest.raises(urllib.error.HTTPError, match="403"):
            visitor.get(route, body, kind)
    connection = http.client.HTTPConnection(visitor.url.split("/")[2], timeout=20)
    connection.putrequest("POST", "/gradio_api/queue/join")
    connection.putheader("Content-Length", "10000000000")
    connection.endheaders()
    connection.send(bytes(1_100_000))
    response = connection.getresponse()
    assert (response.status, response.read()) == (403, b'{"detail":"The request is too long"}')
    connection.close()


def test_uploads_that_are_too_large_or_break_off_leave_nothing(server, visitor):
    before = set(server.folder.rglob("*"))
    with pytest.raises((urllib.error.HTTPError, ConnectionError, urllib.error.URLError)):
        visitor.upload("big.wav", bytes(300_000))
    connection = http.client.HTTPConnection(server.url.removeprefix("http://"))
    connection.putrequest("POST", "/gradio_api/upload")
    connection.putheader("Content-Type", "multipart/form-data; boundary=x")
    connection.putheader("Content-Length", "150000")
    connection.endheaders()
    head = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.wav"\r\n\r\n'
    connection.send(head + bytes(100_000))
    soon(lambda: set(server.folder.rglob("*")) != before)
    connection.close()
    soon(lambda: set(server.folder.rglob("*")) == before)


def test_the_cookie_of_a_visitor_is_hidden_from_scripts(server):
    """Behind a proxy with encryption it is kept in frames, apart for each site that has them."""
    for protocol, sites in (
        ("http", "SameSite=Lax"),
        ("https", "SameSite=None; Secure; Partitioned"),
    ):
        connection = http.client.HTTPConnection(server.url.removeprefix("http://"))
        connection.request("GET", "/", headers={"X-Forwarded-Proto": protocol})
        cookie = connection.getresponse().getheader("set-cookie")
        assert re.fullmatch(rf"{COOKIE}=[-\w]{{32}}; Path=/; HttpOnly; {sites}", cookie)


def test_answers_of_an_open_page_are_removed_after_an_hour(server, visitor):
    from gradio.route_utils import delete_files_created_by_app

    path = visitor.upload("in.wav", content(seed=11))
    assert visitor.separate(path, "rain")[0] == "complete"
    assert list(server.folder.rglob("answers/*/*.wav"))
    delete_files_created_by_app(server.blocks, page.KEEP_SECONDS)
    assert list(server.folder.rglob("answers/*/*.wav"))
    delete_files_created_by_app(server.blocks, -1)
    assert not list(server.folder.rglob("*.wav")) + list(server.folder.rglob("*.png"))
    assert visitor.separate(visitor.upload("in.wav", content(seed=12)), "rain")[0] == "complete"
    assert joined(visitor, file_data(path)) == REFUSED


def test_a_page_with_passwords_asks_for_them(separator, tmp_path):
    server = serve(separator, tmp_path, [("ann", "secret"), ("bob", "s:e")])
    try:
        visitor = Visitor(server.url, heartbeat=False)
        with pytest.raises(urllib.error.HTTPError, match="401"):
            visitor.upload("in.wav", content())
        assert post(visitor, "gradio_api/call/separate", {"data": [None, "rain"]})[0] == 401
        for user, password, status in (("ann", "s:e", 400), ("bob", "s:e", 200)):
            form = urllib.parse.urlencode({"username": user, "password": password}).encode()
            with contextlib.ExitStack() as stack:
                if status != 200:
                    stack.enter_context(pytest.raises(urllib.error.HTTPError, match=str(status)))
                assert json.loads(visitor.get("login", form)) == {"success": True}
        assert visitor.separate(visitor.upload("in.wav", content()), "rain")[0] == "complete"
        for attempt in range(12):  # the login above has cleared the one that failed
            form = urllib.parse.urlencode({"username": "ann", "password": attempt}).encode()
            status, answer = posted(server, "/login", form)
            assert status == (400 if attempt < 10 else 403)
        assert answer == {"detail": "Too many logins failed; try again in ten minutes"}
    finally:
        server.close()


def posted(server, route, body):
    """Send a form as a new visitor; return the status and the answer."""
    connection = http.client.HTTPConnection(server.url.removeprefix("http://"))
    kind = {"Content-Type": "application/x-www-form-urlencoded"}
    connection.request("POST", route, body, kind)
    response = connection.getresponse()
    return response.status, json.loads(response.read())


def test_uploads_stop_when_all_files_together_are_too_large(separator, tmp_path):
    server = serve(separator, tmp_path, max_total_megabytes=0.03)
    try:
        visitor = Visitor(server.url, heartbeat=False)
        path = visitor.upload("in.wav", bytes(20_000))
        status, answer = posted(server, "/gradio_api/upload", bytes(20_000))
        assert status == 403
        assert answer["detail"].startswith("The page holds as many files as it may")
        os.remove(path)
        assert visitor.upload("in.wav", bytes(20_001))
    finally:
        server.close()


# ---------------------------------------------------------------------- the command


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--max_seconds", "0"], "--max_seconds: 0 is not in 0.001..1e+09"),
        (["--max_megabytes", "nan"], "--max_megabytes: nan is not in"),
        (["--max_total_megabytes", "0"], "--max_total_megabytes: 0 is not in"),
        (["--concurrency", "-1"], "--concurrency: -1 is not in 1..inf"),
        (["--port", "70000"], "--port 70000: cannot be served on"),
        (["--host", "no.such.host.invalid", "--no_auth"], "--host no.such.host.invalid"),
        (["--port", "x"], "argument --port"),
        (["--wrong"], "unrecognized arguments: --wrong; --help shows an example"),
        (["--checkpoint", "no/such/run", "--port", "0"], "no/such/run"),
        (["--host", "0.0.0.0"], "give --auth_file FILE"),
        (["--host", "::"], "give --auth_file FILE"),
        (["--host", ""], "give --auth_file FILE"),
        (["--auth_file", "no/such/file"], "no/such/file: cannot be read"),
    ],
)
def test_mistakes_are_one_line(capsys, arguments, message):
    assert command.main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert message in err


@pytest.mark.parametrize(
    ("text", "message"),
    [("", "each line must be"), ("ann:secret\n\nbob\n", "each line must be user:password")],
)
def test_a_file_without_passwords_is_refused(capsys, tmp_path, text, message):
    path = tmp_path / "users"
    path.write_text(text)
    assert command.main(["--host", "0.0.0.0", "--auth_file", str(path)]) == 2
    assert message in capsys.readouterr().err


def test_a_taken_port_and_a_missing_gradio_are_reported(capsys, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert command.main(["--port", port]) == 2
    assert f"--port {port}: cannot be served on (Address already in use)" in capsys.readouterr().err
    monkeypatch.setattr(command.importlib.util, "find_spec", lambda name: None)
    assert command.main([]) == 2
    assert "pip install 'audiosep-jax[demo]'" in capsys.readouterr().err


def test_mistakes_answer_before_anything_heavy_is_imported():
    program = (
        "import sys; from audiosep_jax.demo.command import main; main(['--concurrency', '0']);"
        "print(sorted({'gradio', 'jax', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "[]\n"


def test_the_command_serves_and_cleans_up(workdir, tmp_path):
    folder = tmp_path / "tmp"
    folder.mkdir()
    options = ["--checkpoint", workdir, "--port", "0", "--max_seconds", "2"]
    process = subprocess.Popen(
        [sys.executable, "-m", "audiosep_jax", "demo", *map(str, options)],
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        visitor = Visitor(process.stdout.readline().strip())
        path = visitor.upload("in.wav", content())
        event, answer = visitor.separate(path, "rain")
        assert event == "complete"
        assert len(sounds(visitor, answer[0])) == 3
        # Errors are one line, without the server's folders.
        event, told = visitor.separate(visitor.upload("not.wav", b"no sound"), "rain")
        assert (event, told["error"]) == (
            "error",
            "not.wav: cannot be read as audio (Format not recognised)",
        )
        assert len(list(folder.rglob("answers/*"))) == 1
        visitor.close()  # takes the answer along
        soon(lambda: not list(folder.rglob("answers/*")))
        open_page = Visitor(visitor.url)
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=60)
        open_page.close()
    finally:
        process.kill()
        process.communicate()
    assert (process.returncode, list(folder.iterdir())) == (143, [])
    assert err == "stopped\n"
