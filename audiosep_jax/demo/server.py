"""The running page: Gradio's server around it."""

import os
from collections.abc import Sequence
from pathlib import Path

import gradio as gr
from starlette.middleware import Middleware

from audiosep_jax.demo import page
from audiosep_jax.demo.answer import CSS
from audiosep_jax.demo.storage import Answers
from audiosep_jax.demo.uploads import Uploads, UploadsOnly
from audiosep_jax.separation.separator import Separator

_MEGABYTE = 1_000_000


class Server:
    """The page, served by threads of Gradio from construction until `close`.

    Args:
        folder: holds uploads and answers; the caller removes it.
        passwords: (user, password) pairs. Without any, everybody may use the page.
    """

    def __init__(
        self,
        separator: Separator,
        folder: Path,
        host: str,
        port: int,
        limits: page.Limits,
        passwords: Sequence[tuple[str, str]] = (),
    ) -> None:
        # Components read it when they are made. Answers are below the upload folder because
        # Gradio serves files from there.
        os.environ["GRADIO_TEMP_DIR"] = str(folder)
        self.uploads = Uploads(folder, limits.max_total_megabytes * _MEGABYTE)
        self.answers = Answers(folder / "answers")
        self.blocks = page.build(separator, self.uploads, self.answers, limits)
        self.blocks.launch(
            server_name=f"[{host}]" if ":" in host else host,
            server_port=port,
            auth=list(passwords) or None,
            max_file_size=round(limits.max_megabytes * _MEGABYTE),
            allowed_paths=[],
            app_kwargs={
                "middleware": [Middleware(UploadsOnly, self.uploads)],
                "docs_url": None,
                "redoc_url": None,
                "openapi_url": None,
            },
            prevent_thread_lock=True,
            quiet=True,
            share=False,
            # Fonts of the system, so that none is fetched.
            theme=gr.themes.Default(
                primary_hue="teal", font=("system-ui", "sans-serif"), font_mono=("monospace",)
            ),
            css=CSS,
            footer_links=[],
            run_history=False,
            ssr_mode=False,
            enable_monitoring=False,
            mcp_server=False,
            pwa=False,
            num_workers=0,
        )

    def close(self) -> None:
        """Stop running separations, then the server."""
        self.answers.close()
        self.blocks.close(verbose=False)
