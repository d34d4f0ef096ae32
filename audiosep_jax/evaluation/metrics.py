"""Signal-to-distortion ratios in dB, by clip, as AudioSep's evaluation states them."""

import jax
import jax.numpy as jnp

POWER_FLOOR = 1e-10  # of SDR's mean squares
SI_SDR_EPSILON = float(jnp.finfo(jnp.float32).eps)


def sdr(reference_BS: jax.Array, estimate_BS: jax.Array) -> jax.Array:
    """`10 log10(mean(ref^2) / mean((est - ref)^2))`, both floored at 1e-10; `(B,)` dB.

    A perfect estimate of a silent reference is 0 dB; nothing is infinite.
    """
    signal_B = jnp.maximum(jnp.mean(reference_BS**2, axis=-1), POWER_FLOOR)
    error_B = jnp.maximum(jnp.mean((estimate_BS - reference_BS) ** 2, axis=-1), POWER_FLOOR)
    return 10 * jnp.log10(signal_B / error_B)


def sdr_improvement(
    reference_BS: jax.Array, estimate_BS: jax.Array, mixture_BS: jax.Array
) -> jax.Array:
    """SDR of the estimate minus SDR of the mixture (SDRi), `(B,)` dB."""
    return sdr(reference_BS, estimate_BS) - sdr(reference_BS, mixture_BS)


def si_sdr(reference_BS: jax.Array, estimate_BS: jax.Array) -> jax.Array:
    """Scale-invariant SDR without mean removal, `(B,)` dB (Le Roux et al., 2019, eq. 3)."""
    epsilon = SI_SDR_EPSILON
    product_B = jnp.sum(reference_BS * estimate_BS, axis=-1, keepdims=True)
    energy_B = jnp.sum(reference_BS**2, axis=-1, keepdims=True)
    scaled_BS = (product_B + epsilon) / (energy_B + epsilon) * reference_BS
    signal_B = jnp.sum(scaled_BS**2, axis=-1)
    error_B = jnp.sum((estimate_BS - scaled_BS) ** 2, axis=-1)
    return 10 * jnp.log10((signal_B + epsilon) / (error_B + epsilon))
