"""What a run costs: the time its attempts took, from its events, at a price per hour.

A machine that is taken away is not paid for, so only attempts count: from the start of their process to their
last event. Pure functions; the trainer, the pages and the command line show the same numbers.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

SPENT_ON = {
    "step": "training",
    "validation": "validating",
    "sample": "sampling",
    "weights": "sampling",
    "measured": "sampling",
    "checkpoint": "saving",
    "saved": "saving",
}
"""What the time before an event of the loop went into."""
STAGES = {"sample": "sampling", "validate": "validating"}
"""The same for events of stages; all others prepare."""


@dataclass
class Meter:
    """Reads events in their order, those of all attempts, and keeps the times.

    ``seconds`` of all attempts, and of them ``spent``: {preparing, training, validating, sampling, saving:
    seconds}. ``steps`` were made in ``looping`` seconds, everything in between included; the first of an
    attempt does not count, as what is drawn before it, and a card's warming up, come once.
    """

    seconds: float = 0.0
    spent: dict[str, float] = field(default_factory=dict)
    steps: int = 0
    looping: float = 0.0
    attempts: int = 0
    _attempt: int | None = None
    _last: float = 0.0
    _in_loop: bool = False

    @classmethod
    def of(cls, events: Iterable[dict[str, Any]]) -> Meter:
        meter = cls()
        for event in events:
            meter.see(event)
        return meter

    def see(self, event: dict[str, Any]) -> None:
        kind = event["kind"]
        if event["attempt"] != self._attempt:
            self._attempt, self._in_loop = event["attempt"], False
            # A process can go on as another attempt; its own beginning is then long paid.
            self._last = max(event.get("began", event["time"]), self._last)
            self.attempts += 1
        took = max(0.0, event["time"] - self._last)  # clocks are set back now and then
        self._last = event["time"]
        what = SPENT_ON.get(kind) or STAGES.get(event.get("stage", ""), "")
        what = what or ("training" if self._in_loop else "preparing")
        self.seconds += took
        self.spent[what] = self.spent.get(what, 0.0) + took
        if self._in_loop:
            self.looping += took
            self.steps += kind == "step"
        self._in_loop |= kind == "step"

    @property
    def seconds_per_step(self) -> float | None:
        """Everything in between included; None until two steps were made in one attempt."""
        return self.looping / self.steps if self.steps else None

    def share(self, what: str) -> float:
        """Of all time, what went into ``what``."""
        return self.spent.get(what, 0.0) / self.seconds if self.seconds else 0.0


@dataclass(frozen=True)
class Cost:
    """Amounts of money. ``to_go`` and ``per_1000`` steps are None while no pace is known."""

    so_far: float
    to_go: float | None
    per_1000: float | None


def cost_of(meter: Meter, price_per_hour: float, steps_left: int) -> Cost:
    second, pace = price_per_hour / 3600, meter.seconds_per_step
    return Cost(
        so_far=meter.seconds * second,
        to_go=None if pace is None else steps_left * pace * second,
        per_1000=None if pace is None else 1000 * pace * second,
    )


def money(amount: float, currency: str = "$") -> str:
    """ "$0.042", "$1.50", "$1,250": as many digits as matter, never none of them."""
    digits = 0 if amount >= 1000 else 2 if amount >= 0.1 or amount == 0 else 3 if amount >= 0.01 else 4
    return f"{currency}{amount:,.{digits}f}"


def in_words(meter: Meter, cost: Cost, currency: str) -> str:
    """The bill at the end of an attempt, in a line."""
    parts = []
    if meter.attempts > 1:
        parts.append(f"over {meter.attempts} attempts")
    if cost.per_1000 is not None:
        parts.append(f"{money(cost.per_1000, currency)} per 1,000 steps")
    named = (("sampling", "samples"), ("validating", "validation"), ("preparing", "preparing"))
    parts += [f"{meter.share(what):.0%} of it {name}" for what, name in named if meter.share(what) >= 0.05]
    return f"cost: {money(cost.so_far, currency)}" + (f" ({', '.join(parts)})" if parts else "")


def used_up(budget: float, cost: Cost, currency: str) -> str:
    """Why a run is stopped at its budget, "" while it is not reached."""
    if cost.so_far < budget:
        return ""
    return (
        f"The budget of {money(budget, currency)} is used up ({money(cost.so_far, currency)}); "
        "raise machine.budget to go on."
    )


RENTS: tuple[tuple[str, str, float, float], ...] = (
    ("RTX 3090", r"RTX 3090\b", 0.16, 0.18),
    ("RTX 4090", r"RTX 4090\b", 0.29, 0.69),
    ("RTX 5090", r"RTX 5090\b", 0.67, 0.67),
    ("RTX PRO 6000", r"RTX PRO 6000\b", 1.45, 2.04),
    ("RTX A6000", r"RTX A6000\b", 0.82, 0.82),
    ("L4", r"\bL4\b", 0.39, 0.39),
    ("A100 40 GB", r"\bA100.*40GB", 0.80, 1.99),
    ("A100 80 GB", r"\bA100.*80GB", 1.19, 1.79),
    ("H100 PCIe", r"\bH100 PCIe", 1.99, 2.89),
    ("H100 SXM", r"\bH100 80GB HBM3", 2.69, 3.99),
    ("H200", r"\bH200\b", 4.45, 4.59),
)
"""Dollars an hour that one card by itself was listed at, lowest and highest: (name, pattern of what its
driver calls it, …). From price lists of RunPod, Akash, OpenRelay, Lambda and Verda, June to November 2026;
AWS, Google and Azure take two to four times as much."""
RENTS_ARE_OF = "2026"


def usual_rent(gpu: str) -> tuple[float, float] | None:
    """(lowest, highest) that a card was rented out at, in dollars an hour; None for one that is not known."""
    return next(((low, high) for _, pattern, low, high in RENTS if re.search(pattern, gpu)), None)
