"""The whole separator against the original's outputs, and its masks in closed form."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_towers import GOLDEN
from separator_examples import (
    SMALLEST,
    TINY,
    cast,
    published_variables,
    tiny_batch,
    tiny_variables,
)

from audiosep_jax.model import make_model, variable_shapes
from audiosep_jax.model.audiosep import apply_mask, magnitude, unit_slots, with_slots
from audiosep_jax.model.resunet import ResUNetConfig
from audiosep_jax.model.stft import istft, stft

INFERENCE = "resunet30_inference"
ODD_LENGTH = "resunet30_inference_odd_length"
# As a user's machine compiles it, which conftest.py spares the other tests.
OPTIMIZED = {"xla_backend_optimization_level": 3, "xla_llvm_disable_expensive_passes": False}


def separate(name, dtype):
    """(estimate, intermediate results) of a golden mixture."""
    golden = np.load(GOLDEN / f"{name}.npz")
    inputs = cast((golden["mixture"][:, 0], golden["condition"]), dtype)
    network = make_model(ResUNetConfig())
    apply = functools.partial(network.apply, train=False, mutable=["intermediates"])
    apply = functools.partial(apply, capture_intermediates=_is_compared)
    apply = jax.jit(apply, compiler_options=OPTIMIZED if dtype == np.float32 else None)
    estimate_BS, extra = apply(cast(published_variables(), dtype), *inputs)
    return np.asarray(estimate_BS), extra["intermediates"]


def _is_compared(module, method):
    return method == "__call__" and len(module.path) == 2 and module.path[0] == "base"


def relative_to_peak(actual, expected):
    assert actual.shape == expected.shape
    return np.abs(actual - expected).max() / np.abs(expected).max()


@pytest.fixture(scope="module")
def float32_result():
    return separate(INFERENCE, np.float32)


@pytest.mark.smoke
def test_golden_waveform_float32(float32_result):
    estimate_BS, _ = float32_result
    golden_BS = np.load(GOLDEN / f"{INFERENCE}.npz")["waveform"][:, 0]
    assert relative_to_peak(estimate_BS, golden_BS) < 1e-5


def test_golden_module_statistics(float32_result):
    _, intermediates = float32_result
    golden = np.load(GOLDEN / f"{INFERENCE}.npz")
    names = [name.removeprefix("stat_") for name in golden.files if name.startswith("stat_")]
    assert len(names) == 16
    for name in names:
        output = intermediates["base"][name]["__call__"][0]
        # Encoders give (pooled, skip); the original's are those of the pooled output.
        output = np.asarray(output[0] if isinstance(output, tuple) else output, np.float64)
        statistics = [output.mean(), output.std(), np.abs(output).max()]
        np.testing.assert_allclose(
            statistics, golden[f"stat_{name}"], rtol=1e-4, atol=1e-6, err_msg=name
        )


@pytest.mark.slow
def test_golden_waveform_odd_length_float32():
    estimate_BS, _ = separate(ODD_LENGTH, np.float32)
    golden_BS = np.load(GOLDEN / f"{ODD_LENGTH}.npz")["waveform"][:, 0]
    assert relative_to_peak(estimate_BS, golden_BS) < 1e-5


@pytest.mark.slow
@pytest.mark.smoke
@pytest.mark.parametrize("name", [INFERENCE, ODD_LENGTH])
def test_golden_waveform_float64(name):
    with jax.enable_x64(True):
        estimate_BS, _ = separate(name, np.float64)
    golden_BS = np.load(GOLDEN / f"{name}_float64.npz")["waveform"][:, 0]
    assert estimate_BS.dtype == np.float64
    assert relative_to_peak(estimate_BS, golden_BS) < 1e-9


@pytest.mark.parametrize(
    ("mask", "factor"),
    [
        ((40, 40, 0), 1),
        ((40, 0, 40), 1j),
        ((40, -0.3, 0), -1),
        ((0, 1, 0), 0.5),
        ((np.log(3), 0.5, -0.5), 0.75 * np.exp(-0.25j * np.pi)),
        ((40, 0, 0), 0),
    ],
)
def test_mask_scales_and_turns(mask, factor):
    spectrum_BTF = np.array([[[1 + 2j, -3, 0, 1e-7j]]], np.complex64)
    mask_BTFC = np.broadcast_to(np.float32(mask), (1, 1, 4, 3))
    expected_BTF = spectrum_BTF * factor
    np.testing.assert_allclose(apply_mask(spectrum_BTF, mask_BTFC), expected_BTF, rtol=1e-6)


def test_magnitude_is_floored():
    mag = magnitude(np.array([3 - 4j, 0, 1e-9], np.complex64))
    np.testing.assert_allclose(mag, [5, 1e-5, 1e-5], rtol=1e-6)


def test_gradients_are_finite_on_silence_and_zero_masks():
    def energy(audio_BS, mask_BTFC):
        spectrum_BTF = stft(audio_BS, 16, 4)
        estimate_BS = istft(apply_mask(spectrum_BTF, mask_BTFC), audio_BS.shape[1], 16, 4)
        return jnp.sum(estimate_BS) + jnp.sum(magnitude(spectrum_BTF))

    gradients = jax.jit(jax.grad(energy, argnums=(0, 1)))(
        np.zeros((1, 20), np.float32), np.zeros((1, 6, 9, 3))
    )
    assert all(np.isfinite(gradient).all() for gradient in gradients)


def test_network_gradients_are_finite_on_silence():
    def loss(variables, mixture_BS, condition_BE):
        network = make_model(SMALLEST)
        estimate_BS, _ = network.apply(
            variables, mixture_BS, condition_BE, train=True, mutable=["batch_stats"]
        )
        return jnp.mean(jnp.abs(estimate_BS))

    silence_BS, condition_BE = np.zeros((2, 50), np.float32), np.zeros((2, 6), np.float32)
    gradient = jax.jit(jax.grad(loss, argnums=(0, 1)))
    for leaf in jax.tree.leaves(gradient(tiny_variables(SMALLEST), silence_BS, condition_BE)):
        assert np.isfinite(leaf).all()


@pytest.mark.parametrize("num_samples", [1, 2, 15, 16, 17, 64, 77])
def test_any_length_comes_back_whole(num_samples):
    # A mask of ones but for the last bin, which the network does not see and takes away.
    variables = jax.tree.map(np.array, tiny_variables(SMALLEST))
    variables["params"]["base"]["after_conv"] = {
        "kernel": np.zeros((1, 1, SMALLEST.stem_channels + 1, 3), np.float32),
        "bias": np.array([40, 40, 0], np.float32),
    }
    batch = tiny_batch(5, 2, num_samples)
    window, hop = SMALLEST.window_samples, SMALLEST.hop_samples
    estimate_BS = jax.jit(functools.partial(make_model(SMALLEST).apply, train=False))(
        variables, batch["mixture"], batch["condition"]
    )
    kept_BTF = stft(batch["mixture"], window, hop).at[..., -1].set(0)
    expected_BS = istft(kept_BTF, num_samples, window, hop)
    np.testing.assert_allclose(estimate_BS, expected_BS, rtol=0, atol=1e-5)


def test_estimate_does_not_depend_on_the_rest_of_the_batch():
    apply = jax.jit(functools.partial(make_model(SMALLEST).apply, train=False))
    batch = tiny_batch(6, 3)
    whole_BS = apply(tiny_variables(SMALLEST), batch["mixture"], batch["condition"])
    for row in range(3):
        one_BS = apply(
            tiny_variables(SMALLEST),
            batch["mixture"][row : row + 1],
            batch["condition"][row : row + 1],
        )
        np.testing.assert_allclose(whole_BS[row], one_BS[0], rtol=0, atol=1e-6)


def test_condition_changes_the_estimate():
    apply = jax.jit(functools.partial(make_model(SMALLEST).apply, train=False))
    batch = tiny_batch(6, 2)
    one_BS = apply(tiny_variables(SMALLEST), batch["mixture"], batch["condition"])
    other_BS = apply(tiny_variables(SMALLEST), batch["mixture"], batch["condition"][::-1])
    assert np.abs(one_BS - other_BS).max() > 1e-3


def test_unused_weights_are_kept_and_unused():
    variables = tiny_variables(SMALLEST)
    batch = tiny_batch(7, 1)
    apply = functools.partial(make_model(SMALLEST).apply, train=False)

    def energy(params):
        both = {**variables, "params": params}
        return jnp.sum(apply(both, batch["mixture"], batch["condition"]) ** 2)

    gradient = jax.jit(jax.grad(energy))(variables["params"])
    assert not np.any(gradient["base"]["decoder_block1"]["bn2"]["scale"])
    assert not np.any(gradient["film"]["decoder_block1->beta2"]["kernel"])
    assert np.any(gradient["film"]["decoder_block1->beta1"]["kernel"])


def test_bfloat16_convolutions_stay_near_float32():
    batch = tiny_batch(8, 4)
    inputs = (tiny_variables(), batch["mixture"], batch["condition"])
    exact_BS = jax.jit(functools.partial(make_model(TINY).apply, train=False))(*inputs)
    rough = ResUNetConfig(**{**vars(TINY), "dtype": "bfloat16"})
    rough_BS = jax.jit(functools.partial(make_model(rough).apply, train=False))(*inputs)
    assert rough_BS.dtype == np.float32
    error = np.abs(rough_BS - exact_BS).max() / np.abs(exact_BS).max()
    assert 1e-5 < error < 0.02


def test_slots_are_parameters_that_become_conditions():
    model = dataclasses.replace(SMALLEST, slots=2)
    batch, key = tiny_batch(0, 3), jax.random.key(0)
    init = functools.partial(make_model(model).init, train=False)
    variables = jax.jit(init)(key, batch["mixture"], batch["condition"])
    assert jax.tree.map(jnp.shape, variables) == jax.tree.map(jnp.shape, variable_shapes(model))
    slots_RE = unit_slots(variables["params"])
    np.testing.assert_allclose(np.linalg.norm(slots_RE, axis=1), 1, atol=1e-6)
    condition_BKE = with_slots(variables["params"], batch["condition"], 3)
    np.testing.assert_array_equal(condition_BKE[:, 0], batch["condition"])
    np.testing.assert_array_equal(condition_BKE[:, 1:], np.stack([slots_RE] * 3))
    np.testing.assert_array_equal(with_slots(variables["params"], None, 3), condition_BKE[:, 1:])
    assert with_slots({}, batch["condition"], 3) is batch["condition"]


def test_several_conditions_of_a_mixture_are_separated_each():
    model, variables, batch = make_model(SMALLEST), tiny_variables(SMALLEST), tiny_batch(0, 3)
    apply = jax.jit(functools.partial(model.apply, train=False))
    conditions = [tiny_batch(seed, 3)["condition"] for seed in (0, 7)]
    together = apply(variables, batch["mixture"], np.stack(conditions, axis=1))
    for k, condition_BE in enumerate(conditions):
        alone = apply(variables, batch["mixture"], condition_BE)
        np.testing.assert_allclose(together[:, k], alone, atol=1e-6)
