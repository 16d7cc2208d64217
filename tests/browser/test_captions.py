"""The Captions page shows what the recipe makes of a caption, also of one that was just typed."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from playwright.sync_api import BrowserContext, expect

from dataset_tools.ingest import ingest
from studio.projects import Workspace
from trainer.contract.fields import parse

from ..pictures import draw_picture
from .conftest import Console, StudioProcess


def test_what_the_model_reads(
    studio: Callable[..., StudioProcess], context: BrowserContext, console: Console, tmp_path: Path
) -> None:
    workspace = Workspace(tmp_path / "workspace")
    project = workspace.create_project("Blob")
    ingest([draw_picture(tmp_path / f"{number}.png", number) for number in range(2)], project.root)
    project.set_trigger("zwx blob")
    recipe = parse({"captions": {"prefix": "photo of", "wildcards": True, "shuffle": True, "keep_tokens": 1}})
    project.save_config(recipe.model_copy(update={"dataset": project.config().dataset}))
    page = console.watch(context.new_page())
    page.goto(f"{studio().url}/?project={project.id}&step=captions")
    card = page.locator(".caption-card").first
    card.get_by_role("button", name="What the model reads").click()
    reading = card.locator(".reading")
    expect(reading.locator("summary").first).to_have_text(re.compile(r"Epoch 1 photo of zwx blob$"))
    card.locator("textarea").fill("zwx blob, {red|green}, <b>sofa</b>")
    expect(reading.locator("summary").first).to_have_text(
        re.compile(r"Epoch 1 photo of zwx blob, ((red|green), <b>sofa</b>|<b>sofa</b>, (red|green))$")
    )
    expect(reading.locator("details").first.locator("li")).to_have_count(6)
    expect(reading).to_contain_text("text encoder 2:")
    card.get_by_role("button", name="What the model reads").click()
    expect(reading).to_be_hidden()
