"""Cases of the rules on the machine and on webhooks."""

from __future__ import annotations

from lint_case import Case

from trainer.contract.findings import Facts

HOME = Facts(gpu="NVIDIA GeForce RTX 4090", vram_gib=24)
RENTED = Facts(gpu="NVIDIA A100-SXM4-80GB", vram_gib=80)
SLOW, FAST = Facts(seconds_per_step=20), Facts(seconds_per_step=2)

CASES = [
    Case(
        "budget_without_a_price",
        {"machine.budget": 5},
        {"machine.budget": 5, "machine.price_per_hour": 0.5},
        says=("A budget of $5.00",),
    ),
    Case(
        "budget_without_a_price",
        {"machine.budget": 5},
        {"machine.price_per_hour": 0.5},
        HOME,
        says=("RTX 4090 was rented out for $0.29 to $0.69 in 2026; check yours",),
    ),
    Case(
        "price_is_unusual",
        {"machine.price_per_hour": 30},
        {"machine.price_per_hour": 0.44},
        HOME,
        says=("look whether $30.00 is the price of an hour",),
    ),
    Case(
        "budget_is_below_the_cost",
        {"machine.budget": 2, "machine.price_per_hour": 0.5, "train.steps": 1500},
        {"machine.budget": 5, "machine.price_per_hour": 0.5, "train.steps": 1500},
        SLOW,
        says=("costs about $4.17", "stop at $2.00"),
    ),
    Case("notices_at_home", {"machine.notices": "auto"}, {"machine.notices": "auto"}, HOME, RENTED),
    Case(
        "grace_is_shorter_than_a_step",
        {"machine.grace_s": 30},
        {"machine.grace_s": 30},
        SLOW,
        FAST,
        ("about 20 s",),
    ),
    Case(
        "webhook_in_clear",
        {"notify.webhook": "http://example.com/x"},
        {"notify.webhook": "http://nas:8080/x"},
    ),
    Case(
        "webhook_in_clear",
        {"notify.webhook": "http://example.com/x"},
        {"notify.webhook": "http://192.168.1.5/x"},
    ),
    Case(
        "topic_is_a_password",
        {"notify.webhook": "https://ntfy.sh/my-cat"},
        {"notify.webhook": "https://example.com/my-cat"},
    ),
    Case(
        "webhook_without_messages",
        {"notify.webhook": "https://example.com/x", "notify.events": []},
        {"notify.webhook": "https://example.com/x"},
    ),
]
