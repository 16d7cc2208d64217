"""The Captions page: the trigger word, every photo beside its caption, and bulk changes with undo.

All of it is one panel (static/captions.js): a caption that somebody types in must never be drawn anew by a
Gradio event. Saving goes through ``/studio/caption``, everything else through the functions below.
"""

from __future__ import annotations

from typing import Any

import gradio as gr

from studio import bulk
from studio.context import Studio
from studio.projects import Project
from studio.recipes import rename_trigger
from studio.theme import scripts
from studio.tokens import counter_for
from studio.trigger import trigger_hint
from trainer.contract.errors import ConfigError
from trainer.contract.presets import load_presets

from . import Message, Page, project_of, served, text_of

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
            server_functions=served(studio, about, set_trigger, count_tokens, preview, apply_change, undo),
        )
    return Page()


def about(studio: Studio, message: Message) -> dict[str, Any]:
    """What the dataset route does not tell: a word on the trigger, and what Undo would take back."""
    return _about(project_of(studio, message))


def _about(project: Project) -> dict[str, Any]:
    kind, sentence = trigger_hint(project.dataset().trigger)
    return {"hint": {"kind": kind, "text": sentence}, "undo": bulk.last_change(project)}


def set_trigger(studio: Studio, message: Message) -> dict[str, Any]:
    """Save the trigger word, and rename it in the recipe's sample prompts."""
    project = project_of(studio, message)
    old = project.dataset().trigger
    project.set_trigger(text_of(message, "trigger"))
    new = project.dataset().trigger
    rename_trigger(project, load_presets(), old, new)
    return {"trigger": new, **_about(project)}


def count_tokens(studio: Studio, message: Message) -> dict[str, Any]:
    """``{"counts": […], "limit": n}``, or nulls where the base's tokenizer is not on this machine."""
    try:
        base = project_of(studio, message).config().model.base
    except ConfigError:
        base = ""
    counter = counter_for(base) if base else None
    if counter is None:
        return {"counts": None, "limit": None}
    texts = [str(text) for text in list(message.get("texts") or [])[:MAX_TEXTS]]
    return {"counts": [counter.count(text) for text in texts], "limit": counter.limit}


def preview(studio: Studio, message: Message) -> dict[str, Any]:
    return bulk.preview(project_of(studio, message), message)


def apply_change(studio: Studio, message: Message) -> dict[str, Any]:
    return bulk.apply_change(project_of(studio, message), message)


def undo(studio: Studio, message: Message) -> dict[str, Any]:
    return bulk.undo(project_of(studio, message))
