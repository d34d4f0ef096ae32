"""A network of one's own: registered in one place, it trains, streams, separates, and is stored."""

import json
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from evaluation_examples import RATE_HZ, pairs_list, write_clips
from separator_examples import unit_rows

import train
from audiosep_jax import model as model_package
from audiosep_jax.audio import files as audio_files
from audiosep_jax.encoders.encoder import TextConfig
from audiosep_jax.errors import InputError
from audiosep_jax.evaluation.command import main as evaluate
from audiosep_jax.model import Kind, make_model, variable_shapes
from audiosep_jax.model.network import ModelConfig, Network, Size
from audiosep_jax.model.tiles import TileStream, delay_frames, tile_bytes
from audiosep_jax.separation.separator import Separator
from audiosep_jax.settings import section
from audiosep_jax.training import trained
from audiosep_jax.training.config import default_config, from_mapping

TILE = 16


@section
class ToyConfig(ModelConfig):
    """Settings of `Toy`."""

    network: Literal["toy"] = "toy"
    channels: Size = 5
    context: Size = 1  # frames that a convolution in time sees


class Toy(Network):
    """A convolution in time, multiplied by the condition; no BatchNorm, no stream."""

    config: ToyConfig

    @nn.compact
    def __call__(self, mag_BTF, condition_BE, *, train, span=None):
        assert span is None
        x_BTFC = nn.Conv(self.config.channels, (self.config.context, 1))(mag_BTF[..., None])
        gain_BC = nn.Dense(self.config.channels)(condition_BE)
        return nn.Dense(self.mask_channels)(nn.relu(x_BTFC + gain_BC[:, None, None]))


@section
class CausalConfig(ToyConfig):
    """Settings of `Causal`."""

    network: Literal["causal"] = "causal"


class Causal(Toy):
    """As `Toy`, with a convolution over the past only, which it carries in a stream."""

    @property
    def delay_frames(self):
        return 0

    @nn.compact
    def __call__(self, mag_BTF, condition_BE, *, train, span=None):
        frames, kept = mag_BTF.shape[1], self.config.context - 1
        if span is not None:
            mag_BTF = jnp.where(span.inside(frames)[:, None], mag_BTF, 0)
        past_BTF = jnp.zeros((len(mag_BTF), kept, mag_BTF.shape[2]))
        if span is not None and self.is_mutable_collection("stream"):
            past = self.variable("stream", "past", lambda: past_BTF)
            past_BTF = past.value
            past.value = jnp.concatenate([past_BTF, mag_BTF], axis=1)[:, frames:]
        conv = nn.Conv(self.config.channels, (self.config.context, 1), padding="VALID")
        x_BTFC = conv(jnp.concatenate([past_BTF, mag_BTF], axis=1)[..., None])
        gain_BC = nn.Dense(self.config.channels)(condition_BE)
        return nn.Dense(self.mask_channels)(nn.relu(x_BTFC + gain_BC[:, None, None]))


SMALL = {"sample_rate_hz": 800, "window_samples": 32, "hop_samples": 8, "condition_features": 6}


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    monkeypatch.setitem(model_package.NETWORKS, "toy", Kind(ToyConfig, Toy))
    monkeypatch.setitem(model_package.NETWORKS, "causal", Kind(CausalConfig, Causal))


def toy_variables(config, seed=0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: rng.standard_normal(leaf.shape).astype(np.float32), variable_shapes(config)
    )


def toy_separator(**settings):
    config = ToyConfig(**SMALL | settings)
    text = TextConfig(encoder="hashed")
    return Separator(config, toy_variables(config), text, None, 7)


def noise(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def one_pass(config, audio_BS, condition_BE):
    apply = jax.jit(lambda v, x, c: make_model(config).apply(v, x, c, train=False))
    return np.asarray(apply(toy_variables(config), audio_BS, condition_BE))


def streamed(config, audio_CS, condition_NE, block=97, whole=0):
    stream = TileStream(
        *(config, toy_variables(config), condition_NE),
        channels=len(audio_CS),
        masks=len(audio_CS),
        tile_frames=TILE,
        whole_frames=whole,
        group=1,
    )
    cuts = range(block, audio_CS.shape[1], block)
    blocks = np.split(audio_CS, cuts, axis=1)
    return np.concatenate([stream.feed(x)[0] for x in blocks] + [stream.finish()[0]], axis=-1)


def test_config_holds_the_sections_of_the_network_it_names():
    values = json.loads(default_config("toy").to_json())
    values["model"] |= {"channels": 9}
    config = from_mapping(values).model
    assert config == ToyConfig(channels=9)
    with pytest.raises(InputError, match=r"unknown config field model.encoder_channels"):
        from_mapping({"model": {"network": "toy", "encoder_channels": [1]}})
    with pytest.raises(InputError, match=r"model.channels=0 must"):
        from_mapping({"model": {"network": "toy", "channels": 0}})
    with pytest.raises(
        InputError,
        match=r"model.network='transformer' must be one of: resunet, dual_path, bands, t",
    ):
        from_mapping({"model": {"network": "transformer"}})


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A run of train.py with the toy."""
    folder = tmp_path_factory.mktemp("toy") / "run"
    values = tiny.get_config().to_dict()
    values["model"] = {"network": "toy", "context": 3, "sample_rate_hz": RATE_HZ}
    values["model"] |= {"window_samples": 64, "hop_samples": 32}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(model_package.NETWORKS, "toy", Kind(ToyConfig, Toy))
        train.train(from_mapping(values), folder)
    return folder


def test_it_trains_and_the_log_counts_its_operations(workdir):
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    scores = [row["valid/sdri"] for row in rows if "valid/sdri" in row]
    assert 0 < scores[0] < scores[1]
    assert max(row.get("model_tflops", 0) for row in rows) > 0
    assert Separator.load(workdir).model == ToyConfig(
        context=3, sample_rate_hz=RATE_HZ, window_samples=64, hop_samples=32
    )


def test_it_separates_a_file_longer_than_its_tiles(workdir, tmp_path):
    separator, audio_CS = Separator.load(workdir), 0.1 * noise(2, 30 * RATE_HZ)
    audio_files.write(tmp_path / "in.wav", audio_CS, RATE_HZ)
    condition_NE = separator.embed_text(["a dog barking"])
    paths = [tmp_path / "short.wav", tmp_path / "long.wav"]
    for path, tile_seconds in zip(paths, (1, 100), strict=True):
        separator.separate_file(
            tmp_path / "in.wav", [path], condition_NE, tile_seconds=tile_seconds, subtype="FLOAT"
        )
    tiles_CS, whole_CS = (audio_files.read(path)[0] for path in paths)
    assert tiles_CS.shape == audio_CS.shape
    assert np.mean((tiles_CS - whole_CS) ** 2) < 1e-3 * np.mean(whole_CS**2)
    assert np.mean(whole_CS**2) > 1e-3 * np.mean(audio_CS**2)


def test_it_is_evaluated(workdir, tmp_path):
    write_clips(tmp_path / "audio", 4)
    pairs_list(tmp_path / "pairs.csv", 3)
    words = ["--protocol", "mixtures", "--metadata", str(tmp_path / "pairs.csv"), "--no_figures"]
    words += ["--audio", str(tmp_path / "audio"), "--checkpoint", str(workdir)]
    assert evaluate([*words, "--output", str(tmp_path / "scores")]) == 0
    assert len((tmp_path / "scores" / "results.csv").read_text().splitlines()) == 4


def test_tiles_of_a_network_without_context_equal_one_pass():
    """The windows of the overlap add up to one, so that nothing is left of the seams."""
    config, condition_NE = ToyConfig(**SMALL), unit_rows(1, 2)
    audio_CS = noise(2, 1501)
    expected_NCS = [one_pass(config, audio_CS, np.repeat(row[None], 2, 0)) for row in condition_NE]
    np.testing.assert_allclose(streamed(config, audio_CS, condition_NE), expected_NCS, atol=1e-5)


def test_tiles_of_a_network_with_context_come_near_one_pass():
    config, condition_NE = ToyConfig(**SMALL, context=5), unit_rows(1, 1)
    audio_CS = noise(1, 3001)
    expected_NCS = one_pass(config, audio_CS, condition_NE)[None]
    error_NCS = streamed(config, audio_CS, condition_NE) - expected_NCS
    assert 1e-6 < np.mean(error_NCS**2) / np.mean(expected_NCS**2) < 0.05
    whole_NCS = streamed(config, audio_CS, condition_NE, whole=1000)
    np.testing.assert_allclose(whole_NCS, expected_NCS, atol=1e-5)


@pytest.mark.parametrize("whole", [0, 1000])
def test_a_network_that_carries_its_past_equals_one_pass(whole):
    config, condition_NE = CausalConfig(**SMALL, context=4), unit_rows(1, 2)
    audio_CS = noise(2, 2003)
    expected_NCS = [one_pass(config, audio_CS, np.repeat(row[None], 2, 0)) for row in condition_NE]
    actual_NCS = streamed(config, audio_CS, condition_NE, whole=whole)
    np.testing.assert_allclose(actual_NCS, expected_NCS, atol=1e-5)


def test_memory_and_latency_follow_from_the_network():
    narrow, wide = ToyConfig(**SMALL), ToyConfig(**SMALL, channels=50)
    assert delay_frames(narrow, TILE) == TILE // 4
    assert tile_bytes(wide, TILE) > 4 * tile_bytes(narrow, TILE)
    assert tile_bytes(wide, 10 * TILE) == pytest.approx(10 * tile_bytes(wide, TILE), rel=0.01)


def test_it_is_saved_and_loaded(tmp_path):
    separator = toy_separator()
    separator.save_pretrained(tmp_path / "weights")
    loaded = Separator.from_pretrained(tmp_path / "weights")
    assert (loaded.model, loaded.step) == (separator.model, 7)
    jax.tree.map(np.testing.assert_array_equal, loaded.variables, separator.variables)
    assert "| channels | 5 |" in (tmp_path / "weights" / "README.md").read_text()
    stored = trained.read(tmp_path / "weights")
    with pytest.raises(InputError, match="only a ResUNet"):
        trained.write_file(tmp_path / "toy.ckpt", stored)
