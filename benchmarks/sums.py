"""Why sums of estimates are too quiet, and what helps: spectra of single frames and a small MLP.

    python benchmarks/sums.py

Sixteen kinds of sounds are spectra of 64 complex bins. The network masks a mixture, given a kind.
It is trained on mixtures of two recordings, of one or of two sounds each, and scored on mixtures of
two single sounds at 0 dB. The loss and the remixing are those of the package in this small form, so
that a cause can be tried in seconds: a row takes about ten seconds of one core for two seeds. The
last column is the gain that would fit the estimates best, in the median.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

KINDS, FRAMES, BINS, HIDDEN = 16, 8, 64, 192
ROWS, STEPS, NUM_TEST = 8, 800, 200
REMIX = 0.3
# Each row says how many sounds a recording has, the share of mixtures of only one recording,
# whether the rest is asked for, too, and how many rows of the batch lie between the two mixtures
# whose estimates are remixed: 0 is the same mixture, and None is no remixing.
VARIANTS: dict[str, tuple[int, float, bool, int | None]] = {
    "single sounds": (1, 0, False, None),
    "sums of the target": (2, 0, False, None),
    "half of the recordings alone": (2, 0.5, False, None),
    "sums of target and rest": (2, 0, True, None),
    "the same, remixed": (2, 0, True, 1),
    "the same, each mixture remixed by itself": (2, 0, True, 0),
}


def smooth(x: np.ndarray) -> np.ndarray:
    """Moving average over the last axis, as a circle."""
    window = np.hanning(11)[1:-1]
    padded = np.pad(x, [(0, 0)] * (x.ndim - 1) + [(9, 9)], mode="wrap")
    rows = [
        np.convolve(row, window / window.sum(), "same") for row in padded.reshape(-1, BINS + 18)
    ]
    return np.reshape(rows, padded.shape)[..., 9:-9]


def sounds(rng: np.random.Generator, count: int) -> np.ndarray:
    """Complex spectra `(KINDS, count, FRAMES, BINS)` of power 1: a shape of each kind, varied."""
    shape_KB = smooth(np.random.default_rng(5).standard_normal((KINDS, BINS)))
    level_db = 12 * shape_KB[:, None, None] / shape_KB.std()
    level_db = level_db + 12 * smooth(rng.standard_normal((KINDS, count, 1, BINS)))
    level_db = level_db + 3 * rng.standard_normal((KINDS, count, FRAMES, 1))
    noise = rng.standard_normal((2, KINDS, count, FRAMES, BINS))
    sound = 10 ** (level_db / 20) * (noise[0] + 1j * noise[1])
    return sound / np.sqrt(power(sound))[..., None, None]


def power(x: Any) -> Any:
    return (abs(x) ** 2).mean(axis=(-1, -2))


def batch(
    rng: np.random.Generator, pool: np.ndarray, rows: int, per_recording: int, alone: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mixtures, targets, and the kinds in each mixture, those of the target first."""
    kinds = np.stack([rng.permutation(KINDS)[: 2 * per_recording] for _ in range(rows)])
    parts = pool[kinds, rng.integers(pool.shape[1], size=kinds.shape)]
    gain_db = rng.uniform(-5, 5, kinds.shape) * (per_recording > 1)
    parts = parts * 10 ** (gain_db / 20)[..., None, None]
    target, rest = parts[:, :per_recording].sum(1), parts[:, per_recording:].sum(1)
    level = np.sqrt(power(target) / power(rest)) * 10 ** (rng.uniform(-10, 10, rows) / 20)
    level *= rng.random(rows) >= alone
    mixture = target + level[:, None, None] * rest
    return mixture.astype(np.complex64), target.astype(np.complex64), kinds


def masked(params: Any, mixture: Any, kinds: Any) -> jax.Array:
    """Estimates `(rows, kinds, FRAMES, BINS)`."""
    x = jnp.log(abs(mixture) + 1e-2)[:, None]
    for inner, query in params["hidden"]:
        x = jax.nn.relu(x @ inner + query[kinds][:, :, None])
    return jax.nn.sigmoid(x @ params["out"]) * mixture[:, None]


def init(key: jax.Array) -> Any:
    keys, hidden = iter(jax.random.split(key, 5)), []
    for width, scale in ((BINS, 4.0), (HIDDEN, 1.0)):
        inner = jax.random.normal(next(keys), (width, HIDDEN)) / width**0.5
        hidden.append((inner, scale * jax.random.normal(next(keys), (KINDS, HIDDEN)) / KINDS**0.5))
    return {"hidden": hidden, "out": 0.3 * jax.random.normal(next(keys), (HIDDEN, BINS)) / 14}


def snr_loss(estimate: jax.Array, target: jax.Array, mixture: jax.Array) -> jax.Array:
    """The term `thresholded_snr` of the package."""
    silent = power(target) < 1e-6 * power(mixture)
    reference = jnp.where(silent, power(mixture), power(target)) + 1e-9
    error = power(estimate - target) / reference + jnp.where(silent, 1e-2, 1e-3)
    return 10 * jnp.log10(error).mean()


def trained(variant: tuple[int, float, bool, int | None], seed: int) -> Any:
    per_recording, alone, both, distance = variant
    schedule = optax.warmup_cosine_decay_schedule(0, 3e-3, 100, STEPS)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule))

    def loss(params: Any, mixture: Any, target: Any, kinds: Any) -> jax.Array:
        asked = kinds if both else kinds[:, :per_recording]
        estimates = masked(params, mixture, asked)
        value = snr_loss(estimates[:, :per_recording].sum(1), target, mixture)
        if not both:
            return value
        rest = estimates[:, per_recording:].sum(1)
        value = (value + snr_loss(rest, mixture - target, mixture)) / 2
        if distance is None:
            return value
        first, own = jnp.moveaxis(jax.lax.stop_gradient(estimates[:, ::per_recording]), 1, 0)
        other = jnp.roll(own, distance, axis=0)
        other *= jnp.sqrt(power(own) / (power(other) + 1e-9))[:, None, None]
        pair = jnp.stack([first, other], axis=1)
        asked = jnp.stack([kinds[:, 0], jnp.roll(kinds[:, per_recording], distance)], axis=1)
        again = masked(params, pair.sum(1), asked)
        return value + REMIX * snr_loss(again, pair, pair.sum(1)[:, None])

    @jax.jit
    def step(params: Any, moments: Any, *rows: Any) -> tuple[Any, Any]:
        updates, moments = optimizer.update(jax.grad(loss)(params, *rows), moments)
        return optax.apply_updates(params, updates), moments

    rng, pool = np.random.default_rng(seed), sounds(np.random.default_rng(1), 60)
    params = init(jax.random.key(seed))
    moments = optimizer.init(params)
    for _ in range(STEPS):
        params, moments = step(params, moments, *batch(rng, pool, ROWS, per_recording, alone))
    return params


def scores(params: Any) -> np.ndarray:
    """SDRi, SI-SDRi and the best gain in dB, means and median over mixtures of two sounds."""
    rng, pool = np.random.default_rng(99), sounds(np.random.default_rng(2), 20)
    kinds = np.stack([rng.permutation(KINDS)[:2] for _ in range(NUM_TEST)])
    target, rest = np.moveaxis(pool[kinds, rng.integers(20, size=kinds.shape)], 1, 0)
    estimate = np.asarray(masked(params, target + rest, kinds[:, :1])[:, 0])
    gain = (target * estimate.conj()).real.mean(axis=(1, 2)) / power(estimate)
    scale = gain * power(estimate) / power(target)
    distortion = power(estimate - scale[:, None, None] * target) / (scale**2 * power(target))
    sdr = 10 * np.log10(power(target) / power(estimate - target))
    columns = sdr, -10 * np.log10(distortion), 20 * np.log10(np.abs(gain))
    return np.array([columns[0].mean(), columns[1].mean(), np.median(columns[2])])


def main() -> None:
    print("| trained on | SDRi | SI-SDRi | best gain |\n|---|---|---|---|")
    for name, variant in VARIANTS.items():
        cells = np.stack([scores(trained(variant, seed)) for seed in (0, 1)], axis=1)
        shown = (", ".join(f"{x:.2f}" for x in cell) for cell in cells)
        print(f"| {name} | {' | '.join(shown)} |", flush=True)


if __name__ == "__main__":
    main()
