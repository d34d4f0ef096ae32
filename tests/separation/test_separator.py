"""Separator: the network's own numbers at any rate, length and channels; every misuse named."""

import dataclasses
import shutil
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_run import RATE_HZ, edit_about, save_run, tiny_config

from audiosep_jax.audio import files as audio_files
from audiosep_jax.encoders.hashed import HashedEncoder
from audiosep_jax.errors import InputError
from audiosep_jax.model import make_model
from audiosep_jax.separation.separator import Separator
from audiosep_jax.training.config import from_mapping

QUERIES = ["a dog barking", "rain on a roof", "犬 🐶"]


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """Validated at steps 10 and 20 (the best), not yet at 30."""
    folder = tmp_path_factory.mktemp("run")
    return folder, save_run(folder, {10: 1.0, 20: 3.0, 30: None})


@pytest.fixture(scope="module")
def separator(workdir):
    return Separator.load(workdir[0])


@pytest.fixture
def copy(workdir, tmp_path):
    """A copy of the run to damage."""
    return shutil.copytree(workdir[0], tmp_path / "copy")


def noise(*shape, scale=0.3, seed=0):
    return (scale * np.random.default_rng(seed).standard_normal(shape)).astype(np.float32)


def network(state, audio_BS, queries):
    """The network straight from the state that was saved."""
    model = from_mapping(tiny_config().to_dict()).model
    condition_BE = HashedEncoder()(queries)
    apply = jax.jit(partial(make_model(model).apply, train=False))
    return np.asarray(apply(state.variables(), audio_BS, condition_BE))


def assert_close(actual, expected, tolerance=1e-6):
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance)


# ---------------------------------------------------------------------- numbers


def test_equals_the_network_at_the_models_rate(separator, workdir):
    audio_S = noise(3000)
    expected_NS = network(workdir[1][20], np.stack([audio_S] * 3), QUERIES)
    assert_close(separator.separate(audio_S, RATE_HZ, QUERIES), expected_NS)
    assert np.abs(expected_NS[0] - expected_NS[1]).max() > 1e-4  # the queries do matter


def test_equals_the_network_between_two_conversions_of_rate(separator, workdir):
    audio_CS = noise(2, 5000)
    at_model_CS = audio_files.resample(audio_CS, 44100, RATE_HZ)
    expected_CS = network(workdir[1][20], at_model_CS, QUERIES[:1] * 2)
    expected_CS = audio_files.resample(expected_CS, RATE_HZ, 44100)[:, :5000]
    assert_close(separator.separate(audio_CS, 44100, QUERIES[0]), expected_CS)


@pytest.mark.parametrize("amplitude", [0.1, 50])
def test_a_tone_comes_back_in_time_in_tune_and_unclipped(separator, amplitude):
    tone_S = amplitude * np.sin(2 * np.pi * 440 / 44100 * np.arange(22050))
    unity = dataclasses.replace(separator, variables=_all_pass(separator.variables))
    estimate_S = unity.separate(tone_S, 44100, "tone")
    assert_close(estimate_S[1000:-1000], tone_S[1000:-1000] / 2, 1e-3 * amplitude)


def _all_pass(variables):
    """Mask (0, 1, 0) everywhere: half the mixture, unturned."""
    params = jax.tree.map(np.array, variables["params"])
    params["base"]["after_conv"] = {
        "kernel": np.zeros_like(params["base"]["after_conv"]["kernel"]),
        "bias": np.float32([0, 1, 0]),
    }
    return {**variables, "params": params}


def test_each_channel_is_separated_by_itself(separator):
    audio_CS = noise(6, 1000)
    together_CS = separator.separate(audio_CS, RATE_HZ, "rain")
    alone_CS = [separator.separate(audio_S, RATE_HZ, "rain") for audio_S in audio_CS]
    assert_close(together_CS, alone_CS)


def test_many_queries_equal_one_by_one(separator):
    audio_CS = noise(2, 900)
    together_NCS = separator.separate(audio_CS, 22050, QUERIES)
    alone_NCS = [separator.separate(audio_CS, 22050, query) for query in QUERIES]
    assert_close(together_NCS, alone_NCS)


def test_conditions_are_what_queries_are_turned_into(separator):
    audio_S = noise(700)
    expected_NS = separator.separate(audio_S, RATE_HZ, QUERIES)
    conditions_NE = HashedEncoder()(QUERIES)
    assert_close(separator.separate_conditions(audio_S, RATE_HZ, conditions_NE), expected_NS, 0)


@pytest.mark.parametrize(
    ("rate_hz", "shape"),
    [
        (8000, (1,)),
        (48000, (1, 1)),
        (22050, (7,)),
        (44100, (2, 501)),
        (96000, (6, 64)),
        (1, (2, 1)),
    ],
)
def test_keeps_shape_at_every_rate(separator, rate_hz, shape):
    audio = noise(*shape)
    one = separator.separate(audio, rate_hz, "rain")
    many = separator.separate(audio, rate_hz, ["rain"])
    assert one.dtype == np.float32
    assert one.shape == shape
    assert np.isfinite(one).all()
    np.testing.assert_array_equal(many, one[None])


def test_silence_stays_silent(separator):
    assert not separator.separate(np.zeros((2, 501)), 44100, "rain").any()


def test_float64_and_reversed_views_are_taken(separator):
    audio_S = noise(500)
    expected_S = separator.separate(audio_S, RATE_HZ, "rain")
    reversed_S = audio_S[::-1].astype(np.float64)
    assert_close(separator.separate(reversed_S[::-1], np.int64(RATE_HZ), "rain"), expected_S)


def test_bfloat16_arrays_are_taken(separator):
    audio_S = noise(500).astype(jnp.bfloat16)
    expected_S = separator.separate(audio_S.astype(np.float32), RATE_HZ, "rain")
    for taken in (audio_S, jnp.asarray(audio_S), audio_S.astype(np.float16)):
        actual_S = separator.separate(taken, RATE_HZ, "rain")
        assert actual_S.dtype == np.float32
        assert_close(actual_S, expected_S, 1e-4)
    condition_NE = separator.embed_text(["rain"])
    stream = separator.stream(RATE_HZ, condition_NE, stereo="channels", above_nyquist="drop")
    streamed_NCS = np.concatenate([stream.feed(audio_S[None]), stream.finish()], axis=-1)
    assert_close(streamed_NCS[0, 0], expected_S, 1e-5)


def test_threads_share_one(separator):
    audio_NS = [noise(300 + i % 3, seed=i) for i in range(12)]
    expected_NS = [separator.separate(audio_S, RATE_HZ, "rain") for audio_S in audio_NS]
    with ThreadPoolExecutor(4) as pool:
        actual_NS = list(pool.map(lambda x: separator.separate(x, RATE_HZ, "rain"), audio_NS))
    for actual_S, expected_S in zip(actual_NS, expected_NS, strict=True):
        np.testing.assert_array_equal(actual_S, expected_S)


# ---------------------------------------------------------------------- which checkpoint


@pytest.mark.parametrize(
    ("place", "step"), [("", 20), ("checkpoints/00000010", 10), ("checkpoints/00000030", 30)]
)
def test_loads_the_best_or_the_one_given(workdir, place, step, monkeypatch):
    monkeypatch.chdir(workdir[0])
    loaded = Separator.load(place)
    assert loaded.step == step
    expected, actual = workdir[1][step].variables(), loaded.variables
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


def test_loads_the_newest_where_none_was_validated(tmp_path):
    save_run(tmp_path, {5: None, 9: None})
    assert Separator.load(tmp_path).step == 9


def test_takes_averaged_weights(tmp_path):
    config = tiny_config()
    config.optim.ema_decay = 0.9
    state = save_run(tmp_path, config=config)[10]
    jax.tree.map(
        np.testing.assert_array_equal, Separator.load(tmp_path).variables["params"], state.ema
    )


def test_a_config_of_data_or_training_it_does_not_know_is_no_obstacle(tmp_path):
    values = tiny_config().to_dict()
    values["data"]["of_next_year"] = 1
    save_run(tmp_path)
    edit_about(tmp_path, lambda about: about.update(config=values))
    assert Separator.load(tmp_path).step == 10


# ---------------------------------------------------------------------- mistakes


def fails(call, words):
    with pytest.raises(InputError, match=words) as caught:
        call()
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("audio", "words"),
    [
        (np.zeros(0), "no samples"),
        (np.zeros((0, 5)), "no samples"),
        (np.zeros((2, 0)), "no samples"),
        (np.float32(0), "samples,"),
        (np.zeros((1, 2, 3)), "samples,"),
        (np.zeros(9, np.int16), "int16 must be floating"),
        (np.zeros(9, complex), "floating"),
        (np.zeros((80000, 2)), r"80000 channels of 2 samples; transpose it to \(channels, samples"),
        (np.zeros((1000, 2), np.float32), "transpose it"),
        (np.zeros((9, 1)), "transpose it"),
        ([0.0, np.nan], "NaN"),
        ([0.0, np.inf], "infinite"),
        ([0.0, 1e300], "infinite"),
    ],
)
@pytest.mark.filterwarnings("ignore:overflow")
def test_unusable_audio(separator, audio, words):
    fails(lambda: separator.separate(audio, RATE_HZ, "rain"), words)


@pytest.mark.parametrize("rate_hz", [0, -8000, 44100.0, "8000", None])
def test_unusable_rate(separator, rate_hz):
    fails(lambda: separator.separate(noise(9), rate_hz, "rain"), "sample_rate_hz")


@pytest.mark.parametrize("queries", ["", " \n", [], ["rain", ""], [3], "\udc80"])
def test_unusable_queries(separator, queries):
    fails(lambda: separator.separate(noise(9), RATE_HZ, queries), "query")


def test_queries_that_are_no_list(separator):
    fails(lambda: separator.separate(noise(9), RATE_HZ, 5), "queries must be a list")
    fails(lambda: separator.embed_text("rain"), "queries must be a list")


@pytest.mark.parametrize("num_channels", [0, -1, 1.5, None])
def test_unusable_number_of_channels(separator, num_channels):
    condition_NE = separator.embed_text(["rain"])
    fails(lambda: separator.stream(RATE_HZ, condition_NE, num_channels), "num_channels")


@pytest.mark.parametrize(
    ("block_CS", "words"),
    [
        (noise(9), r"of shape \(9,\) must be \(2, samples\)"),
        (np.zeros((9, 2)), r"of shape \(9, 2\) must be \(2, samples\); transpose it"),
        (np.zeros((3, 9)), r"of shape \(3, 9\) must be \(2, samples\)"),
        (np.zeros((2, 9), np.int16), "of type int16 must be floating point"),
        (np.full((2, 9), np.nan), "NaN or infinite"),
    ],
)
def test_unusable_blocks(separator, block_CS, words):
    stream = separator.stream(RATE_HZ, separator.embed_text(["rain"]), 2)
    fails(lambda: stream.feed(block_CS), words)
    good_CS = np.zeros((2, 9), np.float32)
    assert stream.feed(good_CS).shape[-1] + stream.finish().shape[-1] == 9  # it goes on


@pytest.mark.parametrize("condition", [np.zeros(512), np.zeros((0, 512)), np.zeros((1, 64))])
def test_conditions_of_another_shape(separator, condition):
    fails(lambda: separator.separate_conditions(noise(9), RATE_HZ, condition), "conditions of")


def test_conditions_that_are_not_finite(separator):
    condition_NE = np.full((1, 512), np.nan)
    fails(lambda: separator.separate_conditions(noise(9), RATE_HZ, condition_NE), "NaN")


def test_no_checkpoint_there(tmp_path):
    fails(lambda: Separator.load(tmp_path / "none"), "none: no such folder")
    fails(lambda: Separator.load(tmp_path), "no training workdir")
    fails(lambda: Separator.load(tmp_path / ("x" * 300)), "no such folder")
    (tmp_path / "checkpoints").mkdir()
    fails(lambda: Separator.load(tmp_path), "no checkpoint yet")
    (tmp_path / "checkpoints" / "00000007").mkdir()
    fails(lambda: Separator.load(tmp_path / "checkpoints" / "00000007"), "cannot be read")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda about: about.update(text_fingerprint="clap-7"), "text encoder clap-7"),
        (lambda about: about["config"]["text"].update(encoder="clap9"), "another version"),
        (
            lambda about: about["config"]["model"].update(depth=3),
            "unknown config field model.depth",
        ),
        (lambda about: about["config"]["model"].update(encoder_channels=3), "another version"),
        (lambda about: about["config"]["model"].update(encoder_channels=[5]), "architecture"),
        (lambda about: about["config"].pop("model"), "does not hold its model"),
        (lambda about: about.update(config="x"), "does not hold its model"),
        (lambda about: about["config"].update(model=[]), "must be a section"),
    ],
)
def test_a_checkpoint_of_something_else(copy, change, words):
    edit_about(copy, change)
    fails(lambda: Separator.load(copy), words)


@pytest.mark.parametrize("damage", ["gone", "overwritten"])
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("about/metadata", "cannot be read"),
        ("model/_METADATA", "cannot be read"),
        ("model/manifest.ocdbt", "cannot be read"),
        ("model/ocdbt.process_0/d/*", "cannot be read"),
    ],
)
def test_damaged(copy, name, words, damage):
    step = copy / "checkpoints" / "00000020"
    path = max(step.glob(name), key=lambda path: path.stat().st_size)
    path.write_bytes(b"\xff" * path.stat().st_size) if damage == "overwritten" else path.unlink()
    fails(lambda: Separator.load(step), words)
