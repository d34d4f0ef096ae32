"""The page and what it hands out, as one web app on one socket."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import gradio as gr
import uvicorn
from fastapi import FastAPI, HTTPException
from fastapi.responses import FileResponse

from audiosep_jax.demo import page
from audiosep_jax.demo.guard import MEGABYTE, Guard
from audiosep_jax.demo.shelf import Shelf
from audiosep_jax.separation.separator import Separator

STOP_SECONDS = 3


class Site:
    """The page on a listening socket.

    Its answers lie in a folder that the caller removes; uploads are where GRADIO_TEMP_DIR says.
    """

    def __init__(
        self, separator: Separator, answers: Path, sock: socket.socket, limits: page.Limits
    ) -> None:
        self.shelf, self._sock = Shelf(answers), sock
        guard = Guard(_app(separator, self.shelf, limits), round(limits.max_megabytes * MEGABYTE))
        config = uvicorn.Config(guard, log_level="warning", timeout_graceful_shutdown=STOP_SECONDS)
        self._server = _Server(config, self.shelf)

    def run(self) -> None:
        """Serves until `stop`, or in the main thread a signal; then ends what is running."""
        self._server.run(sockets=[self._sock])

    def stop(self) -> None:
        """Ends `run`, of which another thread is."""
        self._server.should_exit = True


class _Server(uvicorn.Server):
    """Ends at once: every open page holds a stream that uvicorn would wait for."""

    def __init__(self, config: uvicorn.Config, shelf: Shelf) -> None:
        super().__init__(config)
        self._shelf = shelf

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._shelf.clear()
        for connection in list(self.server_state.connections):
            if connection.transport is not None:
                connection.transport.close()
        await super().shutdown(sockets)


def _app(separator: Separator, shelf: Shelf, limits: page.Limits) -> FastAPI:
    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        sweeper = asyncio.create_task(_sweep(shelf))
        try:
            yield
        finally:
            sweeper.cancel()

    app = FastAPI(lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)

    @app.get(f"/{page.RESULTS}/{{token}}/{{name}}")
    def result(token: str, name: str) -> FileResponse:
        path = shelf.file(token, name)
        if path is None:
            raise HTTPException(404, "This result was removed; separate again")
        return FileResponse(path)

    blocks = page.build(separator, shelf, limits)
    return gr.mount_gradio_app(
        app,
        blocks,
        path="/",
        theme=page.theme(),
        css=page.CSS,
        max_file_size=round(limits.max_megabytes * MEGABYTE),
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        show_error=False,
        enable_monitoring=False,
        mcp_server=False,
        pwa=False,
    )


async def _sweep(shelf: Shelf) -> None:
    while True:
        await asyncio.sleep(page.SWEEP_SECONDS)
        await asyncio.to_thread(shelf.sweep, page.KEEP_SECONDS)
