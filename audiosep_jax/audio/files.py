"""Read and write audio files, whole or block by block."""

import contextlib
import io
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import numpy as np
import soundfile

from audiosep_jax import files, remote
from audiosep_jax.audio.decoding import REPAIR, UNKNOWN_FRAMES, AudioError, open_decoder, reason
from audiosep_jax.audio.resampling import Resampler, resample
from audiosep_jax.audio.writing import INTEGER_BITS, OGG_CHANNELS, UNBOUNDED, AudioWriter, write
from audiosep_jax.errors import InputError

__all__ = [
    "INTEGER_BITS",
    "RECORDING_SUFFIXES",
    "UNBOUNDED",
    "AudioError",
    "AudioReader",
    "AudioWriter",
    "Resampler",
    "mono_blocks",
    "read",
    "read_segment",
    "resample",
    "suffix_of",
    "to_mono",
    "writable_format",
    "write",
]

# Lower-case suffixes of the recordings that are looked for in folders: first what libsndfile reads,
# then what ffmpeg decodes where it is installed. A file that is named explicitly may have any.
RECORDING_SUFFIXES = (
    *(".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".wave", ".aif", ".aiff", ".aifc", ".au"),
    *(".snd", ".caf", ".w64", ".rf64"),
    *(".m4a", ".m4b", ".mp4", ".m4v", ".mov", ".3gp", ".3g2", ".mkv", ".mka", ".webm", ".avi"),
    *(".aac", ".ac3", ".eac3", ".dts", ".amr", ".ape", ".wv", ".tta", ".spx", ".wma", ".wmv"),
    *(".asf", ".flv", ".mp2", ".mpg", ".mpeg", ".ts", ".mts", ".m2ts", ".vob", ".mxf", ".ogv"),
)
_PLAUSIBLE_RATE_HZ = range(100, 10_000_001)
_READ_FRAMES = 1 << 20
_FILTER_SAMPLES = 4096  # at the lower rate; more than half of the resampler's filter
_OGG_PAGE_SAMPLES = 1 << 17
_SUFFIXES = {"VORBIS": "ogg", "OPUS": "opus", "WAVEX": "wav", "RF64": "wav", "AIFF": "aiff"}


class AudioReader:
    """An open recording, read in blocks.

        with AudioReader("street.flac") as recording:
            first_CS = recording.read(recording.sample_rate_hz)

    ffmpeg, if it is installed, decodes files that libsndfile cannot, such as videos. Their sound
    keeps its time: silence is put where it starts late or has gaps.

    Args:
        max_seconds: longer recordings are refused, and not decoded to their end.

    Raises:
        AudioError: the file cannot be used. `read` raises it too, for errors that show only then.
    """

    sample_rate_hz: int
    num_channels: int
    num_samples: int  # that the decoder delivers
    local: Path  # `path`, or its copy if it is remote
    format: str  # libsndfile's name, such as WAV
    subtype: str  # such as PCM_16

    def __init__(self, path: str | os.PathLike[str], max_seconds: float = 1e9) -> None:
        self.path, self._max_seconds = Path(path), max_seconds
        self._fetched = contextlib.ExitStack()
        try:
            self.local = self._fetched.enter_context(remote.fetched(path))
            self._file, is_decoded = open_decoder(self.local, max_seconds)
        except BaseException as error:
            self._fetched.close()
            if type(error) is InputError:  # of the URL: this recording alone cannot be used
                raise AudioError(error) from error
            raise
        self.sample_rate_hz, self.num_channels = self._file.samplerate, self._file.channels
        self.format, self.subtype = self._file.format, self._file.subtype
        if is_decoded:  # ffmpeg writes the extensible variant, which has another name
            self.format = "WAV"
        order = OGG_CHANNELS.get(self.num_channels) if self.format == "OGG" else None
        self._order = order or slice(None)
        self._num_read = 0
        try:
            if self.sample_rate_hz not in _PLAUSIBLE_RATE_HZ:
                raise AudioError(
                    f"{path}: its header states a sample rate of {self.sample_rate_hz} Hz"
                )
            self.num_samples = self._count()
            if self.num_samples == 0:
                raise AudioError(f"{path}: contains no samples")
            if self.num_samples > max_seconds * self.sample_rate_hz:
                raise AudioError(f"{path}: lasts more than the {max_seconds:g} s that are accepted")
        except BaseException:
            self.__exit__()
            raise

    def read(self, num_samples: int) -> np.ndarray:
        """Return the next `(channels, S)` float32: `num_samples`, fewer at the end, then none."""
        try:
            audio_SC = self._file.read(max(0, num_samples), dtype="float32", always_2d=True)
        except (soundfile.SoundFileError, OSError) as error:
            raise self._unreadable(error) from error
        self._num_read += len(audio_SC)
        if len(audio_SC) < num_samples and self._num_read < self.num_samples:
            raise AudioError(
                f"{self.path}: is truncated or damaged, only {self._num_read} of "
                f"{self.num_samples} samples can be read; {REPAIR}"
            )
        if not np.isfinite(audio_SC).all():
            raise AudioError(f"{self.path}: contains NaN or infinite samples")
        return np.ascontiguousarray(audio_SC.T[self._order])

    def seek(self, position: int) -> None:
        """Continue to read at a later sample, counted from the beginning of the recording."""
        try:
            if self._file.seekable():
                # libsndfile 1.2 seeks to another place in the last page of an Ogg file.
                last = self.num_samples - _OGG_PAGE_SAMPLES if self.format == "OGG" else position
                self._num_read = self._file.seek(max(0, min(position, last)))
        except (soundfile.SoundFileError, OSError) as error:
            raise self._unreadable(error) from error
        while self._num_read < position:  # decode what is left, or all of a stream
            if not self.read(min(_READ_FRAMES, position - self._num_read)).shape[1]:
                return

    def read_rest(self) -> np.ndarray:
        """Return the remaining `(channels, S)` samples."""
        blocks = list(self.blocks(_READ_FRAMES))
        return blocks[0] if len(blocks) == 1 else np.concatenate(blocks, axis=1)

    def blocks(self, num_samples: int) -> Iterator[np.ndarray]:
        """Yield the rest, in blocks of at most `num_samples`."""
        while (audio_CS := self.read(num_samples)).shape[1]:
            yield audio_CS

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._fetched.close()

    def _count(self) -> int:
        """Return the number of samples: as the format states it, or else by decoding them."""
        is_estimate = self.format != "MP3" and self.subtype.startswith("MPEG")  # such as MP3 in WAV
        if self._file.frames < UNKNOWN_FRAMES and not is_estimate:
            return self._file.frames
        count = 0
        try:
            while count <= self._max_seconds * self.sample_rate_hz:
                num_read = len(self._file.read(_READ_FRAMES, dtype="float32"))
                count += num_read
                if not num_read:
                    break
            self._file.close()
        except (soundfile.SoundFileError, OSError) as error:
            raise self._unreadable(error) from error
        self._file, _ = open_decoder(self.local)
        return count

    def _unreadable(self, error: Exception) -> AudioError:
        found = files.not_the_file(self.local)
        why = f"cannot be read as audio ({found})" if found else f"is damaged ({reason(error)})"
        return AudioError(f"{self.path}: {why}; {REPAIR}")


def read(path: str | os.PathLike[str]) -> tuple[np.ndarray, int]:
    """Return (audio_CS float32, sample_rate_hz) of a file; AudioError if it cannot be used."""
    with AudioReader(path) as recording:
        return recording.read_rest(), recording.sample_rate_hz


def read_mono(path: str | os.PathLike[str]) -> tuple[np.ndarray, int]:
    """Return (audio_S float32, sample_rate_hz), as `read` does."""
    audio_CS, sample_rate_hz = read(path)
    return to_mono(audio_CS), sample_rate_hz


def read_segment(
    path: str | os.PathLike[str], begin: int, end: int, sample_rate_hz: int
) -> np.ndarray:
    """Return samples `begin` to `end` of what `mono_blocks` yields, decoding little more.

    Resampled audio differs from that of the whole recording by rounding only. Samples after the
    end of the recording are zero.
    """
    with AudioReader(path) as recording:
        rate_hz = recording.sample_rate_hz
        # Start where a sample of the input and one of the output coincide, and far enough ahead
        # that the resampler's filter does not see the edge.
        common = math.gcd(rate_hz, sample_rate_hz)
        period, context = sample_rate_hz // common, -(-_FILTER_SAMPLES * sample_rate_hz // rate_hz)
        periods = max(0, begin - max(context, _FILTER_SAMPLES)) // period
        first, last = periods * (rate_hz // common), -(-end * rate_hz // sample_rate_hz)
        margin = max(_FILTER_SAMPLES, -(-_FILTER_SAMPLES * rate_hz // sample_rate_hz))
        recording.seek(first)
        audio_S = to_mono(recording.read(last + margin - first))
    audio_S = resample(audio_S[None], rate_hz, sample_rate_hz)[0, begin - periods * period :]
    audio_S = audio_S[: end - begin]
    return np.pad(audio_S, (0, end - begin - len(audio_S)))


def to_mono(audio_CS: np.ndarray) -> np.ndarray:
    """Return audio_S, the mean of the channels."""
    return audio_CS[0] if len(audio_CS) == 1 else audio_CS.mean(axis=0)


def mono_blocks(path: str | os.PathLike[str], sample_rate_hz: int) -> Iterator[np.ndarray]:
    """Yield the result of `read`, `to_mono` and `resample` as blocks of audio_S."""
    with AudioReader(path) as recording:
        stream = Resampler(recording.sample_rate_hz, sample_rate_hz, 1)
        for block_CS in recording.blocks(_READ_FRAMES):
            yield stream.feed(to_mono(block_CS)[None])[0]
        yield stream.finish()[0]


def writable_format(
    recording: AudioReader, format: str | None = None, subtype: str | None = None
) -> tuple[str, str]:
    """Choose (format, subtype) for audio of a recording's rate and channels.

    Args:
        format: None for the recording's own, or WAV if libsndfile cannot write that.
        subtype: None for the recording's own, or the format's default if it has none such.

    Raises:
        InputError: libsndfile cannot write that combination.
    """
    asked = (format or recording.format).upper()
    if asked not in soundfile.available_formats():
        raise InputError(f"{asked} is not a format that libsndfile writes; choose WAV or FLAC")
    own = [recording.subtype, soundfile.default_subtype(asked) or "FLOAT", "FLOAT"]
    for name in [asked] if format else [asked, "WAV"]:
        for choice in [subtype.upper()] if subtype else own:
            if _can_be_written(name, choice, recording.sample_rate_hz, recording.num_channels):
                return name, choice
    kind = f"{asked} {subtype}" if subtype else asked
    audio = f"{recording.num_channels} channels at {recording.sample_rate_hz} Hz"
    others = " or ".join(name for name in ("WAV", "FLAC") if name != asked)
    raise InputError(f"{recording.path}: {audio} cannot be written as {kind}; choose {others}")


def suffix_of(format: str, subtype: str) -> str:
    """Return the usual suffix of file names, such as `.flac`."""
    return "." + _SUFFIXES.get(subtype, _SUFFIXES.get(format, format.lower()))


def _can_be_written(format: str, subtype: str, sample_rate_hz: int, num_channels: int) -> bool:
    if format in ("RAW", "SD2"):  # RAW has no header, SD2 is two files
        return False
    options = {"format": format, "subtype": subtype}
    try:
        soundfile.SoundFile(io.BytesIO(), "w", sample_rate_hz, num_channels, **options).close()
    except (soundfile.SoundFileError, ValueError, AssertionError):
        return False
    return True
