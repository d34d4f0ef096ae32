"""Typed config: what is taken, what is refused and by which name, what may change on resuming."""

import dataclasses
import json
from pathlib import Path

import pytest
import tiny

from audiosep_jax.errors import InputError
from audiosep_jax.model.bands import BandsConfig
from audiosep_jax.settings import fields_of
from audiosep_jax.training.config import (
    Config,
    default_config,
    differences,
    from_file,
    from_mapping,
    shared_fields,
    take_overrides,
)
from audiosep_jax.training.optim import OptimConfig


def changed(**changes):
    """Default config with `room__field=value` changes."""
    values = dataclasses.asdict(Config())
    for name, value in changes.items():
        *rooms, field = name.split("__")
        place = values
        for room in rooms:
            place = place[room]
        place[field] = value
    return from_mapping(values)


def test_defaults_are_the_papers():
    config = from_mapping(default_config().to_dict())
    assert config == Config()
    assert (config.batch_size, config.num_steps, config.optim.learning_rate) == (
        96,
        1_000_000,
        1e-3,
    )


def test_overrides_reach_their_fields():
    free = default_config()
    free.optim.learning_rate = 5e-4
    free.model.encoder_channels = (8, 8)
    free.model.time_pools = free.model.frequency_pools = (2, 2)
    free.name = "mine"
    config = from_mapping(free.to_dict())
    assert config.optim == OptimConfig(learning_rate=5e-4)
    assert (config.name, config.model.encoder_channels) == ("mine", (8, 8))


def test_fields_left_out_keep_their_defaults():
    assert from_mapping({"optim": {"b1": 0.5}}) == dataclasses.replace(
        Config(), optim=OptimConfig(b1=0.5)
    )
    assert from_mapping({}) == Config()


def test_json_round_trip():
    config = changed(optim__ema_decay=0.9, data__train_folds=(1, 3), name="é", data__root="a b")
    stored = json.loads(json.dumps(dataclasses.asdict(config)))
    back = from_mapping(stored)
    assert back == config
    assert isinstance(back.model.encoder_channels, tuple)
    assert differences(back, config) == {}


def test_whole_numbers_are_taken_for_floats():
    config = changed(data__segment_seconds=4, optim__clip_norm=1)
    assert type(config.data.segment_seconds) is float
    assert config.data.segment_seconds == 4.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 2.0}, r"^batch_size=2\.0 must be a valid integer$"),
        ({"batch_size": True}, r"^batch_size=True must be a valid integer$"),
        ({"batch_size": "8"}, r"^batch_size='8' must be a valid integer$"),
        ({"optim__learning_rate": True}, r"^optim\.learning_rate=True must be a valid number$"),
        ({"optim__learning_rate": "1e-3"}, r"^optim\.learning_rate='1e-3' must be a valid number"),
        ({"optim__amsgrad": 1}, r"^optim\.amsgrad=1 must be a valid boolean$"),
        ({"data__root": None}, r"^data\.root=None must be a valid string$"),
        ({"batch_size": 0}, r"^batch_size=0 must be greater than or equal to 1$"),
        ({"valid__num_mixtures": 0}, r"^valid\.num_mixtures=0 must be greater than or equal to 1$"),
        ({"checkpoint__keep_every_steps": -1}, r"^checkpoint\.keep_every_steps=-1 must be "),
        ({"optim__warmup": "slow"}, r"^optim\.warmup='slow' must be 'staircase', 'linear' or 'n"),
        ({"optim__warmup": 3}, r"^optim\.warmup=3 must be 'staircase'"),
        ({"model__encoder_channels": 32}, r"^model\.encoder_channels=32 must be a list$"),
        ({"model__encoder_channels": "32"}, r"^model\.encoder_channels='32' must be a list$"),
        ({"model__time_pools": (2, 2.5)}, r"^model\.time_pools\[1\]=2\.5 must be a valid integer$"),
        ({"model__hop_samples": 2000}, r"^model\.hop_samples=2000 must be at most half of window"),
        ({"model__dtype": "float16"}, r"^model\.dtype='float16' must be 'float32' or 'bfloat16'$"),
        ({"mixing__snr_db": (3, 1)}, r"^mixing\.snr_db=\[3, 1\] must be two rising numbers in -1"),
        ({"text__encoder": "bert"}, r"^text\.encoder='bert' must be 'hashed', .* or 'none'$"),
        ({"text__encoder": "voice"}, r"^data\.source=speakers and text\.encoder=voice need each"),
        ({"data__source": "speakers"}, r"^data\.source=speakers and text\.encoder=voice need each"),
        (
            {"mixing__num_queries": 2, "text__use_text_ratio": 0.5, "text__encoder": "clap"},
            r"^mixing\.num_queries=2 needs text\.use_text_ratio=1: a target of several",
        ),
        (
            {"mixing__cue_probability": 1, "data__source": "speakers", "text__encoder": "voice"},
            r"^mixing\.cue_probability asks by sentences, which text\.encoder=voice does not embed",
        ),
        ({"text__encoder": "none"}, r"^text\.encoder=none needs model\.slots=1 or more"),
        ({"model__slots": 9}, r"^model\.slots=9 must be less than or equal to 8$"),
        (
            {"model__slots": 2, "loss__assign": "one_each"},
            r"^loss\.assign=one_each needs one or two slots, .* 2 slots and 1 queries$",
        ),
        ({"profile": -1}, r"^profile=-1 must be greater than or equal to 0$"),
        ({"optim": 3}, r"^optim=3 must be a section with fields$"),
        ({"optim__learning_rate": float("nan")}, r"^optim\.learning_rate=nan must be a finite num"),
        ({"loss__waveform_l1": float("inf")}, r"^loss\.waveform_l1=inf must be a finite number$"),
        ({"loss__waveform_l1": 10**400}, r"^loss\.waveform_l1=10+ must be a finite number$"),
        (
            {"loss__waveform_l1": 1e13},
            r"^loss\.waveform_l1=1\d+\.0 must be less than or equal",
        ),
        ({"name": ""}, r"^name='' must have at least 1 character$"),
        ({"loss__waveform_l1": 0}, r"^loss\.waveform_l1=0, as all weights are"),
        ({"seed": 2**32}, r"^seed=4294967296 must be less than or equal to 4294967295$"),
        ({"num_steps": 2**31}, r"^num_steps=2147483648 must be less than or equal to 2147483647$"),
        ({"name": object()}, r"^a value is no number, text, list or mapping \(Object of type obj"),
    ],
)
def test_wrong_values_are_refused_by_name(changes, message):
    with pytest.raises(InputError, match=message):
        changed(**changes)


def test_differences_name_the_field_and_both_values():
    found = differences(Config(), changed(optim__learning_rate=0.5, seed=3))
    assert found == {"seed": (0, 3), "optim.learning_rate": (0.001, 0.5)}
    assert differences(changed(model__hop_samples=160), Config()) == {
        "model.hop_samples": (160, 320)
    }


@pytest.mark.parametrize(
    "changes",
    [
        {"num_steps": 5, "name": "other", "log_every_steps": 3},
        {"valid__num_mixtures": 7, "valid__seed": 9, "checkpoint__every_steps": 2},
        {"data__root": "/elsewhere", "data__num_threads": 7, "data__cache_megabytes": 1},
        {"optim__max_skipped_steps": 3, "model__remat": True, "data__max_bad_share": 1.0},
    ],
)
def test_free_fields_may_differ(changes):
    assert differences(Config(), changed(**changes)) == {}


def marked(mark):
    return {name for name, _, has in fields_of(Config(), mark) if has}


def test_every_other_field_is_material():
    assert marked("resumable") >= {"optim.max_skipped_steps", "model.remat", "data.max_bad_share"}
    assert marked("resumable") >= {"valid.seed", "checkpoint.every_steps", "data.roots"}
    material = {name for name, _, _ in fields_of(Config())} - marked("resumable")
    assert {"seed", "batch_size", "data.segment_seconds", "data.source", "text.encoder"} <= material
    assert {"model.hop_samples", "mixing.snr_db", "loss.waveform_l1", "optim.b1"} <= material


def test_what_differs_between_processes_may_differ_on_resume():
    assert marked("per_process") < marked("resumable")
    assert {name.split(".")[0] for name in marked("per_process")} == {"data", "text"}


def test_only_where_files_lie_and_how_they_are_read_may_differ_between_processes():
    shared = shared_fields(Config())
    assert {"seed", "batch_size", "num_steps", "valid.seed", "checkpoint.every_steps"} <= set(
        shared
    )
    here = {"data__root": "/a", "data__num_threads": 7, "text__batch_size": 3}
    assert shared_fields(changed(**here)) == shared
    assert shared_fields(changed(data__max_bad_share=0.2)) != shared
    assert shared_fields(changed(seed=1)) == {**shared, "seed": 1}


def test_overrides_are_taken_out_of_a_command_line():
    words = ["train.py", "--config", "a.py", "--config.seed=3", "--config.name", "--x=2", "-v"]
    with pytest.raises(InputError, match=r"^--config\.name needs a value: --config\.name=VALUE$"):
        take_overrides(words)
    words[4:5] = ["--config.name", "b=c", "--config.mixing.min_gain_db", "-3"]
    overrides, others = take_overrides(words)
    assert overrides == {"seed": "3", "name": "b=c", "mixing.min_gain_db": "-3"}
    assert others == ["train.py", "--config", "a.py", "--x=2", "-v"]
    assert take_overrides([*words, "--config.seed=3"]) == (overrides, others)
    with pytest.raises(InputError, match=r"^--config\.seed is given twice; a list is written --"):
        take_overrides([*words, "--config.seed=4"])
    for second in ("--config=b.py", "--config", "-config=b.py"):
        with pytest.raises(InputError, match=r"^--config is given twice"):
            take_overrides([*words, second])


def test_a_config_file_with_overrides():
    path = Path(tiny.__file__)
    expected = from_mapping(tiny.get_config().to_dict())
    assert from_file(str(path), {}) == expected
    texts = {"seed": "5", "model.time_pools": "4", "data.roots": ""}
    assert from_file(str(path), texts) == dataclasses.replace(
        expected, seed=5, model=dataclasses.replace(expected.model, time_pools=(4,))
    )


def test_another_network_keeps_the_fields_that_both_have():
    path = str(Path(tiny.__file__))
    old = from_file(path, {}).model
    new = from_file(path, {"model.network": "bands", "model.features": "32"}).model
    assert new == BandsConfig(
        sample_rate_hz=old.sample_rate_hz,
        window_samples=old.window_samples,
        hop_samples=old.hop_samples,
        features=32,
    )
    with pytest.raises(InputError, match=r"unknown config field model\.stem_channels"):
        from_file(path, {"model.network": "bands", "model.stem_channels": "4"})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "there is no such file"),
        ("# Heading\nText.", r"is no Python .* returns a config \(SyntaxError: invalid .*line 2\)"),
        ("x = 1", r"is no Python .* returns a config \(KeyError: 'get_config'\)"),
        ("def get_config():\n    return None", r".*\(AttributeError: 'NoneType'"),
        ("import nothing_here", r".*\(line 1, ModuleNotFoundError: No module named 'nothing_here'"),
        ("def get_config():\n  x = 1\n  return x / 0", r".*\(line 3, ZeroDivisionError: division"),
    ],
)
def test_what_is_no_config_file_is_refused_in_one_line(text, message, tmp_path):
    path = tmp_path / "a.py"
    if text is not None:
        path.write_text(text)
    with pytest.raises(InputError, match=rf"^--config={path}: {message}"):
        from_file(str(path), {})
    with pytest.raises(InputError, match=rf"^--config={tmp_path}: is a folder"):
        from_file(str(tmp_path), {})
