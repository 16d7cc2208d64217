"""A recipe of another program: dropped, read, taken, undone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from playwright.sync_api import BrowserContext, expect

from dataset_tools.ingest import ingest
from studio.projects import Workspace
from trainer.contract.presets import PRESETS_DIR, load_preset

from ..pictures import draw_picture
from .conftest import Console, StudioProcess

COMMAND = """accelerate launch sdxl_train_network.py --network_dim=24 --network_alpha=12 \\
  --learning_rate=1e-4 --max_train_steps=777 --network_train_unet_only --fused_backward_pass \\
  --unheard_of="<b>3</b>"
"""


def test_a_command_of_kohya_becomes_the_recipe_and_goes_again(
    studio: Callable[..., StudioProcess],
    context: BrowserContext,
    console: Console,
    picture: Callable[..., None],
    tmp_path: Path,
) -> None:
    workspace = Workspace(tmp_path / "workspace")
    project = workspace.create_project("Blob")
    ingest([draw_picture(tmp_path / f"{number}.png", number) for number in range(2)], project.root)
    (tmp_path / "train.sh").write_text(COMMAND, encoding="utf-8")
    page = console.watch(context.new_page())
    page.goto(f"{studio().url}/?project={project.id}&step=recipe")
    expect(page.locator("#recipe-start")).to_be_visible()
    steps = page.locator("#recipe-train-steps input")
    before = str(load_preset(PRESETS_DIR / "demo.toml").values["train"]["steps"])
    expect(steps).to_have_value(before)
    page.locator("#recipe-import input[type=file]").set_input_files(tmp_path / "train.sh")
    report = page.locator("#recipe-report")
    expect(report).to_contain_text("train.sh: kohya sd-scripts")
    expect(report).to_contain_text("unheard_of = <b>3</b>")
    expect(report.locator("b", has_text="1 unknown")).to_be_visible()
    expect(steps).to_have_value(before)
    picture(page, "bring")
    report.get_by_role("button", name="Use this recipe").click()
    expect(steps).to_have_value("777")
    expect(page.locator("#recipe-adapter-rank input")).to_have_value("24")
    report.get_by_role("button", name="Undo").click()
    expect(steps).to_have_value(before)
    expect(report).to_contain_text("The recipe is as it was before. Redo")
    assert project.config().train.steps == int(before)
