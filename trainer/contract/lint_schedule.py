"""Lint rules on how the learning rate moves over the run."""

from __future__ import annotations

from collections.abc import Iterator

from .config import TrainConfig
from .findings import Facts, Finding, rule
from .schedule import decay_steps, steps_of, warmup_steps


@rule
def warmup_longer_than_the_run(config: TrainConfig, facts: Facts) -> Iterator[Finding]:
    train = config.train
    if steps_of(train.warmup, train.steps) >= train.steps > 1:
        yield Finding(
            "warning",
            "train.warmup",
            f"The warm-up of {train.warmup:g} steps does not end before the run's {train.steps}, so it never "
            "learns at the full rate.",
            {"train.warmup": 0.1},
            "Use 10 %",
        )


@rule
def warmup_long(config: TrainConfig, facts: Facts) -> Iterator[Finding]:
    train = config.train
    steps = steps_of(train.warmup, train.steps)
    if 0.3 * train.steps < steps < train.steps:
        yield Finding(
            "warning",
            "train.warmup",
            f"The learning rate climbs for {steps / train.steps:.0%} of the run; 5-10 % is enough.",
            {"train.warmup": 0.1},
            "Use 10 %",
        )


@rule
def decay_of_nothing(config: TrainConfig, facts: Facts) -> Iterator[Finding]:
    train = config.train
    if train.scheduler == "warmup_stable_decay" and not decay_steps(train):
        yield Finding(
            "warning",
            "train.decay",
            "Without a decay the learning rate stays high to the end, which is the constant scheduler; the "
            "decay is what makes warmup_stable_decay settle.",
            {"train.decay": 0.2},
            "Use 20 %",
        )


@rule
def decay_meets_the_warmup(config: TrainConfig, facts: Facts) -> Iterator[Finding]:
    train = config.train
    wanted = steps_of(train.decay, train.steps)
    if train.scheduler == "warmup_stable_decay" and wanted + warmup_steps(train) > train.steps:
        yield Finding(
            "warning",
            "train.decay",
            f"Warm-up and decay, {warmup_steps(train)} and {wanted} steps, are longer than the run's "
            f"{train.steps}; nothing is left between them, and the decay is cut.",
            {"train.decay": 0.2, "train.warmup": 0.1},
            "Use 20 % and 10 %",
        )


@rule
def restarts_do_nothing(config: TrainConfig, facts: Facts) -> Iterator[Finding]:
    if config.train.scheduler == "cosine_with_restarts" and config.train.restarts == 1:
        yield Finding(
            "hint",
            "train.restarts",
            "One cosine cycle is plain cosine: nothing restarts.",
            {"train.scheduler": "cosine"},
            "Use cosine",
        )


@rule
def restarts_too_short(config: TrainConfig, facts: Facts) -> Iterator[Finding]:
    train = config.train
    if train.scheduler == "cosine_with_restarts" and train.restarts > 1 and train.steps / train.restarts < 50:
        fewer = max(1, train.steps // 100)
        yield Finding(
            "hint",
            "train.restarts",
            f"{train.restarts} cycles leave {train.steps // train.restarts} steps each, too few to settle.",
            {"train.restarts": fewer} if fewer > 1 else {"train.scheduler": "cosine"},
            f"Use {fewer}" if fewer > 1 else "Use cosine",
        )


@rule
def polynomial_is_linear(config: TrainConfig, facts: Facts) -> Iterator[Finding]:
    if config.train.scheduler == "polynomial" and config.train.power == 1:
        yield Finding(
            "hint",
            "train.power",
            "Polynomial decay at power 1 is the same straight line as linear.",
            {"train.power": 2.0},
            "Power 2",
        )
