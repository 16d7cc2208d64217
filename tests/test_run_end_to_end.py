"""The command line, as a user types it: subprocesses, exit codes, files left behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from safetensors import safe_open

from trainer.contract.events import read_events
from trainer.contract.fields import load_recipe
from trainer.contract.runs import RunFolder

from . import forks
from .conftest import ROOT
from .pictures import draw_picture

RECIPE = """
[model]
family = "sdxl"
base = "{base}"
[dataset]
path = "photos/"
trigger = "zwx creature"
[adapter]
rank = 2
alpha = 2
[train]
steps = 6
batch_size = 2
learning_rate = 1e-3
seed = 42
[samples]
prompts = ["a photo of zwx creature"]
every = 3
steps = 2
[checkpoints]
every = 2
keep = 2
"""


def trainer(*argv: object, cwd: Path | None = None, fresh: bool = False) -> subprocess.CompletedProcess[str]:
    """``fresh``: in a new interpreter, as a user's is; else in one that has imported all of it already."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    if not fresh:
        return forks.run("trainer", *argv, cwd=cwd or ROOT, env=environment)
    command = [sys.executable, "-m", "trainer", *map(str, argv)]
    return subprocess.run(
        command, cwd=cwd or ROOT, env=environment, capture_output=True, text=True, timeout=240
    )


@pytest.fixture
def home(tmp_path: Path, tiny_base: Path) -> Path:
    """A folder with recipe.toml and photos/: one picture without a caption, one with."""
    (tmp_path / "recipe.toml").write_text(RECIPE.format(base=tiny_base.as_posix()))
    for number in range(2):
        draw_picture(tmp_path / "photos" / f"{number}.png", number, (100, 80))
    (tmp_path / "photos" / "0.txt").write_text("zwx creature on a plain ground")
    return tmp_path


def test_a_recipe_from_start_to_finish(home: Path) -> None:
    done = trainer("train", "recipe.toml", "--run-dir", "run", "--set", "train.steps=5", cwd=home, fresh=True)
    assert done.returncode == 0, done.stderr
    run = RunFolder(home / "run")
    status = json.loads(run.status.read_text())
    assert status["state"] == "finished" and status["step"] == status["total"] == 5
    frozen = json.loads(run.dataset.read_text())
    captions = {row["original_name"]: row["caption"] for row in frozen["images"]}
    assert captions == {"0.png": "zwx creature on a plain ground", "1.png": "zwx creature"}
    assert tomllib.loads(run.recipe.read_text())["train"]["steps"] == 5
    kinds = [event["kind"] for event in read_events(run.events)[0]]
    assert kinds.count("step") == 5 and kinds.count("sample") == 3 and kinds[-1] == "end"
    assert sorted(path.name for path in run.samples.iterdir()) == [
        f"s{step:06d}_p00.webp" for step in (0, 3, 5)
    ]
    assert sorted(path.name for path in run.checkpoints.iterdir()) == ["step-000004", "step-000005"]
    with safe_open(home / "run" / "lora.safetensors", "pt") as lora:
        assert len(list(lora.keys())) % 3 == 0
    # Nobody watches: a line a second at most, no bar, and nothing of the libraries' chatter.
    lines = done.stderr.splitlines()
    assert len([line for line in lines if line.startswith("step ")]) <= 5
    assert "\r" not in done.stderr and "Warning" not in done.stderr and "it/s" not in done.stderr

    again = trainer("train", "recipe.toml", "--run-dir", "run", "--set", "train.steps=5", cwd=home)
    assert again.returncode == 0 and "is finished" in again.stderr
    result = run.result(run.config())
    result.rename(result.with_suffix(".away"))  # as if it had stopped
    spent = ("--set", "machine.budget=0.000001", "--set", "machine.price_per_hour=1000")
    poor = trainer("resume", "run", *spent, cwd=home)
    assert poor.returncode == 2 and "is used up" in poor.stderr and "raise machine.budget" in poor.stderr
    status = run.raw_status()
    assert status.state == "stopped" and status.cost and status.budget and status.cost > status.budget
    result.with_suffix(".away").rename(result)
    run.write_status(status.model_copy(update={"state": "finished"}))
    other = trainer("train", "recipe.toml", "--run-dir", "run", cwd=home)
    assert other.returncode == 2 and "another recipe" in other.stderr
    dearer = ("--set", "train.steps=5", "--set", "machine.budget=9", "--set", "machine.price_per_hour=1")
    again = trainer("train", "recipe.toml", "--run-dir", "run", *dearer, cwd=home)
    assert again.returncode == 0 and "is finished" in again.stderr
    raised = trainer("resume", "run", "--set", "machine.budget=12", cwd=home)
    assert raised.returncode == 0 and run.config().machine.budget == 12
    changed = trainer("resume", "run", "--set", "train.steps=9", cwd=home)
    assert changed.returncode == 2 and "train.steps cannot change in a run that has begun" in changed.stderr


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["train", "nowhere.toml"], "does not exist"),
        (["train", "recipe.toml", "--set", "train.learning_rat=1"], "did you mean train.learning_rate?"),
        (["train", "recipe.toml", "--set", "train.learning_rate=7"], "give a number above 0 and at most 1"),
        (
            ["train", "recipe.toml", "--set", "dataset.path=nothere"],
            "dataset.path = 'nothere' does not exist",
        ),
        (["train", "recipe.toml", "--set", "train.steps"], "is not section.field=value"),
        (["train", "recipe.toml", "--set", "dataset.path=recipe.toml"], "is no folder"),
        (["train", "recipe.toml", "--run-dir", "photos"], "is the folder of photos"),
        (["train", "recipe.toml", "--run-dir", "recipe.toml/run"], "cannot hold a run (Not a directory)"),
        (["plan", "recipe.toml/x"], "recipe.toml/x cannot be read: Not a directory"),
        (["resume", "photos"], "holds no run"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(home: Path, argv: list[str], sentence: str) -> None:
    done = trainer(*argv, cwd=home, fresh=True)
    assert done.returncode == 2
    assert sentence in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (home / "workspace").exists()


def test_a_base_that_does_not_exist_fails_in_one_sentence(home: Path) -> None:
    done = trainer("train", "recipe.toml", "--run-dir", "run", "--set", "model.base=no/such/model", cwd=home)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert "no/such/model does not exist" in last and "Traceback" not in done.stderr
    assert RunFolder(home / "run").read_status().cause == "model_missing"


def test_a_name_too_long_for_a_file_is_no_bug(home: Path) -> None:
    done = trainer("plan", "recipe.toml", "--set", f"model.base={'a' * 300}", cwd=home)
    assert done.returncode == 0 and "Traceback" not in done.stderr


def test_an_empty_folder_of_photos(home: Path) -> None:
    (home / "empty").mkdir()
    done = trainer("train", "recipe.toml", "--run-dir", "run", "--set", "dataset.path=empty", cwd=home)
    assert done.returncode in (1, 2) and "Traceback" not in done.stderr
    assert "empty" in done.stderr.strip().splitlines()[-1]


def test_a_run_made_by_the_studio(home: Path) -> None:
    """The studio freezes a recipe whose folder of photos is named relative to the run."""
    run = RunFolder(home / "runs" / "made")
    recipe = load_recipe(home / "recipe.toml", ("dataset.path=../../photos", "train.steps=2"))
    run.create(recipe)
    done = trainer("train", run.recipe, "--run-dir", run.path, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert run.read_status().state == "finished"
    assert (home / "cache" / "latents").is_dir()  # the workspace's, not the run's


def test_plan_and_check(home: Path) -> None:
    done = trainer("plan", "recipe.toml", "--json", cwd=home, fresh=True)
    plan = json.loads(done.stdout)
    assert done.returncode == 0
    keys = "vram_gib ram_gib disk_gib download_gib steps seconds_per_step fits breakdown warnings"
    assert set(plan) == set(keys.split())
    assert set(plan["vram_gib"]) == {"cache", "train", "sample"} and plan["steps"] == 6
    checked = trainer("check", "recipe.toml", cwd=home)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert "2 pictures will be copied" in checked.stdout
    (home / "photos" / "cut short.png").write_bytes((home / "photos" / "0.png").read_bytes()[:60])
    checked = trainer("check", "recipe.toml", cwd=home)
    assert checked.returncode == 2 and "cut short.png" in checked.stderr
    done = trainer("train", "recipe.toml", "--run-dir", "run", cwd=home)
    assert done.returncode == 1 and "cut short.png" in done.stderr.strip().splitlines()[-1]
    assert RunFolder(home / "run").read_status().cause == "bad_image"
