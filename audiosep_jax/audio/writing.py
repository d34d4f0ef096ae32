"""Write audio files block by block, whole or not at all."""

import contextlib
import io
import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

import numpy as np
import soundfile

from audiosep_jax import files
from audiosep_jax.audio.decoding import reason
from audiosep_jax.errors import InputError

_WRITE_FRAMES = 1 << 16  # libsndfile's Vorbis encoder overruns its stack with much more
INTEGER_BITS = {
    **{"PCM_S8": 8, "PCM_U8": 8, "PCM_16": 16, "PCM_24": 24, "PCM_32": 32},
    **{f"ALAC_{bits}": bits for bits in (16, 20, 24, 32)},
}
# Subtypes that hold samples beyond -1..1, which wrap around or are cut off in all others.
UNBOUNDED = frozenset(
    ("FLOAT", "DOUBLE", "VORBIS", "OPUS", *(f"MPEG_LAYER_{n}" for n in ("I", "II", "III")))
)
# Place in an Ogg file of each channel in the order of all other formats, by number of channels: Ogg
# has the centre second and the low frequencies last. libsndfile leaves the order as it is.
OGG_CHANNELS = {
    3: [0, 2, 1],
    5: [0, 2, 1, 3, 4],
    6: [0, 2, 1, 5, 3, 4],
    7: [0, 2, 1, 6, 5, 3, 4],
    8: [0, 2, 1, 7, 5, 6, 3, 4],
}
_SAMPLE_BYTES = {"DOUBLE": 8, "PCM_24": 3, "PCM_16": 2, "PCM_U8": 1, "PCM_S8": 1}
_SHORT_FORMATS = ("WAV", "WAVEX", "AIFF")
_WAV_MAX_BYTES = 0xFFFFFFFF - 4096
Clip = Literal["none", "clamp"]


class AudioWriter:
    """A recording that is written in blocks and exists only once it is whole.

        with AudioWriter("dog.wav", 44100, 2) as out:
            out.write(block_CS)

    If the block fails nothing is left, and a file that was there before stays.

    Args:
        path: its missing parent folders are created.
        format: libsndfile's name. A WAV of unknown length ends with an error at 4 GB.
        clip: for samples beyond -1..1. `clamp` limits them; `none` writes them as they are if the
            subtype holds them (`UNBOUNDED`), and refuses if it does not.
        num_samples: number of samples, if known: a WAV that needs them gets 64-bit lengths.

    Raises:
        InputError: the file cannot be written, or a sample would clip or is not finite.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        sample_rate_hz: int,
        num_channels: int,
        *,
        format: str = "WAV",
        subtype: str = "FLOAT",
        clip: Clip = "none",
        num_samples: int | None = None,
    ) -> None:
        self.path = Path(path)
        if not soundfile.check_format(format, subtype):
            raise InputError(f"{path}: {format} has no subtype {subtype!r}")
        if self.path.is_dir():
            raise InputError(f"{path}: cannot be written (it is a folder)")
        self._subtype, self._clip = subtype, clip
        order = OGG_CHANNELS.get(num_channels, []) if format == "OGG" else []
        self._order = np.argsort(order) if order else slice(None)
        self._sample_bytes = _SAMPLE_BYTES.get(subtype, 4)
        expected_bytes = (num_samples or 0) * num_channels * self._sample_bytes
        if format in ("WAV", "WAVEX") and expected_bytes >= _WAV_MAX_BYTES:
            format = "RF64"  # WAV with 64-bit lengths
        self._bytes_left = _WAV_MAX_BYTES if format in _SHORT_FORMATS else float("inf")
        options = {"format": format, "subtype": subtype}
        with contextlib.ExitStack() as stack:
            self._partial = stack.enter_context(files.replacing(path))
            self._output = stack.enter_context(_Output(self._partial))
            stack.callback(self._abandon)  # before the file below it is closed
            with self._errors():
                self._file = soundfile.SoundFile(
                    self._output, "w", sample_rate_hz, num_channels, **options
                )
            self._stack = stack.pop_all()

    def write(self, audio_CS: np.ndarray) -> None:
        """Append `(channels, S)` floating-point samples."""
        for start in range(0, audio_CS.shape[1], _WRITE_FRAMES):
            block_CS = audio_CS[self._order, start : start + _WRITE_FRAMES]
            block_SC = self._stored(block_CS.T)
            self._bytes_left -= block_SC.size * self._sample_bytes
            if self._bytes_left < 0:
                raise InputError(f"{self.path}: more than 4 GB; choose FLAC, W64 or RF64")
            with self._errors():
                self._file.write(block_SC)

    def close(self) -> None:
        """Finish the file, which keeps its temporary name until the `with` block ends."""
        if not self._file.closed:
            with self._errors():
                self._file.close()
                _blank_time(self._output)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            with self._stack:
                self.close()
        else:
            self._stack.__exit__(kind, value, trace)

    def _abandon(self) -> None:
        with contextlib.suppress(AttributeError, *_WRITE_ERRORS):  # if it could not be opened
            self._file.close()

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        """Raise InputError if the system refused a write, which some encoders do not report."""
        failure = None
        try:
            yield
        except _WRITE_ERRORS as error:
            failure = error
        if failure := self._output.error or failure:
            raise InputError(f"{self.path}: cannot be written ({reason(failure)})") from failure

    def _stored(self, audio_SC: np.ndarray) -> np.ndarray:
        """Check samples and convert them to the subtype, as libsndfile takes them.

        libsndfile reads 16 bits as k / 32768 but writes x * 32767, which would change what is read
        and written again. Integers are therefore rounded here.
        """
        peak = float(np.abs(audio_SC).max())
        if not np.isfinite(peak):
            raise InputError(
                f"{self.path}: not written, the audio contains NaN or infinite samples"
            )
        if peak > 1 and self._clip == "clamp":
            audio_SC = np.clip(audio_SC, -1, 1)
        elif peak > 1 and self._subtype not in UNBOUNDED:
            raise InputError(
                f"{self.path}: not written, a peak of {peak:.3g} would clip in {self._subtype}"
            )
        if self._subtype not in INTEGER_BITS:
            return audio_SC
        bits = INTEGER_BITS[self._subtype]
        steps = np.rint(audio_SC.astype(np.float64) * 2.0 ** (bits - 1))
        return np.minimum(steps, 2.0 ** (bits - 1) - 1).astype(np.int32) << (32 - bits)


# soundfile asserts that every frame was written: a full disk arrives here as AssertionError.
_WRITE_ERRORS = (OSError, soundfile.SoundFileError, AssertionError)


class _Output(io.FileIO):
    """File that keeps the system's error, such as a full disk, which libsndfile does not report."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, "w+")
        self.error: OSError | None = None

    def write(self, content: bytes) -> int:  # type: ignore[override]
        done = 0
        try:
            while done < len(content):
                done += super().write(content[done:]) or 0
        except OSError as error:  # it cannot pass through libsndfile
            self.error = error
        return done


def write(
    path: str | os.PathLike[str],
    audio_CS: np.ndarray,
    sample_rate_hz: int,
    *,
    format: str = "WAV",
    subtype: str = "FLOAT",
) -> None:
    """Write `(channels, S)`, whole or not at all; integer subtypes refuse samples that clip."""
    if audio_CS.ndim != 2 or audio_CS.size == 0:
        raise InputError(f"{path}: no audio of shape (channels, samples) to write")
    channels, num_samples = audio_CS.shape
    with AudioWriter(
        path, sample_rate_hz, channels, format=format, subtype=subtype, num_samples=num_samples
    ) as out:
        out.write(audio_CS)


def _blank_time(file: io.FileIO) -> None:
    """Zero the time of writing, which libsndfile puts beside the peak of a floating-point WAV."""
    file.seek(0)
    head = file.read(256)
    peak = head.find(b"PEAK", 12, max(head.find(b"data", 12), 0))
    if head[:4] in (b"RIFF", b"RF64") and peak >= 0:
        file.seek(peak + 12)  # after name, size and version
        file.write(bytes(4))
