"""A watched run: each checkpoint scored once, whenever it comes, until the last."""

import json
import shutil

import pytest

from audiosep_jax.evaluation.watch import watch

ABOUT = {"protocol": "esc50", "list": "1234"}


def write_checkpoint(workdir, step, num_steps=30):
    about = workdir / "checkpoints" / f"{step:08d}" / "about"
    about.mkdir(parents=True)
    (about / "metadata").write_text(json.dumps({"config": {"num_steps": num_steps}}))


def scorer(scored):
    def score(checkpoint, place):
        if not checkpoint.is_dir():
            raise FileNotFoundError(checkpoint)
        scored.append(checkpoint.name)
        place.mkdir(parents=True, exist_ok=True)
        scores = {"sdri": {"mean": float(int(checkpoint.name))}}
        content = {"protocol": "esc50", "scores": scores, "notes": []}
        (place / "results.json").write_text(json.dumps(content))

    return score


def points(workdir):
    """(tag, step, value) of all event files, by their own records."""
    from tensorboardX.proto.event_pb2 import Event

    found = []
    for path in sorted((workdir / "tensorboard").rglob("events*")):
        content, at = path.read_bytes(), 0
        while at < len(content):
            size = int.from_bytes(content[at : at + 8], "little")
            event = Event.FromString(content[at + 12 : at + 12 + size])
            at += 12 + size + 4
            found += [(v.tag, event.step, v.simple_value) for v in event.summary.value]
    return sorted(found)


def test_what_is_there_and_what_comes_is_scored_in_order(tmp_path):
    workdir, output, scored = tmp_path / "run", tmp_path / "esc50", []
    write_checkpoint(workdir, 10)
    (workdir / "checkpoints" / "00000020.orbax-checkpoint-tmp").mkdir()
    waits = []

    def sleep(seconds):
        waits.append(seconds)
        write_checkpoint(workdir, 10 + 10 * len(waits))

    assert watch(workdir, output, scorer(scored), ABOUT, poll_seconds=7, sleep=sleep) == 3
    assert scored == ["00000010", "00000020", "00000030"]
    assert waits == [7, 7]
    assert points(workdir) == [("esc50/sdri", step, step) for step in (10, 20, 30)]


def test_scored_before_and_removed_meanwhile_are_passed_over(tmp_path):
    workdir, output, scored = tmp_path / "run", tmp_path / "esc50", []
    for step in (10, 20, 30):
        write_checkpoint(workdir, step)
    assert watch(workdir, output, scorer(scored), ABOUT) == 3
    shutil.rmtree(output / "00000020")
    score = scorer(scored)

    def pruned(checkpoint, place):
        shutil.rmtree(checkpoint)
        score(checkpoint, place)

    def never(seconds):
        raise AssertionError("all is scored: there is nothing to wait for")

    assert watch(workdir, output, pruned, ABOUT, sleep=never) == 0
    assert scored == ["00000010", "00000020", "00000030"]


def test_what_is_noted_reaches_tensorboard(tmp_path):
    workdir, output = tmp_path / "run", tmp_path / "esc50"
    write_checkpoint(workdir, 30)

    def score(checkpoint, place):
        place.mkdir(parents=True)
        content = {"protocol": "esc50", "scores": {}, "notes": ["2 are missing", "at 0 dB"]}
        (place / "results.json").write_text(json.dumps(content))

    watch(workdir, output, score, ABOUT)
    (event_file,) = (workdir / "tensorboard").rglob("events*")
    assert b"2 are missing; at 0 dB" in event_file.read_bytes()


def test_killed_before_tensorboard_has_it_a_checkpoint_is_scored_again(tmp_path):
    workdir, output, scored = tmp_path / "run", tmp_path / "esc50", []
    write_checkpoint(workdir, 30)
    scorer([])(workdir / "checkpoints" / "00000030", output / "00000030")
    assert watch(workdir, output, scorer(scored), ABOUT) == 1
    assert points(workdir) == [("esc50/sdri", 30, 30)]
    assert watch(workdir, output, scorer(scored), ABOUT) == 0


def test_scores_of_another_list_are_not_taken_for_those_asked_for(tmp_path):
    workdir, output, scored = tmp_path / "run", tmp_path / "esc50", []
    write_checkpoint(workdir, 30)
    assert watch(workdir, output, scorer(scored), ABOUT) == 1
    other = ABOUT | {"list": "5678"}
    assert watch(workdir, output, scorer(scored), other) == 1
    assert watch(workdir, output, scorer(scored), other, overwrite=True) == 1
    assert watch(workdir, output, scorer(scored), other) == 0


def test_a_missing_file_that_is_not_the_checkpoint_is_told(tmp_path):
    write_checkpoint(tmp_path / "run", 30)

    def score(checkpoint, place):
        raise FileNotFoundError("clip.wav")

    with pytest.raises(FileNotFoundError, match=r"clip\.wav"):
        watch(tmp_path / "run", tmp_path / "out", score, ABOUT)
