"""The Captions page: the trigger word, every photo beside its caption, and bulk changes with undo.

All of it is one panel (static/captions.js): a caption that somebody types in must never be drawn anew by a
Gradio event. Saving goes through ``/studio/caption``, everything else through the functions below.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import gradio as gr

from studio import bulk
from studio.context import Studio
from studio.projects import Project
from studio.recipes import rename_trigger
from studio.theme import scripts
from studio.tokens import counter_for
from studio.trigger import trigger_hint
from trainer.contract.errors import ConfigError, UserError
from trainer.contract.presets import load_presets

from . import Page

MAX_TEXTS = 5000


def build(studio: Studio, project_id: Any) -> Page:
    """The page has nothing for Gradio to fill."""
    with gr.Column(elem_id="captions-page"):
        gr.HTML(
            html_template="",
            elem_id="captions-panel",
            apply_default_css=False,
            head=scripts("live.js", "frame.js", "captions.js"),
            js_on_load="studio.panels.captions(element, server)",
            server_functions=_functions(studio),
        )
    return Page()


def _functions(studio: Studio) -> list[Any]:
    """What the script calls: each takes ``{"project": id, …}``, answers JSON or ``{"error": sentence}``."""

    def served(work: Callable[[Project, Mapping[str, Any]], dict[str, Any]], name: str) -> Any:
        def function(message: dict[str, Any]) -> dict[str, Any]:
            try:
                return work(studio.workspace.project(str(message.get("project", ""))), message)
            except UserError as error:
                return {"error": str(error)}

        function.__name__ = name
        return function

    return [
        served(about, "about"),
        served(set_trigger, "set_trigger"),
        served(count_tokens, "count_tokens"),
        served(bulk.preview, "preview"),
        served(bulk.apply_change, "apply_change"),
        served(lambda project, _: bulk.undo(project), "undo"),
    ]


def about(project: Project, message: Mapping[str, Any]) -> dict[str, Any]:
    """What the dataset route does not tell: a word on the trigger, and what Undo would take back."""
    kind, sentence = trigger_hint(project.dataset().trigger)
    return {"hint": {"kind": kind, "text": sentence}, "undo": bulk.last_change(project)}


def set_trigger(project: Project, message: Mapping[str, Any]) -> dict[str, Any]:
    """Save the trigger word, and rename it in the recipe's sample prompts."""
    old = project.dataset().trigger
    project.set_trigger(str(message.get("trigger", "")))
    new = project.dataset().trigger
    rename_trigger(project, load_presets(), old, new)
    return {"trigger": new, **about(project, message)}


def count_tokens(project: Project, message: Mapping[str, Any]) -> dict[str, Any]:
    """``{"counts": […], "limit": n}``, or nulls where the base's tokenizer is not on this machine."""
    try:
        base = project.config().model.base
    except ConfigError:
        base = ""
    counter = counter_for(base) if base else None
    if counter is None:
        return {"counts": None, "limit": None}
    texts = [str(text) for text in list(message.get("texts") or [])[:MAX_TEXTS]]
    return {"counts": [counter.count(text) for text in texts], "limit": counter.limit}
