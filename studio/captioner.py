"""The Captions page's card "Write them by a model": what it offers, and what its button asks of the queue."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from dataset_tools import captioners
from dataset_tools.captioning import EXISTING, Existing, Wishes, pending
from dataset_tools.tagger import LACKS, installed
from trainer.contract.errors import UserError

from .jobs import Supervisor
from .projects import Project
from .queue import Job

MAX_WORDS = 1000


def offered() -> dict[str, Any]:
    """``models`` [{key, label, style, gib, licence, about, page}], ``default`` of each style, ``prompt``,
    ``max_tokens``, ``threshold``, and ``lacks``: what has to be installed for tags, "" if nothing."""
    return {
        "models": [
            {
                "key": row.key,
                "label": row.label,
                "style": row.style,
                "gib": f"{row.gib:g}",
                "licence": row.licence,
                "about": row.remark,
                "page": f"https://huggingface.co/{row.model}",
            }
            for row in captioners.CAPTIONERS
        ],
        "default": captioners.DEFAULT,
        "prompt": captioners.PROMPT,
        "max_tokens": captioners.MAX_TOKENS,
        "threshold": captioners.THRESHOLD,
        "lacks": "" if installed() else LACKS,
    }


def write_captions(jobs: Supervisor, project: Project, message: Mapping[str, Any]) -> Job:
    """Queue what the form says: ``model``, ``style`` (sentence, tags), ``existing`` (keep, replace, append),
    ``prompt``, ``max_tokens``, ``threshold``, ``without``, ``prefix``, ``trigger``.

    Raises UserError in one sentence.
    """
    model = _text(message, "model")
    if not model:
        raise UserError("Which model? Choose one, or type a Hub id or the folder of one.")
    tags = message.get("style") == "tags"
    if tags and not installed():
        raise UserError(f"{LACKS}.")
    existing = _text(message, "existing") or "keep"
    if existing not in EXISTING:
        raise UserError(f"{existing!r} is nothing that can be done with captions; reload the page.")
    if not project.dataset().images:
        raise UserError("There are no photos yet; add some first.")
    if existing == "keep" and not pending(project.root, Wishes(cast(Existing, existing))):
        raise UserError("Every photo has a caption; choose what is to become of those.")
    arguments = [f"--model={model}", f"--existing={existing}"]
    if prefix := _text(message, "prefix"):
        arguments.append(f"--prefix={prefix}")
    if not message.get("trigger", True):
        arguments.append("--no-trigger")
    if tags:
        threshold = _number(message, "threshold", captioners.THRESHOLD, 0.01, 0.99)
        arguments.append(f"--threshold={threshold:g}")
        if without := _text(message, "without"):
            arguments.append(f"--without={without}")
        return jobs.caption(project, "tag", arguments)
    most = _number(message, "max_tokens", captioners.MAX_TOKENS, 1, 2000)
    arguments.append(f"--max-tokens={most:.0f}")
    if prompt := _text(message, "prompt"):
        arguments.append(f"--prompt={prompt}")
    return jobs.caption(project, "caption", arguments)


def _text(message: Mapping[str, Any], name: str) -> str:
    text = " ".join(str(message.get(name) or "").split())
    if len(text) > MAX_WORDS or "\0" in text:
        raise UserError(f"The {name} has {len(text)} characters; use at most {MAX_WORDS}, and text alone.")
    return text


def _number(message: Mapping[str, Any], name: str, default: float, least: float, most: float) -> float:
    told = str(message.get(name) or "").strip()
    label = name.replace("_", " ")
    try:
        number = float(told) if told else default
    except ValueError:
        raise UserError(f"The {label} {told!r} is no number; write one like {default:g}.") from None
    if not least <= number <= most:
        raise UserError(f"The {label} {told} is not between {least:g} and {most:g}.")
    return number
