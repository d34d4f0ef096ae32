"""Weights, sounds and a small network, shared by the tests of the separator."""

import ast
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from golden_towers import GOLDEN, recipe, recipe_state

from audiosep_jax.model import variable_shapes
from audiosep_jax.model.resunet import ResUNetConfig
from audiosep_jax.weights.names import BUFFERS, PREFIX, export_separator, import_separator

TINY = ResUNetConfig(
    sample_rate_hz=800,
    window_samples=32,
    hop_samples=8,
    condition_features=6,
    stem_channels=2,
    encoder_channels=(3, 4),
    time_pools=(2, 1),
    frequency_pools=(2, 4),
)

# One level: for what is compiled with gradients and an optimiser, which takes long.
SMALLEST = dataclasses.replace(
    TINY, stem_channels=3, encoder_channels=(4,), time_pools=(2,), frequency_pools=(2,)
)


def published_listing():
    """Names and shapes of the published separator without the buffers of its STFT."""
    lines = (GOLDEN / "resunet30_state_dict.txt").read_text().splitlines()
    shapes = {name: ast.literal_eval(shape) for name, shape, _ in (x.split("\t") for x in lines)}
    buffers = tuple(PREFIX + name for name in BUFFERS)
    return {name: shape for name, shape in shapes.items() if not name.startswith(buffers)}


@functools.cache
def published_variables():
    """The golden weights of ResUNet30, float32."""
    return import_separator(recipe_state(published_listing()), variable_shapes(ResUNetConfig()))


@functools.cache
def tiny_variables(config=TINY):
    """Weights of a small network, none of them 0 or 1, statistics and biases included."""
    shapes = variable_shapes(config)
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), shapes)
    names = {name: tensor.shape for name, tensor in export_separator(zeros)}
    return import_separator(recipe_state(names), shapes)


@functools.cache
def shy_variables(config, scale=30, bias=-0.5):
    """Weights whose probabilities that the target sounds differ, and fall below one half."""
    variables = jax.tree.map(np.copy, tiny_variables(config))
    logit = variables["params"]["base"]["activity"]["logit"]
    logit["kernel"] *= scale
    logit["bias"] += bias
    return variables


def cast(tree, dtype):
    """Floating-point leaves in another precision."""
    return jax.tree.map(
        lambda x: x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x, tree
    )


def unit_rows(seed, rows, columns=TINY.condition_features):
    """Conditions `(rows, columns)` of length 1, float32."""
    rng = np.random.Generator(np.random.PCG64(seed))
    x = rng.standard_normal((rows, columns)).astype(np.float32)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def tiny_batch(seed, rows, num_samples=100):
    """Mixture, target and condition for the small network."""
    target_BS = recipe.waveform(seed, rows, num_samples)
    mixture_BS = target_BS + recipe.waveform(seed + 1, rows, num_samples)
    return {"mixture": mixture_BS, "target": target_BS, "condition": unit_rows(seed, rows)}


_convolve = functools.partial(
    jax.lax.conv_general_dilated,
    window_strides=(1, 1),
    padding="SAME",
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
)


@jax.custom_vjp
def _convolution(x_BTFC, kernel):
    return _convolve(x_BTFC, kernel)


def _kernel_gradient(x_BTFC, gradient_BTFC, height, width):
    frames, bins = x_BTFC.shape[1:3]
    x = jnp.pad(x_BTFC, ((0, 0), (height // 2,) * 2, (width // 2,) * 2, (0, 0)))
    # Turned once and not for every product, which takes a quarter off the time.
    gradient_DN = gradient_BTFC.reshape(-1, gradient_BTFC.shape[3]).T
    channels = x.shape[3]
    parts = [
        (gradient_DN @ x[:, u : u + frames, v : v + bins].reshape(-1, channels)).T
        for u in range(height)
        for v in range(width)
    ]
    return jnp.stack(parts).reshape(height, width, *parts[0].shape)


def _backward(saved, gradient_BTFC):
    x_BTFC, kernel = saved
    turned = kernel[::-1, ::-1].swapaxes(2, 3)
    x_gradient_BTFC = _convolve(gradient_BTFC, turned)
    return x_gradient_BTFC, _kernel_gradient(x_BTFC, gradient_BTFC, *kernel.shape[:2])


_convolution.defvjp(lambda x, kernel: (_convolve(x, kernel), (x, kernel)), _backward)


def fast_gradient_convolution(x_BTFC, kernel):
    """The convolution of the network's blocks, its kernel gradient written out.

    In float64 on a CPU XLA has only a loop nest for that gradient: a minute and a half for a step
    of ResUNet30.
    """
    return _convolution(x_BTFC, kernel)
