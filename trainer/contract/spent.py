"""A run whose budget is used up does not begin again: to load a base only to stop costs more, and a job that
starts it anew whenever it has stopped would do so to no end."""

from __future__ import annotations

import time

from .cost import Meter, cost_of, used_up
from .events import read_events
from .runs import RunFolder


def refused_for_its_budget(run: RunFolder) -> str:
    """Why the run cannot go on before its budget is raised, which its status then says; "" where it can."""
    machine = run.config().machine
    if machine.price_per_hour is None or machine.budget is None:
        return ""
    cost = cost_of(Meter.of(read_events(run.events)[0]), machine.price_per_hour, 0)
    if why := used_up(machine.budget, cost, machine.currency):
        says = {"state": "stopped", "stage": "", "message": why, "cause": "", "evidence": ""}
        costs = {"cost": round(cost.so_far, 6), "budget": machine.budget, "currency": machine.currency}
        status = run.raw_status().model_copy(update=says | costs | {"heartbeat": time.time()})
        run.write_status(status)
    return why
