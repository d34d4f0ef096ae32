"""STFT against a written-out Fourier sum, and its inverse to the last sample."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_towers import GOLDEN
from hypothesis import given, settings
from hypothesis import strategies as st

from audiosep_jax.model.stft import istft, num_frames, stft

# Windows and hops, some of which do not divide the window.
GRIDS = ((16, 4), (16, 5), (20, 7), (48, 24), (64, 16))
PUBLISHED = (2048, 320)


def noise(num_samples, seed=0, rows=2):
    return np.random.default_rng(seed).standard_normal((rows, num_samples))


def slow_stft(audio_BS, window_samples, hop_samples):
    """The definition: a loop over frames and a dense Fourier matrix."""
    half = window_samples // 2
    padded_BS = np.pad(audio_BS, ((0, 0), (half, half)), mode="reflect")
    n = np.arange(window_samples)
    hann = np.sin(np.pi * n / window_samples) ** 2
    dft_WF = np.exp(-2j * np.pi * np.outer(n, np.arange(half + 1)) / window_samples)
    starts = range(0, audio_BS.shape[1] + 1, hop_samples)
    frames = [padded_BS[:, s : s + window_samples] * hann @ dft_WF for s in starts]
    return np.stack(frames, axis=1)


@functools.partial(jax.jit, static_argnums=(1, 2))
def there_and_back(audio_BS, window_samples, hop_samples):
    spectrum_BTF = stft(audio_BS, window_samples, hop_samples)
    return istft(spectrum_BTF, audio_BS.shape[1], window_samples, hop_samples)


def round_trip_error(audio_BS, window_samples, hop_samples):
    """Largest error over the peak."""
    back_BS = np.asarray(there_and_back(audio_BS, window_samples, hop_samples))
    assert back_BS.dtype == audio_BS.dtype
    assert back_BS.shape == audio_BS.shape
    return np.abs(back_BS - audio_BS).max() / np.abs(audio_BS).max()


@pytest.mark.parametrize(("window", "hop"), GRIDS)
@pytest.mark.parametrize("num_samples", [1, 7, 9, 80])  # most are shorter than a window
def test_equals_definition(window, hop, num_samples):
    audio_BS = noise(num_samples)
    with jax.enable_x64(True):
        spectrum_BTF = np.asarray(stft(audio_BS, window, hop))
    assert spectrum_BTF.shape[1] == num_frames(num_samples, hop)
    np.testing.assert_allclose(spectrum_BTF, slow_stft(audio_BS, window, hop), rtol=0, atol=1e-12)


@pytest.mark.parametrize("num_samples", [1, 5000])
def test_equals_definition_at_published_sizes(num_samples):
    audio_BS = noise(num_samples).astype(np.float32)
    expected_BTF = slow_stft(audio_BS.astype(np.float64), *PUBLISHED)
    error_BTF = np.asarray(stft(audio_BS, *PUBLISHED)) - expected_BTF
    assert np.abs(error_BTF).max() < 1e-6 * np.abs(expected_BTF).max()


def test_golden_spectrum():
    golden = np.load(GOLDEN / "resunet30_inference_float64.npz")
    mixture_BS = np.load(GOLDEN / "resunet30_inference.npz")["mixture"][:1, 0]
    with jax.enable_x64(True):
        spectrum_TF = np.asarray(stft(mixture_BS.astype(np.float64), *PUBLISHED))[0, :, :8]
    expected_TF = (golden["magnitude"] * (golden["cosine"] + 1j * golden["sine"]))[0, 0]
    np.testing.assert_allclose(spectrum_TF, expected_TF, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("window", "hop"), [(16, 4), (24, 5)])
def test_round_trip_of_every_length(window, hop):
    for num_samples in range(1, 3 * hop + 1):
        with jax.enable_x64(True):
            error = round_trip_error(noise(num_samples, num_samples), window, hop)
        assert error < 1e-12, num_samples


@pytest.mark.parametrize("num_samples", [1, 1025, 9601])
def test_round_trip_at_published_sizes(num_samples):
    assert round_trip_error(noise(num_samples).astype(np.float32), *PUBLISHED) < 1e-5


@settings(deadline=None, max_examples=12)
@given(st.integers(1, 20), st.data())
def test_round_trip_of_any_window(half, data):
    window = 2 * half
    hop = data.draw(st.integers(1, half))
    num_samples = data.draw(st.integers(1, 4 * window))
    with jax.enable_x64(True):
        assert round_trip_error(noise(num_samples, half), window, hop) < 1e-12


def test_gradient_of_round_trip():
    # It is the identity, so half its energy has the signal itself as gradient; silence included.
    audio_BS = noise(50, 3).astype(np.float32)
    gradient = jax.grad(lambda x: 0.5 * jnp.sum(there_and_back(x, 16, 5) ** 2))
    np.testing.assert_allclose(gradient(audio_BS), audio_BS, rtol=0, atol=1e-5)
    assert not np.any(gradient(np.zeros_like(audio_BS)))


def test_no_loop_over_frames():
    # Ten times as many frames may not make a longer program.
    def size(num_samples):
        audio = jax.ShapeDtypeStruct((1, num_samples), np.float32)
        return len(
            jax.make_jaxpr(lambda x: there_and_back(x, 64, 16))(audio).pretty_print().split("\n")
        )

    assert size(640) == size(6400)
