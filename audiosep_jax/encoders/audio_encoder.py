"""CLAP's audio encoder: sounds into the space that captions are embedded in."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from audiosep_jax.audio import files as audio_files
from audiosep_jax.encoders import clap_audio, mel, model_files
from audiosep_jax.encoders import names as tower_names
from audiosep_jax.encoders.encoder import DEFAULT_MODELS, MODEL_OPTION
from audiosep_jax.errors import InputError

VERSION = 1  # as that of the text encoders
AUDIO_NAMES = ("audio_model.", "audio_projection.")
PREPROCESSOR = "preprocessor_config.json"


class AudioEncoder:
    """CLAP's audio tower from the same files as its text tower, read when the first sound comes.

    encoder = AudioEncoder("laion/larger_clap_general")
    condition_NE = encoder.embed_audio(example_S, 44100)
    """

    def __init__(
        self,
        source: str = DEFAULT_MODELS["clap"],
        *,
        batch_size: int = 32,
        option: str = MODEL_OPTION,
    ) -> None:
        """`source`: hub id, folder, or a checkpoint with LAION's names in it."""
        self._files = model_files.find_model(source, (PREPROCESSOR,), option=option)
        self.batch_size = batch_size
        if self._files.folder is None:
            self.tower, self.mel = clap_audio.HTSAT_BASE, mel.MelConfig()
            paths = [self._files.weights]
        else:
            self.tower = clap_audio.HtsatConfig.from_dict(self._files.config())
            self.mel = mel.MelConfig.from_dict(self._files.config(PREPROCESSOR))
            names = ("config.json", PREPROCESSOR)
            paths = [self._files.weights, *(self._files.folder / name for name in names)]
        self.fingerprint = model_files.fingerprint("clap-audio", VERSION, paths)

    def embed_audio(
        self, audio: np.ndarray | Sequence[np.ndarray], sample_rate_hz: int
    ) -> np.ndarray:
        """`(N, E)` float32 unit vectors of one mono clip `(S,)`, of `(N, S)` or of a list of clips.

        Of a clip above 10 s the middle counts; a shorter one is repeated.
        """
        if isinstance(audio, np.ndarray):
            audio = np.atleast_2d(audio)
        embedding_NE = np.empty((len(audio), self.tower.projection_dim), np.float32)
        for start in range(0, len(audio), self.batch_size):
            batch = audio[start : start + self.batch_size]
            if isinstance(batch, np.ndarray):
                wave_BS = self._fitted(batch, sample_rate_hz)
            else:
                wave_BS = np.concatenate([self._fitted(x[None], sample_rate_hz) for x in batch])
            embedding_NE[start : start + len(batch)] = self._embed(wave_BS)
        return embedding_NE

    def __call__(self, queries: Sequence[tuple[np.ndarray, int]]) -> np.ndarray:
        """Return `(N, E)` float32 unit vectors of mono sounds `(S,)` with their rates in Hz."""
        rows = [self.embed_audio(audio_S, rate_hz) for audio_S, rate_hz in queries]
        return np.concatenate([np.empty((0, self.tower.projection_dim), np.float32), *rows])

    def _fitted(self, audio_BS: np.ndarray, sample_rate_hz: int) -> np.ndarray:
        """The tower's 10 s at its own rate."""
        if audio_BS.ndim != 2 or audio_BS.size == 0 or not np.isfinite(audio_BS).all():
            raise InputError(
                f"a clip of shape {audio_BS.shape[1:]} must be (samples,), not empty, and finite"
            )
        audio_BS = audio_BS.astype(np.float32, copy=False)
        wave_BS = audio_files.resample(audio_BS, sample_rate_hz, self.mel.sampling_rate)
        return np.asarray(mel.fit_clip(self.mel, jnp.asarray(wave_BS)))

    def _embed(self, wave_BS: np.ndarray) -> np.ndarray:
        """Embeddings of a batch, padded to one of a few sizes."""
        num_rows = 1 << (len(wave_BS) - 1).bit_length()
        padded_BS = np.pad(wave_BS, ((0, num_rows - len(wave_BS)), (0, 0)))
        features_BTF = mel.features(self.mel, jnp.asarray(padded_BS))
        return np.asarray(clap_audio.embed(self.tower, self._params, features_BTF))[: len(wave_BS)]

    @functools.cached_property
    def _params(self) -> Any:
        params = tower_names.clap_audio_params(self.tower, self._files.state(AUDIO_NAMES))
        return jax.device_put(model_files.to_float32(params), jax.local_devices()[0])
