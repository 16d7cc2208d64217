"""Lint rules on validation."""

from __future__ import annotations

import math
from collections.abc import Iterator

from .config import TrainConfig
from .findings import Facts, Finding, rule

ENOUGH_PHOTOS = 8
"""From so many on two are no great loss to the training."""
LOOKS, FORWARD = 4, 1 / 3
"""Noise levels at which each photo is measured, and what a pass without gradients costs of a training one."""
COSTLY = 0.25


@rule
def nothing_is_held_out(config: TrainConfig, facts: Facts) -> Iterator[Finding]:
    if config.validation.measures and facts.held_out == 0:
        yield Finding(
            "error",
            "validation.share",
            "No folder has two photos, so that none can be held out for validation.",
            {"validation.every": 0},
            "Without validation",
        )


@rule
def one_photo_is_held_out(config: TrainConfig, facts: Facts) -> Iterator[Finding]:
    validation = config.validation
    if not validation.measures or facts.held_out != 1 or facts.images is None:
        return
    if validation.path:
        sentence = "The validation folder has one photo, whose loss says little of others; add some."
        yield Finding("warning", "validation.path", sentence)
        return
    photos = facts.images + 1
    if round(validation.share * photos) > 1:
        return  # the facts are of another share
    sentence = f"One of {photos} photos is held out for validation, whose loss says little of others"
    if photos >= ENOUGH_PHOTOS:
        share = math.ceil(100 * 2 / photos) / 100
        fix, label = {"validation.share": share}, "Hold out two"
        yield Finding("warning", "validation.share", f"{sentence}; hold out two or more.", fix, label)
    else:
        off = {"validation.every": 0}
        sentence = f"{sentence}, and the others are few; train on all of them."
        yield Finding("warning", "validation.every", sentence, off, "Without validation")


@rule
def checkpoints_without_a_validation_loss(config: TrainConfig, facts: Facts) -> Iterator[Finding]:
    every, saved = config.validation.every, config.checkpoints.every
    in_epochs = config.checkpoints.every_epochs or config.validation.every_epochs  # how long is not known
    if every and not in_epochs and saved < config.train.steps and saved % every:
        yield Finding(
            "hint",
            "validation.every",
            f"Checkpoints are saved every {saved} steps and measured every {every}, so that not each has a "
            "validation loss to be chosen by.",
            {"validation.every": saved},
            f"Every {saved} steps",
        )


@rule
def validation_is_off(config: TrainConfig, facts: Facts) -> Iterator[Finding]:
    validation = config.validation
    if not validation.measures and (validation.path or validation.share != type(validation)().share):
        every = config.checkpoints.every
        yield Finding(
            "hint",
            "validation.every",
            "Photos to measure on are named, but validation is off.",
            {"validation.every": every},
            f"Every {every} steps",
        )


@rule
def validation_costs_time(config: TrainConfig, facts: Facts) -> Iterator[Finding]:
    every, train = config.validation.every, config.train
    if not every or config.validation.every_epochs or not facts.held_out:
        return
    cost = facts.held_out * LOOKS * FORWARD  # in training passes
    learnt = train.batch_size * train.gradient_accumulation  # of a step
    if cost > COSTLY * every * learnt:
        fewer = math.ceil(cost / (COSTLY * learnt))
        yield Finding(
            "hint",
            "validation.every",
            f"Measuring {facts.held_out} photos every {every} steps takes {cost / (every * learnt):.0%} of "
            "the time that training does.",
            {"validation.every": fewer},
            f"Every {fewer} steps",
        )
