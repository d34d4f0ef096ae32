"""Every network: a stream equals one pass, rows do not mix, and weights survive a file."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from separator_examples import TINY, unit_rows

from audiosep_jax.encoders.encoder import TextConfig
from audiosep_jax.errors import InputError
from audiosep_jax.model import NETWORKS, make_model, variable_shapes
from audiosep_jax.model.attention import attend_window
from audiosep_jax.model.bands import BandsConfig
from audiosep_jax.model.dual_path import DualPathConfig
from audiosep_jax.model.tiles import TileStream, delay_frames, latency_samples
from audiosep_jax.separation.separator import Separator
from audiosep_jax.training import trained

STFT = {name: getattr(TINY, name) for name in ("sample_rate_hz", "window_samples", "hop_samples")}
BANDS = {"condition_features": 6, "band_bins": 4, "features": 6, "num_blocks": 2, "heads": 2}
RESUNET = {name: value for name, value in vars(TINY).items() if name != "network"}
EXAMPLES = {
    "resunet": TINY,
    "light decoder": dataclasses.replace(TINY, decoder_channels=(2, 3)),
    "dual_path": DualPathConfig(**RESUNET, heads=2, past_frames=3, future_frames=1),
    "bands": BandsConfig(**STFT, **BANDS, past_frames=3, future_frames=2),
    "causal bands": BandsConfig(**STFT, **BANDS, past_frames=5, future_frames=0),
    "bands without context": BandsConfig(**STFT, **BANDS, past_frames=0, future_frames=0),
}
every_network = pytest.mark.parametrize("config", EXAMPLES.values(), ids=EXAMPLES)


@functools.cache
def variables_of(config):
    """Weights that use every layer, none of them 0."""
    rng = np.random.default_rng(0)

    def draw(leaf):
        spread = 1.7 / math.sqrt(np.prod(leaf.shape[:-1])) if len(leaf.shape) > 1 else 0.2
        centre = 1 if len(leaf.shape) == 1 else 0
        return (centre + spread * rng.uniform(-1, 1, leaf.shape)).astype(np.float32)

    return jax.tree.map(draw, variable_shapes(config))


@functools.cache
def network(config):
    return jax.jit(functools.partial(make_model(config).apply, variables_of(config), train=False))


def streamed(config, audio_CS, condition_NE, tile, *, cuts=(), whole=0):
    stream = TileStream(
        *(config, variables_of(config), condition_NE),
        **{"channels": 1, "masks": 1, "tile_frames": tile, "whole_frames": whole, "group": 1},
    )
    parts = [stream.feed(block_CS)[0] for block_CS in np.split(audio_CS, cuts, axis=1)]
    return np.concatenate([*parts, stream.finish()[0]], axis=-1)[:, 0]


def noise(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def snr_db(actual, expected):
    error = np.mean((actual.astype(np.float64) - expected) ** 2)
    return 10 * math.log10(np.mean(expected.astype(np.float64) ** 2) / max(error, 1e-30))


def test_every_network_has_an_example():
    assert {config.network for config in EXAMPLES.values()} == set(NETWORKS)


@every_network
@pytest.mark.parametrize(("tile", "whole"), [(2, 0), (16, 1000)])
def test_a_stream_equals_one_pass(config, tile, whole):
    audio_CS, condition_NE = noise(1, 997), unit_rows(1, 1)
    expected_NS = network(config)(audio_CS, condition_NE)
    actual_NS = streamed(config, audio_CS, condition_NE, tile, cuts=[1, 500, 501], whole=whole)
    assert snr_db(actual_NS, np.asarray(expected_NS)) > 100
    assert np.mean(expected_NS**2) > 1e-6 * np.mean(audio_CS**2)


@every_network
def test_a_row_depends_on_its_own_mixture_and_condition(config):
    audio_BS, condition_BE = noise(2, 400), unit_rows(2, 2)
    both_BS = np.asarray(network(config)(audio_BS, condition_BE))
    alone_BS = np.asarray(network(config)(audio_BS[1:], condition_BE[1:]))
    assert snr_db(both_BS[1:], alone_BS) > 100
    other_BS = np.asarray(network(config)(audio_BS, condition_BE[::-1]))
    assert snr_db(other_BS, both_BS) < 60


def test_a_causal_network_hears_no_later_sample():
    config, condition_BE = EXAMPLES["causal bands"], unit_rows(3, 1)
    audio_BS, changed_BS = noise(1, 800), noise(1, 800)
    changed_BS[:, 400:] *= -3
    before_BS, after_BS = (network(config)(x, condition_BE) for x in (audio_BS, changed_BS))
    unheard = 400 - config.window_samples
    np.testing.assert_allclose(after_BS[:, :unheard], before_BS[:, :unheard], atol=1e-6)
    assert np.abs(after_BS - before_BS)[:, unheard:].max() > 1e-3


def test_latency_of_a_causal_network_is_its_window():
    causal = BandsConfig(sample_rate_hz=16000, window_samples=256, hop_samples=128, future_frames=0)
    assert latency_samples(causal, 1) == 257
    assert latency_samples(causal, 1) <= 0.02 * causal.sample_rate_hz


def test_the_delay_is_that_of_all_blocks():
    assert delay_frames(EXAMPLES["bands"], 16) == 2 * 2
    # The innermost level covers 2 frames, and looks 2 of its own frames ahead.
    assert delay_frames(EXAMPLES["dual_path"], 16) == delay_frames(TINY, 16) + 2 * 2


@pytest.mark.parametrize(("frames", "window"), [(1, 4), (3, 4), (10, 4), (6, 1), (12, 7)])
def test_attention_over_a_window_is_its_formula(frames, window):
    query, keys = noise(2, frames, 3, 2, 4), noise(2, frames + window - 1, 3, 2, 2, 4, seed=1)
    bias_HW = noise(2, window, seed=2)
    inside_T = np.arange(frames + window - 1) >= min(window, frames) - 1
    expected = np.zeros_like(query)
    for t in range(frames):
        seen, inside = keys[:, t : t + window], inside_T[t : t + window]
        logits = np.einsum("bfhc,bwfhc->bfhw", query[:, t], seen[..., 0, :, :]) / 2 + bias_HW
        weights = np.where(inside, np.exp(logits), 0)
        weights /= np.maximum(weights.sum(-1, keepdims=True), 1e-30)
        expected[:, t] = np.einsum("bfhw,bwfhc->bfhc", weights, seen[..., 1, :, :])
    actual = np.asarray(attend_window(query, keys, jnp.asarray(bias_HW), jnp.asarray(inside_T)))
    some = np.convolve(inside_T, np.ones(window), "valid") > 0
    np.testing.assert_allclose(actual[:, some], expected[:, some], atol=1e-5)


@pytest.mark.parametrize("name", ["light decoder", "dual_path", "bands"])
def test_weights_survive_a_file(name, tmp_path):
    config = EXAMPLES[name]
    separator = Separator(config, variables_of(config), TextConfig(encoder="hashed"), None, 7)
    separator.save_pretrained(tmp_path / "weights")
    loaded = Separator.from_pretrained(tmp_path / "weights")
    assert (loaded.model, loaded.step) == (config, 7)
    jax.tree.map(np.testing.assert_array_equal, loaded.variables, separator.variables)
    with pytest.raises(InputError, match="only a ResUNet exists"):
        trained.write_file(tmp_path / "x.ckpt", trained.read(tmp_path / "weights"))


@pytest.mark.parametrize("name", ["dual_path", "bands"])
def test_bfloat16_stays_near_float32(name):
    config, rough = EXAMPLES[name], dataclasses.replace(EXAMPLES[name], dtype="bfloat16")
    audio_BS, condition_BE = noise(1, 300), unit_rows(4, 1)
    apply = jax.jit(functools.partial(make_model(rough).apply, train=False))
    rough_BS = np.asarray(apply(variables_of(config), audio_BS, condition_BE))
    assert 20 < snr_db(rough_BS, np.asarray(network(config)(audio_BS, condition_BE))) < 80


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("bands", {"heads": 4}, "heads=4 must divide features=6"),
        ("bands", {"band_bins": 3}, "window_samples=32 must be a multiple of 6"),
        ("dual_path", {"heads": 3}, r"heads=3 must divide encoder_channels\[-1\]=4"),
        ("light decoder", {"decoder_channels": (2,)}, r"decoder_channels=\(2,\) must be empty"),
    ],
)
def test_impossible_sizes_are_refused(name, changes, words):
    with pytest.raises(InputError, match=words):
        dataclasses.replace(EXAMPLES[name], **changes)
