"""The frame around the five pages: project picker, run bar, stepper, and the memory of where one was.

What is shown lives in the address (``?project=<id>&step=<step>``), so a refresh, a second tab or a
bookmark opens the same place. The project id travels in a hidden text box rather than in ``gr.State``:
the browser keeps it, and it survives a restart of the studio.
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
    Page,
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
        project_id = gr.Textbox(visible="hidden", elem_id="studio-project")
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
        pages: dict[str, Page] = {}
        with gr.Tabs(selected="photos", elem_id="steps"):
            for step, (label, module) in STEPS.items():
                with gr.Tab(label, id=step, elem_id=f"tab-{step}") as tab:
                    pages[step] = module.build(studio, project_id)
                if pages[step].outputs:
                    tab.select(
                        _open(pages[step]),
                        project_id,
                        pages[step].outputs,
                        **QUIET,
                    ).then(None, js=f"() => studio.filled('{step}')")

        slots = [component for page in pages.values() for component in page.outputs]
        app.load(
            _load(studio, pages),
            project_id,
            [project_id, root, *slots],
            js="() => location.search",
            **QUIET,
        )
        root.select(
            _choose(studio, pages),
            None,
            [project_id, root, *slots],
            trigger_mode="multiple",  # a pick counts also while the one before is on its way
            **QUIET,
        )
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


def _open(page: Page) -> Any:
    """Handler of a tab's ``select``: fill the page that was opened."""

    @shows_errors
    def open_page(project_id: str) -> Any:
        return page.refresh(project_id) if project_id else gr.skip()

    return open_page


def _filled(pages: dict[str, Page], step: str, project_id: str) -> list[Any]:
    """Values for the outputs of all pages: those of ``step`` refreshed, the others left as they are."""
    values: list[Any] = []
    for name, page in pages.items():
        if name != step or not project_id or not page.outputs:
            values += [gr.skip()] * len(page.outputs)
            continue
        fresh = page.refresh(project_id)
        values += list(fresh) if len(page.outputs) > 1 else [fresh]
    return values


def _place(studio: Studio, pages: dict[str, Page], project_id: str, step: str) -> str:
    """What the scripts need to know: where we are, the projects, and which pages are filled from here."""
    projects = [{"id": project.id, "name": project.name} for project in studio.workspace.list_projects()]
    return json.dumps(
        {
            "project": project_id,
            "step": step,
            "projects": projects,
            "refreshed": [name for name, page in pages.items() if page.outputs],
            "password": studio.has_password,
        }
    )


def _load(studio: Studio, pages: dict[str, Page]) -> Any:
    """The first event of a tab: from the address to a project and a step."""

    @shows_errors
    def load(search: str) -> list[Any]:
        query = {key: values[-1] for key, values in parse_qs(search.removeprefix("?")).items()}
        known = [project.id for project in studio.workspace.list_projects()]
        wanted = [query.get("project", ""), studio.start_project, *known]
        project_id = next((project for project in wanted if project in known), "")
        step = query.get("step", "photos")
        step = step if step in STEPS else "photos"
        # Other tabs than the first are filled by their own select event, when the script opens them.
        first = "photos" if step == "photos" else ""
        return [project_id, _place(studio, pages, project_id, step), *_filled(pages, first, project_id)]

    return load


def _choose(studio: Studio, pages: dict[str, Page]) -> Any:
    """Another project was picked."""

    @shows_errors
    def choose(event: gr.EventData) -> list[Any]:
        project = studio.workspace.project(str(event.project))
        step = event.step if event.step in STEPS else "photos"
        return [project.id, _place(studio, pages, project.id, step), *_filled(pages, step, project.id)]

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
