"""The voice encoder: the network against PyTorch, and how recordings become its windows."""

import os
import sys

import jax.numpy as jnp
import numpy as np
import pytest
import soundfile
from golden_towers import recipe
from tiny_models import write_voice

from audiosep_jax.encoders import KINDS, ge2e, make_caption_encoder, make_query_encoder
from audiosep_jax.encoders.encoder import TextConfig, file_caption
from audiosep_jax.encoders.ge2e import WINDOW_SAMPLES, VoiceEncoder, embed_mel, windows
from audiosep_jax.errors import InputError
from audiosep_jax.weights.torch_files import read_state_dict, write_torch

RATE_HZ = 16_000
VOICE_S = recipe.waveform(0, 3 * RATE_HZ)


@pytest.fixture
def weights(tmp_path):
    return write_voice(tmp_path / "voice.pt")


def test_the_network_is_pytorchs(weights):
    torch = pytest.importorskip("torch")
    state = {name: torch.from_numpy(x.copy()) for name, x in read_state_dict(weights).items()}
    lstm, linear = torch.nn.LSTM(40, 4, 3, batch_first=True), torch.nn.Linear(4, 256)
    for name, module in (("lstm.", lstm), ("linear.", linear)):
        own = {key.removeprefix(name): x for key, x in state.items() if key.startswith(name)}
        module.load_state_dict(own)
    mel_BTF = np.random.default_rng(0).exponential(size=(2, 30, 40)).astype(np.float32)
    with torch.no_grad():
        expected_BE = torch.relu(linear(lstm(torch.from_numpy(mel_BTF))[1][0][-1]))
    expected_BE /= expected_BE.norm(dim=1, keepdim=True)
    params = {name: jnp.asarray(x.numpy()) for name, x in state.items()}
    np.testing.assert_allclose(embed_mel(params, mel_BTF), expected_BE, rtol=0, atol=1e-5)


def test_windows_overlap_by_half_and_reach_the_end():
    wave_NS = windows(np.arange(1, 3.1 * WINDOW_SAMPLES, dtype=np.float32))
    starts_N = wave_NS[:, 0] / wave_NS[0, 0] - 1
    half = WINDOW_SAMPLES // 2
    np.testing.assert_allclose(starts_N, [0, half, 2 * half, 3 * half, 4 * half, 4.2 * half], 1e-3)
    assert np.mean(np.square(wave_NS)) == pytest.approx(10 ** (ge2e.LEVEL_DB / 10), rel=1e-4)


def test_silence_is_left_out_and_a_short_voice_is_repeated():
    silence_S, voice_S = np.zeros(6 * WINDOW_SAMPLES, np.float32), VOICE_S[:WINDOW_SAMPLES]
    before_S, wave_S, after_S = windows(np.concatenate([silence_S, voice_S, silence_S]))
    half, gain = WINDOW_SAMPLES // 2, wave_S[0] / voice_S[0]
    np.testing.assert_allclose(wave_S, gain * voice_S, rtol=1e-5)
    np.testing.assert_allclose([before_S[half:], after_S[:half]], wave_S.reshape(2, half))
    assert windows(silence_S[:100]).shape == (1, WINDOW_SAMPLES)
    (wave_S,) = windows(VOICE_S[:RATE_HZ])
    np.testing.assert_array_equal(wave_S[RATE_HZ:], wave_S[: WINDOW_SAMPLES - RATE_HZ])


def test_a_voice_is_the_mean_of_its_windows_at_any_level(weights):
    encoder = VoiceEncoder(str(weights))
    params = {name: jnp.asarray(x) for name, x in read_state_dict(weights).items()}
    mean_E = np.mean(ge2e.embed_windows(params, windows(VOICE_S)), axis=0)
    centred_E = mean_E / np.linalg.norm(mean_E) - ge2e.MEAN_E
    expected_E = centred_E / np.linalg.norm(centred_E)
    tone_S = np.sin(np.arange(9000, dtype=np.float32) / 2)
    rows_NE = encoder([(VOICE_S, RATE_HZ), (VOICE_S / 100, RATE_HZ), (tone_S, RATE_HZ)])
    np.testing.assert_allclose(rows_NE[:2], [expected_E] * 2, rtol=0, atol=1e-5)
    np.testing.assert_allclose(rows_NE[2:], encoder([(tone_S, RATE_HZ)]), atol=1e-6)
    assert np.abs(rows_NE[2] - expected_E).max() > 1e-3
    assert encoder([]).shape == (0, 256)


def test_captions_are_recordings(weights, tmp_path):
    soundfile.write(tmp_path / "a.wav", VOICE_S, RATE_HZ, subtype="FLOAT")
    config = TextConfig(encoder="voice", model=str(weights))
    caption = file_caption("voice", str(tmp_path / "a.wav"))
    query_NE = make_query_encoder("voice", config)(KINDS["voice"].read(str(tmp_path / "a.wav")))
    np.testing.assert_array_equal(make_caption_encoder("voice", config)([caption]), query_NE)
    np.testing.assert_allclose(
        query_NE, VoiceEncoder(str(weights))([(VOICE_S, RATE_HZ)]), atol=1e-6
    )
    os.utime(tmp_path / "a.wav", (0, 0))
    assert file_caption("voice", str(tmp_path / "a.wav")) != caption


def test_weights_of_the_installed_package_are_found_without_importing_it(tmp_path, monkeypatch):
    with pytest.raises(InputError, match="pip install --no-deps resemblyzer"):
        VoiceEncoder()
    path = write_voice(tmp_path / "resemblyzer" / "pretrained.pt")
    (path.parent / "__init__.py").write_text("raise SystemExit")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert VoiceEncoder().fingerprint == VoiceEncoder(str(path)).fingerprint
    assert "resemblyzer" not in sys.modules
    with pytest.raises(InputError, match="nothing: no such file"):
        VoiceEncoder("nothing")
    write_torch(path, {"linear.bias": np.ones(3)}, lightning=False)
    with pytest.raises(InputError, match="does not hold a GE2E network"):
        VoiceEncoder(str(path))([(VOICE_S, RATE_HZ)])
