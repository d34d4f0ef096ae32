"""A trained separator: loaded once, it takes any number of recordings and sentences."""

import dataclasses
import functools
import numbers
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from audiosep_jax import audio_io, hub, trained
from audiosep_jax.audio_encoders.clap import AudioEncoder
from audiosep_jax.audiosep import AudioSep
from audiosep_jax.errors import InputError
from audiosep_jax.model_card import model_card
from audiosep_jax.resunet import ModelConfig
from audiosep_jax.text.encoder import TextConfig, TextEncoder, embed_queries, make_encoder

TEXT_OPTION = "text_model=DIR"


@dataclasses.dataclass(frozen=True, eq=False)
class Separator:
    """Weights, their sizes and the text encoder they were trained with; safe to share by threads.

    separator = Separator.load("runs/demo")
    dog_CS = separator.separate(audio_CS, 44100, "a dog barking")
    """

    model: ModelConfig
    variables: Any
    encoder: TextEncoder
    step: int
    text: TextConfig
    text_fingerprint: str | None  # of the encoder of training; None where not known
    text_option: str = TEXT_OPTION  # for messages: how a user names a local text encoder

    @classmethod
    def load(cls, path: str | Path) -> "Separator":
        """The separator that training left in `path`.

        Args:
            path: a training workdir, of which the checkpoint with the best validation SDRi is
                taken (the newest where none was validated), or one checkpoint in it, such as
                `runs/demo/checkpoints/00003000`.

        Raises:
            InputError: no checkpoint is there, or it is damaged, of another architecture, or made
                with another text encoder than this version's.
        """
        return cls._of(trained.read_checkpoint(Path(path)), "", TEXT_OPTION, Path(path))

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path = trained.PUBLISHED,
        *,
        text_model: str = "",
        option: str = 'Separator.from_pretrained("DIR")',
        text_option: str = TEXT_OPTION,
    ) -> "Separator":
        """The separator that lies at `source`, fetched from a hub where it is not here yet.

        Args:
            source: what `save_pretrained` or `push_to_hub` wrote, as a folder or as a hub id such
                as `owner/name`; a training workdir or a checkpoint in it; a folder, file or hub id
                of AudioSep's own weights; or `audiosep`, the published ones.
            text_model: folder or hub id of the text encoder, where not the one of training.
            option: how a user names a local `source`, for messages; `text_option` a `text_model`.

        Raises:
            InputError: there is nothing of the kind, or it is damaged.
        """
        found = trained.read(source, option=option)
        return cls._of(found, text_model, text_option, source)

    @classmethod
    def _of(
        cls, found: trained.Trained, text_model: str, text_option: str, source: str | Path
    ) -> "Separator":
        text = dataclasses.replace(found.text, model=text_model) if text_model else found.text
        try:
            encoder = _Deferred(text, found.text_fingerprint, text_option)
        except InputError as error:
            raise InputError(f"{source}: {error}") from error
        # One device computes; restoring puts a copy on each.
        variables = jax.device_put(found.variables, jax.local_devices()[0])
        fingerprint = found.text_fingerprint
        return cls(found.model, variables, encoder, found.step, text, fingerprint, text_option)

    def embed_text(self, queries: Sequence[str]) -> np.ndarray:
        """`(N, E)` conditions of sentences; InputError where one is empty or no text."""
        return _embed(self.encoder, list(queries))

    def embed_audio(self, audio: np.ndarray, sample_rate_hz: int) -> np.ndarray:
        """`(1, E)` condition of a sound like the wanted one; InputError where not of CLAP's."""
        if self.text.encoder != "clap":
            raise InputError(
                "an audio query needs weights trained with CLAP, in whose space sounds lie too, "
                f"not with {self.text.encoder}"
            )
        audio_S = audio_io.to_mono(_checked_audio(audio))
        return self._audio_encoder.embed_audio(audio_S, sample_rate_hz)

    @functools.cached_property
    def _audio_encoder(self) -> AudioEncoder:
        return AudioEncoder(self.text.source, option=self.text_option)

    def save_pretrained(self, folder: str | Path, *, name: str = "") -> None:
        """Writes weights, config and model card, in which it is called `name`, to a folder."""
        folder, saved = Path(folder), self._trained()
        trained.write_folder(folder, saved)
        trained.write_text(folder / "README.md", model_card(saved, name or folder.absolute().name))

    def push_to_hub(self, repo_id: str, *, private: bool = False) -> str:
        """Uploads what `save_pretrained` writes to a repository, made where missing; address."""
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, name=repo_id)
            return hub.upload(Path(folder), repo_id, private=private)

    def _trained(self) -> trained.Trained:
        return trained.Trained(
            self.model, self.text, self.text_fingerprint, self.variables, self.step
        )

    def separate(
        self, audio: np.ndarray, sample_rate_hz: int, queries: str | Sequence[str]
    ) -> np.ndarray:
        """What the queries describe in a recording.

        Args:
            audio: floating-point samples, `(S,)` or `(channels, S)`, each channel separated by
                itself; integer samples have to be scaled to -1..1 first.
            sample_rate_hz: the recording's; it is converted to the model's and back.
            queries: one sentence, or a list of them.

        Returns:
            float32 of the shape of `audio` for a sentence, `(queries, *audio.shape)` for a list.

        Raises:
            InputError: a query is empty, or the audio is empty, not finite or of another shape.
        """
        sentences = [queries] if isinstance(queries, str) else list(queries)
        estimates = self.separate_conditions(audio, sample_rate_hz, self.embed_text(sentences))
        return estimates[0] if isinstance(queries, str) else estimates

    def separate_conditions(
        self, audio: np.ndarray, sample_rate_hz: int, condition_NE: np.ndarray
    ) -> np.ndarray:
        """As `separate`, for embeddings of what to separate: `(N, *audio.shape)` float32."""
        audio_CS = _checked_audio(audio)
        condition_NE = _checked_conditions(condition_NE, self.model.condition_features)
        if not isinstance(sample_rate_hz, numbers.Integral) or sample_rate_hz < 1:
            raise InputError(f"sample_rate_hz={sample_rate_hz!r} must be a positive whole number")
        rate_hz, model_hz = int(sample_rate_hz), self.model.sample_rate_hz
        mixture_CS = audio_io.resample(audio_CS, rate_hz, model_hz)
        estimate_NCS = np.asarray(_estimate(self.model, self.variables, mixture_CS, condition_NE))
        # Rounded up on either way: never shorter than the input.
        flat = estimate_NCS.reshape(-1, estimate_NCS.shape[-1])
        back = audio_io.resample(flat, model_hz, rate_hz)[:, : audio_CS.shape[1]]
        return back.reshape(len(condition_NE), *np.shape(audio))


@functools.partial(jax.jit, static_argnames="model")
def _estimate(
    model: ModelConfig, variables: Any, mixture_CS: jax.Array, condition_NE: jax.Array
) -> jax.Array:
    """`(N, channels, S)`: every query in every channel, as one batch."""
    queries, channels = len(condition_NE), len(mixture_CS)
    mixture_BS = jnp.tile(mixture_CS, (queries, 1))
    condition_BE = jnp.repeat(condition_NE, channels, axis=0)
    estimate_BS: Any = AudioSep(model).apply(variables, mixture_BS, condition_BE, train=False)
    return estimate_BS.reshape(queries, *mixture_CS.shape)


class _Deferred:
    """The text encoder of a config, whose files are fetched when the first sentence comes."""

    stored = True

    def __init__(self, text: TextConfig, fingerprint: str | None, option: str) -> None:
        self.fingerprint = fingerprint or "not known"
        self._text, self._trained_with, self._option = text, fingerprint, option
        if text.encoder == "hashed":  # has no files: its mistakes are told at once
            _ = self._encoder

    @functools.cached_property
    def _encoder(self) -> TextEncoder:
        encoder = make_encoder(self._text, option=self._option)
        if self._trained_with not in (None, encoder.fingerprint):
            raise InputError(
                f"the weights were trained with the text encoder {self._trained_with}; "
                f"this {self._text.encoder} is {encoder.fingerprint}"
            )
        return encoder

    def __call__(self, sentences: Sequence[str]) -> np.ndarray:
        return self._encoder(sentences)


def _embed(encoder: TextEncoder, sentences: list[str]) -> np.ndarray:
    if not sentences:
        raise InputError("no query: describe the sound to separate")
    for sentence in sentences:
        if not isinstance(sentence, str):
            raise InputError(f"a query must be a sentence, not {type(sentence).__name__}")
        if any("\ud800" <= letter <= "\udfff" for letter in sentence):
            raise InputError(f"the query {sentence!r} is not valid text")
    return embed_queries(encoder, sentences)


def _checked_audio(audio: np.ndarray) -> np.ndarray:
    """float32 `(channels, S)`."""
    audio = np.asarray(audio)
    if not np.issubdtype(audio.dtype, np.floating):
        raise InputError(
            f"audio of type {audio.dtype} must be floating point: scale it to -1..1 first"
        )
    if audio.ndim not in (1, 2):
        raise InputError(f"audio of shape {audio.shape} must be (samples,) or (channels, samples)")
    if audio.size == 0:
        raise InputError(f"audio of shape {audio.shape} contains no samples")
    audio_CS = np.atleast_2d(audio).astype(np.float32, copy=False)
    if not np.isfinite(audio_CS).all():
        raise InputError("audio contains NaN or infinite samples")
    return audio_CS


def _checked_conditions(condition_NE: np.ndarray, features: int) -> np.ndarray:
    """float32 `(N, E)`."""
    condition_NE = np.asarray(condition_NE, np.float32)
    shape = condition_NE.shape
    if len(shape) != 2 or shape[0] == 0 or shape[1] != features:
        raise InputError(f"conditions of shape {shape} must be (queries, {features})")
    if not np.isfinite(condition_NE).all():
        raise InputError("conditions contain NaN or infinite numbers")
    return condition_NE
