"""Train: start, stop and resume a run, and watch it. All that is live is drawn by ``static/train.js``."""

from __future__ import annotations

from typing import Any

import gradio as gr

from studio.context import Studio
from studio.fixes import apply, propose
from studio.machine import Gpu
from studio.projects import Project
from studio.recipes import draft, verdict
from studio.theme import scripts
from trainer.contract.amend import amend
from trainer.contract.config import TrainConfig
from trainer.contract.errors import UserError
from trainer.contract.families import known_base
from trainer.contract.length import length_in_words
from trainer.contract.presets import load_presets

from . import Message, project_of, run_of, served, text_of


def build(studio: Studio) -> None:
    """The page has nothing for Gradio to fill: its script follows the run that the tab's poller follows."""
    gr.HTML(
        html_template="",
        elem_id="studio-train",
        apply_default_css=False,
        head=scripts("live.js", "frame.js", "chart.js", "samples.js", "queue.js", "train.js"),
        js_on_load="studio.panels.train(element, server)",
        server_functions=served(studio, act, plan, queue, fix),
    )


def act(studio: Studio, message: Message) -> dict[str, Any]:
    """Do what a button says: ``verb``, and the id of the project (start) or of the run (the others)."""
    verb = message.get("verb")
    if verb == "start":
        project = project_of(studio, message)
        return {"run": studio.jobs.start(project, draft(project, load_presets(), Gpu().state())).id}
    run = run_of(studio, message)
    if verb == "resume":
        if budget := text_of(message, "budget"):
            amend(run, [f"machine.budget={budget}"])
        studio.jobs.resume(run)
    elif verb == "stop":
        studio.jobs.stop(run)
    elif verb == "hurry":
        studio.jobs.hurry_run(run)
    elif verb == "fix":
        return {"run": apply(studio.jobs, run, text_of(message, "key")).id}
    elif verb == "save" or verb == "sample":
        studio.jobs.ask(run, verb)
    else:
        raise UserError(f"{str(verb)[:40]!r} is nothing that a training can be asked; reload the page.")
    return {"run": run.id}


def queue(studio: Studio, message: Message) -> dict[str, Any]:
    """Do what a button of the queue says: ``verb``, and the id of the ``job`` where it is about one."""
    jobs, verb, job = studio.jobs, message.get("verb"), text_of(message, "job")
    moves = {"up": -1, "down": +1}
    verbs = {"cancel": jobs.cancel, "hurry": jobs.hurry, "retry": jobs.retry, "remove": jobs.remove}
    if verb in moves:
        jobs.move(job, moves[verb])
    elif verb in verbs:
        verbs[verb](job)
    elif verb in ("pause", "go-on"):
        jobs.pause(verb == "pause")
    elif verb == "clear":
        jobs.clear()
    else:
        raise UserError(f"{str(verb)[:40]!r} is nothing that the queue can be asked; reload the page.")
    return {}


def fix(studio: Studio, message: Message) -> dict[str, Any]:
    """What a button could do about a run that failed: ``{"fix": None}``, or its words and the change."""
    try:
        found = propose(studio.jobs, run_of(studio, message))
    except UserError:
        return {"fix": None}  # of a run that cannot even be read
    return {"fix": found.as_dict() if found else None}


def plan(studio: Studio, message: Message) -> dict[str, Any]:
    """What Start would train, and what stands against it ("" if nothing does)."""
    try:
        return describe(project_of(studio, message), Gpu().state())
    except UserError as error:
        return {"problem": str(error), "summary": [], "machine": [], "run_prompts": 1}


def describe(project: Project, gpu: dict[str, Any] | None) -> dict[str, Any]:
    """``problem``, ``summary`` [[label, value], …] and ``machine`` [[sentence, kind], …] of the draft,
    ``run_prompts`` of the newest run."""
    presets = load_presets()
    config = draft(project, presets, gpu)
    photos = len(project.dataset().enabled_images())
    runs = project.runs()
    prompts = runs[0].config().samples.prompts if runs else config.samples.prompts
    judgement = verdict(project, config, presets, gpu)
    problem = "" if photos else "Add some photos first; there is nothing to learn from yet."
    return {
        "problem": problem or (judgement.blockers[0] if judgement.blockers else ""),
        "summary": summary(judgement.whole, photos, judgement.looks),
        "machine": [[line.text, line.kind] for line in judgement.machine],
        "run_prompts": len(prompts),
    }


def summary(config: TrainConfig, photos: int, looks: float) -> list[list[str]]:
    """The draft in words that can be checked at a glance; ``looks``: how often each photo is shown."""
    settings = config.train
    base = known_base(config.model.family, config.model.base)
    batch = settings.batch_size * settings.gradient_accumulation
    known = photos and not settings.epochs
    rows = [
        ["Base model", base.label if base else config.model.base],
        ["Photos", f"{photos}" + (f", each seen about {looks:.0f} times" if known else "")],
        ["Length", f"{length_in_words(settings)} with {batch} photo{'s' if batch > 1 else ''} each"],
        ["Trigger word", config.dataset.trigger or "none"],
        ["LoRA", f"rank {config.adapter.rank}, alpha {config.adapter.alpha:g}"],
        ["Learning rate", f"{settings.learning_rate:.1e}".replace("e-0", "e-") + f", {settings.scheduler}"],
        ["Samples", _samples(config)],
    ]
    return rows


def _samples(config: TrainConfig) -> str:
    prompts, every = len(config.samples.prompts), config.samples.every
    if not prompts:
        return "no prompts: nothing is drawn while training"
    often = f"every {every} steps" if every else "at the start and at the end"
    return f"{prompts} prompt{'s' if prompts > 1 else ''}, {often}"
