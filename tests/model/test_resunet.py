"""The network's table and its parts in closed form."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_towers import recipe
from separator_examples import TINY, cast

from audiosep_jax.errors import InputError
from audiosep_jax.model import variable_shapes
from audiosep_jax.model.layers import BatchNorm, Pointwise, Upsample, average_pool
from audiosep_jax.model.resunet import FiLM, ResUNetConfig, block_table


def test_table_is_the_published_one():
    encoders = [(32, 32), (32, 64), (64, 128), (128, 256), (256, 384), (384, 384)]
    decoders = [(384, 384), (384, 384), (384, 256), (256, 128), (128, 64), (64, 32)]
    pools = [(2, 2)] * 5 + [(1, 2)]
    wanted = [
        (f"encoder_block{i}", *e, p)
        for i, (e, p) in enumerate(zip(encoders, pools, strict=True), 1)
    ]
    wanted += [("conv_block7a", 384, 384, (1, 1))]
    wanted += [
        (f"decoder_block{i}", *d, p)
        for i, (d, p) in enumerate(zip(decoders, pools[::-1], strict=True), 1)
    ]
    table = block_table(ResUNetConfig())
    assert [(b.name, b.in_channels, b.out_channels, b.stride) for b in table] == wanted
    assert [b.kind for b in table] == ["encoder"] * 6 + ["middle"] + ["decoder"] * 6


def test_parameter_count():
    leaves = jax.tree.leaves(variable_shapes(ResUNetConfig())["params"])
    assert sum(leaf.size for leaf in leaves) == 26_447_941


def test_variables_are_float32_also_under_x64():
    config = dataclasses.replace(TINY, condition_features=11)  # not in the cache yet
    with jax.enable_x64(True):
        leaves = jax.tree.leaves(variable_shapes(config))
    assert {leaf.dtype for leaf in leaves} == {np.dtype(np.float32)}


def test_derived_sizes():
    assert (ResUNetConfig().num_bins, ResUNetConfig().time_stride) == (1025, 32)
    assert (ResUNetConfig().frequency_stride, TINY.frequency_stride) == (64, 8)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"time_pools": (2,)}, r"time_pools.*same length"),
        ({"encoder_channels": (), "time_pools": (), "frequency_pools": ()}, "at least 1 item"),
        ({"hop_samples": 0}, "hop_samples=0 .* equal to 1"),
        ({"encoder_channels": (0, 4)}, r"encoder_channels\[0\]=0 .* equal to 1"),
        ({"frequency_pools": (2, -4)}, r"frequency_pools\[1\]=-4 .* equal to 1"),
        ({"window_samples": 40}, r"window_samples=40 .* 16"),
        ({"window_samples": 0}, "window_samples=0"),
        ({"hop_samples": 17}, r"hop_samples=17 .*window_samples=32"),
        ({"dtype": "float16"}, "float16"),
    ],
)
def test_impossible_sizes_are_refused(changes, words):
    with pytest.raises(InputError, match=words):
        dataclasses.replace(TINY, **changes)


def norm_variables(channels, seed=0):
    rng = np.random.default_rng(seed)
    scale, bias, mean = rng.standard_normal((3, channels)).astype(np.float32)
    var = rng.uniform(0.5, 2, channels).astype(np.float32)
    return {"params": {"scale": scale, "bias": bias}, "batch_stats": {"mean": mean, "var": var}}


def normalised(x, mean, var, params):
    return (x - mean) / (var + 1e-5) ** 0.5 * params["scale"] + params["bias"]


def test_batch_norm_of_a_batch():
    variables = norm_variables(4)
    x_BTFC = np.random.default_rng(1).normal(2, 3, (2, 3, 5, 4)).astype(np.float32)
    y_BTFC, updated = BatchNorm().apply(variables, x_BTFC, train=True, mutable=["batch_stats"])
    x = x_BTFC.astype(np.float64).reshape(-1, 4)
    expected_BTFC = normalised(x_BTFC, x.mean(0), x.var(0), variables["params"])
    np.testing.assert_allclose(y_BTFC, expected_BTFC, rtol=0, atol=1e-5)
    old, new = variables["batch_stats"], updated["batch_stats"]
    np.testing.assert_allclose(new["mean"], 0.99 * old["mean"] + 0.01 * x.mean(0), rtol=1e-5)
    # PyTorch divides by n for the output and by n - 1 for the running variance.
    unbiased = x.var(0) * 30 / 29
    np.testing.assert_allclose(new["var"], 0.99 * old["var"] + 0.01 * unbiased, rtol=1e-6)


def test_batch_norm_with_running_statistics():
    variables = norm_variables(4)
    x_BTFC = np.random.default_rng(1).normal(2, 3, (2, 3, 5, 4)).astype(np.float32)
    shift_BC = np.random.default_rng(2).standard_normal((2, 4)).astype(np.float32)
    expected_BTFC = normalised(x_BTFC, *variables["batch_stats"].values(), variables["params"])
    y_BTFC = BatchNorm().apply(variables, x_BTFC, train=False)
    np.testing.assert_allclose(y_BTFC, expected_BTFC, rtol=0, atol=1e-5)
    y_BTFC = BatchNorm().apply(variables, x_BTFC, shift_BC=shift_BC, train=False)
    np.testing.assert_allclose(y_BTFC, expected_BTFC + shift_BC[:, None, None], rtol=0, atol=1e-5)
    apply = functools.partial(BatchNorm().apply, train=True, mutable=["batch_stats"])
    y_BTFC, _ = apply(variables, x_BTFC, shift_BC=shift_BC)
    x = x_BTFC.reshape(-1, 4)
    expected_BTFC = normalised(x_BTFC, x.mean(0), x.var(0), variables["params"])
    np.testing.assert_allclose(y_BTFC, expected_BTFC + shift_BC[:, None, None], rtol=0, atol=1e-5)


def plain_batch_norm(params, parts, shift_BC, leak):
    """BatchNorm of a batch as its formula stands, for JAX to differentiate."""
    x = jnp.concatenate(parts, axis=-1)
    axes = tuple(range(x.ndim - 1))
    y = normalised(x, x.mean(axes), x.var(axes), params)
    y = y if shift_BC is None else y + jnp.expand_dims(shift_BC, axes[1:])
    return jnp.where(y > 0, y, leak * y)


@pytest.mark.parametrize("leak", [1, 0.01])
@pytest.mark.parametrize(("widths", "shifted"), [((4,), False), ((4,), True), ((3, 1), True)])
def test_gradient_of_batch_norm(leak, widths, shifted):
    rng = np.random.default_rng(4)
    variables = cast(norm_variables(4), np.float64)
    parts = [rng.normal(2, 3, (2, 37, 5, width)) for width in widths]
    shift_BC = rng.standard_normal((2, 4)) if shifted else None
    weight_BTFC = rng.standard_normal((2, 37, 5, 4))

    def own(params, parts, shift_BC):
        apply = functools.partial(BatchNorm(leak=leak).apply, train=True, mutable=["batch_stats"])
        return apply({**variables, "params": params}, *parts, shift_BC=shift_BC)[0]

    def gradients(norm):
        def product(*inputs):
            return jnp.sum(norm(*inputs) * weight_BTFC)

        return jax.jit(jax.grad(product, (0, 1, 2)))(variables["params"], parts, shift_BC)

    with jax.enable_x64(True):
        actual, expected = gradients(own), gradients(functools.partial(plain_batch_norm, leak=leak))
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-12)


def test_batch_norm_of_a_large_mean_and_small_deviation():
    # The one-pass variance E[x^2] - E[x]^2 has no correct digit here.
    x_BTFC = np.random.default_rng(3).normal(50, 1e-2, (4, 16, 16, 2)).astype(np.float32)
    fresh = {
        "params": {"scale": np.ones(2, np.float32), "bias": np.zeros(2, np.float32)},
        "batch_stats": {"mean": np.zeros(2, np.float32), "var": np.zeros(2, np.float32)},
    }
    y_BTFC, updated = BatchNorm().apply(fresh, x_BTFC, train=True, mutable=["batch_stats"])
    x = x_BTFC.astype(np.float64).reshape(-1, 2)
    expected_BTFC = normalised(x_BTFC.astype(np.float64), x.mean(0), x.var(0), fresh["params"])
    np.testing.assert_allclose(y_BTFC, expected_BTFC, rtol=0, atol=3e-3)
    unbiased = 0.01 * x.var(0, ddof=1)
    np.testing.assert_allclose(updated["batch_stats"]["var"], unbiased, rtol=1e-4)


def test_batch_norm_of_a_single_value_is_finite():
    variables = norm_variables(3)
    x_BTFC = np.ones((1, 1, 1, 3), np.float32)
    y_BTFC, updated = BatchNorm().apply(variables, x_BTFC, train=True, mutable=["batch_stats"])
    np.testing.assert_allclose(y_BTFC[0, 0, 0], variables["params"]["bias"], atol=1e-6)
    expected = 0.99 * variables["batch_stats"]["var"]
    np.testing.assert_allclose(updated["batch_stats"]["var"], expected, rtol=1e-6)


def test_batch_norm_of_bfloat16_has_the_statistics_of_float32():
    # A sum of 8,192 numbers near 1 in bfloat16 stops at 256.
    variables = norm_variables(2)
    x_BTFC = jnp.asarray(np.random.default_rng(1).normal(1, 0.1, (2, 64, 64, 2)), jnp.bfloat16)
    y_BTFC, updated = BatchNorm().apply(variables, x_BTFC, train=True, mutable=["batch_stats"])
    x = np.asarray(x_BTFC, np.float64).reshape(-1, 2)
    old, new = variables["batch_stats"], updated["batch_stats"]
    assert new["mean"].dtype == new["var"].dtype == np.float32
    np.testing.assert_allclose(new["mean"], 0.99 * old["mean"] + 0.01 * x.mean(0), rtol=1e-6)
    expected = 0.99 * old["var"] + 0.01 * x.var(0, ddof=1)
    np.testing.assert_allclose(new["var"], expected, rtol=1e-6)
    assert y_BTFC.dtype == jnp.bfloat16  # rounded once, at the end
    exact = normalised(np.asarray(x_BTFC, np.float64), x.mean(0), x.var(0), variables["params"])
    np.testing.assert_allclose(np.asarray(y_BTFC, np.float64), exact, rtol=2**-8, atol=1e-5)


def test_pointwise_sums_the_mask_in_float32():
    x_BTFC = jnp.asarray(recipe.waveform(1, 1, 3, 4, 64), jnp.bfloat16)
    params = {"kernel": recipe.waveform(2, 1, 1, 64, 3), "bias": recipe.waveform(3, 3)}
    mask = Pointwise(3, jnp.bfloat16, jnp.float32)
    y_BTFC = mask.apply({"params": params}, x_BTFC)
    kernel = np.asarray(jnp.asarray(params["kernel"], jnp.bfloat16), np.float64)[0, 0]
    expected = np.asarray(x_BTFC, np.float64) @ kernel + params["bias"]
    assert y_BTFC.dtype == np.float32
    np.testing.assert_allclose(y_BTFC, expected, rtol=0, atol=1e-5)


def test_upsample_spreads_every_point_over_its_own_patch():
    x_BTFC, kernel = recipe.waveform(1, 2, 2, 3, 2), recipe.waveform(2, 2, 3, 2, 4)
    y_BTFC = Upsample(4, (2, 3), None).apply({"params": {"kernel": kernel}}, x_BTFC)
    expected_BTFC = np.zeros((2, 4, 9, 4))
    for t, f, u, v in np.ndindex(2, 3, 2, 3):
        expected_BTFC[:, 2 * t + u, 3 * f + v] = x_BTFC[:, t, f] @ kernel[u, v]
    np.testing.assert_allclose(y_BTFC, expected_BTFC, rtol=0, atol=1e-6)


def test_average_pool():
    x_BTFC = recipe.waveform(1, 1, 4, 6, 2)
    y_BTFC = average_pool(jnp.asarray(x_BTFC), (2, 3))
    for t, f in np.ndindex(2, 2):
        patch = x_BTFC[:, 2 * t : 2 * t + 2, 3 * f : 3 * f + 3].mean((1, 2))
        np.testing.assert_allclose(y_BTFC[:, t, f], patch, rtol=0, atol=1e-6)


def test_film_is_one_linear_layer_for_each_shift():
    shapes = variable_shapes(TINY)["params"]["film"]
    assert shapes["decoder_block2->conv_block2->beta1"]["kernel"].shape == (6, 6)
    assert shapes["encoder_block2->conv_block1->beta2"]["kernel"].shape == (6, 4)
    assert len(shapes) == 2 * 2 + 2 + 2 * 4  # encoders, middle, decoders
    params = jax.tree.map(lambda leaf: recipe.waveform(leaf.size, *leaf.shape), shapes)
    condition_BE = recipe.waveform(3, 2, 6)
    for name, shift_BC in FiLM(TINY).apply({"params": params}, condition_BE).items():
        expected_BC = condition_BE @ params[name]["kernel"] + params[name]["bias"]
        np.testing.assert_allclose(shift_BC, expected_BC, rtol=0, atol=1e-6)
