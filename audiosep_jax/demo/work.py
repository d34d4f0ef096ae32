"""One request of the page: a recording and sentences in, sound files and their picture out."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

from audiosep_jax import plots
from audiosep_jax.audio import files as audio_files
from audiosep_jax.errors import InputError
from audiosep_jax.separation.separator import Separator

MAX_SENTENCES, MAX_CHARACTERS = 8, 300
BLOCK_SAMPLES = 1 << 16
TILE_SECONDS = 5.0  # so long a reader waits at most for Cancel to be heard
PICTURE = "spectrograms.png"
Progress = Callable[[float, float], None]  # seconds of the recording done, and of all of it


@dataclasses.dataclass(frozen=True)
class Sound:
    """A WAV file of an answer: what to call it on the page, in its folder and when saved."""

    title: str
    file: str
    save_as: str


@dataclasses.dataclass(frozen=True)
class Answer:
    """What lies in a folder after `separate`: recording, targets, rest; and their spectrograms."""

    sounds: tuple[Sound, ...]
    picture: str = PICTURE


def sentences(text: str) -> list[str]:
    """The queries in a text of one a line, each once; InputError where none, or too many."""
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


def separate(
    separator: Separator,
    recording: Path,
    queries: list[str],
    folder: Path,
    max_seconds: float,
    progress: Progress,
) -> Answer:
    """Writes the recording, what each query describes, and the rest into a folder, as WAV.

    Raises:
        InputError: the recording or a query is unusable, or it is longer than `max_seconds`.
        Whatever `progress` raises, between two tiles.
    """
    condition_NE = separator.embed_text(queries)
    sounds = _sounds(recording.stem, queries)
    mixture, *targets, rest = [folder / sound.file for sound in sounds]
    all_seconds = _decode(recording, mixture, max_seconds)
    done_seconds = 0.0

    def tell(seconds: float) -> None:
        nonlocal done_seconds
        done_seconds += seconds
        progress(done_seconds, all_seconds)

    tell(0)
    separator.separate_file(
        mixture,
        targets,
        condition_NE,
        residual=rest,
        output_format="WAV",
        subtype="FLOAT",
        tile_seconds=TILE_SECONDS,
        progress=tell,
    )
    _draw(folder, sounds)
    return Answer(sounds)


def _decode(recording: Path, path: Path, max_seconds: float) -> float:
    """Writes what any browser plays; the seconds there are."""
    with audio_files.AudioReader(recording) as file:
        seconds = file.num_samples / file.sample_rate_hz
        if seconds > max_seconds:
            lasts = f"lasts {seconds:.0f} s; at most {max_seconds:g} s are taken"
            raise InputError(f"{recording}: {lasts}")
        with audio_files.AudioWriter(path, file.sample_rate_hz, file.num_channels) as out:
            for block_CS in file.blocks(BLOCK_SAMPLES):
                out.write(block_CS)
    return seconds


def _sounds(stem: str, queries: list[str]) -> tuple[Sound, ...]:
    targets = [(query, f"target-{n}.wav") for n, query in enumerate(queries, 1)]
    named = [("Recording", "recording.wav"), *targets, ("Everything else", "residual.wav")]
    return tuple(Sound(title, file, f"{stem} - {title}.wav") for title, file in named)


def _draw(folder: Path, sounds: tuple[Sound, ...]) -> None:
    panels = []
    for sound in sounds:
        with audio_files.AudioReader(folder / sound.file) as file:
            panel = plots.LogSpectrogram(file.sample_rate_hz, file.num_samples)
            for block_CS in file.blocks(BLOCK_SAMPLES):
                panel.add(block_CS)
        panels.append((sound.title, panel))
    plots.draw_figure(panels, folder / PICTURE)
