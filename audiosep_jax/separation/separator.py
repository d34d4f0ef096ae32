"""A trained separator: loaded once, it takes any number of recordings and sentences."""

import dataclasses
import functools
import hashlib
import math
import numbers
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from audiosep_jax.audio import files as audio_files
from audiosep_jax.audio.files import AudioReader
from audiosep_jax.encoders import make_encoder
from audiosep_jax.encoders.encoder import TextConfig, TextEncoder, embed_queries
from audiosep_jax.errors import InputError
from audiosep_jax.model.resunet import ModelConfig
from audiosep_jax.separation.files import Clip, SeparatedFile, separate_recording
from audiosep_jax.separation.stream import (
    AboveNyquist,
    SeparationStream,
    Stereo,
    frames_that_fit,
    queries_at_once,
    tile_frames_of,
)
from audiosep_jax.training import trained
from audiosep_jax.training.model_card import model_card

if TYPE_CHECKING:
    from audiosep_jax.encoders.audio_encoder import AudioEncoder

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
        from audiosep_jax.encoders.audio_encoder import AudioEncoder

        return AudioEncoder(self.text.source, option=self.text_option)

    def save_pretrained(self, folder: str | Path, *, name: str = "") -> None:
        """Writes weights, config and model card, in which it is called `name`, to a folder."""
        folder, saved = Path(folder), self._trained()
        trained.write_folder(folder, saved)
        trained.write_text(folder / "README.md", model_card(saved, name or folder.absolute().name))

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
        input: str | Path,
        outputs: Sequence[str | Path],
        condition_NE: np.ndarray,
        *,
        residual: str | Path | None = None,
        stereo: Stereo = "mid",
        above_nyquist: AboveNyquist = "keep",
        output_format: str | None = None,
        subtype: str | None = None,
        clip: Clip | None = None,
        tile_seconds: float | None = None,
        progress: Callable[[float], None] | None = None,
    ) -> SeparatedFile:
        """Separates a file of any length into one file for each condition, in bounded memory.

        Args:
            input: what libsndfile reads, or ffmpeg where it is installed.
            outputs: a path for each row of `condition_NE`; all appear at the end, or none.
            residual: where to write the mixture minus all the estimates.
            stereo: `mid` computes one mask from the mean of the channels, which keeps the image;
                `channels` separates each by itself, at as many times the cost.
            above_nyquist: of what lies above the model's band, `keep` the share that the mask
                leaves in the topmost bins, or `drop` it.
            output_format: as libsndfile calls it, such as `FLAC`; the input's where None, or WAV
                where that cannot be written. `subtype`, such as `PCM_16`, likewise.
            clip: what is beyond -1..1: `clamp` limits it, `rescale` multiplies all files with one
                factor, `none` writes it to files that hold it (of floating-point numbers, Vorbis,
                Opus, MP3) and refuses it to others. None is `none` for those and else `rescale`.
            tile_seconds: how much is computed at once: more is faster and takes more memory. By
                the memory that is free where None.
            progress: called with the seconds of audio that were finished since its last call.

        Raises:
            InputError: a file cannot be read or written, or an argument makes no sense.
        """
        if len(outputs) != len(condition_NE):
            raise InputError(f"{len(outputs)} outputs for {len(condition_NE)} conditions")

        def start(recording: AudioReader) -> SeparationStream:
            rate_hz, channels = recording.sample_rate_hz, recording.num_channels
            options: dict[str, Any] = {"stereo": stereo, "above_nyquist": above_nyquist}
            return self.stream(rate_hz, condition_NE, channels, tile_seconds, **options, live=False)

        return separate_recording(
            start,
            Path(input),
            [Path(path) for path in outputs],
            residual=None if residual is None else Path(residual),
            output_format=output_format,
            subtype=subtype,
            clip=clip,
            progress=progress,
        )

    def stream(
        self,
        sample_rate_hz: int,
        condition_NE: np.ndarray,
        num_channels: int = 1,
        tile_seconds: float | None = None,
        *,
        stereo: Stereo = "mid",
        above_nyquist: AboveNyquist = "keep",
        live: bool = True,
    ) -> SeparationStream:
        """For sound that is still coming: `.feed(audio_CS)` gives what is ready, `.finish()` the
        rest, in all the length of what was fed; nothing comes later than `.latency_seconds`.

        Args:
            tile_seconds: how much is computed at once; less is sooner and costs more.
            live: if not, a short recording waits for its end and one pass, which is faster.
        """
        condition_NE = _checked_conditions(condition_NE, self.model.condition_features)
        whole = {"sample_rate_hz": sample_rate_hz, "num_channels": num_channels}
        for name, value in whole.items():
            if not isinstance(value, numbers.Integral) or value < 1:
                raise InputError(f"{name}={value!r} must be a positive whole number")
        if stereo not in ("mid", "channels"):
            raise InputError(f"stereo={stereo!r} must be mid or channels")
        if above_nyquist not in ("keep", "drop"):
            raise InputError(f"above_nyquist={above_nyquist!r} must be keep or drop")
        if tile_seconds is not None and not 0 < tile_seconds < math.inf:
            raise InputError(f"tile_seconds={tile_seconds!r} must be positive and finite")
        masks = 1 if stereo == "mid" else num_channels
        tile_frames, whole_frames = frames_that_fit(self.model, masks)
        if tile_seconds is not None:
            tile_frames = tile_frames_of(self.model, tile_seconds)
            whole_frames = 2 * tile_frames
        return SeparationStream(
            self.model,
            self.variables,
            condition_NE,
            sample_rate_hz=int(sample_rate_hz),
            num_channels=num_channels,
            stereo=stereo,
            above_nyquist=above_nyquist,
            tile_frames=tile_frames,
            whole_frames=0 if live else whole_frames,
            group=queries_at_once(self.model, masks, tile_frames),
        )


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
