"""Lint rules on several GPUs."""

from __future__ import annotations

from collections.abc import Iterator

from .config import TrainConfig
from .findings import Facts, Finding, rule


def _use(gpus: int) -> str:
    return f"Use {gpus}" if gpus > 1 else "Use one"


@rule
def more_gpus_than_there_are(config: TrainConfig, facts: Facts) -> Iterator[Finding]:
    gpus = config.machine.gpus
    if facts.gpus and gpus > facts.gpus:
        have = "one GPU" if facts.gpus == 1 else f"{facts.gpus} GPUs"
        yield Finding(
            "error",
            "machine.gpus",
            f"This machine has {have}, and the recipe wants {gpus}.",
            {"machine.gpus": facts.gpus},
            _use(facts.gpus),
        )


@rule
def several_processes_of_one_processor(config: TrainConfig, facts: Facts) -> Iterator[Finding]:
    gpus = config.machine.gpus
    if facts.gpu == "" and gpus > 1:
        yield Finding(
            "warning",
            "machine.gpus",
            f"There is no GPU here: {gpus} processes share the processor, need {gpus} times the memory and "
            "are no faster than one.",
            {"machine.gpus": 1},
            "Use one",
        )


@rule
def more_gpus_than_pictures(config: TrainConfig, facts: Facts) -> Iterator[Finding]:
    """A step cannot keep more of them busy; as many more would train something else."""
    gpus, train = config.machine.gpus or facts.gpus or 1, config.train
    pictures = train.batch_size * train.gradient_accumulation
    if gpus > pictures:
        shows = "one picture" if pictures == 1 else f"{pictures} pictures"
        yield Finding(
            "warning",
            "train.batch_size",
            f"A step shows {shows}, so {gpus - pictures} of {gpus} GPUs only wait. A larger batch uses them, "
            "and wants fewer steps; fewer GPUs train the same.",
            {"machine.gpus": pictures},
            _use(pictures),
        )


@rule
def nobody_to_split_with(config: TrainConfig, facts: Facts) -> Iterator[Finding]:
    gpus = config.machine.gpus or facts.gpus
    if config.machine.shard and gpus == 1:
        yield Finding(
            "warning",
            "machine.shard",
            "One GPU has nobody to split the base with; it holds all of it.",
            {"machine.shard": False},
            "Do not split",
        )
