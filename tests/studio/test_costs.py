"""Costs in the studio: what a run will cost, and a budget that is raised from the page."""

from __future__ import annotations

import pytest
from recipe_driver import RecipePage
from running import make_run

from studio.context import Studio
from studio.pages import train as train_page
from studio.projects import Project
from studio.recipes import facts_of, on_machine
from studio.rents import rents_html
from trainer.contract.config import TrainConfig
from trainer.contract.cost import RENTS
from trainer.contract.errors import UserError
from trainer.contract.events import EventLog
from trainer.contract.fields import merge, parse, to_tables
from trainer.contract.plan import Machine, estimate


def test_a_budget_is_raised_before_the_run_goes_on(
    studio: Studio, luna: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(studio.workspace, luna)
    resumed: list[str] = []
    monkeypatch.setattr(studio.jobs, "resume", lambda run: resumed.append(run.id))
    with pytest.raises(UserError, match="'a lot' is not allowed"):
        train_page.act(studio, {"verb": "resume", "run": run.id, "budget": "a lot"})
    assert not resumed
    train_page.act(studio, {"verb": "resume", "run": run.id, "budget": "7.5"})
    assert resumed == [run.id] and run.config().machine.budget == 7.5
    train_page.act(studio, {"verb": "resume", "run": run.id})
    assert run.config().machine.budget == 7.5


def test_the_price_of_a_card_is_put_in_from_the_list(studio: Studio, luna: Project) -> None:
    page = RecipePage(studio, luna)
    note = page.note("machine-price-per-hour")
    assert "What cards were rented out for in 2026" in note and note.count("<button") == len(RENTS)
    assert ">RTX 4090 $0.69<" in note and '"machine.price_per_hour": 0.69' in note
    page.call("press", {"set": {"machine.price_per_hour": 0.69, "machine.currency": "$"}})
    assert luna.config().machine.price_per_hour == 0.69
    assert "rented out" not in page.note("machine-price-per-hour")
    four = rents_html(TrainConfig(), {"name": "NVIDIA GeForce RTX 4090", "count": 4})
    assert "4 × NVIDIA GeForce RTX 4090 were rented out for $1.16 to $2.76 an hour" in four
    assert four.count("<button") == 1 and ">Use $2.76<" in four


def test_the_recipe_page_knows_time_and_cost_by_an_earlier_run(studio: Studio, luna: Project) -> None:
    run = make_run(studio.workspace, luna)
    log = EventLog(run.events, 1)
    log.append("attempt", began=0.0, device="CPU (2 threads)")
    for step in (1, 2):
        log.append("step", step=step, loss=0.1, lr=1e-4, grad_norm=1.0, seconds=0.1)
    log.close()
    config = parse(merge(to_tables(run.config()), {"machine": {"price_per_hour": 0.5}}))
    pace = facts_of(luna, config, None).seconds_per_step
    assert pace and pace > 0
    plan = estimate(config, Machine("CPU", None), images=4, seconds_per_step=3.6)
    said = " ".join(line.text for line in on_machine(config, plan, None))
    assert f"Cost: about ${plan.steps * 0.0005:.2f}, $0.50 per 1,000 steps, at $0.50 an hour." in said
    assert "as fast as such a run was here before" in said
    assert (
        facts_of(luna, parse(merge(to_tables(config), {"adapter": {"rank": 3}})), None).seconds_per_step
        is None
    )
