"""How long a run is: steps as they are written, or epochs, which become steps once the pictures are counted.

A step is one update of the weights: ``gradient_accumulation`` batches. Batches follow each other across
epochs, so that with accumulation the last step may take a few from the epoch after the last.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .config import TrainConfig
from .settings.train import TrainSettings
from .steps import Folder, batches_per_epoch, looks_by_bucket, trained

RHYTHMS = ("validation", "samples", "checkpoints")
"""The sections that say how often: ``every`` in steps, ``every_epochs``, which goes before it, in epochs."""


def batches_of(config: TrainConfig, folders: Sequence[Folder]) -> int | None:
    """Batches per epoch of folders as they were found; None where there is nothing to count."""
    return batches_per_epoch(looks_by_bucket(trained(config, folders)), config.train.batch_size) or None


def steps_in(epochs: int, train: TrainSettings, batches: int) -> int:
    """Steps that ``epochs`` of so many batches take, rounded up."""
    return max(1, -(-epochs * batches // train.gradient_accumulation))


def total_steps(config: TrainConfig, batches: int) -> int:
    """Steps of the whole run, with so many batches per epoch."""
    train = config.train
    return steps_in(train.epochs, train, batches) if train.epochs else train.steps


def counts_epochs(config: TrainConfig) -> bool:
    """Whether anything in the recipe is said in epochs."""
    return bool(config.train.epochs or any(getattr(config, name).every_epochs for name in RHYTHMS))


def in_steps(config: TrainConfig, batches: int | None) -> TrainConfig:
    """The recipe with its length and its rhythms in steps, for so many batches per epoch. Unchanged where
    these are unknown, and where nothing is said in epochs."""
    if batches is None or not counts_epochs(config):
        return config
    sections: dict[str, Any] = {
        "train": config.train.model_copy(update={"steps": total_steps(config, batches), "epochs": None})
    }
    for name in RHYTHMS:
        section = getattr(config, name)
        if section.every_epochs:
            every = steps_in(section.every_epochs, config.train, batches)
            sections[name] = section.model_copy(update={"every": every, "every_epochs": 0})
    return config.model_copy(update=sections)


def undone_epochs(config: TrainConfig, fix: dict[str, Any]) -> dict[str, Any]:
    """A fix in steps for a recipe in epochs: what would go before the steps is emptied with it."""
    emptied: dict[str, Any] = {}
    if "train.steps" in fix and config.train.epochs:
        emptied["train.epochs"] = None
    for name in RHYTHMS:
        if f"{name}.every" in fix and getattr(config, name).every_epochs:
            emptied[f"{name}.every_epochs"] = 0
    return {**fix, **emptied}


def length_in_words(train: TrainSettings) -> str:
    """ "1000 steps", or "30 epochs" where steps are not known yet."""
    if train.epochs:
        return f"{train.epochs} epoch{'s' if train.epochs > 1 else ''}"
    return f"{train.steps} step{'s' if train.steps > 1 else ''}"
