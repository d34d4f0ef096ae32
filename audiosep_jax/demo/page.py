"""The page itself, in Gradio: what is on it, and what its buttons do."""

import dataclasses
import functools
import html
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr
from gradio_client.utils import is_http_url_like

from audiosep_jax.demo import memory, work
from audiosep_jax.demo.shelf import Cancelled, Shelf
from audiosep_jax.errors import InputError
from audiosep_jax.separation.separator import Separator

KEEP_SECONDS = 3600  # answers and uploads of readers who are still there
SWEEP_SECONDS = 60
MAX_WAITING = 100
RESULTS = "results"  # where the server hands out what is on the shelf
TITLE = "Separate what you describe"
log = logging.getLogger(__name__)

# Of the system: no font is fetched.
FONTS = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica", "Arial", "sans-serif")
CODE_FONTS = ("ui-monospace", "Consolas", "Menlo", "monospace")
CSS = """
.gradio-container { max-width: 1080px !important; margin: 0 auto !important; }
h1 { font-size: 1.6rem; margin: 0.5rem 0 0; }
.told { opacity: 0.8; margin: 0.25rem 0 0; }
.sounds { list-style: none; margin: 0; padding: 0; }
.sounds li {
  display: grid; grid-template-columns: 1fr auto; gap: 0.35rem 1rem; align-items: center;
  padding: 0.75rem 0; border-bottom: 1px solid var(--border-color-primary); margin: 0;
}
.sounds h3 { font-size: 1rem; margin: 0; overflow-wrap: anywhere; }
.sounds audio { grid-column: 1 / -1; width: 100%; height: 2.5rem; }
.sounds a { color: var(--link-text-color); }
.picture { margin: 1rem 0 0; }
.picture img { width: 100%; height: auto; border-radius: var(--radius-md); }
.empty {
  opacity: 0.8; padding: 3rem 1rem; text-align: center;
  border: 1px dashed var(--border-color-primary); border-radius: var(--radius-lg);
}
.hidden-text {
  position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%);
}
"""
EMPTY = '<p class="empty">The sounds will be here, to listen to and to save.</p>'
PLACEHOLDER = "a dog barking\nrain on a roof"


@dataclasses.dataclass(frozen=True)
class Limits:
    """What one request may ask for, and how many are worked on at once."""

    max_seconds: float = 300.0
    max_megabytes: float = 100.0
    concurrency: int = 1


def build(separator: Separator, shelf: Shelf, limits: Limits) -> gr.Blocks:
    """The page as Gradio's blocks, for `server.app`."""
    actions = Actions(separator, shelf, limits)
    with gr.Blocks(
        title=TITLE, analytics_enabled=False, delete_cache=(SWEEP_SECONDS, KEEP_SECONDS)
    ) as blocks:
        gr.HTML(_head(limits))
        with gr.Row():
            with gr.Column(scale=2, min_width=300):
                recording, text, run, cancel, status = _form()
            with gr.Column(scale=3, min_width=300):
                answer = gr.HTML(EMPTY, elem_id="answer")
        # Uploads only: an address would be fetched by the server, of any size.
        recording.async_move_resource_to_block_cache = functools.partial(  # type: ignore[method-assign]
            _uploaded, recording.async_move_resource_to_block_cache
        )
        running = run.click(
            actions.separate,
            [recording, text],
            [answer, status],
            show_progress_on=status,
            concurrency_limit=limits.concurrency,
            api_name="separate",
        )
        # Gradio takes a waiting request out of the queue, the shelf stops one that runs.
        cancel.click(actions.cancel, None, status, cancels=[running], queue=False)
        blocks.unload(actions.leave)
    blocks.queue(max_size=MAX_WAITING)
    return blocks


def theme() -> gr.Theme:
    """Plain, and of the system's fonts."""
    return gr.themes.Default(
        primary_hue="teal", neutral_hue="slate", font=FONTS, font_mono=CODE_FONTS
    )


def _head(limits: Limits) -> str:
    return (
        f"<h1>{TITLE}</h1><p class='told'>A recording and a sentence in, the described sound out. "
        f"At most {limits.max_seconds:g} seconds and {limits.max_megabytes:g} MB. Everything stays "
        "on this server; results are removed when you leave the page, or after an hour.</p>"
    )


def _form() -> tuple[gr.Audio, gr.Textbox, gr.Button, gr.Button, gr.HTML]:
    recording = gr.Audio(
        sources=["upload", "microphone"],
        type="filepath",
        label="Recording",
        buttons=[],
        elem_id="recording",
    )
    text = gr.Textbox(
        label="What to separate",
        info=f"One sentence a line, at most {work.MAX_SENTENCES}.",
        placeholder=PLACEHOLDER,
        lines=3,
        max_lines=work.MAX_SENTENCES,
        elem_id="sentences",
    )
    with gr.Row():
        run = gr.Button("Separate", variant="primary", elem_id="separate", min_width=120)
        cancel = gr.Button("Cancel", elem_id="cancel", min_width=120)
    status = gr.HTML(told(""), elem_id="status", min_height=70)
    return recording, text, run, cancel, status


# ---------------------------------------------------------------------- what the buttons do


@dataclasses.dataclass(frozen=True)
class Actions:
    """What happens on the page. Methods, since Gradio reads their signatures."""

    separator: Separator
    shelf: Shelf
    limits: Limits

    def separate(
        self,
        recording: str | None,
        text: str,
        request: gr.Request,
        progress: gr.Progress = gr.Progress(),  # noqa: B008  (how Gradio asks for one)
    ) -> tuple[Any, str]:
        """The answer's HTML and a line about it; gr.Error in words that a reader understands."""
        if recording is None:
            raise _error("Drop a recording first, or record one")
        path = Path(recording)
        try:
            queries = work.sentences(text)
            if not path.is_file():
                raise InputError("The recording was removed after an hour: drop it again")
            with self.shelf.job(str(request.session_hash)) as job:

                def tell(done_seconds: float, all_seconds: float) -> None:
                    job.check()
                    progress((round(done_seconds), round(all_seconds)), "Separating", unit="s")

                answer = work.separate(
                    self.separator, path, queries, job.folder, self.limits.max_seconds, tell
                )
            return answer_html(answer, f"{RESULTS}/{job.token}"), told("Done.")
        except Cancelled:
            return gr.skip(), told("Cancelled.")
        except InputError as error:
            # The folder of the upload is nothing that a reader knows.
            raise _error(str(error).replace(recording, path.name)) from error
        except Exception as error:
            log.exception("a request failed")
            raise _error("Something went wrong on the server; its log tells what") from error
        finally:
            memory.give_back()

    def cancel(self, request: gr.Request) -> str:
        """Stops what the reader's page has running, between two tiles."""
        self.shelf.cancel(str(request.session_hash))
        return told("Cancelled.")

    def leave(self, request: gr.Request) -> None:
        """The page was closed: stops its work and removes its answers."""
        self.shelf.leave(str(request.session_hash))


async def _uploaded(move: Callable[..., Any], path: str | Path | None) -> str | None:
    if path is not None and is_http_url_like(str(path)):
        raise _error("Only files can be separated, not addresses")
    return await move(path)


def _error(line: str) -> gr.Error:
    # Gradio shows the message as HTML; until it is closed.
    return gr.Error(html.escape(" ".join(line.split())), duration=None, print_exception=False)


# ---------------------------------------------------------------------- HTML


def told(line: str) -> str:
    """A line that a screen reader says when it changes."""
    return f'<p class="told" role="status">{html.escape(line)}</p>'


def answer_html(answer: work.Answer, address: str) -> str:
    """A player and a link for each sound, and the picture of all."""
    items = "".join(_item(n, sound, address) for n, sound in enumerate(answer.sounds))
    titles = ", ".join(sound.title for sound in answer.sounds)
    picture = (
        f'<figure class="picture"><a href="{address}/{answer.picture}" target="_blank">'
        f'<img src="{address}/{answer.picture}" alt="Spectrograms of: {_escape(titles)}"></a>'
        "</figure>"
    )
    return f'<ul class="sounds">{items}</ul>{picture}'


def _item(number: int, sound: work.Sound, address: str) -> str:
    title, name = _escape(sound.title), f"sound-{number}"
    source = f"{address}/{sound.file}"
    return (
        f'<li><h3 id="{name}">{title}</h3>'
        f'<a href="{source}" download="{_escape(sound.save_as)}">Download'
        f'<span class="hidden-text"> {title}</span></a>'
        f'<audio controls preload="metadata" src="{source}" aria-labelledby="{name}"></audio></li>'
    )


def _escape(text: str) -> str:
    # Gradio fills HTML in as a template: braces and dollars are letters here.
    return html.escape(text).replace("{", "&#123;").replace("$", "&#36;")
