"""The page in Gradio: its components, and the functions of its buttons."""

import contextlib
import dataclasses
import html
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.processing_utils import save_file_to_cache

from audiosep_jax.demo import work
from audiosep_jax.demo.answer import EMPTY, note, picture_html, sounds_html
from audiosep_jax.demo.examples import CREDITS, EXAMPLES
from audiosep_jax.demo.storage import Answers, Cancelled
from audiosep_jax.demo.uploads import COOKIE, Uploads
from audiosep_jax.encoders import KINDS
from audiosep_jax.errors import InputError
from audiosep_jax.separation.separator import Separator

KEEP_SECONDS = 3600  # uploads, and answers of pages that stay open
SWEEP_SECONDS = 60
MAX_WAITING = 100
MAX_PERCENT = 200
TITLE = "Separate what you describe"
log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Limits:
    """Limits of one request, and the number of requests that run at once."""

    max_seconds: float = 300.0
    max_megabytes: float = 100.0
    concurrency: int = 1
    max_total_megabytes: float = 10_000.0


def build(separator: Separator, uploads: Uploads, answers: Answers, limits: Limits) -> gr.Blocks:
    """Make the page, ready for `launch`."""
    with gr.Blocks(
        title=TITLE, analytics_enabled=False, delete_cache=(SWEEP_SECONDS, KEEP_SECONDS)
    ) as blocks:
        gr.HTML(_head(limits))
        with gr.Row():
            with gr.Column(scale=2, min_width=300):
                inputs, run, cancel, status = _form(separator.text.encoder)
                examples = _examples()
            with gr.Column(scale=3, min_width=300):
                answer = gr.HTML(EMPTY, elem_id="answer")
                mixer, levels, mix, mixed = _mixer()
                picture = gr.HTML(elem_id="picture")
        actions = Actions(separator, uploads, answers, limits, answer.temp_files)
        separate: dict[str, Any] = {
            "fn": actions.separate,
            "inputs": inputs,
            "outputs": [answer, status, picture, mixer, mixed, *levels],
            "show_progress_on": status,
        }
        running = run.click(**separate, api_name="separate")
        filled = examples.click(actions.example, examples, inputs, queue=False, api_name="example")
        shown = filled.success(**separate, api_visibility="private")
        # Gradio removes a waiting request from the queue; `actions.cancel` stops one that runs.
        cancel.click(actions.cancel, None, status, cancels=[running, shown], queue=False)
        mix.click(actions.remix, levels, mixed, api_name="remix")
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


def _form(
    encoder: str,
) -> tuple[list[gr.components.Component], gr.Button, gr.Button, gr.HTML]:
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
    image: Any = gr.Image(
        sources=["upload"],
        label="Or a picture of it (optional)",
        buttons=[],
        height=160,
        visible=encoder in KINDS["image"].encoders,
        elem_id="image",
    )
    # Only the path is passed on. Gradio would open the file, in any format that Pillow knows.
    image.preprocess = lambda payload: payload and payload.path
    with gr.Row():
        run = gr.Button("Separate", variant="primary", elem_id="separate", min_width=120)
        cancel = gr.Button("Cancel", elem_id="cancel", min_width=120)
    status = gr.HTML(note(""), elem_id="status", min_height=70)
    return [recording, text, unwanted, image], run, cancel, status


def _examples() -> gr.Dataset:
    examples = gr.Dataset(
        label="Examples",
        components=["textbox"],
        samples=[[example.title] for example in EXAMPLES],
        type="index",
        elem_id="examples",
    )
    gr.HTML(f"<p class='credits'>{CREDITS}</p>")
    return examples


def _mixer() -> tuple[gr.Column, list[gr.Slider], gr.Button, gr.HTML]:
    with gr.Column(visible=False, elem_id="mixer") as mixer:
        gr.HTML("<h3>Remix</h3><p class='note'>Level of each sound in percent.</p>")
        levels = [gr.Slider(0, MAX_PERCENT, 100, step=1) for _ in range(work.MAX_SOUNDS)]
        mix = gr.Button("Make the remix", elem_id="mix")
        mixed = gr.HTML(elem_id="mixed")
    return mixer, levels, mix, mixed


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
        image: str | None,
        request: gr.Request,
        progress: gr.Progress = gr.Progress(),  # noqa: B008  (Gradio passes one in this way)
    ) -> Any:
        """Return the values of the page's outputs, or raise gr.Error with a readable line."""
        visitor, session = request.cookies.get(COOKIE, ""), str(request.session_hash)
        if recording is None:
            raise _error("Drop a recording first, or record one")
        with (
            _readable(Path(recording), Path(image or recording)),
            self.answers.job(session) as job,
        ):
            wanted, unwanted_lines = work.sentences(text), work.sentences(unwanted)
            for path in filter(None, (recording, image)):
                self.uploads.check(visitor, path)

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
                image=image,
            )
            job.parts.extend(sound.path for sound in sounds[1:])
            self._serve(visitor, job.folder)
            levels = [gr.Slider(label=sound.title, value=100, visible=True) for sound in sounds[1:]]
            hidden = [gr.Slider(visible=False)] * (work.MAX_SOUNDS - len(levels))
            picture = picture_html(sounds, job.folder / work.PICTURE)
            answer = sounds_html(sounds, "sound")
            return answer, note("Done."), picture, gr.Column(visible=True), "", *levels, *hidden
        return gr.skip()

    def remix(self, request: gr.Request, *percents: float) -> Any:
        """Return a player of the parts of the session's answer, each at its level, added up."""
        visitor, session = request.cookies.get(COOKIE, ""), str(request.session_hash)
        parts = self.answers.parts(session)
        with _readable(*parts), self.answers.job(session, remix=True) as job:
            if not parts:
                raise InputError("Separate a recording first")
            for part in parts:
                self.uploads.check(visitor, str(part))
            levels = [percent / 100 for percent in percents[: len(parts)]]
            path = job.folder / "remix.wav"
            work.remix(parts, levels, path, job.check)
            self._serve(visitor, job.folder)
            return sounds_html([work.Sound("Remix", path)], "remix")
        return gr.skip()

    def _serve(self, visitor: str, folder: Path) -> None:
        paths = [str(path) for path in folder.iterdir()]
        self.expiring.update(paths)
        self.uploads.add(visitor, paths)

    def example(self, index: int, request: gr.Request) -> tuple[str, str, str, None]:
        """Return a recording, which the visitor may then separate, and sentences."""
        example = EXAMPLES[index]
        path = save_file_to_cache(example.recording, cache_dir=os.environ["GRADIO_TEMP_DIR"])
        self.uploads.add(request.cookies.get(COOKIE, ""), [path])
        return path, example.text, "", None

    def cancel(self, request: gr.Request) -> str:
        """Stop the session's separation between two tiles, and return a status line."""
        self.answers.cancel(str(request.session_hash))
        return note("Cancelled.")

    def leave(self, request: gr.Request) -> None:
        """Stop the session's separation and remove its answer, since the page was closed."""
        self.answers.leave(str(request.session_hash))


@contextlib.contextmanager
def _readable(*paths: Path) -> Iterator[None]:
    """Turn errors into lines of the page, and end the block silently if it was cancelled."""
    try:
        yield
    except Cancelled:
        pass
    except InputError as error:
        line = str(error)
        for path in paths:  # their folders mean nothing to the visitor
            line = line.replace(str(path), path.name)
        raise _error(line) from error
    except Exception as error:
        log.exception("a request failed")
        raise _error("Something went wrong on the server; its log says what") from error


def _error(line: str) -> gr.Error:
    # Gradio shows the message as HTML. It stays until it is closed.
    return gr.Error(html.escape(" ".join(line.split())), duration=None, print_exception=False)
