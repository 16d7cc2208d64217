"""What the run has cost, beside the loop: shown in its status, and a stop at the budget."""

from __future__ import annotations

from typing import Any

from .contract.cost import Cost, Meter, cost_of, in_words, used_up
from .contract.events import read_events
from .contract.runs import RunFolder
from .contract.settings.machine import MachineSettings
from .report import Reporter
from .requests import Asks, Requests


class Budget:
    """Hears the events of a run that has a price. The attempts before are read from its events."""

    def __init__(self, run: RunFolder, machine: MachineSettings, report: Reporter, requests: Asks) -> None:
        assert machine.price_per_hour is not None
        self._price, self._machine = machine.price_per_hour, machine
        self._report, self._requests = report, requests
        self._meter = Meter.of(read_events(run.events)[0])
        self._look()

    def hear(self, event: dict[str, Any]) -> None:
        self._meter.see(event)
        cost = self._look()
        if event["kind"] == "end":
            self._report.say(in_words(self._meter, cost, self._machine.currency))

    def _look(self) -> Cost:
        status = self._report.status
        cost = cost_of(self._meter, self._price, max(0, status.total - status.step))
        budget = self._machine.budget
        self._report.costs(cost, budget, self._machine.currency)
        why = used_up(budget, cost, self._machine.currency) if budget else ""
        if why and isinstance(self._requests, Requests):
            self._requests.ask_to_stop(why)
        return cost
