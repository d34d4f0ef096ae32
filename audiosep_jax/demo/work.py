"""One request of the page: a recording and sentences in; sound files and spectrograms out."""

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from audiosep_jax.audio.files import AudioReader, AudioWriter
from audiosep_jax.encoders import pictures
from audiosep_jax.errors import InputError
from audiosep_jax.separation.batch import Picture
from audiosep_jax.separation.during import Span
from audiosep_jax.separation.jobs import output_names
from audiosep_jax.separation.separator import Separator

MAX_SENTENCES, MAX_CHARACTERS = 8, 300
MAX_SOUNDS = MAX_SENTENCES + 2  # with that of the picture, and everything else
MAX_SAMPLE_RATE_HZ = 8 * 48_000  # times the number of channels; it bounds the size of the results
BLOCK_SAMPLES = 1 << 16
TILE_SECONDS = 5.0  # a visitor waits at most for one tile after Cancel
Progress = Callable[[float, float], None]  # seconds done, seconds of the recording
PICTURE = "spectrograms.png"


@dataclasses.dataclass(frozen=True)
class Sound:
    """A heading and a file, and for a sentence how much of it was found, and when."""

    title: str
    path: Path
    seconds: float = 0.0
    presence: float | None = None
    spans: Sequence[Span] = ()


def sentences(text: str | None) -> list[str]:
    """Return the queries of a text that has one on each line, without repetitions."""
    lines = [" ".join(line.split()) for line in (text or "").splitlines()]
    found = [line for line in dict.fromkeys(lines) if line]
    if len(found) > MAX_SENTENCES:
        raise InputError(f"{len(found)} sentences are too many: at most {MAX_SENTENCES} at once")
    longest = max(map(len, found), default=0)
    if longest > MAX_CHARACTERS:
        raise InputError(f"Sentences may have {MAX_CHARACTERS} characters, not {longest}")
    return found


def separate_for_page(
    separator: Separator,
    recording: Path,
    wanted: list[str],
    unwanted: list[str],
    folder: Path,
    max_seconds: float,
    progress: Progress,
    *,
    image: str | None = None,
) -> list[Sound]:
    """Write the recording, each wanted sound and the residual to a folder, as float WAV.

    A picture of their spectrograms is written to PICTURE in the folder. `progress` is called
    between tiles; an exception that it raises ends the separation. `image` is the path of a
    picture of one more sound.
    """
    if not wanted and not image:
        raise InputError("Say what to separate, such as: a dog barking")
    rows = [separator.embed_text(wanted)] if wanted else []
    if image:
        rows.append(separator.embed("image", pictures.read(image, films=False)))
        wanted = [*wanted, "What the picture shows"]
    condition_NE = np.concatenate(rows)
    unwanted_ME = separator.embed_text(unwanted) if unwanted else condition_NE[:0]
    titles = ["Recording", *wanted, "Everything else"]
    paths = [folder / f"{name}.wav" for name in output_names(recording.stem, titles)]
    _decode(recording, paths[0], max_seconds)
    with AudioReader(paths[0]) as mixture:
        rate_hz, num_samples = mixture.sample_rate_hz, mixture.num_samples
        picture, done_samples = Picture(titles, mixture), 0

        def observe(mixture_CS: np.ndarray, estimate_NCS: np.ndarray) -> None:
            nonlocal done_samples
            done_samples += mixture_CS.shape[1]
            picture.add(mixture_CS, estimate_NCS)
            progress(done_samples / rate_hz, num_samples / rate_hz)

        progress(0, num_samples / rate_hz)
        done = separator.separate_file(
            mixture,
            paths[1:-1],
            condition_NE,
            unwanted_ME=unwanted_ME,
            residual=paths[-1],
            output_format="WAV",
            subtype="FLOAT",
            tile_seconds=TILE_SECONDS,
            observe=observe,
        )
    picture.draw(folder / PICTURE)
    found = [(None, ()), *zip(done.presence_N, done.spans, strict=True), (None, ())]
    seconds = num_samples / rate_hz
    return [
        Sound(title, path, seconds, *more)
        for title, path, more in zip(titles, paths, found, strict=True)
    ]


def remix(
    parts: Sequence[Path], levels: Sequence[float], path: Path, check: Callable[[], None]
) -> None:
    """Write the sum of the parts, each times its level, as float WAV.

    `check` is called between blocks; an exception that it raises ends the work.
    """
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(AudioReader(part)) for part in parts]
        out = AudioWriter(path, files[0].sample_rate_hz, files[0].num_channels)
        stack.enter_context(out)
        for blocks in zip(*(file.blocks(BLOCK_SAMPLES) for file in files), strict=True):
            check()
            out.write(sum(level * x for level, x in zip(levels, blocks, strict=True)))


def _decode(recording: Path, path: Path, max_seconds: float) -> None:
    """Write a WAV file, which every browser plays."""
    with AudioReader(recording, max_seconds) as file:
        rate = file.sample_rate_hz * file.num_channels
        if rate > MAX_SAMPLE_RATE_HZ:
            raise InputError(
                f"{recording}: has {rate} samples a second in all of its channels; "
                f"at most {MAX_SAMPLE_RATE_HZ} are accepted"
            )
        with AudioWriter(path, file.sample_rate_hz, file.num_channels) as out:
            for block_CS in file.blocks(BLOCK_SAMPLES):
                out.write(block_CS)
