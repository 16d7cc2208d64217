"""Bring your recipe: dropped, looked at, taken and undone."""

from __future__ import annotations

import json
import re
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from recipe_driver import RecipePage

from studio.bring import bring
from studio.context import Studio
from studio.pages import recipe
from studio.projects import Project
from trainer.contract.config import TrainConfig
from trainer.contract.errors import UserError
from trainer.contract.fields import flatten, parse


@pytest.fixture
def project(luna: Project) -> Project:
    return luna


@pytest.fixture
def page(studio: Studio, project: Project) -> RecipePage:
    return RecipePage(studio, project)


KOHYA = """accelerate launch sdxl_train_network.py --network_dim=32 --network_alpha=16 --learning_rate=1e-4 \\
  --pretrained_model_name_or_path=stabilityai/stable-diffusion-xl-base-1.0 --max_train_steps=700 \\
  --train_data_dir=/elsewhere --fused_backward_pass --network_train_unet_only --unheard_of="<b>3</b>"
"""


def dropped(studio: Studio, **texts: str) -> list[str]:
    """Files as they lie where Gradio puts uploads."""
    files = []
    for name, text in texts.items():
        file = studio.uploads.folder / f"{len(files)}" / name.replace("__", ".")
        file.parent.mkdir(exist_ok=True)
        file.write_text(text, encoding="utf-8")
        files.append(str(file))
    return files


def buttons(html: str) -> list[dict[str, Any]]:
    """What the buttons that take a recipe send."""
    return [json.loads(unescape(text)) for text in re.findall(r'data-recipe="([^"]+)"', html)]


def test_a_recipe_of_another_program_is_shown_taken_and_undone(
    page: RecipePage, project: Project, studio: Studio
) -> None:
    page.call("check", train_steps="900", adapter_rank="8")
    before, preset = project.config(), project.preset
    files = dropped(studio, train__sh=KOHYA)
    report = recipe.look(studio, files, project.id)
    assert "train.sh: kohya sd-scripts" in report and "1 unknown" in report
    assert "does nothing for a LoRA" in report and "&lt;b&gt;3" in report and "<b>3</b>" not in report
    assert project.config() == before, "nothing is changed yet"
    assert not Path(files[0]).exists(), "uploads do not stay"
    page.call("press", buttons(report)[0])
    taken = project.config()
    assert (taken.adapter.rank, taken.adapter.alpha, taken.train.steps) == (32, 16.0, 700)
    assert taken.model.base == "stabilityai/stable-diffusion-xl-base-1.0" and project.preset == ""
    assert Path(taken.dataset.path) == project.root and taken.dataset.trigger == "zwx cat"
    assert page.shows("train-steps") == "700"
    page.call("press", buttons(page.said["report"])[0])
    assert project.config() == before and project.preset == preset, "and put back, with what was typed"
    assert "as it was before" in page.said["report"] and "Redo" in page.said["report"]


def test_the_draft_goes_to_kohya_as_files(page: RecipePage, project: Project, studio: Studio) -> None:
    with pytest.raises(UserError, match="cannot load the included demo model"):
        recipe.export_kohya(studio, {"project": project.id})
    page.call("press", {"preset": "sdxl-person"})
    answer = recipe.export_kohya(studio, {"project": project.id})
    name = project.id
    assert set(answer["files"]) == {f"{name}.toml", f"{name}.dataset.toml", f"{name}.prompts.txt"}
    assert str(project.root) in answer["files"][f"{name}.dataset.toml"]
    assert answer["said"].startswith("kohya's scripts have nothing like ")


def test_a_part_of_a_recipe_changes_what_it_says(page: RecipePage, project: Project, studio: Studio) -> None:
    page.call("check", train_steps="900")
    prompts = "zwx cat on a boat --w 256 --h 192\na boat\n"
    report = recipe.look(studio, dropped(studio, prompts__txt=prompts), project.id)
    page.call("press", buttons(report)[0])
    assert project.config().samples.prompts == ("zwx cat on a boat", "a boat")
    assert (project.config().samples.width, project.config().train.steps) == (256, 900)


BLOCKS = """--network_args \\
"down_lr_weight=0,0,0,0,0,0,1,1,1,1,1,1" \\
"mid_lr_weight=1" \\
"up_lr_weight=1,1,1,1,1,1,0,0,0,0,0,0"
"""
RATES = "network:\ntype: lora\nlinear: 64\ntraining:\nlearning_rate: 2e-4\nmixed_precision: bf16\n"
VALIDATION = '{"--validation_steps": 200, "--validation_num_inference_steps": 30}'


def test_a_few_options_of_a_guide_go_into_the_draft(studio: Studio) -> None:
    """Its base stays, and nothing is set that they do not say, as kohya's rate of 2e-6."""
    model = {"family": "sdxl", "base": "stabilityai/stable-diffusion-xl-base-1.0"}
    draft = parse({"model": model, "adapter": {"rank": 32}, "train": {"learning_rate": 3e-4, "steps": 900}})
    ours = [
        ("t__txt", BLOCKS, {"adapter.block_weights": "0,0,0,0,0,0,1,1,1 / 1,1,1 / 1,1,1,1,1,1,0,0,0"}),
        ("t__yaml", RATES, {"adapter.rank": 64, "train.learning_rate": 2e-4, "model.precision": "bf16"}),
        ("t__json", VALIDATION, {"samples.every": 200, "samples.steps": 30}),
    ]
    for name, text, changed in ours:
        brought = bring([Path(file) for file in dropped(studio, **{name: text})], draft)
        after, before = flatten(parse(brought.tables)), flatten(draft)
        assert {path: value for path, value in after.items() if value != before[path]} == changed
        assert brought.imported and not [one for one in brought.imported.lines if one.outcome == "default"]


def test_files_that_a_recipe_names_are_dropped_with_it(studio: Studio, tmp_path: Path) -> None:
    command = KOHYA.strip() + " --sample_prompts=C:\\\\my\\\\prompts.txt --dataset_config=/etc/dataset.toml\n"
    texts = {"prompts__txt": "a boat --s 12\n", "train__sh": command}
    brought = bring([Path(file) for file in dropped(studio, **texts)], TrainConfig())
    assert brought.name == "train.sh" and brought.tables["samples"]["prompts"] == ["a boat"]
    missing = [line.option for line in brought.imported.lines if line.outcome == "missing"]  # type: ignore[union-attr]
    assert "dataset_config" in missing, "only what was dropped is read, never a path on this machine"


def test_what_is_no_recipe_is_said(page: RecipePage, project: Project, studio: Studio) -> None:
    before = project.config()
    for name, text in (("a__json", "{}"), ("a__yaml", "x: !!python/name:os.system"), ("a__toml", "x = [")):
        report = recipe.look(studio, dropped(studio, **{name: text}), project.id)
        assert 'class="notice bad"' in report and "data-recipe" not in report
    for text in ('{"train": {"steps": "many"}}', "[" * 9, "7", 7):
        page.call("press", {"recipe": text})
    assert project.config() == before
