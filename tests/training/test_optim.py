"""The optimiser against PyTorch's formula and PyTorch itself, and the schedules at their edges."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from audiosep_jax.errors import InputError
from audiosep_jax.training.optim import OptimConfig, learning_rate, make_optimizer

RATE = 1e-2
BETAS = (0.9, 0.99)
CONSTANT = OptimConfig(learning_rate=RATE, b2=BETAS[1], warmup="none")


def gradients(num_steps=50, dtype=np.float64):
    """Shrinking, so that the largest second moment soon lies in the past; one is always zero."""
    rng = np.random.default_rng(0)
    scale = np.geomspace(10, 1e-3, num_steps)[:, None]
    values = scale * rng.standard_normal((num_steps, 5))
    values[:, 3] = 0
    return values.astype(dtype)


def run(config, gradients_N, start=None):
    """Parameters after each update, from zeros unless a start is given."""
    optimizer = make_optimizer(config)
    params = jnp.zeros_like(gradients_N[0]) if start is None else jnp.asarray(start)
    state, history = optimizer.init(params), []

    @jax.jit
    def update(params, state, gradient):
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    for gradient in gradients_N:
        params, state = update(params, state, gradient)
        history.append(np.asarray(params))
    return np.stack(history)


def pytorch_formula(gradients_N, start, weight_decay=0.0, amsgrad=True):
    """torch.optim.adamw._single_tensor_adamw, transcribed."""
    (b1, b2), params = BETAS, start.astype(np.float64)
    mu, nu, nu_max, history = 0.0, 0.0, 0.0, []
    for count, gradient in enumerate(gradients_N.astype(np.float64), start=1):
        params = params * (1 - RATE * weight_decay)
        mu = mu + (gradient - mu) * (1 - b1)
        nu = nu * b2 + (1 - b2) * gradient**2
        nu_max = np.maximum(nu_max, nu)
        denominator = np.sqrt(nu_max if amsgrad else nu) / (1 - b2**count) ** 0.5 + 1e-8
        params = params - RATE / (1 - b1**count) * mu / denominator
        history.append(params)
    return np.stack(history)


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("amsgrad", [True, False])
def test_equals_pytorch_formula(weight_decay, amsgrad):
    start = np.linspace(-1, 1, 5)
    config = OptimConfig(**{**vars(CONSTANT), "weight_decay": weight_decay, "amsgrad": amsgrad})
    expected = pytorch_formula(gradients(), start, weight_decay, amsgrad)
    with jax.enable_x64(True):
        np.testing.assert_allclose(run(config, gradients(), start), expected, rtol=0, atol=1e-12)
    actual = run(config, gradients(dtype=np.float32), start.astype(np.float32))
    assert actual.dtype == np.float32
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_equals_pytorch(weight_decay):
    torch = pytest.importorskip("torch")
    start = np.linspace(-1, 1, 5)
    parameter = torch.nn.Parameter(torch.tensor(start))
    optimizer = torch.optim.AdamW(
        [parameter], lr=RATE, betas=BETAS, eps=1e-8, weight_decay=weight_decay, amsgrad=True
    )
    config = OptimConfig(**{**vars(CONSTANT), "weight_decay": weight_decay})
    with jax.enable_x64(True):
        actual = run(config, gradients(), start)
    for gradient, params in zip(gradients(), actual, strict=True):
        parameter.grad = torch.tensor(gradient)
        optimizer.step()
        np.testing.assert_allclose(params, parameter.detach().numpy(), rtol=0, atol=1e-12)


def test_is_not_the_amsgrad_of_optax():
    params, optimizer = jnp.zeros(5), optax.amsgrad(RATE, *BETAS)
    state = optimizer.init(params)
    for gradient in gradients(dtype=np.float32):
        updates, state = optimizer.update(gradient, state)
        params = optax.apply_updates(params, updates)
    ours = run(CONSTANT, gradients(dtype=np.float32))[-1]
    assert np.abs(params - ours).max() > 0.05 * np.abs(ours).max()


@pytest.mark.parametrize(
    ("step", "rate"),
    [
        (0, 1e-6),
        (9_999, 1e-6),
        (10_000, 1e-5),
        (19_999, 1e-5),
        (20_000, 1e-4),
        (29_999, 1e-4),
        (30_000, 1e-3),
        (4_000_000, 1e-3),
    ],
)
def test_staircase(step, rate):
    assert learning_rate(OptimConfig(), step) == pytest.approx(rate, rel=1e-6)
    traced = jax.jit(lambda s: learning_rate(OptimConfig(), s))(jnp.int32(step))
    assert traced == pytest.approx(rate, rel=1e-6)


@pytest.mark.parametrize(("step", "rate"), [(0, 0.1), (1, 0.2), (8, 0.9), (9, 1), (10, 1), (99, 1)])
def test_linear_ramp(step, rate):
    config = OptimConfig(learning_rate=1.0, warmup="linear", warmup_steps=10)
    assert learning_rate(config, step) == pytest.approx(rate, rel=1e-6)


@pytest.mark.parametrize(("step", "rate"), [(0, 1), (25, 0.8535534), (50, 0.5), (100, 0), (200, 0)])
def test_cosine(step, rate):
    config = OptimConfig(learning_rate=1.0, warmup="none", decay_steps=100)
    assert learning_rate(config, step) == pytest.approx(rate, abs=1e-6)


def test_ramp_and_cosine_multiply():
    config = OptimConfig(learning_rate=2.0, warmup="linear", warmup_steps=50, decay_steps=100)
    assert learning_rate(config, 24) == pytest.approx(0.5 * (1 + np.cos(0.24 * np.pi)), rel=1e-6)


def test_warmup_of_no_steps_is_none():
    for warmup in ("staircase", "linear", "none"):
        assert learning_rate(OptimConfig(warmup=warmup, warmup_steps=0), 0) == pytest.approx(1e-3)


def test_schedule_counts_updates():
    # Adam's first steps of a constant gradient all have the length of the rate.
    config = OptimConfig(learning_rate=1.0, warmup="linear", warmup_steps=4)
    moves = -np.diff(run(config, np.ones((6, 1), np.float32))[:, 0], prepend=0)
    np.testing.assert_allclose(moves, [0.25, 0.5, 0.75, 1, 1, 1], rtol=1e-5)


def test_clipping_scales_only_gradients_that_are_too_long():
    raw = gradients(dtype=np.float32)
    lengths = np.linalg.norm(raw, axis=1, keepdims=True)
    assert lengths.min() < 1 < lengths.max()
    clipped = raw * np.minimum(1, 1 / lengths)
    config = OptimConfig(**{**vars(CONSTANT), "clip_norm": 1.0})
    np.testing.assert_allclose(run(config, raw), run(CONSTANT, clipped), rtol=0, atol=1e-6)
    assert np.abs(run(config, raw) - run(CONSTANT, raw)).max() > 1e-3


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"warmup": "cosine"}, "warmup"),
        ({"warmup_steps": -1}, "steps"),
        ({"clip_norm": -1.0}, "clip_norm"),
        ({"b2": 1.0}, "b2"),
        ({"ema_decay": 1.0}, "ema_decay"),
        ({"accumulate_steps": 0}, "accumulate_steps=0"),
        ({"max_skipped_steps": -1}, "max_skipped_steps=-1"),
    ],
)
def test_impossible_settings_are_refused(changes, word):
    with pytest.raises(InputError, match=word):
        OptimConfig(**changes)
