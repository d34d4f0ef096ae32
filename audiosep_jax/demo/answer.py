"""HTML of the page: lines of status, and the sounds that a request is answered with."""

import html
import urllib.parse
from pathlib import Path

from audiosep_jax.demo.uploads import API
from audiosep_jax.demo.work import Sound
from audiosep_jax.separation.files import when

CSS = """
.gradio-container { max-width: 1080px !important; margin: 0 auto !important; }
h1 { font-size: 1.6rem; margin: 0.5rem 0 0; }
.note { opacity: 0.8; margin: 0.25rem 0 0; }
.sounds { list-style: none; padding: 0; }
.sounds li {
  display: grid; grid-template-columns: 1fr auto; gap: 0.35rem 1rem; align-items: center;
  padding: 0.75rem 0; border-bottom: 1px solid var(--border-color-primary);
}
.sounds h3 { font-size: 1rem; margin: 0; overflow-wrap: anywhere; }
.sounds audio, .sounds .found, .sounds .spans { grid-column: 1 / -1; width: 100%; }
.sounds audio { height: 2.5rem; }
.dark audio { color-scheme: dark; }
.credits { font-size: 0.8rem; opacity: 0.8; margin: 0; }
.sounds .found { margin: 0; font-size: 0.875rem; }
.sounds .spans {
  position: relative; height: 0.5rem; border-radius: 0.25rem; overflow: hidden;
  background: var(--border-color-primary);
}
.sounds .spans i { position: absolute; height: 100%; background: var(--color-accent); }
.sounds a { color: var(--link-text-color); }
.picture img { width: 100%; height: auto; }
.empty {
  opacity: 0.8; padding: 3rem 1rem; text-align: center;
  border: 1px dashed var(--border-color-primary); border-radius: var(--radius-lg);
}
.hidden-text {
  position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%);
}
"""
EMPTY = '<p class="empty">The sounds will be here, to listen to and to save.</p>'


def note(line: str) -> str:
    """Return a line that screen readers speak when it changes."""
    return f'<p class="note" role="status">{html.escape(line)}</p>'


def sounds_html(sounds: list[Sound], name: str) -> str:
    """Return a player, a download link and the activity of each sound; `name` begins their ids."""
    items = "".join(_item(f"{name}-{n}", sound) for n, sound in enumerate(sounds))
    return f'<ul class="sounds">{items}</ul>'


def picture_html(sounds: list[Sound], picture: Path) -> str:
    """Return the picture of the spectrograms, with a link to it alone."""
    titles, address = _escape(", ".join(sound.title for sound in sounds)), _address(picture)
    return (
        f'<figure class="picture"><a href="{address}" target="_blank">'
        f'<img src="{address}" alt="Spectrograms of: {titles}"></a></figure>'
    )


def _item(name: str, sound: Sound) -> str:
    title, address = _escape(sound.title), _address(sound.path)
    return (
        f'<li><h3 id="{name}">{title}</h3>'
        f'<a href="{address}" download="{_escape(sound.path.name)}">Download'
        f'<span class="hidden-text"> {title}</span></a>'
        f'<audio controls preload="metadata" src="{address}" aria-labelledby="{name}"></audio>'
        f"{_found(sound)}</li>"
    )


def _found(sound: Sound) -> str:
    """Return presence and spans in words, and the spans as bars on a line as long as the sound."""
    if sound.presence is None:
        return ""
    bars = "".join(
        f'<i style="left:{100 * start / sound.seconds:.2f}%;'
        f'width:{100 * (end - start) / sound.seconds:.2f}%"></i>'
        for start, end in sound.spans
    )
    words = f"Presence {sound.presence:.2f}, {when(sound.spans)}"
    return f'<p class="found">{words}</p><div class="spans" aria-hidden="true">{bars}</div>'


def _address(path: Path) -> str:
    """Return the relative address at which Gradio serves a file."""
    return f"{API[1:]}file={urllib.parse.quote(str(path))}"


def _escape(text: str) -> str:
    # gr.HTML renders its value as a template, in which braces and dollar signs are code.
    return html.escape(text).replace("{", "&#123;").replace("$", "&#36;")
