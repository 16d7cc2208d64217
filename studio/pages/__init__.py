"""The five pages. Each module has ``build(studio, project_id) -> Page``: widgets first, handlers below."""

from __future__ import annotations

import functools
import html
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import gradio as gr

from trainer.contract.errors import UserError


@dataclass
class Page:
    """What the shell needs to know of a page.

    Attributes:
        outputs: the components that ``refresh`` fills.
        refresh: project id -> values for ``outputs`` (one value, or a tuple in their order). Called when
            the page's tab is opened, when the project changes, and for the opened tab on load.
    """

    outputs: list[Any] = field(default_factory=list)
    refresh: Callable[[str], Any] = lambda project_id: None


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
