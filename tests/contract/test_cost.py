"""What a run costs, from its events."""

from __future__ import annotations

from typing import Any

import pytest

from trainer.contract.cost import Cost, Meter, cost_of, in_words, money, used_up, usual_rent


def event(kind: str, time: float, attempt: int = 1, **data: Any) -> dict[str, Any]:
    return {"kind": kind, "time": time, "attempt": attempt, "seq": 0, **data}


FIRST = [
    event("attempt", 1010, began=1000),
    event("stage", 1040, stage="encode", done=1, total=1),
    event("started", 1050, step=0, total=100),
    event("sample", 1080, step=0),  # what the base draws: once, not every so many steps
    event("step", 1090, step=1),
    event("step", 1092, step=2),
    event("step", 1094, step=3),
    event("validation", 1095, step=3),
    event("checkpoint", 1097, step=3),
    event("sample", 1101, step=3),
    event("step", 1102, step=4),
]
SECOND = [
    event("attempt", 9020, 2, began=9000),  # the machine was gone for hours
    event("started", 9030, 2, step=3, total=100),
    event("step", 9040, 2, step=4),
    event("step", 9042, 2, step=5),
    event("end", 9043, 2, state="stopped", step=5),
]


def test_attempts_count_and_not_the_time_in_between() -> None:
    meter = Meter.of(FIRST)
    assert meter.seconds == 102
    assert meter.spent == {"preparing": 50, "sampling": 34, "training": 15, "validating": 1, "saving": 2}
    assert sum(meter.spent.values()) == meter.seconds
    meter = Meter.of(FIRST + SECOND)
    assert (meter.seconds, meter.attempts) == (102 + 43, 2)


def test_the_pace_has_everything_in_it_but_what_comes_once() -> None:
    meter = Meter.of(FIRST)
    assert (meter.steps, meter.looping) == (3, 12)
    assert meter.seconds_per_step == 4
    assert Meter.of(FIRST[:5]).seconds_per_step is None
    assert (Meter.of(FIRST + SECOND).steps, Meter.of(FIRST + SECOND).looping) == (4, 15)


def test_the_cost_so_far_to_go_and_of_1000_steps() -> None:
    cost = cost_of(Meter.of(FIRST), 3.6, steps_left=96)
    assert cost == Cost(pytest.approx(0.102), pytest.approx(0.384), pytest.approx(4.0))
    assert cost_of(Meter.of(FIRST[:3]), 3.6, 100) == Cost(pytest.approx(0.05), None, None)


def test_events_of_earlier_versions_count_from_the_first() -> None:
    assert Meter.of(FIRST[1:]).seconds == 62


def test_a_process_that_goes_on_as_another_attempt_is_paid_once() -> None:
    again = [event("attempt", 1110, 2, began=1000), event("stage", 1120, 2, stage="load")]
    meter = Meter.of(FIRST + again)
    assert (meter.seconds, meter.attempts) == (120, 2)


def test_a_clock_that_is_set_back_makes_nothing_cheaper() -> None:
    assert Meter.of([event("stage", 100, stage="a"), event("stage", 40, stage="a")]).seconds == 0


def test_the_budget() -> None:
    assert used_up(5, Cost(4.99, None, None), "$") == ""
    assert used_up(5, Cost(5.01, None, None), "€").startswith("The budget of €5.00 is used up (€5.01)")


def test_the_bill_in_words() -> None:
    meter = Meter.of(FIRST + SECOND)
    words = in_words(meter, cost_of(meter, 7.2, 0), "$")
    assert words == (
        "cost: $0.29 (over 2 attempts, $7.50 per 1,000 steps, 23% of it samples, 55% of it preparing)"
    )


@pytest.mark.parametrize(
    ("amount", "text"),
    [
        (0, "$0.00"),
        (0.0042, "$0.0042"),
        (0.042, "$0.042"),
        (0.42, "$0.42"),
        (12.5, "$12.50"),
        (1250, "$1,250"),
    ],
)
def test_money_has_as_many_digits_as_matter(amount: float, text: str) -> None:
    assert money(amount) == text


@pytest.mark.parametrize(
    ("gpu", "rent"),
    [
        ("NVIDIA GeForce RTX 4090", (0.29, 0.69)),
        ("NVIDIA A100-SXM4-80GB", (1.19, 1.79)),
        ("NVIDIA A100 80GB PCIe", (1.19, 1.79)),
        ("NVIDIA A100-PCIE-40GB", (0.80, 1.99)),
        ("NVIDIA H100 80GB HBM3", (2.69, 3.99)),
        ("NVIDIA L4", (0.39, 0.39)),
        ("NVIDIA L40S", None),
        ("CPU", None),
        ("", None),
    ],
)
def test_what_a_card_is_rented_out_for(gpu: str, rent: tuple[float, float] | None) -> None:
    assert usual_rent(gpu) == rent
