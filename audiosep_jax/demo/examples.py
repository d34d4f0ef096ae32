"""Recordings that come with the page. `examples/page_recordings.py` makes them."""

import dataclasses
from pathlib import Path


@dataclasses.dataclass(frozen=True)
class Example:
    """A recording of the package, its title, and what to separate, one sentence a line."""

    title: str
    recording: Path
    text: str


_FOLDER = Path(__file__).parent
EXAMPLES = (
    Example("A dog and a helicopter", _FOLDER / "street.flac", "a dog barking"),
    Example("Speech in rain", _FOLDER / "rain.flac", "a person speaking\nrain"),
    Example("Trumpet and drums", _FOLDER / "duo.flac", "a trumpet\nhand drums"),
)
# The licences of the last two ask for their names.
CREDITS = (
    "Examples: a dog by Ligidium, a helicopter by doctor567, rain by Zepp2010, a drum by Michi "
    "Henning (CC0); speech by Garth Comira, LibriSpeech (CC BY 4.0); a trumpet by Mihai Sorohan, "
    "freesound.org (CC BY 3.0). They are mixed and shortened."
)
