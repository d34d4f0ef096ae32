"""GE2E: a recurrent network that tells speakers apart, here the encoder of recordings of voices.

It is the network of the package `resemblyzer` (Wan et al., "Generalized End-to-End Loss for Speaker
Verification", 2018), whose weights are read from the installed package without importing it.
"""

import functools
import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from audiosep_jax.audio import files as audio_files
from audiosep_jax.encoders.clap_audio import MelConfig, mel_power
from audiosep_jax.encoders.layers import unit_norm
from audiosep_jax.errors import InputError
from audiosep_jax.weights import hub
from audiosep_jax.weights.torch_files import read_state_dict

VERSION = 1  # part of the fingerprint: raise it when the same file comes to give other embeddings
PACKAGE, WEIGHTS = "resemblyzer", "pretrained.pt"
NUM_LAYERS, DIMENSIONS = 3, 256
MEL = MelConfig(
    feature_size=40,
    sampling_rate=16_000,
    hop_length=160,
    fft_window_size=400,
    frequency_min=0.0,
    frequency_max=8_000.0,
)
NUM_FRAMES = 160  # of a window
WINDOW_SAMPLES = NUM_FRAMES * MEL.hop_length
LEVEL_DB = -22.0  # RMS of what the network hears; its mel bands are powers, not logarithms
SILENCE_DB = -25.0  # windows so far below the loudest one are left out
# The mean of many speakers, without which all vectors would be alike: cosines of 0.5 and more.
MEAN_E = np.load(Path(__file__).with_name("mean_voice.npy"))
_BATCH_WINDOWS = 64

Params = Mapping[str, jax.Array]  # by PyTorch's names


def lstm(params: Params, layer: int, x_BTC: jax.Array) -> jax.Array:
    """Run one layer of PyTorch's `nn.LSTM` from zero states: its outputs (B, T, C)."""
    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    input_GC, hidden_GC, *biases = (params[f"lstm.{name}_l{layer}"] for name in names)
    gates_TBG = jnp.swapaxes(x_BTC @ input_GC.T + sum(biases), 0, 1)

    def step(state: tuple[jax.Array, jax.Array], gates_BG: jax.Array) -> tuple:
        hidden_BC, cell_BC = state
        gates = jnp.split(gates_BG + hidden_BC @ hidden_GC.T, 4, axis=1)
        input_gate, forget_gate, output_gate = (jax.nn.sigmoid(gates[i]) for i in (0, 1, 3))
        cell_BC = forget_gate * cell_BC + input_gate * jnp.tanh(gates[2])
        hidden_BC = output_gate * jnp.tanh(cell_BC)
        return (hidden_BC, cell_BC), hidden_BC

    zero_BC = jnp.zeros((len(x_BTC), hidden_GC.shape[1]), x_BTC.dtype)
    hidden_TBC: jax.Array
    _, hidden_TBC = jax.lax.scan(step, (zero_BC, zero_BC), gates_TBG)
    return jnp.swapaxes(hidden_TBC, 0, 1)


def embed_mel(params: Params, mel_BTF: jax.Array) -> jax.Array:
    """Unit vectors (B, E) of mel powers: the network as it was trained."""
    x_BTC = mel_BTF
    for layer in range(NUM_LAYERS):
        x_BTC = lstm(params, layer, x_BTC)
    last_BE = x_BTC[:, -1] @ params["linear.weight"].T + params["linear.bias"]
    return unit_norm(jax.nn.relu(last_BE))


@jax.jit
def embed_windows(params: Params, wave_BS: jax.Array) -> jax.Array:
    """Unit vectors (B, E) of windows of `WINDOW_SAMPLES`."""
    with jax.default_matmul_precision("float32"):
        return embed_mel(params, mel_power(MEL, wave_BS)[:, :NUM_FRAMES])


def windows(audio_S: np.ndarray) -> np.ndarray:
    """Cut mono sound at 16 kHz into half overlapping windows (N, S), at the same level.

    A short sound is repeated. Windows of silence are left out.
    """
    if len(audio_S) < WINDOW_SAMPLES:
        audio_S = np.resize(audio_S, WINDOW_SAMPLES)
    last = len(audio_S) - WINDOW_SAMPLES
    starts = np.minimum(np.arange(0, last + WINDOW_SAMPLES // 2, WINDOW_SAMPLES // 2), last)
    wave_NS = audio_S[starts[:, None] + np.arange(WINDOW_SAMPLES)]
    power_N = np.mean(np.square(wave_NS, dtype=np.float64), axis=1)
    heard_N = power_N >= power_N.max() * 10 ** (SILENCE_DB / 10)
    gain = np.sqrt(10 ** (LEVEL_DB / 10) / max(np.mean(power_N[heard_N]), 1e-20))
    return (wave_NS[heard_N] * gain).astype(np.float32)


def find_weights(source: str = "") -> Path:
    """Find the file of weights: `source`, or that of the installed package `resemblyzer`."""
    if source:
        return Path(source)
    package = importlib.util.find_spec(PACKAGE)  # which does not import it
    for folder in package.submodule_search_locations or () if package else ():
        return Path(folder) / WEIGHTS
    raise InputError(
        f"the voice encoder has no weights: pip install --no-deps {PACKAGE}, "
        f"or set text.model to the path of its {WEIGHTS}"
    )


class VoiceEncoder:
    """Who speaks, as a vector; the weights are read when the first sound comes.

    Args:
        source: a file of weights; empty for that of the installed package `resemblyzer`.
    """

    def __init__(self, source: str = "") -> None:
        self._path = find_weights(source)
        if not self._path.is_file():
            raise InputError(f"{self._path}: no such file of weights of the voice encoder")
        self.fingerprint = f"voice-{VERSION}-{hub.file_hash(self._path)[:32]}"

    def __call__(self, sounds: Sequence[tuple[np.ndarray, int]]) -> np.ndarray:
        """Return `(N, 256)` float32 unit vectors of mono sounds `(S,)` with their rates in Hz."""
        embedding_NE = np.zeros((len(sounds), DIMENSIONS), np.float32)
        if len(sounds):
            rate_hz = MEL.sampling_rate
            parts = [windows(audio_files.resample(x[None], hz, rate_hz)[0]) for x, hz in sounds]
            owners_N = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
            np.add.at(embedding_NE, owners_N, self._embed(np.concatenate(parts)))
        return np.asarray(unit_norm(unit_norm(jnp.asarray(embedding_NE)) - MEAN_E))

    def _embed(self, wave_NS: np.ndarray) -> np.ndarray:
        rows = []
        for start in range(0, len(wave_NS), _BATCH_WINDOWS):
            batch_BS = wave_NS[start : start + _BATCH_WINDOWS]
            extra = (1 << (len(batch_BS) - 1).bit_length()) - len(batch_BS)  # few shapes to compile
            rows_BE = embed_windows(self._params, np.pad(batch_BS, ((0, extra), (0, 0))))
            rows.append(np.asarray(rows_BE)[: len(batch_BS)])
        return np.concatenate(rows)

    @functools.cached_property
    def _params(self) -> Params:
        params = read_state_dict(self._path, prefixes=("lstm.", "linear."))
        if not {"linear.weight", f"lstm.bias_hh_l{NUM_LAYERS - 1}"} <= params.keys():
            raise InputError(f"{self._path}: does not hold a GE2E network")
        return {name: jnp.array(x, jnp.float32) for name, x in params.items()}
