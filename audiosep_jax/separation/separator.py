"""A trained separator: loaded once, it takes any number of recordings and sentences."""

import contextlib
import dataclasses
import functools
import hashlib
import math
import numbers
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import jax
import numpy as np

from audiosep_jax.audio import files as audio_files
from audiosep_jax.audio.files import AudioReader
from audiosep_jax.encoders import KINDS, make_encoder
from audiosep_jax.encoders.encoder import TextConfig, TextEncoder
from audiosep_jax.errors import InputError
from audiosep_jax.model.network import ModelConfig
from audiosep_jax.separation.files import Clip, Observer, SeparatedFile, write_estimates
from audiosep_jax.separation.stream import (
    AboveNyquist,
    SeparationStream,
    Stereo,
    Stream,
    Without,
    tiling_for,
)
from audiosep_jax.training import trained

if TYPE_CHECKING:
    from audiosep_jax.encoders.pretrained import AudioEncoder

TEXT_OPTION = "text_model=DIR"


@dataclasses.dataclass(frozen=True, eq=False)
class Separator:
    """Weights, their sizes and the text encoder they were trained with; safe to share by threads.

    from audiosep_jax.audio import files as audio_files
    from audiosep_jax.separation.separator import Separator

    separator = Separator.load("runs/demo")  # or Separator.from_pretrained()
    audio_CS, sample_rate_hz = audio_files.read("street.wav")
    dog_CS = separator.separate(audio_CS, sample_rate_hz, "a dog barking")

    condition_NE = separator.embed_text(["a dog barking", "rain"])
    told = separator.separate_file("street.flac", ["dog.flac", "rain.flac"], condition_NE)
    print(told.share_N)  # how much of the recording's energy each is

    stream = separator.stream(44100, condition_NE, num_channels=2, tile_seconds=0.5)
    for block_CS in microphone:
        estimate_NCS = stream.feed(block_CS)  # at most stream.latency_seconds late
    estimate_NCS = stream.finish()
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
        found = trained.read(source)
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
        return _embed(self.encoder, queries)

    def embed_audio(self, audio: np.ndarray, sample_rate_hz: int) -> np.ndarray:
        """`(1, E)` condition of a sound like the wanted one; InputError where not of CLAP's."""
        if self.text.encoder != "clap":
            raise InputError(
                "an audio query needs weights trained with CLAP, in whose space sounds lie too, "
                f"not with {self.text.encoder}"
            )
        audio_S = audio_files.to_mono(_checked_audio(audio))
        return self._audio_encoder.embed_audio(audio_S, sample_rate_hz)

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hash of the network's sizes, its weights, and the text encoder of training."""
        digest = hashlib.sha256(repr((self.model, self.text_fingerprint)).encode())
        leaves = jax.tree_util.tree_flatten_with_path(jax.device_get(self.variables))[0]
        for path, leaf in leaves:
            digest.update(jax.tree_util.keystr(path).encode())
            digest.update(np.ascontiguousarray(leaf).data)
        return digest.hexdigest()[:16]

    @functools.cached_property
    def _audio_encoder(self) -> "AudioEncoder":
        from audiosep_jax.encoders.pretrained import AudioEncoder

        return AudioEncoder(self.text.source)

    def save_pretrained(self, folder: str | Path, *, name: str = "") -> None:
        """Writes weights, config and model card, in which it is called `name`, to a folder."""
        folder, saved = Path(folder), self._trained()
        trained.write_folder(folder, saved, name or folder.absolute().name)

    def push_to_hub(self, repo_id: str, *, private: bool = False) -> str:
        """Uploads what `save_pretrained` writes to a repository, made where missing; address."""
        from audiosep_jax.weights import hub  # a client that takes long to import

        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, name=repo_id)
            return hub.upload(Path(folder), repo_id, private=private)

    def _trained(self) -> trained.Trained:
        return trained.Trained(
            self.model, self.text, self.text_fingerprint, self.variables, self.step
        )

    def separate(
        self,
        audio: np.ndarray,
        sample_rate_hz: int,
        queries: str | Sequence[str],
        *,
        stereo: Stereo = "channels",
        above_nyquist: AboveNyquist = "drop",
    ) -> np.ndarray:
        """What the queries describe in a recording of any length.

        Args:
            audio: floating-point samples, `(S,)` or `(channels, S)`; integer samples have to be
                scaled to -1..1 first.
            sample_rate_hz: the recording's; it is converted to the model's and back.
            queries: one sentence, or a list of them.
            stereo: `channels` separates each by itself, `mid` all with one mask, as
                `separate_file` does. `above_nyquist` is told there, too.

        Returns:
            float32 of the shape of `audio` for a sentence, `(queries, *audio.shape)` for a list.

        Raises:
            InputError: a query is empty, or the audio is empty, not finite or of another shape.
        """
        estimates = self.separate_conditions(
            audio,
            sample_rate_hz,
            self.embed_text([queries] if isinstance(queries, str) else queries),
            stereo=stereo,
            above_nyquist=above_nyquist,
        )
        return estimates[0] if isinstance(queries, str) else estimates

    def separate_conditions(
        self,
        audio: np.ndarray,
        sample_rate_hz: int,
        condition_NE: np.ndarray,
        *,
        stereo: Stereo = "channels",
        above_nyquist: AboveNyquist = "drop",
    ) -> np.ndarray:
        """As `separate`, for embeddings of what to separate: `(N, *audio.shape)` float32."""
        audio_CS = _checked_audio(audio)
        stream = self.stream(
            sample_rate_hz,
            condition_NE,
            len(audio_CS),
            stereo=stereo,
            above_nyquist=above_nyquist,
            live=False,
        )
        estimate_NCS = np.concatenate([stream.feed(audio_CS), stream.finish()], axis=-1)
        return estimate_NCS.reshape(len(estimate_NCS), *np.shape(audio))

    def separate_file(
        self,
        input: str | Path | AudioReader,
        outputs: Sequence[str | Path],
        condition_NE: np.ndarray,
        *,
        unwanted_ME: np.ndarray | None = None,
        residual: str | Path | None = None,
        stereo: Stereo = "mid",
        above_nyquist: AboveNyquist = "keep",
        output_format: str | None = None,
        subtype: str | None = None,
        clip: Clip | None = None,
        tile_seconds: float | None = None,
        progress: Callable[[float], None] | None = None,
        observe: Observer | None = None,
    ) -> SeparatedFile:
        """Separate a recording of any length into a file for each query, in bounded memory.

        Args:
            input: path of a file that libsndfile reads (or ffmpeg, if installed), or a reader that
                has just opened it and remains open.
            outputs: a path for each row of `condition_NE`. All files appear at the end, or none.
            unwanted_ME: embeddings of sounds that are masked out of the estimates; see `stream`.
            residual: path for the mixture minus all estimates.
            stereo: as in `stream`, and so is `above_nyquist`.
            output_format: libsndfile's name, such as `FLAC`. The default is the input's format, or
                WAV if that cannot be written.
            subtype: libsndfile's name, such as `PCM_16`; the default is the input's.
            clip: for samples beyond -1..1. `clamp` limits them; `rescale` multiplies all files by
                one factor; `none` writes them as they are, and refuses if the subtype cannot hold
                them. The default is `none` for subtypes that can (floating point, Vorbis, Opus,
                MP3), and `rescale` for the others.
            tile_seconds: as in `stream`.
            progress: called after each block with its seconds of audio.
            observe: called after each block with its mixture `(C, S)` and estimates `(N, C, S)`,
                as they are written but for the factor of `rescale`.

        Raises:
            InputError: a file cannot be read or written, or an argument is out of range.
        """
        if len(outputs) != len(condition_NE):
            raise InputError(f"{len(outputs)} outputs for {len(condition_NE)} conditions")
        with contextlib.ExitStack() as stack:
            recording = input if isinstance(input, AudioReader) else AudioReader(input)
            if recording is not input:
                stack.enter_context(recording)
            stream = self.stream(
                recording.sample_rate_hz,
                condition_NE,
                recording.num_channels,
                tile_seconds,
                unwanted_ME=unwanted_ME,
                stereo=stereo,
                above_nyquist=above_nyquist,
                live=False,
            )
            return write_estimates(
                recording,
                stream,
                [Path(path) for path in outputs],
                None if residual is None else Path(residual),
                output_format=output_format,
                subtype=subtype,
                clip=clip,
                progress=progress,
                observe=observe,
            )

    def stream(
        self,
        sample_rate_hz: int,
        condition_NE: np.ndarray,
        num_channels: int = 1,
        tile_seconds: float | None = None,
        *,
        unwanted_ME: np.ndarray | None = None,
        stereo: Stereo = "mid",
        above_nyquist: AboveNyquist = "keep",
        live: bool = True,
    ) -> Stream:
        """Make a stream for sound that arrives in blocks: `.feed(block_CS)`, then `.finish()`.

        Args:
            condition_NE: embeddings of the queries, one row each.
            tile_seconds: seconds of audio that are computed at once. Shorter tiles have less
                latency and cost more. The default depends on the free memory.
            unwanted_ME: embeddings of sounds to remove. They are separated as well, and every bin
                of an estimate's spectrum is multiplied by |wanted| / (|wanted| + |unwanted|).
            stereo: `mid` computes one mask from the mean of the channels, which keeps the stereo
                image; `channels` separates each channel by itself, at as many times the cost.
            above_nyquist: what happens to frequencies above the model's band. `keep` gives them the
                gain that the mask has in its topmost bins, `drop` removes them.
            live: if False, a short recording is computed in one pass at its end, which is faster.

        Raises:
            InputError: an argument is out of range.
        """
        features = self.model.condition_features
        condition_NE = _checked_conditions(condition_NE, features)
        if unwanted_ME is None:
            unwanted_ME = condition_NE[:0]
        _check_stream(sample_rate_hz, num_channels, tile_seconds, stereo, above_nyquist)
        everything_NE = condition_NE
        if len(unwanted_ME):
            unwanted_ME = _checked_conditions(unwanted_ME, features)
            everything_NE = np.concatenate([condition_NE, unwanted_ME])
        masks = 1 if stereo == "mid" else num_channels
        stream = SeparationStream(
            self.model,
            self.variables,
            everything_NE,
            tiling_for(self.model, masks, tile_seconds, live=live),
            sample_rate_hz=int(sample_rate_hz),
            num_channels=num_channels,
            stereo=stereo,
            above_nyquist=above_nyquist,
        )
        if not len(unwanted_ME):
            return stream
        return Without(stream, len(condition_NE), int(sample_rate_hz))


class _Deferred:
    """The text encoder of a config, whose files are fetched when the first sentence comes."""

    def __init__(self, text: TextConfig, fingerprint: str | None, option: str) -> None:
        self.fingerprint = fingerprint or "not known"
        self._text, self._trained_with, self._option = text, fingerprint, option
        if text.encoder == "hashed":  # has no files: its mistakes are told at once
            _ = self._encoder

    @functools.cached_property
    def _encoder(self) -> TextEncoder:
        encoder = make_encoder(self._text)
        if self._trained_with not in (None, encoder.fingerprint):
            raise InputError(
                f"the weights were trained with the text encoder {self._trained_with}; "
                f"this {self._text.encoder} is {encoder.fingerprint}"
            )
        return encoder

    def __call__(self, sentences: Sequence[str]) -> np.ndarray:
        return self._encoder(sentences)


def _embed(encoder: TextEncoder, queries: Sequence[str]) -> np.ndarray:
    if isinstance(queries, str) or not isinstance(queries, Iterable):
        raise InputError(f"queries must be a list of sentences, not {type(queries).__name__}")
    sentences = list(queries)
    if not sentences:
        raise InputError("no query: describe the sound to separate")
    for sentence in sentences:
        if not isinstance(sentence, str):
            raise InputError(f"a query must be a sentence, not {type(sentence).__name__}")
    return encoder([query for sentence in sentences for query in KINDS["text"].read(sentence)])


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


def _check_stream(
    sample_rate_hz: int,
    num_channels: int,
    tile_seconds: float | None,
    stereo: str,
    above_nyquist: str,
) -> None:
    for name, value in (("sample_rate_hz", sample_rate_hz), ("num_channels", num_channels)):
        if not isinstance(value, numbers.Integral) or value < 1:
            raise InputError(f"{name}={value!r} must be a positive whole number")
    if stereo not in get_args(Stereo):
        raise InputError(f"stereo={stereo!r} must be mid or channels")
    if above_nyquist not in get_args(AboveNyquist):
        raise InputError(f"above_nyquist={above_nyquist!r} must be keep or drop")
    if tile_seconds is not None and not 0 < tile_seconds < math.inf:
        raise InputError(f"tile_seconds={tile_seconds!r} must be positive and finite")
