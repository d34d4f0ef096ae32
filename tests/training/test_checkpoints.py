import contextlib
import resource
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from audiosep_jax.errors import InputError
from audiosep_jax.training.checkpoints import FOLDER, Checkpoints, Damaged, saved_steps
from audiosep_jax.training.config import CheckpointConfig
from audiosep_jax.training.optim import OptimConfig
from audiosep_jax.training.parallel import place_state
from audiosep_jax.training.processes import RunFailed
from audiosep_jax.training.steps import TrainState, state_from_variables

ABOUT = {"config": {"name": "tiny", "folds": [1, 2]}, "text_fingerprint": "a", "unicode": "ü"}
WITHOUT_EMA, WITH_EMA = OptimConfig(), OptimConfig(ema_decay=0.9)


def make_state(optim: OptimConfig, seed: int = 0, features: int = 3) -> TrainState:
    """Random numbers in every place of a state, those of the optimiser and average included."""
    rng = np.random.default_rng(seed)
    variables = {
        "params": {"conv": {"kernel": jnp.zeros((2, features)), "bias": jnp.zeros(features)}},
        "batch_stats": {"norm": {"mean": jnp.zeros(features)}},
    }

    def fill(x: jax.Array) -> jax.Array:
        if x.dtype == jnp.int32:
            return jnp.asarray(rng.integers(1, 1000), jnp.int32)
        return jnp.asarray(rng.normal(size=x.shape), x.dtype)

    return place_state(jax.tree.map(fill, state_from_variables(variables, optim)))


def template(optim: OptimConfig, features: int = 3) -> TrainState:
    return jax.eval_shape(lambda: make_state(optim, features=features))


def assert_equal(a: TrainState, b: TrainState) -> None:
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


def fill(workdir: Path, steps: dict[int, float | None], **config: int) -> None:
    checkpoints = Checkpoints(workdir, CheckpointConfig(**config))
    for step, sdri_db in steps.items():
        checkpoints.save(step, make_state(WITHOUT_EMA, step), ABOUT, sdri_db)
    checkpoints.close()


def kept(workdir: Path) -> list[int]:
    return sorted(int(x.name) for x in (workdir / FOLDER).iterdir() if "damaged" not in x.name)


@pytest.mark.parametrize("optim", [WITHOUT_EMA, WITH_EMA, OptimConfig(adapter_rank=2)])
def test_state_comes_back_bit_for_bit_on_every_device(tmp_path: Path, optim: OptimConfig) -> None:
    state = make_state(optim)
    writer = Checkpoints(tmp_path, CheckpointConfig())
    writer.save(7, state, ABOUT, None)
    writer.close()
    reader = Checkpoints(tmp_path)
    restored = reader.restore_state(7, template(optim))
    assert_equal(restored, state)
    shapes = jax.eval_shape(TrainState.variables, template(optim))
    variables = reader.restore_variables(7, shapes)
    assert_equal(variables, state.variables())
    assert jax.tree.leaves(restored)[0].sharding == jax.tree.leaves(state)[0].sharding
    reader.close()


def test_averaged_and_raw_parameters_are_not_mixed_up(tmp_path: Path) -> None:
    state = make_state(WITH_EMA)
    assert not np.array_equal(state.ema["conv"]["kernel"], state.params["conv"]["kernel"])
    writer = Checkpoints(tmp_path, CheckpointConfig())
    writer.save(1, state, ABOUT, None)
    writer.wait()
    variables = writer.restore_variables(1, template(WITH_EMA).variables())
    restored = writer.restore_state(1, template(WITH_EMA))
    writer.close()
    np.testing.assert_array_equal(
        variables["params"]["conv"]["kernel"], state.ema["conv"]["kernel"]
    )
    np.testing.assert_array_equal(restored.params["conv"]["kernel"], state.params["conv"]["kernel"])


def test_a_donating_step_right_after_save_does_not_reach_the_file(tmp_path: Path) -> None:
    step = jax.jit(lambda s: jax.tree.map(lambda x: x * 2, s), donate_argnums=0)
    fresh = step(make_state(WITH_EMA))  # in buffers that no numpy array shares
    state = step(fresh)
    assert fresh.params["conv"]["kernel"].is_deleted()
    writer = Checkpoints(tmp_path, CheckpointConfig(keep_latest=9))
    for number in range(1, 4):
        writer.save(number, state, ABOUT, None)
        state = step(state)
    writer.wait()
    expected = jax.tree.map(lambda x: np.asarray(x) * 4, make_state(WITH_EMA))
    for number in range(1, 4):
        restored = writer.restore_state(number, template(WITH_EMA))
        assert_equal(restored, expected)
        expected = jax.tree.map(lambda x: x * 2, expected)
    writer.close()


BEST_2 = {1: 1.0, 2: 9.0, 3: 3.0, 4: 4.0, 5: None, 6: 5.0, 7: None, 8: 2.0, 9: None}


@pytest.mark.parametrize(
    ("scores", "keep_latest", "keep_every_steps", "expected"),
    [
        (BEST_2, 2, 3, [2, 3, 6, 8, 9]),
        ({1: 1.0, 2: 2.0, 3: None, 4: None}, 1, 0, [2, 4]),
        (dict.fromkeys(range(2, 15, 2)), 1, 5, [6, 10, 14]),  # none is at a multiple
    ],
)
def test_newest_best_and_one_of_every_n_steps_are_kept(
    scores, keep_latest, keep_every_steps, expected, tmp_path: Path
) -> None:
    fill(tmp_path, scores, keep_latest=keep_latest, keep_every_steps=keep_every_steps)
    assert kept(tmp_path) == expected


def test_the_best_survives_a_restart_and_is_replaced_by_a_better_one(tmp_path: Path) -> None:
    fill(tmp_path, {1: 5.0, 2: 1.0}, keep_latest=1, keep_every_steps=0)
    fill(tmp_path, {3: 4.0, 4: None}, keep_latest=1, keep_every_steps=0)
    reader = Checkpoints(tmp_path)
    assert (kept(tmp_path), reader.best_step(), reader.latest_step()) == ([1, 4], 1, 4)
    reader.close()
    fill(tmp_path, {5: 6.0, 6: None}, keep_latest=1, keep_every_steps=0)
    reader = Checkpoints(tmp_path)
    assert (kept(tmp_path), reader.best_step()) == ([5, 6], 5)
    reader.close()


def test_without_a_score_the_newest_counts_as_best(tmp_path: Path) -> None:
    fill(tmp_path, {1: None, 2: None})
    reader = Checkpoints(tmp_path)
    assert reader.best_step() == 2
    reader.close()


def test_an_empty_run_has_no_step(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, CheckpointConfig())
    assert checkpoints.latest_step() is None
    assert checkpoints.best_step() is None
    checkpoints.close()


def test_a_step_that_is_there_stays_as_it_is(tmp_path: Path) -> None:
    fill(tmp_path, {3: 1.0})
    checkpoints = Checkpoints(tmp_path, CheckpointConfig())
    checkpoints.save(3, make_state(WITHOUT_EMA, seed=99), ABOUT, 2.0)
    checkpoints.wait()
    assert_equal(checkpoints.restore_state(3, template(WITHOUT_EMA)), make_state(WITHOUT_EMA, 3))
    checkpoints.close()


def test_about_comes_back_with_its_step(tmp_path: Path) -> None:
    fill(tmp_path, {12: None})
    reader = Checkpoints(tmp_path)
    assert reader.about(12) == {**ABOUT, "step": 12}
    reader.close()


@pytest.mark.parametrize("whole", [False, True], ids=["variables", "state"])
def test_another_architecture_is_refused_by_parameter_and_shapes(
    tmp_path: Path, whole: bool
) -> None:
    fill(tmp_path, {1: None})
    reader = Checkpoints(tmp_path)
    wanted = template(WITHOUT_EMA, features=5)
    with pytest.raises(InputError) as caught:
        reader.restore_state(1, wanted) if whole else reader.restore_variables(
            1, wanted.variables()
        )
    reader.close()
    message = str(caught.value)
    assert "batch_stats/norm/mean is (3,) there and (5,) in the model" in message
    assert "\n" not in message


def test_a_parameter_that_is_missing_or_left_over_is_named(tmp_path: Path) -> None:
    fill(tmp_path, {1: None})
    reader = Checkpoints(tmp_path)
    wanted = template(WITHOUT_EMA).variables()
    wanted["params"]["film"] = {"kernel": jax.ShapeDtypeStruct((2,), jnp.float32)}
    with pytest.raises(InputError, match=r"film/kernel is missing there and \(2,\) in the model"):
        reader.restore_variables(1, wanted)
    wanted = template(WITHOUT_EMA).variables()
    del wanted["params"]["conv"]["bias"]
    with pytest.raises(InputError, match=r"conv/bias is \(3,\) there and missing in the model"):
        reader.restore_variables(1, wanted)
    reader.close()


def test_training_with_an_average_from_a_checkpoint_without_one_is_refused(tmp_path: Path) -> None:
    fill(tmp_path, {1: None})
    reader = Checkpoints(tmp_path)
    with pytest.raises(InputError, match="params/conv/bias is missing there"):
        reader.restore_state(1, template(WITH_EMA))
    reader.close()


def test_a_step_that_does_not_exist_is_an_input_error(tmp_path: Path) -> None:
    fill(tmp_path, {1: None})
    reader = Checkpoints(tmp_path)
    with pytest.raises(InputError, match="00000002"):
        reader.about(2)
    with pytest.raises(InputError, match="00000002"):
        reader.restore_variables(2, template(WITHOUT_EMA).variables())
    reader.close()


def test_what_a_killed_save_left_is_ignored_and_cleaned_away(tmp_path: Path) -> None:
    fill(tmp_path, {1: None, 2: None})
    left = tmp_path / FOLDER / "00000003.orbax-checkpoint-tmp"
    shutil.copytree(tmp_path / FOLDER / "00000002" / "model", left / "model")
    reader = Checkpoints(tmp_path)
    assert reader.latest_step() == 2
    reader.close()
    assert left.exists(), "reading removes nothing"
    writer = Checkpoints(tmp_path, CheckpointConfig())
    assert writer.latest_step() == 2
    writer.save(3, make_state(WITHOUT_EMA, 3), ABOUT, None)
    writer.wait()
    assert_equal(writer.restore_state(3, template(WITHOUT_EMA)), make_state(WITHOUT_EMA, 3))
    writer.close()
    for _ in range(100):  # in the background
        if not left.exists():
            break
        time.sleep(0.05)
    assert kept(tmp_path) == [2, 3]


def test_reading_creates_nothing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no checkpoint"):
        Checkpoints(tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()
    fill(tmp_path, {1: 1.0})
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    reader = Checkpoints(tmp_path)
    reader.restore_state(1, template(WITHOUT_EMA))
    reader.close()
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_a_save_that_still_runs_is_waited_for(tmp_path: Path) -> None:
    writer = Checkpoints(tmp_path, CheckpointConfig(keep_latest=9))
    for step in range(1, 6):
        writer.save(step, make_state(WITHOUT_EMA, step), ABOUT, None)
        assert set(saved_steps(tmp_path)) >= set(range(1, step))
    writer.close()
    assert kept(tmp_path) == [1, 2, 3, 4, 5]
    with contextlib.closing(Checkpoints(tmp_path)) as reader:
        for step in range(1, 6):
            restored = reader.restore_state(step, template(WITHOUT_EMA))
            assert_equal(restored, make_state(WITHOUT_EMA, step))


@contextlib.contextmanager
def no_room() -> Iterator[None]:
    """No file of this process can grow, which is as good as a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_leaves_the_last_checkpoint_and_a_new_process_can_go_on(tmp_path: Path) -> None:
    fill(tmp_path, {1: 5.0}, keep_latest=1)
    writer = Checkpoints(tmp_path, CheckpointConfig(keep_latest=1))
    with no_room(), pytest.raises(RunFailed) as caught, contextlib.closing(writer):
        writer.save(2, make_state(WITHOUT_EMA, 2), ABOUT, 6.0)
    assert str(caught.value) == (
        f"{tmp_path / FOLDER}: a checkpoint could not be written (File too large); "
        "that of step 1 is the newest"
    )
    assert saved_steps(tmp_path) == [1]
    with contextlib.closing(Checkpoints(tmp_path, CheckpointConfig(keep_latest=1))) as writer:
        assert_equal(writer.restore_state(1, template(WITHOUT_EMA)), make_state(WITHOUT_EMA, 1))
        writer.save(2, make_state(WITHOUT_EMA, 2), ABOUT, 7.0)
        writer.wait()
        assert_equal(writer.restore_state(2, template(WITHOUT_EMA)), make_state(WITHOUT_EMA, 2))
    assert saved_steps(tmp_path) == [2]


# ------------------------------------------------------------------ damage


def _empty_arrays(item: str):
    def damage(step: Path) -> None:
        for path in (step / item).rglob("*"):
            if path.is_file():
                path.write_bytes(b"")

    return damage


@pytest.mark.parametrize("item", ["model", "training", "about", "metrics"])
def test_the_newest_whole_checkpoint_is_used_and_the_damaged_one_renamed(
    tmp_path: Path, item: str
) -> None:
    fill(tmp_path, {1: 1.0, 2: 2.0, 3: 3.0}, keep_latest=9)
    for step in (2, 3):
        _empty_arrays(item)(tmp_path / FOLDER / f"{step:08d}")
    told: list[str] = []

    def read(checkpoints: Checkpoints, step: int) -> int:
        checkpoints.about(step)
        checkpoints.restore_state(step, template(WITHOUT_EMA))
        return step

    with contextlib.closing(Checkpoints(tmp_path)) as reader:
        assert reader.newest_whole(lambda step: read(reader, step), told.append) == 1
    assert kept(tmp_path) == [1, 2, 3], "reading renames nothing"
    assert [line.split(": ")[1].startswith("cannot be read (") for line in told] == [True, True]
    assert all(line.endswith("the checkpoint of step 1 is used instead") for line in told)
    assert f"00000003/{item}: " in told[0]
    with contextlib.closing(Checkpoints(tmp_path, CheckpointConfig(keep_latest=9))) as writer:
        assert writer.newest_whole(lambda step: read(writer, step), print) == 1
        writer.save(2, make_state(WITHOUT_EMA, 5), ABOUT, 0.0)
    assert saved_steps(tmp_path) == [1, 2]
    left = [path.name for path in (tmp_path / FOLDER).iterdir() if "damaged" in path.name]
    assert sorted(name[:16] for name in left) == ["00000002.damaged", "00000003.damaged"]


def _flipped(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


@pytest.mark.parametrize(
    "damaged", [lambda x: b"", lambda x: x[:10], _flipped], ids=["empty", "cut", "flipped"]
)
def test_damage_is_one_line_that_names_the_item_wherever_it_is(
    tmp_path: Path, damaged: Callable[[bytes], bytes]
) -> None:
    fill(tmp_path, {1: 1.0})
    state, folder, noticed = make_state(WITHOUT_EMA, 1), tmp_path / FOLDER / "00000001", {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        item, whole = path.relative_to(folder).parts[0], path.read_bytes()
        path.write_bytes(damaged(whole))
        with contextlib.closing(Checkpoints(tmp_path)) as reader:
            try:
                assert reader.about(1) == {**ABOUT, "step": 1}
                assert_equal(reader.restore_state(1, template(WITHOUT_EMA)), state)
            except Damaged as error:
                noticed[item] = str(error)
        path.write_bytes(whole)
    assert noticed.keys() == {"model", "training", "about"}
    for item, message in noticed.items():
        assert message.startswith(f"{folder / item}: cannot be read (")
        assert "\n" not in message


def test_if_every_checkpoint_is_damaged_the_newest_is_named_and_none_renamed(
    tmp_path: Path,
) -> None:
    fill(tmp_path, {1: None, 2: None})
    for step in (1, 2):
        _empty_arrays("model")(tmp_path / FOLDER / f"{step:08d}")
    with contextlib.closing(Checkpoints(tmp_path, CheckpointConfig())) as writer:
        with pytest.raises(Damaged, match="00000002/model"):
            writer.newest_whole(
                lambda step: writer.restore_variables(step, template(WITHOUT_EMA).variables()),
                print,
            )
        assert kept(tmp_path) == [1, 2]
        assert writer.newest_whole(lambda step: step, print) == 2


def test_a_mistake_of_the_config_is_no_damage(tmp_path: Path) -> None:
    fill(tmp_path, {1: None, 2: None})

    def refuse(step: int) -> None:
        raise InputError(f"step {step} is of another run")

    reader = Checkpoints(tmp_path)
    with pytest.raises(InputError, match="step 2 is of another run"):
        reader.newest_whole(refuse, print)


def test_an_old_damaged_score_does_not_stop_a_run(tmp_path: Path) -> None:
    fill(tmp_path, {1: 9.0, 2: 2.0, 3: 3.0}, keep_latest=9)
    _empty_arrays("metrics")(tmp_path / FOLDER / "00000001")
    fill(tmp_path, {4: 1.0}, keep_latest=9)
    assert saved_steps(tmp_path) == [2, 3, 4]
    with contextlib.closing(Checkpoints(tmp_path)) as reader:
        assert reader.best_step() == 3


def test_only_scores_of_one_validation_set_are_compared(tmp_path: Path) -> None:
    def run(valid_set: str, scores: dict[int, float]) -> None:
        config = CheckpointConfig(keep_latest=1, keep_every_steps=0)
        with contextlib.closing(Checkpoints(tmp_path, config)) as writer:
            for step, sdri_db in scores.items():
                about = {**ABOUT, "valid_set": valid_set}
                writer.save(step, make_state(WITHOUT_EMA, step), about, sdri_db)

    run("0 dB", {8: 1.0})
    run("-10 dB", {13: 8.3})
    run("0 dB", {16: 1.5, 24: 1.9, 32: 2.0, 40: 1.6})
    with contextlib.closing(Checkpoints(tmp_path)) as reader:
        assert reader.best_step() == 32
    assert kept(tmp_path) == [32, 40]


def test_saved_steps_are_those_that_are_whole(tmp_path: Path) -> None:
    assert saved_steps(tmp_path) == []
    for name in ("00000012", "00000003", "00000020.orbax-checkpoint-tmp"):
        (tmp_path / FOLDER / name).mkdir(parents=True)
    assert saved_steps(tmp_path) == [3, 12]
