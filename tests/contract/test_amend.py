"""A run's recipe is frozen but for what does not decide the LoRA."""

from __future__ import annotations

from pathlib import Path

import pytest

from trainer.contract.amend import amend, take_over
from trainer.contract.errors import ConfigError, RunError
from trainer.contract.fields import parse
from trainer.contract.ladder import Amendment, read_ladder, write_ladder
from trainer.contract.runs import RunFolder


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    run = RunFolder(tmp_path / "run")
    run.create(parse({"machine": {"price_per_hour": 0.5, "budget": 5}, "train": {"steps": 70}}))
    return run


def test_a_budget_is_raised(run: RunFolder) -> None:
    amend(run, ["machine.budget=12.5", "notify.events=['failed']"])
    config = run.config()
    assert (config.machine.budget, config.machine.price_per_hour, config.train.steps) == (12.5, 0.5, 70)
    assert config.notify.events == ("failed",)
    amend(run, ["machine.budget="])
    assert run.config().machine.budget is None


def test_fewer_checkpoints_are_kept_from_here(run: RunFolder) -> None:
    """They decide what is on the disk, and not what is learnt."""
    amend(run, ["checkpoints.keep=1", "checkpoints.every=100"])
    assert (run.config().checkpoints.keep, run.config().checkpoints.every) == (1, 100)


def test_what_lack_of_memory_has_changed_can_be_put_back(run: RunFolder) -> None:
    less = {"machine.pictures_at_once": 1, "train.gradient_checkpointing": "on"}
    write_ladder(run.ladder, [Amendment("batch", less, "less"), Amendment("free", {}, "again")])
    amend(run, ["machine.budget=7"])
    assert run.amended().machine.pictures_at_once == 1
    amend(run, ["machine.pictures_at_once=0"])  # as it is in the recipe
    assert run.amended().machine.pictures_at_once == 0
    assert run.amended().train.gradient_checkpointing == "on"
    assert [one.rung for one in read_ladder(run.ladder)] == ["batch", "free"]  # which have been told of


@pytest.mark.parametrize("assignment", ["train.steps=80", "samples.every=7", "machine.budgets=7"])
def test_what_decides_the_lora_stays(run: RunFolder, assignment: str) -> None:
    before = run.recipe.read_text()
    with pytest.raises(ConfigError, match=r"cannot change in a run|is not a setting"):
        amend(run, ["machine.budget=9", assignment])
    assert run.recipe.read_text() == before


def test_a_run_that_trains_is_left_alone(run: RunFolder) -> None:
    with run.hold(), pytest.raises(RunError, match="is being trained"):
        amend(run, ["machine.budget=9"])
    assert run.config().machine.budget == 5


def test_the_same_command_with_another_budget_changes_that_alone(run: RunFolder) -> None:
    take_over(run, parse({"machine": {"budget": 9, "price_per_hour": 0.25}, "train": {"steps": 1}}))
    config = run.config()
    assert (config.machine.budget, config.machine.price_per_hour, config.train.steps) == (9, 0.25, 70)
    before = run.recipe.stat().st_mtime_ns
    take_over(run, config)
    assert run.recipe.stat().st_mtime_ns == before
