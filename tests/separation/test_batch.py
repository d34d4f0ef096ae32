"""Many recordings: the same results on several devices, names, keys, and what is told of each."""

import dataclasses
import shutil
from pathlib import PurePosixPath

import jax
import numpy as np
import pytest
import soundfile
from tiny_run import save_run

from audiosep_jax import plots
from audiosep_jax.audio import files as audio_files
from audiosep_jax.errors import InputError
from audiosep_jax.separation import batch
from audiosep_jax.separation.jobs import Job
from audiosep_jax.separation.queries import Part
from audiosep_jax.separation.separator import Separator

RAIN = (Part("text", "rain"),)


@pytest.fixture(scope="module")
def separator(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    save_run(folder)
    return Separator.load(folder)


def tasks_of(folder, settings, names, condition_NE):
    jobs = [Job(folder / x, x, PurePosixPath(), x.partition(".")[0], (RAIN,)) for x in names]
    tasks = [batch.make_task(job, ["rain"], settings) for job in jobs]
    for task in tasks:
        task.condition_NE = condition_NE
    return tasks


def recordings(folder, names):
    for seed, name in enumerate(names):
        audio_S = 0.1 * np.random.default_rng(seed).standard_normal(500)
        soundfile.write(folder / name, audio_S, 8000, subtype="FLOAT")


def test_devices_share_the_recordings_and_give_the_same(tmp_path, separator):
    names = ["a.wav", "b.wav", "bad.wav", "c.wav"]
    recordings(tmp_path, names)
    (tmp_path / "bad.wav").write_bytes(b"")
    condition_NE = separator.embed_text(["rain"])
    found = {}
    for count in (1, 2):
        output, told = tmp_path / f"on {count}", []
        settings = batch.Settings(output, residual=True)
        tasks = tasks_of(tmp_path, settings, names, condition_NE)
        devices = jax.local_devices()[:count]
        results = dict(batch.separate_all(separator, tasks, settings, devices, told.append))
        assert sum(told) == pytest.approx(3)
        found[count] = {task.job.name: result for task, result in results.items()}
        assert str(found[count].pop("bad.wav")).endswith("bad.wav: is empty")
        for record in found[count].values():  # but for the time
            record["files"] = {name: state[0] for name, state in record["files"].items()}
        for name in ("a", "b", "c"):
            parts = [
                audio_files.read(output / f"{name} - {x}.wav")[0] for x in ("rain", "residual")
            ]
            np.testing.assert_allclose(
                sum(parts), audio_files.read(tmp_path / f"{name}.wav")[0], atol=1e-7
            )
    assert found[1] == found[2]
    for path in (tmp_path / "on 1").iterdir():
        np.testing.assert_allclose(
            audio_files.read(tmp_path / "on 2" / path.name)[0], audio_files.read(path)[0], atol=1e-6
        )


def test_a_task_that_is_repeated_replaces_its_own_files_alone(tmp_path, separator):
    """A task is repeated if its worker was killed after it had written its files."""
    recordings(tmp_path, ["a.wav", "b.wav"])
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a - rain.wav").write_text("of the user")
    settings, condition_NE = batch.Settings(tmp_path / "out"), separator.embed_text(["rain"])
    tasks = tasks_of(tmp_path, settings, ["a.wav", "b.wav"], condition_NE)
    batch.protect(tasks, settings.output, set(), {}, overwrite=False)
    with pytest.raises(InputError, match=r"a - rain.wav: exists already"):
        batch.separate_task(separator, tasks[0], settings, lambda share: None)
    again = [batch.separate_task(separator, tasks[1], settings, lambda share: None) for _ in "12"]
    assert again[0]["results"] == again[1]["results"]
    assert (tmp_path / "out" / "a - rain.wav").read_text() == "of the user"


def test_an_unforeseen_failure_is_one_recordings_own(tmp_path, separator, monkeypatch):
    recordings(tmp_path, ["a.wav", "b.wav"])
    whole = Separator.separate_file

    def failing(self, recording, *arguments, **options):
        if recording.path.name == "a.wav":
            raise MemoryError("out of\nmemory")
        return whole(self, recording, *arguments, **options)

    monkeypatch.setattr(Separator, "separate_file", failing)
    settings, condition_NE = batch.Settings(tmp_path / "out"), separator.embed_text(["rain"])
    tasks = tasks_of(tmp_path, settings, ["a.wav", "b.wav"], condition_NE)
    devices = jax.local_devices()[:1]
    first, second = batch.separate_all(separator, tasks, settings, devices, lambda share: None)
    reason = f"{tmp_path}/a.wav: cannot be separated (MemoryError: out of\nmemory)"
    assert str(first[1]) == reason
    assert second[1]["files"].keys() == {"b - rain.wav"}


def test_keys_tell_what_changes_a_result(tmp_path, separator):
    recordings(tmp_path, ["a.wav", "b.wav"])
    output, condition_NE = tmp_path / "out", separator.embed_text(["rain"])
    options = {"stereo": "mid", "tile_seconds": None}
    settings = batch.Settings(output, options)
    (task,) = tasks_of(tmp_path, settings, ["a.wav"], condition_NE)
    weights = separator.fingerprint

    def key_of(task, settings=settings, weights=weights):
        return batch.key_of(task, settings, weights)

    key = key_of(task)
    longer = batch.Settings(output, {**options, "tile_seconds": 9.0})
    assert key_of(task, longer) == key
    assert dataclasses.replace(separator).fingerprint == weights
    more = jax.tree.map(lambda x: x + 1, separator.variables)
    others = [
        key_of(task, weights=dataclasses.replace(separator, variables=more).fingerprint),
        key_of(task, batch.Settings(output, {**options, "stereo": "channels"})),
        key_of(task, batch.Settings(output, options, beside=("png",))),
        key_of(dataclasses.replace(task, condition_NE=-condition_NE)),
        key_of(dataclasses.replace(task, unwanted_ME=condition_NE)),
        key_of(dataclasses.replace(task, results=[output / "x" / "a - rain"])),
    ]
    shutil.copy2(tmp_path / "b.wav", tmp_path / "a.wav")
    others.append(key_of(task))
    assert len({key, *others}) == 1 + len(others)


def test_results_of_one_name_are_refused(tmp_path):
    job = Job(tmp_path / "a.wav", "a.wav", PurePosixPath(), "a", (RAIN,), (PurePosixPath("X"),))
    other = dataclasses.replace(job, name="b.wav", outputs=(PurePosixPath("x"),))
    tasks = [batch.make_task(x, ["rain"], batch.Settings(tmp_path)) for x in (job, other)]
    batch.check_distinct(tasks[:1])
    with pytest.raises(InputError, match="two results have this name"):
        batch.check_distinct(tasks)


def test_the_picture_shows_the_residual_that_is_written(tmp_path, separator, monkeypatch):
    """At the level of the recording, also if all files had to be made quieter."""
    audio_S = np.random.default_rng(0).standard_normal(8000)
    soundfile.write(tmp_path / "a.wav", 2 * audio_S, 8000, subtype="FLOAT")
    drawn = []

    def draw(panels, path):
        drawn.extend(panels)
        path.touch()

    monkeypatch.setattr(plots, "draw_figure", draw)
    settings = batch.Settings(
        tmp_path / "out", {"subtype": "PCM_16"}, residual=True, beside=("png",)
    )
    condition_NE = separator.embed_text(["rain"])
    (task,) = tasks_of(tmp_path, settings, ["a.wav"], condition_NE)
    record = batch.separate_task(separator, task, settings, lambda share: None)
    assert record["gain"] < 0.9
    panels = dict(drawn)
    assert list(panels) == ["mixture", "rain", "residual"]
    written = plots.LogSpectrogram(8000, 8000)
    residual_CS, _ = audio_files.read(tmp_path / "out" / "a - residual.wav")
    written.add(residual_CS / record["gain"])
    np.testing.assert_allclose(panels["residual"].levels_db(), written.levels_db(), atol=0.1)
