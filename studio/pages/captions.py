"""The Captions page: the trigger word, captions by a model, every photo beside its caption, and bulk changes
with undo.

All of it is one panel (static/captions.js): a caption that somebody types in must never be drawn anew by a
Gradio event. Saving goes through ``/studio/caption``, everything else through the functions below.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import gradio as gr

from dataset_tools.caption_preview import caption_previews
from dataset_tools.tokens import Counter, counters_for
from studio import bulk
from studio.captioner import offered, write_captions
from studio.context import Studio
from studio.files import CAPTION_LIMIT
from studio.projects import Project
from studio.recipes import facts_of, rename_trigger
from studio.theme import scripts
from studio.trigger import trigger_hint
from trainer.contract.config import TrainConfig
from trainer.contract.errors import ConfigError
from trainer.contract.presets import load_presets

from . import Message, project_of, served, text_of

MAX_TEXTS = 5000


def build(studio: Studio) -> None:
    with gr.Column(elem_id="captions-page"):
        gr.HTML(
            html_template="",
            elem_id="captions-panel",
            apply_default_css=False,
            head=scripts("live.js", "frame.js", "captioner.js", "captions.js"),
            js_on_load="studio.panels.captions(element, server)",
            server_functions=served(
                studio,
                about,
                set_trigger,
                count_tokens,
                read_as,
                preview,
                apply_change,
                undo,
                captioners,
                caption_them,
                stop_captions,
            ),
        )


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


def captioners(studio: Studio, message: Message) -> dict[str, Any]:
    """The models that can write captions, and what the form begins with."""
    return offered()


def caption_them(studio: Studio, message: Message) -> dict[str, Any]:
    """Have a model write captions, by a job of the queue."""
    return {"job": write_captions(studio.jobs, project_of(studio, message), message).id}


def stop_captions(studio: Studio, message: Message) -> dict[str, Any]:
    studio.jobs.cancel(text_of(message, "job"))
    return {}


def count_tokens(studio: Studio, message: Message) -> dict[str, Any]:
    """``{"counts": […], "limit": n}``, or nulls where the base's tokenizer is not on this machine."""
    try:
        config = project_of(studio, message).config()
    except ConfigError:
        return {"counts": None, "limit": None}
    counters = [*_counters(config).values()]
    if not counters:
        return {"counts": None, "limit": None}
    texts = [str(text) for text in list(message.get("texts") or [])[:MAX_TEXTS]]
    return {"counts": [counters[-1].count(text) for text in texts], "limit": counters[-1].limit}


def read_as(studio: Studio, message: Message) -> dict[str, Any]:
    """What the recipe makes of a photo's caption, ``text``, at some looks: ``{"looks": [{"epoch", "step",
    "warming", "stages": [[title, text], …], "tokens": [{"encoder", "count", "limit"}, …]}, …]}``."""
    project = project_of(studio, message)
    config, dataset = project.config(), project.dataset()
    record = project.record(text_of(message, "image"))
    previews = caption_previews(
        text_of(message, "text").strip()[:CAPTION_LIMIT] or dataset.trigger,
        config,
        _counters(config),
        image_id=record.id,
        repeats=record.repeats * config.dataset.repeats,
        folders=facts_of(project, config, None).folders,
    )
    return {
        "looks": [
            {
                "epoch": one.epoch,
                "step": one.step + 1,
                "warming": config.captions.warmup_steps > 0,
                "stages": one.stages.titled(),
                "tokens": [asdict(tokens) for tokens in one.tokens],
            }
            for one in previews
        ]
    }


def _counters(config: TrainConfig) -> dict[str, Counter]:
    return counters_for(config.model.family, config.model.base)


def preview(studio: Studio, message: Message) -> dict[str, Any]:
    return bulk.preview(project_of(studio, message), message)


def apply_change(studio: Studio, message: Message) -> dict[str, Any]:
    return bulk.apply_change(project_of(studio, message), message)


def undo(studio: Studio, message: Message) -> dict[str, Any]:
    return bulk.undo(project_of(studio, message))
