"""The Photos page: one drop zone, what became of each file, and the grid with every crop drawn.

The grid is our own panel (static/photos.js) over ``/studio/dataset``; Gradio has the upload only, since it
checks that a file really came through it.
"""

from __future__ import annotations

import contextlib
import html
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from studio.context import Studio
from studio.machine import Gpu
from studio.recipes import draft
from studio.theme import scripts
from trainer.contract.errors import UserError
from trainer.contract.presets import load_presets

from . import Page

if TYPE_CHECKING:
    from dataset_tools.ingest import IngestReport

NEW_PROJECT = "My photos"
SHOWN_SKIPPED = 100
MAX_COUNTED = 10_000


def build(studio: Studio, project_id: Any) -> Page:
    with gr.Column(elem_id="photos-page"):
        drop = gr.File(
            label="Photos",
            show_label=False,
            file_count="multiple",
            elem_id="photos-drop",
            height=150,
        )
        report = gr.HTML("", elem_id="photos-report", apply_default_css=False)
        gr.HTML(
            html_template="",
            elem_id="photos-grid",
            apply_default_css=False,
            head=scripts("live.js", "frame.js", "photos.js"),
            js_on_load="studio.panels.photos(element, server)",
            server_functions=[_remove(studio), _recrop(studio)],
        )
        opened = gr.Textbox(visible="hidden", elem_id="photos-opened")

    gpu = Gpu()
    presets = load_presets()
    waiting: dict[str, str] = {}

    def add(files: list[str] | None, project: str, progress: gr.Progress = gr.Progress()) -> Any:  # noqa: B008
        """Take the uploaded files in. Without a project, they make one."""
        paths = [Path(file) for file in files or ()]

        def tell(done: int, total: int, what: str) -> None:
            # The face detector that is fetched before the first crop counts bytes, all else photos.
            count = f" · {min(done + 1, total)} of {total}" if total <= MAX_COUNTED else ""
            progress(done / total if total else 0.0, desc=f"{what}{count}")

        try:
            if not paths:
                return None, "", ""
            owner = (
                studio.workspace.project(project) if project else studio.workspace.create_project(NEW_PROJECT)
            )
            draft(owner, presets, gpu.state())  # a new project's recipe says for which size to crop
            came = owner.add(paths, progress=tell)
        except UserError as error:
            return None, report_html(error=str(error)), ""
        finally:
            for path in paths:  # the project has its own copies, without metadata
                with contextlib.suppress(OSError):
                    path.unlink()
                    path.parent.rmdir()
        if project:
            return None, report_html(came), ""
        waiting[owner.id] = report_html(came)  # the page opens the new project, which calls refresh
        return None, "", owner.id

    drop.upload(
        add,
        [drop, project_id],
        [drop, report, opened],
        show_progress="full",
        show_progress_on=[report],
        api_visibility="private",
        concurrency_limit=4,
    ).then(
        None,
        opened,
        None,
        js="(project) => project ? studio.open(project, 'photos') : studio.emit('dataset')",
    )

    def refresh(project: str) -> str:
        return waiting.pop(project, "")

    return Page(outputs=[report], refresh=refresh)


def report_html(report: IngestReport | None = None, *, error: str = "") -> str:
    """What became of the files: a line, and a sentence for each that was left out."""
    if report is None:
        return f'<div class="notice bad" role="alert">{html.escape(error)}</div>'
    many = len(report.added)
    parts = [f"<b>{many} added</b>" if many else "<b>Nothing was added</b>"]
    if report.captions:
        parts.append(f"{report.captions} with a caption")
    if report.skipped:
        parts.append(f'<b class="skipped">{len(report.skipped)} skipped</b>')
    parts += [html.escape(note) for note in report.notes]
    line = f"<p>{' · '.join(parts)}</p>"
    kind = "good" if many and not report.skipped else "warn"
    return f'<div class="notice {kind}" role="status"><div>{line}{_skipped_html(report.skipped)}</div></div>'


def _skipped_html(skipped: Sequence[Any]) -> str:
    if not skipped:
        return ""
    rows = [f"<li>{html.escape(one.reason)}</li>" for one in skipped[:SHOWN_SKIPPED]]
    if len(skipped) > SHOWN_SKIPPED:
        rows.append(f"<li>… and {len(skipped) - SHOWN_SKIPPED} more.</li>")
    return f'<ul class="reasons">{"".join(rows)}</ul>'


# Called by the panel ----------------------------------------------------------------------------------


def _remove(studio: Studio) -> Any:
    def remove(message: dict[str, Any]) -> dict[str, str]:
        try:
            studio.workspace.project(str(message.get("project", ""))).remove([str(message.get("id", ""))])
            return {}
        except UserError as error:
            return {"error": str(error)}

    return remove


def _recrop(studio: Studio) -> Any:
    def recrop(message: dict[str, Any]) -> dict[str, str]:
        """Crop all pictures anew, for the size that the recipe now trains at."""
        try:
            studio.workspace.project(str(message.get("project", ""))).recrop()
            return {}
        except UserError as error:
            return {"error": str(error)}

    return recrop
