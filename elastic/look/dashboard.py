"""`elastic dashboard`: pictures of a run on a local page, redrawn as it goes on. The only file that knows NiceGUI."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

import uvicorn
from fastapi import FastAPI
from nicegui import ui
from starlette.middleware.trustedhost import TrustedHostMiddleware

from elastic.errors import ConfigError, ElasticError
from elastic.look.collect import Watch
from elastic.look.html.page import asset, pieces

logger = logging.getLogger(__name__)

HOST = "127.0.0.1"
SECONDS = 2.0
"""Between two looks at the files, and between two looks of a browser."""
FAREWELL_SECONDS = 2
"""For browsers to hang up when the page ends."""
FRAME = ".nicegui-content { display: block; padding: 0 !important; }"
"""The page has margins of its own."""


class Board:
    """The newest pictures, drawn once for all browsers."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch
        self.drawn = pieces(watch.look())

    async def draw(self) -> None:
        """Look again and again; whatever goes wrong is said, and tried again: nobody else would draw."""
        while True:
            await asyncio.sleep(SECONDS)
            try:
                self.drawn = await asyncio.to_thread(lambda: pieces(self._watch.look()))
            except (ElasticError, OSError) as error:
                logger.warning("the page shows what was seen before: %s", error)
            except Exception:
                logger.exception("the page shows what was seen before")

    def page(self) -> None:
        """Build the page for one browser; what changes is sent to it."""
        ui.add_head_html(f"<style>{asset('style.css')}{FRAME}</style>")
        ui.add_body_html(f"<script>{asset('script.js')}</script>")
        ui.query("body").classes("look")
        with ui.element("div").classes("pictures"):
            shown = [ui.html(piece, sanitize=False).style("min-width: 0") for piece in self.drawn]

        def refresh() -> None:
            for element, piece in zip(shown, self.drawn, strict=True):
                if element.content != piece:
                    element.set_content(piece)

        ui.timer(SECONDS, refresh)


def serve(watch: Watch, port: int, say: Callable[[str], None]) -> None:
    """Until Ctrl-C.

    Args:
        watch: the run.
        port: on 127.0.0.1; 0: any free one.
        say: told the address.

    Raises:
        ConfigError: the port is taken.
    """
    board = Board(watch)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        drawing = asyncio.create_task(board.draw())
        try:
            yield
        finally:
            drawing.cancel()

    app = FastAPI(lifespan=lifespan, openapi_url=None)
    # A name of somebody else's that leads here is not answered: another page could read this one.
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"])
    ui.page("/", title="elastic")(board.page)
    ui.run_with(app, dark=None, tailwind=False, show_welcome_message=False)
    with _listening(port) as listener:
        config = uvicorn.Config(
            app, log_level="warning", lifespan="on", timeout_graceful_shutdown=FAREWELL_SECONDS, ws_ping_interval=None
        )
        say(f"http://{HOST}:{listener.getsockname()[1]}  (Ctrl-C ends it)")
        with suppress(KeyboardInterrupt):
            uvicorn.Server(config).run(sockets=[listener])


def _listening(port: int) -> socket.socket:
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((HOST, port))
        listener.listen()  # who has been told the address may come at once, and waits until we are ready
    except OSError as error:
        listener.close()
        raise ConfigError(f"port {port} of {HOST} cannot be used: {error.strerror}; --port 0 takes any") from error
    return listener
