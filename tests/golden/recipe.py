"""Deterministic weights: every tensor is a function of its state-dict name and shape alone."""

import zlib, numpy as np


def tensor(name, shape):
    rng = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode())))
    if name.endswith("num_batches_tracked"):
        return np.zeros((), np.int64)
    x = rng.standard_normal(shape).astype(np.float32)
    if name.endswith("running_mean"):
        return (0.1 * x).astype(np.float32)
    if name.endswith("running_var"):
        return (1.0 + 0.5 * np.tanh(x)).astype(np.float32)
    if name.endswith("bias"):
        return (0.1 * x).astype(np.float32)
    if len(shape) == 1:  # normalisation scales
        return (1.0 + 0.1 * x).astype(np.float32)
    fan_in = int(np.prod(shape[1:]))
    return (x / np.sqrt(fan_in)).astype(np.float32)


def waveform(seed, *shape):
    """Noise bursts under slow envelopes plus three gliding tones, peak below 1; float32."""
    rng = np.random.Generator(np.random.PCG64(seed))
    n = shape[-1]
    t = np.arange(n) / 32000.0
    out = np.zeros(shape, np.float32).reshape(-1, n)
    for i in range(out.shape[0]):
        f0, f1, f2, r = (
            rng.uniform(80, 400),
            rng.uniform(500, 3000),
            rng.uniform(4000, 12000),
            rng.uniform(0.5, 4),
        )
        tone = (
            0.2 * np.sin(2 * np.pi * (f0 * t + 20 * t * t))
            + 0.1 * np.sin(2 * np.pi * f1 * t)
            + 0.05 * np.sin(2 * np.pi * (f2 * t - 300 * t * t))
        )
        noise = 0.1 * rng.standard_normal(n) * (0.5 + 0.5 * np.sin(2 * np.pi * r * t))
        out[i] = (tone + noise).astype(np.float32)
    return out.reshape(shape)
