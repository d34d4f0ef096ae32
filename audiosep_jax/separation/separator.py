"""The separator: trained weights, loaded once, for any number of recordings and queries."""

import contextlib
import dataclasses
import functools
import hashlib
import math
import numbers
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, get_args

import jax
import numpy as np
from PIL import Image

from audiosep_jax.audio import files as audio_files
from audiosep_jax.audio.files import AudioReader
from audiosep_jax.cli import naming
from audiosep_jax.encoders import KINDS, make_query_encoder, pictures
from audiosep_jax.encoders.encoder import Encoder, TextConfig
from audiosep_jax.encoders.hashed import words_of
from audiosep_jax.errors import InputError
from audiosep_jax.model.audiosep import unit_slots
from audiosep_jax.model.network import Engine, ModelConfig
from audiosep_jax.separation import AboveNyquist, Clip, EngineName, Precision, Stereo
from audiosep_jax.separation.during import Span, check_spans
from audiosep_jax.separation.engines import OpenVINO, check_bfloat16, choose
from audiosep_jax.separation.files import Observer, SeparatedFile, write_estimates
from audiosep_jax.separation.stream import (
    During,
    SeparationStream,
    Stream,
    Without,
    checked_samples,
    tiling_for,
)
from audiosep_jax.training import trained
from audiosep_jax.training.adapters import with_adapter

MOST_CHANNELS = 8  # an array with more rows than this and than columns needs a transpose


@dataclasses.dataclass(frozen=True, eq=False)
class Separator:
    """Trained weights, their settings, and the encoders of queries; threads may share one.

        separator = Separator.load("runs/demo")
        dog_CS = separator.separate(audio_CS, sample_rate_hz, "a dog barking")

        condition_NE = separator.embed_text(["a dog barking", "rain"])
        done = separator.separate_file("street.flac", ["dog.flac", "rain.flac"], condition_NE)

    `done.presence_N` and `done.spans` tell how much of each is there, and when.
    """

    model: ModelConfig
    variables: Any
    text: TextConfig
    text_fingerprint: str | None  # of the text encoder of training; None if not known
    step: int
    words: tuple[str, ...] = ()  # of the captions, if the text encoder knows no others
    engine: EngineName = "jax"  # runs the network; its precision is `model.dtype`
    _encoders: dict[str, Encoder[Any]] = dataclasses.field(default_factory=dict)  # by kind of query

    @classmethod
    def load(
        cls,
        source: str | Path = trained.SHIPPED,
        *,
        adapter: str | Path = "",
        text_model: str = "",
        engine: EngineName = "auto",
        precision: Precision | None = None,
        gate: bool = True,
    ) -> "Separator":
        """Load a separator from disk or from a hub.

        Args:
            source: a training workdir, of which the checkpoint with the best validation SDRi is
                loaded (or the newest, if none was validated), or a checkpoint in it; what
                `save_pretrained` wrote; a folder or file of AudioSep's own weights; a hub id such
                as `owner/name`; or a name: `small`, the weights in the package, or `audiosep`, the
                published ones.
            adapter: file of an adapter of these weights, or the workdir where it was trained.
            text_model: folder or hub id of the text encoder's files, if not those of training.
            engine: `jax` runs every network on every device; `openvino`, from the extra `cpu`, is
                faster on CPUs. `auto` takes OpenVINO on CPUs if it is installed and the network has
                an ONNX graph.
            precision: of the network. The default is float32 with OpenVINO, and that of training in
                JAX. On CPUs, bfloat16 needs OpenVINO and a processor that has it.
            gate: let estimates fade to silence where a network that was trained to tell finds the
                sound absent.

        Raises:
            InputError: there is no such separator, it is damaged, or the engine or precision cannot
                be used here.
        """
        found = trained.read(source)
        if adapter:
            found = with_adapter(found, Path(adapter))
        engine = choose(engine, found.model)
        if precision == "bfloat16":
            check_bfloat16(engine)
        dtype = precision or ("float32" if engine == "openvino" else found.model.dtype)
        changes: dict[str, Any] = {"dtype": dtype}
        if found.model.activity == "gate" and not gate:
            changes["activity"] = "report"
        model = dataclasses.replace(found.model, **changes)
        text = dataclasses.replace(found.text, model=text_model) if text_model else found.text
        # Restoring puts a copy on each device; one device computes.
        variables = jax.device_put(found.variables, jax.local_devices()[0])
        separator = cls(
            model, variables, text, found.text_fingerprint, found.step, found.words, engine
        )
        if text.encoder == "hashed":  # it has no files, so a mismatch is reported at once
            try:
                separator.encoder("text")
            except InputError as error:
                raise InputError(f"{source}: {error}") from error
        return separator

    from_pretrained = load  # its name in Hugging Face's libraries

    def save_pretrained(self, folder: str | Path, *, name: str = "") -> None:
        """Write weights, config and a model card, which calls it `name`, to a folder."""
        saved = trained.Trained(
            self.model, self.text, self.text_fingerprint, self.variables, self.step, self.words
        )
        trained.write_folder(Path(folder), saved, name or Path(folder).absolute().name)

    def push_to_hub(self, repo_id: str, *, private: bool = False) -> str:
        """Upload what `save_pretrained` writes to a repository, new or not; return its URL."""
        from audiosep_jax.weights import hub  # a client that takes long to import

        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, name=repo_id)
            return hub.upload(Path(folder), repo_id, private=private)

    def on_device(self, device: jax.Device) -> "Separator":
        """Return a separator whose weights are on another device."""
        return dataclasses.replace(self, variables=jax.device_put(self.variables, device))

    @functools.cached_property
    def runner(self) -> Engine | None:
        """The engine with the network's weights; None for JAX."""
        if choose(self.engine, self.model) == "jax":
            return None
        return OpenVINO(self.model, self.variables, self.fingerprint)

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hash of the network's settings, its weights, and the text encoder of training."""
        digest = hashlib.sha256(repr((self.model, self.text_fingerprint)).encode())
        leaves = jax.tree_util.tree_flatten_with_path(jax.device_get(self.variables))[0]
        for path, leaf in leaves:
            digest.update(jax.tree_util.keystr(path).encode())
            digest.update(np.ascontiguousarray(leaf).data)
        return digest.hexdigest()[:16]

    # ------------------------------------------------------------------ queries

    def embed(self, kind: str, queries: Sequence[Any]) -> np.ndarray:
        """Return `(N, E)` embeddings of queries, as `encoders.KINDS[kind].read` returns them."""
        if kind == "blind":
            return self.slots(len(queries))
        return _checked_conditions(self.encoder(kind)(queries), self.model.condition_features)

    def encoder(self, kind: str) -> Encoder[Any]:
        """Return the encoder of a kind of queries, which is made when it is first used."""
        if kind not in self._encoders:
            encoder = make_query_encoder(kind, self.text)
            is_that_of_training = kind in ("text", "voice")
            if is_that_of_training and self.text_fingerprint not in (None, encoder.fingerprint):
                raise InputError(
                    f"the weights were trained with the text encoder {self.text_fingerprint}; "
                    f"this {self.text.encoder} is {encoder.fingerprint}"
                )
            self._encoders[kind] = encoder
        return self._encoders[kind]

    def is_unknown(self, sentence: str) -> bool:
        """Return whether no word of a sentence was in training, so that its result means little."""
        return bool(self.words) and not {*words_of([sentence])} & {*self.words}

    def slots(self, count: int) -> np.ndarray:
        """Return the first `count` conditions `(N, E)` that were learnt without a query."""
        known = self.model.slots
        if not known:
            raise InputError("the weights need queries: they were trained without model.slots")
        if count > known:
            raise InputError(f"the weights find {known} parts without a query, not {count}")
        return np.asarray(unit_slots(self.variables["params"]))[:count]

    def embed_text(self, queries: Sequence[str]) -> np.ndarray:
        """Return `(N, E)` embeddings of sentences; InputError if one is empty or not a string."""
        if isinstance(queries, str) or not isinstance(queries, Iterable):
            raise InputError(f"queries must be a list of sentences, not {type(queries).__name__}")
        sentences = list(queries)
        if not sentences or not all(isinstance(sentence, str) for sentence in sentences):
            raise InputError(f"a query must be a sentence; {sentences[:1]} is none")
        return self.embed("text", [x for text in sentences for x in KINDS["text"].read(text)])

    def embed_audio(self, audio: np.ndarray, sample_rate_hz: int) -> np.ndarray:
        """Return the `(1, E)` embedding of a sound like the wanted one; needs CLAP's encoders."""
        audio_S = audio_files.to_mono(_checked_audio(audio))
        return self.embed("audio_query", [(audio_S, sample_rate_hz)])

    def embed_image(
        self, picture: str | Path | Image.Image, region: tuple[int, int, int, int] | None = None
    ) -> np.ndarray:
        """Return the `(1, E)` embedding of what makes the sound; needs CLIP's encoders.

        Args:
            picture: a picture, or the path of one or of a film.
            region: the only part that counts: left, top, width and height in pixels.
        """
        if isinstance(picture, (str, Path)):
            return self.embed("image", KINDS["image"].read(str(picture), region))
        return self.embed("image", [pictures.square(picture, region)[None]])

    # ------------------------------------------------------------------ separation

    def separate(
        self,
        audio: np.ndarray,
        sample_rate_hz: int,
        queries: str | Sequence[str],
        *,
        during: Sequence[Span] = (),
        stereo: Stereo = "channels",
        above_nyquist: AboveNyquist = "drop",
    ) -> np.ndarray:
        """Separate what the queries describe from a recording of any length.

        Args:
            audio: floating-point samples, `(S,)` or `(channels, S)`. Scale integers to -1..1 first.
            sample_rate_hz: rate of the recording and of the result.
            queries: one sentence, or a list of them.
            during: spans (start, end) in seconds outside of which all estimates are silent.
            stereo, above_nyquist: as in `stream`.

        Returns:
            float32 of the shape of `audio` for a sentence, `(queries, *audio.shape)` for a list.

        Raises:
            InputError: a query is empty, or the audio is empty, not finite or of another shape.
        """
        condition_NE = self.embed_text([queries] if isinstance(queries, str) else queries)
        estimates = self.separate_conditions(
            audio,
            sample_rate_hz,
            condition_NE,
            during_N=[during] * len(condition_NE),
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
        during_N: Sequence[Sequence[Span]] = (),
        stereo: Stereo = "channels",
        above_nyquist: AboveNyquist = "drop",
    ) -> np.ndarray:
        """Separate as `separate`, for embeddings; return `(N, *audio.shape)` float32."""
        audio_CS = _checked_audio(audio)
        stream = self.stream(
            sample_rate_hz,
            condition_NE,
            len(audio_CS),
            during_N=during_N,
            stereo=stereo,
            above_nyquist=above_nyquist,
            live=False,
        )
        for spans in during_N:
            check_spans(spans, audio_CS.shape[1] / sample_rate_hz)
        estimate_NCS = np.concatenate([stream.feed(audio_CS), stream.finish()], axis=-1)
        return estimate_NCS.reshape(len(estimate_NCS), *np.shape(audio))

    def separate_file(
        self,
        input: str | Path | AudioReader,
        outputs: Sequence[str | Path],
        condition_NE: np.ndarray,
        *,
        unwanted_ME: np.ndarray | None = None,
        during_N: Sequence[Sequence[Span]] = (),
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
            during_N: spans of each query, which begin before the recording ends; see `stream`.
            residual: path for the mixture minus all estimates.
            stereo, above_nyquist, tile_seconds: as in `stream`.
            output_format: libsndfile's name, such as `FLAC`. The default is the input's format, or
                WAV if that cannot be written.
            subtype: libsndfile's name, such as `PCM_16`; the default is the input's.
            clip: for samples beyond -1..1. `clamp` limits them; `rescale` multiplies all files by
                one factor; `none` writes them as they are, and refuses if the subtype cannot hold
                them. The default is `none` for subtypes that can (floating point, Vorbis, Opus,
                MP3), and `rescale` for the others.
            progress: called after each block with its seconds of audio.
            observe: called after each block with its mixture `(C, S)` and estimates `(N, C, S)`,
                as they are written but for the factor of `rescale`.

        Raises:
            InputError: a file cannot be read or written, or an argument is out of range.
        """
        if len(outputs) != len(condition_NE):
            raise InputError(f"{len(outputs)} outputs for {len(condition_NE)} conditions")
        with contextlib.ExitStack() as stack:
            recording = input
            if not isinstance(recording, AudioReader):
                recording = stack.enter_context(AudioReader(recording))
            stream = self.stream(
                recording.sample_rate_hz,
                condition_NE,
                recording.num_channels,
                tile_seconds,
                unwanted_ME=unwanted_ME,
                during_N=during_N,
                stereo=stereo,
                above_nyquist=above_nyquist,
                live=False,
            )
            for spans in during_N:
                with naming(str(recording.path)):
                    check_spans(spans, recording.num_samples / recording.sample_rate_hz)
            return write_estimates(
                recording,
                stream,
                [Path(path) for path in outputs],
                None if residual is None else Path(residual),
                output_format,
                subtype,
                clip,
                progress,
                observe,
            )

    def stream(
        self,
        sample_rate_hz: int,
        condition_NE: np.ndarray,
        num_channels: int = 1,
        tile_seconds: float | None = None,
        *,
        unwanted_ME: np.ndarray | None = None,
        during_N: Sequence[Sequence[Span]] = (),
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
            during_N: for each query, spans (start, end) in seconds outside of which its estimate is
                silent, with a fade of 10 ms on either side. A query without spans has none.
            stereo: `mid` computes one mask from the mean of the channels, which keeps the stereo
                image; `channels` separates each channel by itself, at as many times the cost.
            above_nyquist: what happens to frequencies above the model's band. `keep` gives them the
                gain that the mask has in its topmost bins, `drop` removes them.
            live: if False, a short recording is computed in one pass at its end, which is faster.

        Raises:
            InputError: an argument is out of range.
        """
        for name, value in (("sample_rate_hz", sample_rate_hz), ("num_channels", num_channels)):
            if not isinstance(value, numbers.Integral) or value < 1:
                raise InputError(f"{name}={value!r} must be a positive whole number")
        if stereo not in get_args(Stereo) or above_nyquist not in get_args(AboveNyquist):
            raise InputError(f"stereo={stereo!r}, above_nyquist={above_nyquist!r}: no such choice")
        if tile_seconds is not None and not 0 < tile_seconds < math.inf:
            raise InputError(f"tile_seconds={tile_seconds!r} must be positive and finite")
        features = self.model.condition_features
        wanted_NE = every_NE = _checked_conditions(condition_NE, features)
        if unwanted_ME is not None and len(unwanted_ME):
            every_NE = np.concatenate([wanted_NE, _checked_conditions(unwanted_ME, features)])
        if len(during_N) not in (0, len(wanted_NE)):
            raise InputError(f"spans of {len(during_N)} queries for {len(wanted_NE)} conditions")
        for spans in during_N:
            check_spans(spans)
        masks = 1 if stereo == "mid" else num_channels
        stream = SeparationStream(
            self.model,
            self.variables,
            every_NE,
            tiling_for(self.model, masks, tile_seconds, live=live),
            engine=self.runner,
            sample_rate_hz=int(sample_rate_hz),
            num_channels=num_channels,
            stereo=stereo,
            above_nyquist=above_nyquist,
        )
        kept: SeparationStream | Without = stream
        if len(every_NE) > len(wanted_NE):
            kept = Without(stream, len(wanted_NE), int(sample_rate_hz))
        return During(kept, during_N, int(sample_rate_hz)) if any(during_N) else kept


def _checked_audio(audio: np.ndarray) -> np.ndarray:
    """float32 `(channels, S)`."""
    audio = np.asarray(audio)
    shape = audio.shape
    if len(shape) not in (1, 2):
        raise InputError(f"audio of shape {shape} must be (samples,) or (channels, samples)")
    if audio.size == 0:
        raise InputError(f"audio of shape {shape} contains no samples")
    if len(shape) == 2 and shape[0] > max(shape[1], MOST_CHANNELS):
        raise InputError(
            f"audio of shape {shape} would be {shape[0]} channels of {shape[1]} samples; "
            "transpose it to (channels, samples)"
        )
    return checked_samples(np.atleast_2d(audio))


def _checked_conditions(condition_NE: np.ndarray, features: int) -> np.ndarray:
    """float32 `(N, E)`."""
    condition_NE = np.asarray(condition_NE, np.float32)
    shape = condition_NE.shape
    if len(shape) != 2 or shape[0] == 0 or shape[1] != features:
        raise InputError(f"conditions of shape {shape} must be (queries, {features})")
    if not np.isfinite(condition_NE).all():
        raise InputError("conditions contain NaN or infinite numbers")
    return condition_NE
