"""A second project becomes a concept of its own on the Recipe page."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from playwright.sync_api import BrowserContext, expect

from dataset_tools.ingest import ingest
from studio.projects import Workspace

from ..pictures import draw_picture
from .conftest import Console, StudioProcess


def test_another_project_is_added_counted_and_repeated(
    studio: Callable[..., StudioProcess],
    context: BrowserContext,
    console: Console,
    tmp_path: Path,
) -> None:
    workspace = Workspace(tmp_path / "workspace")
    for name, trigger, count in (("Rex", "zwx dog", 3), ("Mia", "qrt cat", 2)):
        project = workspace.create_project(name)
        ingest(
            [draw_picture(tmp_path / f"{name}{n}.png", n + 3 * len(name)) for n in range(count)], project.root
        )
        project.set_trigger(trigger)
    page = console.watch(context.new_page())
    page.goto(f"{studio().url}/?project=rex&step=recipe")
    summary = page.locator("#recipe-summary")
    expect(summary).to_contain_text("3 photos in 1 bucket")
    page.locator('#recipe-advanced [data-fold]:has(b:text-is("Photos"))').click()
    note = page.locator("#recipe-dataset-subsets-note")
    note.get_by_role("button", name="Mia", exact=True).click()
    lines = page.locator("#recipe-dataset-subsets textarea")
    expect(lines).to_have_value("../mia")
    expect(summary).to_contain_text("qrt cat: 2 photos = 2 looks an epoch (40%)")
    lines.fill("../mia | repeats = 3")
    expect(summary).to_contain_text("qrt cat: 2 photos × 3 repeats = 6 looks an epoch (67%)")
    lines.fill("../mia | repeat = 3")
    expect(note).to_contain_text("did you mean")
    assert workspace.project("rex").config().dataset.subsets[0].line == "../mia | repeats = 3"
