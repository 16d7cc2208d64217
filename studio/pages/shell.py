"""The frame around the five pages: project picker, run bar, stepper, and the memory of where one was.

What is shown lives in the address (``?project=<id>&step=<step>``), so a refresh, a second tab or a
bookmark opens the same place; the pages' scripts hear of it from static/shell.js.
"""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import parse_qs

import gradio as gr

from studio.context import Studio
from studio.jobs import Supervisor
from studio.projects import Project
from studio.theme import scripts
from trainer.contract.errors import ConfigError
from trainer.contract.length import length_in_words
from trainer.contract.runs import RunFolder

from . import (
    Message,
    captions,
    photos,
    project_of,
    recipe,
    results,
    run_of,
    served,
    shows_errors,
    text_of,
    train,
)

STEPS = {
    "photos": ("Photos", photos),
    "captions": ("Captions", captions),
    "recipe": ("Recipe", recipe),
    "train": ("Train", train),
    "results": ("Results", results),
}

# Not through Gradio's queue: a plain request waits behind nothing and needs no stream that a restart cuts.
QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private", "queue": False}


def build_app(studio: Studio) -> gr.Blocks:
    """The whole page. ``root`` carries news from Python to the scripts, its ``select`` event the way back."""
    with gr.Blocks(title="LoRA Studio", analytics_enabled=False) as app:
        root = gr.HTML(
            value="{}",
            html_template="",
            elem_id="studio-root",
            head=scripts("live.js"),
            js_on_load="studio.boot(props, watch, (project, step) => trigger('select', {project, step}))",
        )
        _panel(
            "header",
            "live.js",
            "stored.js",
            "frame.js",
            functions=served(studio, create_project, rename_project, badges, fetch, fetched),
        )
        _panel("runbar", "live.js", "frame.js", functions=served(studio, stop, hurry))
        _panel("stepper", "live.js", "frame.js")
        _panel("welcome", "live.js", "frame.js")
        with gr.Tabs(selected="photos", elem_id="steps"):
            for step, (label, module) in STEPS.items():
                with gr.Tab(label, id=step, elem_id=f"tab-{step}"):
                    module.build(studio)
        app.load(_load(studio), root, root, js="() => location.search", **QUIET)
        # A pick counts also while the one before is on its way.
        root.select(_choose(studio), None, root, trigger_mode="multiple", **QUIET)
    return app


def _panel(name: str, *needs: str, functions: list[Any] | None = None) -> gr.HTML:
    """An empty element that the script of the same name fills: ``studio.panels.<name>(element, server)``."""
    return gr.HTML(
        html_template="",
        elem_id=f"studio-{name}",
        apply_default_css=False,
        head=scripts(*needs),
        js_on_load=f"studio.panels.{name}(element, server)",
        server_functions=functions,
    )


# Opening a place ---------------------------------------------------------------------------------


def _place(studio: Studio, project_id: str, step: str) -> str:
    """What the scripts need to know: where we are, and the projects."""
    projects = [{"id": project.id, "name": project.name} for project in studio.workspace.list_projects()]
    return json.dumps(
        {
            "project": project_id,
            "step": step,
            "projects": projects,
            "password": studio.has_password,
        }
    )


def _load(studio: Studio) -> Any:
    """The first event of a tab: from the address to a project and a step."""

    @shows_errors
    def load(search: str) -> str:
        query = {key: values[-1] for key, values in parse_qs(search.removeprefix("?")).items()}
        known = [project.id for project in studio.workspace.list_projects()]
        wanted = [query.get("project", ""), studio.start_project, *known]
        project_id = next((project for project in wanted if project in known), "")
        step = query.get("step", "photos")
        return _place(studio, project_id, step if step in STEPS else "photos")

    return load


def _choose(studio: Studio) -> Any:
    """Another project was picked."""

    @shows_errors
    def choose(event: gr.EventData) -> str:
        project = studio.workspace.project(str(event.project))
        return _place(studio, project.id, event.step if event.step in STEPS else "photos")

    return choose


# Called by the scripts ---------------------------------------------------------------------------


def create_project(studio: Studio, message: Message) -> dict[str, Any]:
    return {"project": studio.workspace.create_project(text_of(message, "name")).id}


def rename_project(studio: Studio, message: Message) -> dict[str, Any]:
    project = project_of(studio, message)
    project.rename(text_of(message, "name"))
    return {"name": project.name}


def fetch(studio: Studio, message: Message) -> dict[str, Any]:
    """Put the fetching of a run that is stored at ``url`` into the queue."""
    return {"job": studio.jobs.fetch(text_of(message, "url"), text_of(message, "endpoint")).id}


def fetched(studio: Studio, message: Message) -> dict[str, Any]:
    return studio.jobs.fetched(text_of(message, "job"))


def stop(studio: Studio, message: Message) -> dict[str, Any]:
    studio.jobs.stop(run_of(studio, message))
    return {}


def hurry(studio: Studio, message: Message) -> dict[str, Any]:
    studio.jobs.hurry_run(run_of(studio, message))
    return {}


def badges(studio: Studio, message: Message) -> dict[str, Any]:
    """✓ or ! for each step of a project, with a sentence."""
    return step_states(studio.jobs, project_of(studio, message))


def step_states(jobs: Supervisor, project: Project) -> dict[str, dict[str, str]]:
    """{step: {"state": "done" | "warn" | "live" | "", "text": a few words}}."""
    photos, captions = _material(project)
    try:
        config = project.config()
        recipe = ("done" if photos[0] else "", f"{length_in_words(config.train)}, rank {config.adapter.rank}")
    except ConfigError:
        recipe = ("warn", "Cannot be read")
    train, results = _outcome(jobs, project.runs())
    states = {"photos": photos, "captions": captions, "recipe": recipe, "train": train, "results": results}
    return {step: {"state": state, "text": text} for step, (state, text) in states.items()}


def _material(project: Project) -> tuple[tuple[str, str], tuple[str, str]]:
    """(state, text) of Photos and of Captions."""
    dataset = project.dataset()
    images = dataset.enabled_images()
    if not images:
        return ("", "Add photos first"), ("", "Nothing to caption yet")
    photos = ("done", _count(len(images), "photo"))
    if not dataset.trigger:
        return photos, ("warn", "No trigger word yet")
    captions = project.captions()
    bare = sum(not captions[image.id].strip() for image in images)
    return photos, ("done", f"{bare} by trigger word alone" if bare else "All captioned")


def _outcome(jobs: Supervisor, runs: list[RunFolder]) -> tuple[tuple[str, str], tuple[str, str]]:
    """(state, text) of Train, which is the newest run's, and of Results."""
    if not runs:
        return ("", "Not trained yet"), ("", "Nothing to show yet")
    status = jobs.status(runs[0])
    train = {
        "finished": ("done", f"Finished, {status.total} steps"),
        "queued": ("", "Waits for its turn"),
        "stopped": ("warn", status.message) if status.cause else ("", f"Stopped at step {status.step}"),
        "failed": ("warn", status.message or "The training failed"),
        "lost": ("warn", status.message or "The training died"),
    }.get(status.state, ("live", "Training now"))
    finished = sum(run.raw_status().state == "finished" for run in runs)
    return train, ("done", _count(finished, "finished run")) if finished else ("", "Nothing finished yet")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
