"""Lint rules on the machine's price and end, and on webhooks."""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import urlsplit

from .addresses import is_private, service_of
from .config import TrainConfig
from .cost import RENTS_ARE_OF, money, usual_rent
from .findings import Facts, Finding, rule

HOME_CARDS = ("GeForce", "TITAN", "Apple")
"""In the names of cards that none of the clouds with notices rents out."""


@rule
def budget_without_a_price(config: TrainConfig, facts: Facts) -> Iterator[Finding]:
    machine = config.machine
    if not machine.budget or machine.price_per_hour:
        return
    limit = money(machine.budget, machine.currency)
    sentence = f"A budget of {limit} is kept only where the price per hour is known; give it"
    if machine.currency == "$" and (rent := usual_rent(facts.gpu or "")):
        high = rent[1]
        sentence += f". The {facts.gpu} was rented out for {_span(rent)} in {RENTS_ARE_OF}; check yours."
        fix, label = {"machine.price_per_hour": high}, f"Use {money(high)}"
        yield Finding("error", "machine.budget", sentence, fix, label)
        return
    fix_none = {"machine.budget": None}
    yield Finding("error", "machine.budget", f"{sentence}, or no budget.", fix_none, "Without a budget")


def _span(rent: tuple[float, float]) -> str:
    low, high = rent
    return money(low) if low == high else f"{money(low)} to {money(high)}"


@rule
def price_is_unusual(config: TrainConfig, facts: Facts) -> Iterator[Finding]:
    machine, rent = config.machine, usual_rent(facts.gpu or "")
    price = machine.price_per_hour
    if price and rent and machine.currency in ("$", "€", "£") and not rent[0] / 5 < price < 5 * rent[1]:
        yield Finding(
            "hint",
            "machine.price_per_hour",
            f"The {facts.gpu} was rented out for {_span(rent)} an hour in {RENTS_ARE_OF}; look whether "
            f"{money(price, machine.currency)} is the price of an hour.",
        )


@rule
def budget_is_below_the_cost(config: TrainConfig, facts: Facts) -> Iterator[Finding]:
    machine, pace = config.machine, facts.seconds_per_step
    if not (machine.budget and machine.price_per_hour and pace):
        return
    cost = machine.price_per_hour / 3600 * pace * config.train.steps
    if cost > machine.budget:
        yield Finding(
            "warning",
            "machine.budget",
            f"The run costs about {money(cost, machine.currency)}, as fast as such a one was here; it will "
            f"stop at {money(machine.budget, machine.currency)}, unfinished.",
        )


@rule
def notices_at_home(config: TrainConfig, facts: Facts) -> Iterator[Finding]:
    if config.machine.notices != "off" and any(name in (facts.gpu or "") for name in HOME_CARDS):
        yield Finding(
            "hint",
            "machine.notices",
            f"None of the clouds that give notices has a {facts.gpu}; nobody will answer.",
            {"machine.notices": "off"},
            "Switch off",
        )


@rule
def grace_is_shorter_than_a_step(config: TrainConfig, facts: Facts) -> Iterator[Finding]:
    grace, pace = config.machine.grace_s, facts.seconds_per_step
    if pace and grace < 2 * pace:
        yield Finding(
            "warning",
            "machine.grace_s",
            f"A step takes about {pace:.0f} s here, so that {grace:.0f} s may not be enough to finish it and "
            "save; what was done since the last checkpoint is then done again. Save more often, or make "
            "steps shorter.",
        )


@rule
def webhook_in_clear(config: TrainConfig, facts: Facts) -> Iterator[Finding]:
    address = config.notify.webhook
    parts = urlsplit(address)
    if parts.scheme == "http" and not is_private(parts.hostname or ""):
        yield Finding(
            "warning",
            "notify.webhook",
            f"Messages to {parts.hostname} can be read on their way, with the addresses of files in them.",
            {"notify.webhook": "https" + address.removeprefix("http")},
            "Use https",
        )


@rule
def topic_is_a_password(config: TrainConfig, facts: Facts) -> Iterator[Finding]:
    if config.notify.webhook and service_of(config.notify.webhook) == "ntfy":
        yield Finding(
            "hint",
            "notify.webhook",
            "Whoever knows the topic of ntfy.sh reads its messages: take one that cannot be guessed, or give "
            "the address as STUDIO_WEBHOOK in the environment, if you pass the recipe on.",
        )


@rule
def webhook_without_messages(config: TrainConfig, facts: Facts) -> Iterator[Finding]:
    if config.notify.webhook and not config.notify.events:
        yield Finding(
            "hint",
            "notify.events",
            "An address is given, but nothing is told to it.",
            {"notify.events": list(type(config.notify)().events)},
            "The usual messages",
        )
