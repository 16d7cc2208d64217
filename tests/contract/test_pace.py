"""How fast and how dear a recipe will be, by what was trained here before."""

from __future__ import annotations

from pathlib import Path

import pytest

from trainer.contract.config import TrainConfig
from trainer.contract.events import EventLog
from trainer.contract.fields import merge, parse, to_tables
from trainer.contract.pace import seconds_per_step
from trainer.contract.plan import Machine, estimate
from trainer.contract.runs import RunFolder

CARD = "NVIDIA GeForce RTX 4090"
RECIPE = parse({"machine": {"price_per_hour": 0.36}, "train": {"steps": 500}})


def a_run(folder: Path, config: TrainConfig, seconds: float, device: str = CARD) -> RunFolder:
    """Two steps, so many seconds apart."""
    run = RunFolder(folder)
    run.create(config)
    log = EventLog(run.events, 1)
    now = log.append("attempt", began=0.0, device=device)["time"]
    log.append("started", step=0, total=10)
    lines = run.events.read_bytes()
    log.close()
    steps = [
        f'{{"seq": {3 + n}, "time": {now + n * seconds}, "attempt": 1, "kind": "step", "step": {n}}}\n'
        for n in (1, 2)
    ]
    run.events.write_bytes(lines + "".join(steps).encode())
    return run


def changed(tables: dict[str, dict[str, object]]) -> TrainConfig:
    return parse(merge(to_tables(RECIPE), tables))


def test_the_newest_like_run_on_the_same_card_tells(tmp_path: Path) -> None:
    other_size = changed({"dataset": {"resolution": 512}})
    runs = [
        a_run(tmp_path / "f", other_size, 1.0),
        a_run(tmp_path / "e", RECIPE, 9.0, "CPU (2 threads)"),
        a_run(tmp_path / "d", changed({"train": {"learning_rate": 3e-4, "steps": 20}}), 2.0),
        a_run(tmp_path / "c", RECIPE, 3.0),
    ]
    assert seconds_per_step(RECIPE, CARD, runs) == pytest.approx(2.0)
    assert seconds_per_step(other_size, CARD, runs) == pytest.approx(1.0)
    assert seconds_per_step(RECIPE, "", runs) == pytest.approx(9.0)
    assert seconds_per_step(RECIPE, "NVIDIA L4", runs) is None


def test_what_cannot_be_read_is_passed_over(tmp_path: Path) -> None:
    broken = a_run(tmp_path / "b", RECIPE, 1.0)
    broken.recipe.write_text("[train")
    empty = RunFolder(tmp_path / "nothing")
    assert seconds_per_step(RECIPE, CARD, [empty, broken, a_run(tmp_path / "a", RECIPE, 2.0)]) == 2.0


def test_the_plan_has_the_cost_where_price_and_pace_are_known() -> None:
    plan = estimate(RECIPE, Machine(CARD, 24), seconds_per_step=2.0)
    assert plan.as_dict()["cost"] == {"total": pytest.approx(0.1), "per_1000_steps": pytest.approx(0.2)}
    assert "cost: about $0.10, $0.20 per 1,000 steps, at $0.36 an hour" in plan.as_text()
    unknown = estimate(RECIPE, Machine(CARD, 24))
    assert "cost" not in unknown.as_dict() and "cost: $0.36 an hour; how fast" in unknown.as_text()
    assert "cost" not in estimate(TrainConfig(), Machine(CARD, 24), seconds_per_step=2.0).as_text()
