"""The Photos page: one drop zone, what became of each file, and the grid with every crop drawn.

Report and grid are our own panel (static/photos.js) over ``/studio/dataset``; Gradio has the upload only,
since it checks that a file really came through it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from studio.context import Studio
from studio.machine import Gpu
from studio.recipes import draft
from studio.theme import scripts
from trainer.contract.errors import UserError
from trainer.contract.presets import load_presets

from . import Message, project_of, served, text_of

if TYPE_CHECKING:
    from dataset_tools.ingest import IngestReport

NEW_PROJECT = "My photos"
SHOWN_SKIPPED = 100
MAX_COUNTED = 10_000


def build(studio: Studio) -> None:
    with gr.Column(elem_id="photos-page"):
        drop = gr.File(
            label="Photos",
            show_label=False,
            file_count="multiple",
            elem_id="photos-drop",
            height=150,
        )
        progress_bar = gr.HTML("", elem_id="photos-progress", apply_default_css=False)
        gr.HTML(
            html_template="",
            elem_id="photos-grid",
            apply_default_css=False,
            head=scripts("live.js", "frame.js", "photos.js"),
            js_on_load="studio.panels.photos(element, server)",
            server_functions=served(studio, remove, recrop),
        )
        outcome = gr.Textbox(visible="hidden", elem_id="photos-outcome")

    gpu = Gpu()
    presets = load_presets()

    def add(files: list[str] | None, project: str, progress: gr.Progress = gr.Progress()) -> Any:  # noqa: B008
        """Take the uploaded files in. Without a project, they make one.

        The second value is for the panel: the report, and the id of the project that it belongs to. One may
        have gone to another project meanwhile.
        """
        paths = [Path(file) for file in files or ()]
        report: dict[str, Any] = {}
        with studio.uploads.taken(paths):
            try:
                owner = (
                    studio.workspace.project(project)
                    if project
                    else studio.workspace.create_project(NEW_PROJECT)
                )
                project, name = owner.id, owner.name

                def tell(done: int, total: int, what: str) -> None:
                    # The face detector that is fetched before the first crop counts bytes, all else photos.
                    count = f" · {min(done + 1, total)} of {total}" if total <= MAX_COUNTED else ""
                    progress(done / total if total else 0.0, desc=f"{name}: {what}{count}")

                draft(owner, presets, gpu.state())  # a new project's recipe says for which size to crop
                report = report_of(owner.add(paths, progress=tell))
            except UserError as error:
                report = {"kind": "bad", "parts": [str(error)], "reasons": []}
        return None, json.dumps({"project": project, **report})

    drop.upload(
        add,
        [drop, outcome],
        [drop, outcome],
        js="(files) => [files, studio.droppedInto()]",
        show_progress="full",
        show_progress_on=[progress_bar],
        api_visibility="private",
        concurrency_limit=4,
    ).success(None, outcome, None, js="(outcome) => studio.uploaded(JSON.parse(outcome))")


def report_of(came: IngestReport) -> dict[str, Any]:
    """What became of the files: ``kind``, ``parts`` of a line, ``reasons`` [a sentence for each left out]."""
    many, skipped = len(came.added), len(came.skipped)
    parts = [f"{many} added" if many else "No new photos" if came.masks else "Nothing was added"]
    if came.captions:
        parts.append(f"{came.captions} with a caption")
    if came.masks:
        parts.append(f"{came.masks} with a mask")
    if skipped:
        parts.append(f"{skipped} skipped")
    reasons = [one.reason for one in came.skipped[:SHOWN_SKIPPED]]
    if skipped > SHOWN_SKIPPED:
        reasons.append(f"… and {skipped - SHOWN_SKIPPED} more.")
    kind = "good" if (many or came.masks) and not skipped else "warn"
    return {"kind": kind, "parts": [*parts, *came.notes], "reasons": reasons}


# Called by the panel ----------------------------------------------------------------------------------


def remove(studio: Studio, message: Message) -> dict[str, Any]:
    project_of(studio, message).remove([text_of(message, "id")])
    return {}


def recrop(studio: Studio, message: Message) -> dict[str, Any]:
    """Have all pictures cropped anew, for the size that the recipe now trains at, by a job of the queue."""
    return {"job": studio.jobs.crop(project_of(studio, message)).id}
