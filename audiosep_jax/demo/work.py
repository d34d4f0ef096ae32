"""One request of the page: a recording and sentences in; sound files and spectrograms out."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

from audiosep_jax import plots
from audiosep_jax.audio.files import AudioReader, AudioWriter
from audiosep_jax.errors import InputError
from audiosep_jax.separation.naming import output_names
from audiosep_jax.separation.separator import Separator

MAX_SENTENCES, MAX_CHARACTERS = 8, 300
BLOCK_SAMPLES = 1 << 16
TILE_SECONDS = 5.0  # a visitor waits at most for one tile after Cancel
Progress = Callable[[float, float], None]  # seconds done, seconds of the recording


@dataclasses.dataclass(frozen=True)
class Sound:
    """A WAV file of an answer, and its heading on the page."""

    title: str
    path: Path


@dataclasses.dataclass(frozen=True)
class Answer:
    """Recording, targets and residual, in this order, and the picture of their spectrograms."""

    sounds: tuple[Sound, ...]
    picture: Path


def sentences(text: str) -> list[str]:
    """Queries of a text that has one on each line, without repetitions.

    Raises:
        InputError: there is none, there are too many, or one is too long.
    """
    lines = [" ".join(line.split()) for line in text.splitlines()]
    found = [line for line in dict.fromkeys(lines) if line]
    if not found:
        raise InputError("Say what to separate, such as: a dog barking")
    if len(found) > MAX_SENTENCES:
        raise InputError(f"{len(found)} sentences are too many: at most {MAX_SENTENCES} at once")
    longest = max(found, key=len)
    if len(longest) > MAX_CHARACTERS:
        raise InputError(
            f"A sentence of {len(longest)} characters is too long: at most {MAX_CHARACTERS}"
        )
    return found


def separate_for_page(
    separator: Separator,
    recording: Path,
    queries: list[str],
    folder: Path,
    max_seconds: float,
    progress: Progress,
) -> Answer:
    """Write the recording, the sound of each query and the residual to a folder, as float WAV.

    Args:
        folder: must exist.
        progress: is called between tiles. An exception that it raises ends the separation.

    Raises:
        InputError: the recording cannot be read or is longer than `max_seconds`, or a query is
            unusable.
    """
    condition_NE = separator.embed_text(queries)
    titles = ["Recording", *queries, "Everything else"]
    names = output_names(recording.stem, titles)
    paths = [folder / f"{name}.wav" for name in names]
    all_seconds = _decode(recording, paths[0], max_seconds)
    done_seconds = 0.0

    def add(seconds: float) -> None:
        nonlocal done_seconds
        done_seconds += seconds
        progress(done_seconds, all_seconds)

    add(0)
    separator.separate_file(
        paths[0],
        paths[1:-1],
        condition_NE,
        residual=paths[-1],
        output_format="WAV",
        subtype="FLOAT",
        tile_seconds=TILE_SECONDS,
        progress=add,
    )
    sounds = tuple(Sound(title, path) for title, path in zip(titles, paths, strict=True))
    _draw(sounds, folder / "spectrograms.png")
    return Answer(sounds, folder / "spectrograms.png")


def _decode(recording: Path, path: Path, max_seconds: float) -> float:
    """Write a WAV file, which every browser plays, and return its seconds."""
    with AudioReader(recording) as file:
        seconds = file.num_samples / file.sample_rate_hz
        if seconds > max_seconds:
            raise InputError(
                f"{recording}: lasts {seconds:.0f} s; at most {max_seconds:g} s are accepted"
            )
        with AudioWriter(path, file.sample_rate_hz, file.num_channels) as out:
            for block_CS in file.blocks(BLOCK_SAMPLES):
                out.write(block_CS)
    return seconds


def _draw(sounds: tuple[Sound, ...], path: Path) -> None:
    panels = []
    for sound in sounds:
        with AudioReader(sound.path) as file:
            panel = plots.LogSpectrogram(file.sample_rate_hz, file.num_samples)
            for block_CS in file.blocks(BLOCK_SAMPLES):
                panel.add(block_CS)
        panels.append((sound.title, panel))
    plots.draw_figure(panels, path)
