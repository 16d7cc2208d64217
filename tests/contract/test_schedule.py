"""The schedule is the very curve of transformers.get_scheduler."""

from __future__ import annotations

import math
from typing import get_args

import pytest

from trainer.contract.schedule import decay_steps, lr_curve, lr_scale, warmup_steps
from trainer.contract.settings.train import Scheduler, TrainSettings

SCHEDULERS = get_args(Scheduler)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("warmup", [0.0, 0.1, 0.5, 7])
def test_agrees_with_transformers(scheduler: str, warmup: float) -> None:
    torch = pytest.importorskip("torch")
    from transformers import get_scheduler

    train = TrainSettings(
        steps=40, warmup=warmup, scheduler=scheduler, learning_rate=2e-3, restarts=3, power=2.5
    )
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=train.learning_rate)
    name = "constant_with_warmup" if scheduler == "constant" else scheduler
    extra = {
        "cosine_with_restarts": {"num_cycles": 3},
        "polynomial": {"power": 2.5},
        "warmup_stable_decay": {"num_decay_steps": decay_steps(train)},
    }.get(scheduler)
    theirs = get_scheduler(name, optimizer, warmup_steps(train), train.steps, extra)
    for step in range(train.steps + 1):
        assert train.learning_rate * lr_scale(train, step) == pytest.approx(
            optimizer.param_groups[0]["lr"], rel=1e-6, abs=1e-12
        ), (scheduler, step)
        optimizer.step()
        theirs.step()


def test_warmup_never_eats_the_whole_run() -> None:
    for steps in (1, 2, 3, 10):
        train = TrainSettings(steps=steps, warmup=0.9)
        assert max(lr_scale(train, step) for step in range(steps)) > 0.4


def test_lengths_are_shares_or_steps() -> None:
    """Below 1 a share, from 1 on steps; what does not fit is cut, the decay before the warm-up."""
    lengths = [(0.1, 0.2, (10, 20)), (25, 30, (25, 30)), (1, 1, (1, 1)), (0, 0, (0, 0)), (60, 60, (60, 40))]
    for warmup, decay, expected in lengths:
        train = TrainSettings(steps=100, warmup=warmup, decay=decay, scheduler="warmup_stable_decay")
        assert (warmup_steps(train), decay_steps(train)) == expected
    assert warmup_steps(TrainSettings(steps=100, warmup=500)) == 99


def test_cosine_by_hand() -> None:
    train = TrainSettings(steps=110, warmup=0.1, scheduler="cosine")
    assert warmup_steps(train) == 11
    assert lr_scale(train, 0) == 0
    assert lr_scale(train, 11) == 1
    assert lr_scale(train, 11 + 33) == pytest.approx(0.5 * (1 + math.cos(math.pi / 3)))


def test_curve_covers_the_run_with_few_points() -> None:
    curve = lr_curve(TrainSettings(steps=24_000), points=100)
    assert len(curve) <= 100
    assert (curve[0][0], curve[-1][0]) == (0, 23_999)
    assert lr_curve(TrainSettings(steps=1, warmup=0.0)) == [(0, 1e-4)]
