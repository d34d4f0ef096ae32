"""remote: commands read and write an S3 server on loopback, alone and on workers of a cluster."""

import json
import pathlib
import tempfile
import unittest.mock

import distributed
import fsspec
import numpy as np
import prepared_examples
import pytest
import soundfile
from evaluation_examples import pairs_list, write_clips
from moto.server import ThreadedMotoServer
from tiny_run import save_run

from audiosep_jax import files, remote
from audiosep_jax.audio import files as audio_files
from audiosep_jax.audio.files import AudioError
from audiosep_jax.errors import InputError
from audiosep_jax.evaluation import command as evaluate
from audiosep_jax.preparing import command as prepare
from audiosep_jax.separation import command as separate


@pytest.fixture(scope="module")
def storage():
    """File system of an S3 server with one bucket; the processes of the tests find it too."""
    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", "http://{}:{}".format(*server.get_host_and_port()))
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "test")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        system = fsspec.filesystem("s3")
        system.mkdir("bucket")
        yield system
    server.stop()


@pytest.fixture(scope="module")
def address(storage):
    options = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": ":0"}
    with distributed.LocalCluster(host="127.0.0.1", **options) as found:
        yield found.scheduler_address


@pytest.fixture
def here(storage, tmp_path, monkeypatch):
    """An empty current folder and an empty folder of temporary files; the bucket is emptied."""
    storage.invalidate_cache()
    for name in storage.find("bucket"):
        storage.rm_file(name)
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def contents(storage, folder):
    storage.invalidate_cache()
    return {name.removeprefix(folder): storage.cat_file(name) for name in storage.find(folder)}


def local_contents(folder):
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def recordings(folder):
    for number in range(3):
        audio_S = 0.1 * np.random.default_rng(number).standard_normal(500 + number)
        (folder / str(number)).mkdir(parents=True)
        soundfile.write(folder / str(number) / "x.wav", audio_S, 8000)


def left_over(here):
    """Return the names of temporary files that are not empty, except logs that were uploaded."""
    paths = (path for path in (here / "temporary").rglob("*") if path.suffix != ".jsonl")
    return [path.name for path in paths if path.is_file() and path.stat().st_blocks]


@pytest.mark.slow
def test_separate_between_urls(here, storage, address, capfd):
    save_run(here / "run")
    recordings(here / "in")
    storage.put(str(here / "in"), "bucket/in", recursive=True)
    storage.pipe_file("bucket/in/bad.wav", b"")
    how = ["--text", "rain", "--checkpoint", "run", "--residual", "--labels", "txt"]
    assert separate.main(["in", *how, "--output", "out"]) == 0
    remotely = ["s3://bucket/in", *how, "--output", "s3://bucket/out", "--cluster", address]
    capfd.readouterr()
    assert separate.main([*remotely, "--json", "s3://bucket/found.json"]) == 1
    out, err = capfd.readouterr()
    assert "s3://bucket/out/0/x - rain.wav" in out.splitlines()
    assert "error: s3://bucket/in/bad.wav: is empty" in err
    expected, found = local_contents(here / "out"), contents(storage, "bucket/out/")
    log = found.pop("separated.jsonl")
    assert len(log.splitlines()) == 3
    assert set(expected) - {"separated.jsonl"} == set(found)
    assert all(found[name] == expected[name] for name in found)
    listed = json.loads(storage.cat_file("bucket/found.json"))
    assert listed[0]["files"][0] == "s3://bucket/out/0/x - rain.wav"
    assert not left_over(here)
    # A result that is missing is made again, and no other.
    storage.rm_file("bucket/out/1/x - residual.wav")
    assert separate.main([*remotely, "--resume"]) == 1
    assert "2 of 4 recordings are done already" in capfd.readouterr().err
    again = contents(storage, "bucket/out/")
    assert again.pop("separated.jsonl").startswith(log)
    assert again == found


def test_separate_a_list_of_urls(here, storage, capfd):
    save_run(here / "run")
    recordings(here / "in")
    storage.put(str(here / "in"), "bucket/in", recursive=True)
    storage.pipe_file(
        "bucket/list.csv", b"file,query\nin/0/x.wav,rain\ns3://bucket/in/1/x.wav,dog\n"
    )
    arguments = ["s3://bucket/list.csv", "--checkpoint", "run", "--output", "out"]
    assert separate.main(arguments) == 0
    found = local_contents(here / "out")
    assert {*found} == {"in/0/x - rain.wav", "x - dog.wav", "separated.jsonl"}


@pytest.mark.slow
def test_prepare_between_urls(here, storage, address, capfd):
    for number in range(17):
        path = here / "clips" / ("dog", "rain")[number % 2] / f"{number}.wav"
        prepared_examples.save(path, seconds=12.5, seed=number)
    (here / "clips" / "dog" / "bad.wav").write_bytes(b"no sound")
    storage.put(str(here / "clips"), "bucket/clips", recursive=True)
    how = ["folders", "--sample_rate", "8000", "--root"]
    assert prepare.main([*how, "clips", "--output", "local", "--workers", "1"]) == 0
    remotely = [*how, "s3://bucket/clips", "--output", "s3://bucket/data", "--cluster", address]
    # A run that is killed leaves shards; only those that are missing are made.
    assert prepare.main([*remotely, "--shard", "0/2"]) == 0
    before = storage.find("bucket/data.parts")
    shard = min(name for name in before if name.endswith(tuple("0123456789")))
    storage.copy(shard, shard.replace(".parts", ""))  # as a kill while shards are copied leaves
    assert prepare.main(remotely) == 0
    assert contents(storage, "bucket/data/") == local_contents(here / "local")
    assert not storage.exists("bucket/data.parts")
    capfd.readouterr()
    assert prepare.main(remotely) == 0
    assert capfd.readouterr().out == "s3://bucket/data is finished already\n"
    assert not left_over(here)


@pytest.mark.slow
def test_evaluate_between_urls(here, storage, address):
    save_run(here / "run")
    write_clips(here / "clips", 6, num_samples=1600)
    pairs_list(here / "clips" / "list.csv", 5)
    storage.put(str(here / "clips"), "bucket/clips", recursive=True)
    how = ["--protocol", "mixtures", "--checkpoint", "run", "--no_figures", "--metadata"]
    assert evaluate.main([*how, "clips/list.csv", "--audio", "clips", "--output", "out"]) == 0
    remotely = [*how, "s3://bucket/clips/list.csv", "--audio", "s3://bucket/clips"]
    remotely += ["--output", "s3://bucket/out"]
    assert evaluate.main([*remotely, "--cluster", address]) == 0
    expected, found = local_contents(here / "out"), contents(storage, "bucket/out/")
    assert found["results.csv"] == expected["results.csv"]
    scores = [json.loads(x["results.json"])["scores"] for x in (expected, found)]
    assert scores[0] == scores[1]
    assert sorted(found["results.partial.jsonl"].splitlines()) == sorted(
        expected["results.partial.jsonl"].splitlines()
    )
    log = found["results.partial.jsonl"]
    assert evaluate.main(remotely) == 0  # nothing is scored again
    assert contents(storage, "bucket/out/")["results.partial.jsonl"] == log
    assert not left_over(here)


def elsewhere(url):
    """Path of a URL as a worker gets it on a machine without the command's temporary folder."""
    return pathlib.Path("/no-such-folder", *remote.path_of(url).parts[-4:])


def test_a_worker_on_another_machine_needs_the_path_alone(here, storage):
    soundfile.write(here / "x.wav", np.ones(100), 8000)
    storage.put_file(str(here / "x.wav"), "bucket/x.wav")
    path = elsewhere("s3://bucket/x.wav")
    with audio_files.AudioReader(path) as recording:
        assert recording.num_samples == 100
    assert remote.is_file(str(path))
    assert not remote.is_file(str(path) + "x")
    with remote.opened(path) as file:
        file.seek(8)
        assert file.read(4) == b"WAVE"
    files.write_text(elsewhere("s3://bucket/y.txt"), "done")
    assert storage.cat_file("bucket/y.txt") == b"done"
    shown = remote.path_of("s3://bucket/x.wav")
    remote.show(shown)
    assert remote.state(path) == remote.state(shown)
    assert not path.exists()
    assert not left_over(here)


def test_nothing_is_uploaded_when_the_writing_fails(here, storage):
    def write_half():
        with files.replacing(remote.path_of("s3://bucket/x.txt")) as partial:
            partial.write_text("half")
            raise OSError(28, "No space left on device")

    with pytest.raises(InputError, match=r"^s3://bucket/x\.txt: .*No space left"):
        write_half()
    assert not storage.find("bucket")
    assert not left_over(here)


def test_files_appear_whole_where_storage_has_folders(here):
    path = remote.path_of(f"file://{here}/new/x.txt")
    files.write_text(path, "whole")
    assert (here / "new" / "x.txt").read_text() == "whole"
    stopped = unittest.mock.patch("shutil.move", side_effect=OSError("stopped"))
    with stopped, pytest.raises(InputError, match="stopped"):
        files.write_text(path, "other")
    assert [x.name for x in (here / "new").iterdir()] == ["x.txt"]
    assert (here / "new" / "x.txt").read_text() == "whole"


def test_names_never_lead_out_of_the_temporary_folder(here):
    system = fsspec.filesystem("memory")
    system.store.clear()
    for name in ("/in/a.wav", "/in/../../../../../outside.wav"):
        system.pipe_file(name, b"a")
    path = remote.path_of("memory://in")
    remote.show(path)
    assert [x.name for x in path.rglob("*")] == ["a.wav"]
    assert not list(here.rglob("outside.wav"))


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("s3://bucket/none.wav", "s3://bucket/none.wav: no such file"),
        ("gs://bucket/x.wav", "gs://bucket/x.wav: cannot be used (Please install"),
        ("nosuch://x.wav", "nosuch://x.wav: cannot be used (Protocol not known"),
    ],
)
def test_an_input_that_cannot_be_read_is_named(here, storage, capfd, url, message):
    assert separate.main([url, "--text", "rain"]) == 2
    assert message in capfd.readouterr().err
    assert not (here / "separated").exists()


def test_an_output_that_cannot_be_written_is_refused_before_the_work(here, storage, capfd):
    recordings(here / "in")
    assert separate.main(["in", "--text", "rain", "--output", "s3://none/out"]) == 2
    assert "--output s3://none/out" in capfd.readouterr().err


def test_refused_access_is_one_recordings_error(here, storage, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError("Access Denied")

    storage.pipe_file("bucket/x.wav", b"x")
    monkeypatch.setattr(storage, "get_file", refuse)
    with pytest.raises(AudioError, match=r"^s3://bucket/x\.wav: cannot be used \(Access Denied"):
        audio_files.read(remote.path_of("s3://bucket/x.wav"))
