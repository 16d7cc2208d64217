"""Which change comes next, and what a recipe becomes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT
from trainer.contract.config import TrainConfig
from trainer.contract.errors import ConfigError
from trainer.contract.fields import parse
from trainer.contract.ladder import (
    RUNGS,
    Amendment,
    Phase,
    amended,
    at_once,
    next_amendment,
    read_ladder,
    tried_in_words,
    write_ladder,
)
from trainer.contract.plan import Machine, estimate


def climbed(tables: dict[str, Any], phase: Phase = "train", absent: str = "") -> list[Amendment]:
    """All the changes that are made of a recipe, one after the other."""
    config, tried = parse(tables), list[Amendment]()
    while change := next_amendment(config, tried, phase, lambda package: package != absent):
        tried.append(change)
        config = amended(config, [change])
        assert len(tried) < 30
    return tried


def names(changes: list[Amendment]) -> list[str]:
    return [change.rung for change in changes]


def test_the_cheapest_comes_first() -> None:
    changes = climbed({"train": {"batch_size": 5, "gradient_checkpointing": "off"}})
    assert names(changes) == [
        *("free", "checkpointing", "batch", "batch", "optimizer", "base in int8", "base in nf4", "offload")
    ]
    assert [change.changes.get("machine.pictures_at_once") for change in changes[2:4]] == [2, 1]
    assert "2 pictures at once from here; a step sees the same 5" in changes[2].sentence


@pytest.mark.parametrize(
    ("tables", "missing"),
    [
        ({"train": {"batch_size": 1}}, "batch"),
        ({"train": {"gradient_checkpointing": "auto"}}, "checkpointing"),
        ({"train": {"optimizer": "adamw8bit"}}, "optimizer"),
        ({"train": {"optimizer_args": "amsgrad=True"}}, "optimizer"),
        ({"train": {"batch_size": 4, "fused_backward": True}}, "batch"),
        ({"model": {"quantize": "nf4"}}, "base in int8"),
        ({"machine": {"offload": True}}, "offload"),
    ],
)
def test_what_a_recipe_has_already_or_cannot_have_is_passed_over(
    tables: dict[str, Any], missing: str
) -> None:
    assert missing not in names(climbed(tables))


def test_what_is_not_installed_is_passed_over() -> None:
    assert "base in int8" not in names(climbed({}, absent="torchao"))
    assert not {"optimizer", "base in nf4"} & set(names(climbed({}, absent="bitsandbytes")))


@pytest.mark.parametrize(
    ("phase", "expected"),
    [
        ("photos", ["free"]),
        ("draw", ["tiling"]),
        ("class", ["free", "tiling", "base in int8", "base in nf4", "offload"]),
    ],
)
def test_each_phase_has_its_own(phase: Phase, expected: list[str]) -> None:
    assert names(climbed({}, phase)) == expected


def test_a_ladder_is_kept(tmp_path: Path) -> None:
    changes = climbed({"train": {"batch_size": 2}})
    write_ladder(tmp_path / "ladder.json", changes)
    assert read_ladder(tmp_path / "ladder.json") == changes
    assert read_ladder(tmp_path / "none.json") == []
    assert tried_in_words(changes) == "batch, optimizer, base in int8, base in nf4 and offload"
    config = amended(TrainConfig(), changes)
    assert config.model.quantize == "nf4" and config.machine.offload


def test_fewer_at_once_is_what_the_plan_counts() -> None:
    tables: dict[str, Any] = {"train": {"batch_size": 8}, "model": {"family": "flux", "base": "flux"}}
    card = Machine("card", 24.0)
    needs = []
    for machine in ({}, {"pictures_at_once": 2}, {"pictures_at_once": 2, "offload": True}):
        config = parse(tables | {"machine": machine})
        needs.append((at_once(config), estimate(config, card)))
    assert [count for count, _ in needs] == [8, 2, 2]
    train = [plan.vram_gib["train"] for _, plan in needs]
    assert train[0] > train[1] > train[2]
    assert needs[2][1].ram_gib > needs[1][1].ram_gib


def test_a_batch_that_is_fused_cannot_be_split() -> None:
    with pytest.raises(ConfigError, match="cannot be split"):
        parse({"train": {"batch_size": 2, "fused_backward": True}, "machine": {"pictures_at_once": 1}})


def test_the_guide_names_every_rung() -> None:
    text = (ROOT / "docs" / "out-of-memory.md").read_text(encoding="utf-8")
    assert [one.name for one in RUNGS if f"`{one.name}`" not in text] == []
