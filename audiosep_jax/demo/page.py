"""The page in Gradio: its components, and the functions of its buttons."""

import dataclasses
import html
import logging
import os
import urllib.parse
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.processing_utils import save_file_to_cache

from audiosep_jax.demo import work
from audiosep_jax.demo.storage import Answers, Cancelled
from audiosep_jax.demo.uploads import API, COOKIE, Uploads
from audiosep_jax.errors import InputError
from audiosep_jax.separation.separator import Separator

KEEP_SECONDS = 3600  # uploads, and answers of pages that stay open
SWEEP_SECONDS = 60
MAX_WAITING = 100
EXAMPLE, EXAMPLE_TEXT = Path(__file__).with_name("street.flac"), "a dog barking"
TITLE = "Separate what you describe"
log = logging.getLogger(__name__)

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
.sounds audio { grid-column: 1 / -1; width: 100%; height: 2.5rem; }
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


@dataclasses.dataclass(frozen=True)
class Limits:
    """Limits of one request, and the number of requests that run at once."""

    max_seconds: float = 300.0
    max_megabytes: float = 100.0
    concurrency: int = 1


def build(separator: Separator, uploads: Uploads, answers: Answers, limits: Limits) -> gr.Blocks:
    """Make the page, ready for `launch`."""
    with gr.Blocks(
        title=TITLE, analytics_enabled=False, delete_cache=(SWEEP_SECONDS, KEEP_SECONDS)
    ) as blocks:
        gr.HTML(_head(limits))
        with gr.Row():
            with gr.Column(scale=2, min_width=300):
                inputs, run, cancel, example, status = _form()
            with gr.Column(scale=3, min_width=300):
                answer = gr.HTML(EMPTY, elem_id="answer")
        actions = Actions(separator, uploads, answers, limits, answer.temp_files)
        running = run.click(
            actions.separate,
            inputs,
            [answer, status],
            show_progress_on=status,
            api_name="separate",
        )
        # Gradio removes a waiting request from the queue; `actions.cancel` stops one that runs.
        cancel.click(actions.cancel, None, status, cancels=[running], queue=False)
        example.click(actions.example, None, inputs[:2], queue=False)
        blocks.unload(actions.leave)
    blocks.queue(max_size=MAX_WAITING, default_concurrency_limit=limits.concurrency)
    return blocks


def _head(limits: Limits) -> str:
    return (
        f"<h1>{TITLE}</h1><p class='note'>Give a recording and describe a sound in it to hear that "
        f"sound alone. At most {limits.max_seconds:g} seconds and {limits.max_megabytes:g} MB. "
        "Everything stays on this server; results are removed when you leave the page, or after "
        "an hour.</p>"
    )


def _form() -> tuple[list[gr.components.Component], gr.Button, gr.Button, gr.Button, gr.HTML]:
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
        placeholder="a dog barking\nrain on a roof",
        lines=3,
        max_lines=work.MAX_SENTENCES,
        elem_id="sentences",
    )
    unwanted = gr.Textbox(
        label="Without (optional)",
        info="Sounds to keep out of the results, one sentence a line.",
        placeholder="people talking",
        lines=1,
        max_lines=work.MAX_SENTENCES,
        elem_id="unwanted",
    )
    with gr.Row():
        run = gr.Button("Separate", variant="primary", elem_id="separate", min_width=120)
        cancel = gr.Button("Cancel", elem_id="cancel", min_width=120)
        example = gr.Button("Fill in an example", elem_id="example", min_width=120)
    status = gr.HTML(note(""), elem_id="status", min_height=70)
    return [recording, text, unwanted], run, cancel, example, status


# ---------------------------------------------------------------------- actions


@dataclasses.dataclass(frozen=True)
class Actions:
    """Functions of the page's buttons. Gradio reads their signatures.

    `expiring` holds paths of files that Gradio removes after KEEP_SECONDS.
    """

    separator: Separator
    uploads: Uploads
    answers: Answers
    limits: Limits
    expiring: set[str]

    def separate(
        self,
        recording: str | None,
        text: str,
        unwanted: str,
        request: gr.Request,
        progress: gr.Progress = gr.Progress(),  # noqa: B008  (Gradio passes one in this way)
    ) -> tuple[Any, str]:
        """Return the answer and a status line as HTML, or raise gr.Error with a readable line."""
        visitor = request.cookies.get(COOKIE, "")
        if recording is None:
            raise _error("Drop a recording first, or record one")
        try:
            wanted, unwanted_lines = work.sentences(text), work.sentences(unwanted)
            self.uploads.check(visitor, recording)
            with self.answers.job(str(request.session_hash)) as job:

                def report(done_seconds: float, all_seconds: float) -> None:
                    job.check()
                    progress((round(done_seconds), round(all_seconds)), "Separating", unit="s")

                sounds = work.separate_for_page(
                    self.separator,
                    Path(recording),
                    wanted,
                    unwanted_lines,
                    job.folder,
                    self.limits.max_seconds,
                    report,
                )
                paths = [str(path) for path in job.folder.iterdir()]
                self.expiring.update(paths)
                self.uploads.add(visitor, paths)
            return answer_html(sounds, job.folder / work.PICTURE), note("Done.")
        except Cancelled:
            return gr.skip(), note("Cancelled.")
        except InputError as error:
            # The folder of an upload means nothing to its visitor.
            raise _error(str(error).replace(recording, Path(recording).name)) from error
        except Exception as error:
            log.exception("a request failed")
            raise _error("Something went wrong on the server; its log says what") from error

    def example(self, request: gr.Request) -> tuple[str, str]:
        """Return a recording, which the visitor may then separate, and a sentence."""
        path = save_file_to_cache(EXAMPLE, cache_dir=os.environ["GRADIO_TEMP_DIR"])
        self.uploads.add(request.cookies.get(COOKIE, ""), [path])
        return path, EXAMPLE_TEXT

    def cancel(self, request: gr.Request) -> str:
        """Stop the session's separation between two tiles, and return a status line."""
        self.answers.cancel(str(request.session_hash))
        return note("Cancelled.")

    def leave(self, request: gr.Request) -> None:
        """Stop the session's separation and remove its answer, since the page was closed."""
        self.answers.leave(str(request.session_hash))


def _error(line: str) -> gr.Error:
    # Gradio shows the message as HTML. It stays until it is closed.
    return gr.Error(html.escape(" ".join(line.split())), duration=None, print_exception=False)


# ---------------------------------------------------------------------- HTML


def note(line: str) -> str:
    """Return a line that screen readers speak when it changes."""
    return f'<p class="note" role="status">{html.escape(line)}</p>'


def answer_html(sounds: list[tuple[str, Path]], picture: Path) -> str:
    """Return a player and a download link for each heading and file, and the picture."""
    items = "".join(_item(f"sound-{n}", *sound) for n, sound in enumerate(sounds))
    titles = _escape(", ".join(title for title, _ in sounds))
    address = _address(picture)
    return (
        f'<ul class="sounds">{items}</ul><figure class="picture"><a href="{address}" '
        f'target="_blank"><img src="{address}" alt="Spectrograms of: {titles}"></a></figure>'
    )


def _item(name: str, title: str, path: Path) -> str:
    title, address = _escape(title), _address(path)
    return (
        f'<li><h3 id="{name}">{title}</h3>'
        f'<a href="{address}" download="{_escape(path.name)}">Download'
        f'<span class="hidden-text"> {title}</span></a>'
        f'<audio controls preload="metadata" src="{address}" aria-labelledby="{name}"></audio></li>'
    )


def _address(path: Path) -> str:
    """Return the relative address at which Gradio serves a file."""
    return f"{API[1:]}file={urllib.parse.quote(str(path))}"


def _escape(text: str) -> str:
    # gr.HTML renders its value as a template, in which braces and dollar signs are code.
    return html.escape(text).replace("{", "&#123;").replace("$", "&#36;")
