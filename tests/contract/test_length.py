"""Steps or epochs: one place turns what was written into steps."""

from __future__ import annotations

from typing import Any

import pytest

from trainer.contract.config import TrainConfig
from trainer.contract.fields import nest, parse
from trainer.contract.findings import Facts
from trainer.contract.length import batches_of, in_steps, length_in_words, total_steps
from trainer.contract.lint import lint
from trainer.contract.plan import Machine, estimate
from trainer.contract.schedule import warmup_steps
from trainer.contract.steps import Folder


def recipe(**values: Any) -> TrainConfig:
    return parse(nest({name.replace("__", "."): value for name, value in values.items()}))


def folder(*counts: int, repeats: int = 1) -> Folder:
    """So many pictures in each bucket."""
    pictures = [
        ((1024, 64 * number), repeats) for number, count in enumerate(counts, 1) for _ in range(count)
    ]
    return Folder("photos", tuple(pictures))


def test_the_guides_example() -> None:
    """476 pictures, 5 repeats, batches of 6, 30 epochs: 397 steps an epoch (the guide says 11 900 in all)."""
    config = recipe(train__batch_size=6, train__epochs=30)
    assert batches_of(config, [folder(476, repeats=5)]) == 397
    assert total_steps(config, 397) == 11_910


def test_every_bucket_is_filled_by_itself() -> None:
    config = recipe(train__batch_size=4, train__epochs=3)
    batches = batches_of(config, [folder(5, 4, 1)])
    assert batches == 4 and total_steps(config, batches) == 12
    assert batches_of(config, []) is None


@pytest.mark.parametrize(
    ("epochs", "accumulation", "steps"), [(1, 1, 7), (1, 2, 4), (2, 2, 7), (3, 4, 6), (1, 100, 1)]
)
def test_accumulation_runs_across_epochs(epochs: int, accumulation: int, steps: int) -> None:
    config = recipe(train__epochs=epochs, train__gradient_accumulation=accumulation)
    assert total_steps(config, 7) == steps


def test_everything_follows() -> None:
    config = recipe(
        train__epochs=10,
        train__steps=5,
        samples__every_epochs=2,
        checkpoints__every_epochs=3,
        validation__every_epochs=1,
    )
    whole = in_steps(config, 20)
    assert (whole.train.steps, whole.samples.every, whole.checkpoints.every) == (200, 40, 60)
    assert config.validation.held_share and whole.validation.every == 20
    assert warmup_steps(whole.train) == 20
    assert in_steps(whole, 999) == whole and in_steps(config, None) == config
    assert (length_in_words(config.train), length_in_words(whole.train)) == ("10 epochs", "200 steps")


def test_steps_hold_without_epochs() -> None:
    config = recipe(train__steps=5, samples__every_epochs=2)
    assert in_steps(config, 20).train.steps == 5
    assert in_steps(config, 20).samples.every == 40


def test_the_plan_counts() -> None:
    config = recipe(train__epochs=10, train__batch_size=2)
    plan = estimate(config, Machine("CPU", None), folders=[folder(5, 4)])
    assert plan.steps == 50


def test_findings_are_in_what_was_written() -> None:
    """A fix in steps empties the epochs; without counted pictures nobody judges the length."""
    config = recipe(train__epochs=2, checkpoints__every_epochs=9, train__batch_size=2)
    counted = {one.field: one for one in lint(config, Facts(images=9, folders=(folder(5, 4),)))}
    assert counted["train.steps"].fix is not None and counted["train.steps"].fix["train.epochs"] is None
    assert counted["checkpoints.every"].fix == {"checkpoints.every": 2, "checkpoints.every_epochs": 0}
    assert not {"train.steps", "checkpoints.every"} & {one.field for one in lint(config, Facts(images=9))}


def test_ranks_are_judged_by_the_steps_that_count() -> None:
    """Not by train.steps, which epochs go before."""
    ranks = {"adapter.type": "dylora", "adapter.rank": 8, "train.epochs": 100, "train.steps": 1}
    config = parse(nest(ranks))
    rule = "nested_ranks_learn_little"
    assert rule not in [one.rule for one in lint(config)]
    few, many = (Facts(images=count, folders=(folder(count),)) for count in (7, 9))
    assert rule in [one.rule for one in lint(config, few)]
    assert rule not in [one.rule for one in lint(config, many)]
