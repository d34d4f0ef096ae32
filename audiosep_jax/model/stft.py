"""Short-time Fourier transform and its exact inverse.

In the whole package, the suffix of a name states the array's shape, with one letter for each axis:

    B batch    S samples    T STFT frames    F frequency bins    C channels
    E query embedding    K clips in a mixture    L tokens    N items of a list
"""

import jax
import jax.numpy as jnp
import numpy as np

SQUARED_WINDOW_FLOOR = 1e-11  # torchlibrosa's clamp on the summed squared window


def num_frames(num_samples: int, hop_samples: int) -> int:
    """Frames of the centred STFT of `num_samples` samples."""
    return num_samples // hop_samples + 1


def hann_window(window_samples: int) -> np.ndarray:
    """Periodic Hann window, float64, `(window_samples,)`."""
    return 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window_samples) / window_samples)


def stft(audio_BS: jax.Array, window_samples: int, hop_samples: int) -> jax.Array:
    """Complex spectrum `(B, T, F)` with T = S // hop + 1 and F = window // 2 + 1.

    Frames are centred: the signal is padded by half a window at either end, with its reflection. A
    signal that is shorter than that is reflected repeatedly, as `np.pad(mode="reflect")` does, and
    a single sample is repeated. PyTorch rejects such inputs, so no reference exists for them.
    """
    half = window_samples // 2
    padded_BS = jnp.pad(audio_BS, ((0, 0), (half, half)), mode="reflect")
    num = num_frames(audio_BS.shape[1], hop_samples)
    return padded_stft(padded_BS, num, window_samples, hop_samples)


def padded_stft(padded_BS: jax.Array, num: int, window_samples: int, hop_samples: int) -> jax.Array:
    """Spectrum `(B, num, F)` of an already padded signal; frame t starts at sample t * hop."""
    window_W = jnp.asarray(hann_window(window_samples), padded_BS.dtype)
    return jnp.fft.rfft(_frame(padded_BS, num, window_samples, hop_samples) * window_W)


def istft(
    spectrum_BTF: jax.Array, num_samples: int, window_samples: int, hop_samples: int
) -> jax.Array:
    """Waveform `(B, S)` of `num_samples` samples; inverts `stft` exactly, up to the last sample.

    Overlapping frames are weighted by the window once more, and their sum is divided by the sum of
    the squared windows, so that analysis and synthesis cancel at every sample. This requires
    `hop_samples <= window_samples // 2`; otherwise the last samples would be in no frame.
    """
    half = window_samples // 2
    inside_T = jnp.ones(spectrum_BTF.shape[1], bool)
    audio_BS = padded_istft(spectrum_BTF, inside_T, window_samples, hop_samples)
    return audio_BS[:, half : half + num_samples]


def padded_istft(
    spectrum_BTF: jax.Array, inside_T: jax.Array, window_samples: int, hop_samples: int
) -> jax.Array:
    """Padded waveform of the frames that are `inside_T`; the others are ignored."""
    frames_BTW = jnp.fft.irfft(spectrum_BTF, n=window_samples)
    window_W = jnp.asarray(hann_window(window_samples), frames_BTW.dtype)
    window_TW = jnp.where(inside_T[:, None], window_W, 0)
    weight_BS = _overlap_add(window_TW[None] ** 2, hop_samples)
    audio_BS = _overlap_add(frames_BTW * window_TW, hop_samples)
    return audio_BS / jnp.maximum(weight_BS, SQUARED_WINDOW_FLOOR)


def _frame(audio_BS: jax.Array, num: int, window_samples: int, hop_samples: int) -> jax.Array:
    """Frames `(B, num, W)`, a hop apart, as a concatenation of shifted views of whole hops."""
    hops_per_window = -(-window_samples // hop_samples)
    num_hops = num + hops_per_window - 1
    missing = max(0, num_hops * hop_samples - audio_BS.shape[1])
    padded_BS = jnp.pad(audio_BS, ((0, 0), (0, missing)))[:, : num_hops * hop_samples]
    hops_BTH = padded_BS.reshape(-1, num_hops, hop_samples)
    views = [hops_BTH[:, shift : shift + num] for shift in range(hops_per_window)]
    return jnp.concatenate(views, axis=-1)[..., :window_samples]


def _overlap_add(frames_BTW: jax.Array, hop_samples: int) -> jax.Array:
    """Sum of frames that are a hop apart, `(B, S)`; the transpose of `_frame`."""
    batch, num, window_samples = frames_BTW.shape
    hops_per_window = -(-window_samples // hop_samples)
    missing = hops_per_window * hop_samples - window_samples
    padded_BTW = jnp.pad(frames_BTW, ((0, 0), (0, 0), (0, missing)))
    parts_BTRH = padded_BTW.reshape(batch, num, hops_per_window, hop_samples)
    total_BTH = sum(
        jnp.pad(parts_BTRH[:, :, shift], ((0, 0), (shift, hops_per_window - 1 - shift), (0, 0)))
        for shift in range(hops_per_window)
    )
    return jnp.reshape(total_BTH, (batch, -1))
