"""The five pages. Each module has ``build(studio)``: what Gradio needs to know first, handlers below.

What a script asks of Python is a function of ``(studio, message)``, bound for its panel by :func:`served`.
"""

from __future__ import annotations

import functools
import html
from collections.abc import Callable, Mapping
from typing import Any

import gradio as gr

from studio.context import Studio
from studio.projects import Project
from trainer.contract.errors import UserError
from trainer.contract.runs import RunFolder

Message = Mapping[str, Any]


def shows_errors(handler: Callable[..., Any]) -> Callable[..., Any]:
    """A handler whose :class:`UserError` becomes a message on the page instead of a failed event.

    Every output keeps its value (``gr.skip``), so nothing that was typed is lost. Anything but a
    UserError is a bug and is allowed to fly.
    """

    @functools.wraps(handler)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        try:
            return handler(*args, **kwargs)
        except UserError as error:
            gr.Warning(html.escape(str(error)), duration=12, title="That did not work")
            return gr.skip()

    return guarded


def served(studio: Studio, *functions: Callable[[Studio, Message], dict[str, Any]]) -> list[Any]:
    """``server_functions=`` of a panel: each takes one message and answers JSON, where a
    :class:`UserError` is ``{"error": sentence}``."""

    def bound(function: Callable[[Studio, Message], dict[str, Any]]) -> Any:
        def answer(message: dict[str, Any]) -> dict[str, Any]:
            try:
                return function(studio, message)
            except UserError as error:
                return {"error": str(error)}

        answer.__name__ = function.__name__  # the script calls it by this
        return answer

    return [bound(function) for function in functions]


def project_of(studio: Studio, message: Message) -> Project:
    """The project that a message names. Raises NotFound."""
    return studio.workspace.project(text_of(message, "project"))


def run_of(studio: Studio, message: Message) -> RunFolder:
    """The run that a message names. Raises NotFound."""
    return studio.workspace.run(text_of(message, "run"))


def text_of(message: Message, name: str) -> str:
    return str(message.get(name) or "")
