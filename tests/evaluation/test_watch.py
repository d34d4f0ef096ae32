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
            return False
        scored.append(checkpoint.name)
        place.mkdir(parents=True, exist_ok=True)
        scores = {"sdri": {"mean": float(int(checkpoint.name))}}
        content = {"protocol": "esc50", "scores": scores, "notes": []}
        (place / "results.json").write_text(json.dumps(content))
        return True

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

    watch(workdir, output, scorer(scored), ABOUT, poll_seconds=7, sleep=sleep)
    assert scored == ["00000010", "00000020", "00000030"]
    assert waits == [7, 7]
    assert points(workdir) == [("esc50/sdri", step, step) for step in (10, 20, 30)]


def test_scored_before_and_unreadable_ones_are_passed_over(tmp_path):
    """A checkpoint that training has removed, or that is damaged, is no obstacle."""
    workdir, output, scored = tmp_path / "run", tmp_path / "esc50", []
    for step in (10, 20, 30):
        write_checkpoint(workdir, step)
    watch(workdir, output, scorer(scored), ABOUT)
    shutil.rmtree(output / "00000020")
    score = scorer(scored)

    def pruned(checkpoint, place):
        shutil.rmtree(checkpoint)
        return score(checkpoint, place)

    def never(seconds):
        raise AssertionError("all is scored: there is nothing to wait for")

    watch(workdir, output, pruned, ABOUT, sleep=never)
    assert scored == ["00000010", "00000020", "00000030"]
    assert not (output / "00000020").exists()


def test_what_is_noted_reaches_tensorboard(tmp_path):
    workdir, output = tmp_path / "run", tmp_path / "esc50"
    write_checkpoint(workdir, 30)

    def score(checkpoint, place):
        place.mkdir(parents=True)
        content = {"protocol": "esc50", "scores": {}, "notes": ["2 are missing", "at 0 dB"]}
        (place / "results.json").write_text(json.dumps(content))
        return True

    watch(workdir, output, score, ABOUT)
    (event_file,) = (workdir / "tensorboard").rglob("events*")
    assert b"2 are missing; at 0 dB" in event_file.read_bytes()


@pytest.mark.parametrize("mark", [None, "{", json.dumps(ABOUT | {"list": "5678"})])
def test_without_the_mark_of_these_settings_a_checkpoint_is_scored_again(tmp_path, mark):
    """As if killed before TensorBoard had it, killed in between, or scored with another list."""
    workdir, output, scored = tmp_path / "run", tmp_path / "esc50", []
    write_checkpoint(workdir, 30)
    scorer([])(workdir / "checkpoints" / "00000030", output / "00000030")
    if mark:
        (output / "00000030" / "watched.json").write_text(mark)
    watch(workdir, output, scorer(scored), ABOUT)
    assert points(workdir) == [("esc50/sdri", 30, 30)]
    watch(workdir, output, scorer(scored), ABOUT)
    assert scored == ["00000030"]
    watch(workdir, output, scorer(scored), ABOUT, overwrite=True)
    assert scored == ["00000030"] * 2


def test_a_run_without_a_checkpoint_is_named(tmp_path, capsys):
    def sleep(seconds):
        write_checkpoint(tmp_path / "run", 30)

    watch(tmp_path / "run", tmp_path / "out", scorer([]), ABOUT, sleep=sleep)
    assert capsys.readouterr().out == f"{tmp_path / 'run'}: has no checkpoint yet\n"
