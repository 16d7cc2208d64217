"""The studio's web application: our routes and the Gradio page behind one guard, and serving them.

Importing this module loads Gradio (about five seconds); nothing heavier may come with it.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable
from typing import Any

import gradio as gr
import uvicorn
from fastapi import FastAPI
from starlette.exceptions import HTTPException

from trainer.contract.errors import UserError

from .assets import asset_routes
from .auth import Limiter, Sessions
from .context import Studio
from .files import file_routes
from .guard import Guard
from .http import error_response, http_error_response
from .live import live_routes
from .loading import show_placeholder
from .login import login_routes

MAX_UPLOAD = "4gb"
"""One uploaded file: a zip of a few hundred photos. Gradio streams it to disk."""


def create_app(
    studio: Studio,
    blocks: gr.Blocks,
    *,
    sessions: Sessions | None = None,
    port: int,
    limiter: Limiter | None = None,
    **look: Any,
) -> Guard:
    """The whole application. ``look`` goes to Gradio (theme, css, head)."""
    app = FastAPI(title="LoRA Studio", docs_url=None, redoc_url=None, openapi_url=None)
    app.add_exception_handler(UserError, error_response)
    app.add_exception_handler(HTTPException, http_error_response)
    # Cookies do not tell ports apart: two studios on one machine need two names.
    cookie = f"studio_session_{port}"
    app.include_router(login_routes(sessions, cookie, limiter))
    app.include_router(live_routes(studio))
    app.include_router(file_routes(studio))
    app.include_router(asset_routes())
    show_placeholder()
    gr.mount_gradio_app(
        app,
        blocks,
        path="/",
        ssr_mode=False,
        footer_links=[],
        run_history=False,
        enable_monitoring=False,
        max_file_size=MAX_UPLOAD,
        show_error=False,
        **look,
    )
    return Guard(app, sessions, cookie, local_only=not studio.host_is_public)


class Server(uvicorn.Server):
    """uvicorn that says when it really answers."""

    def __init__(self, config: uvicorn.Config, on_ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_ready = on_ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._on_ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        # Every open page holds a stream, which is cut now; uvicorn would log each with a traceback.
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
        await super().shutdown(sockets)


def serve(app: Guard, listener: socket.socket, on_ready: Callable[[], None]) -> None:
    """Answer requests until Ctrl-C or SIGTERM. Trainings are processes of their own and go on."""
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,  # whom X-Forwarded-For names is nobody we could trust
        timeout_graceful_shutdown=1,
    )
    asyncio.run(Server(config, on_ready).serve([listener]))
