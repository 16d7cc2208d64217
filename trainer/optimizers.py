"""Optimizers by name. The learning rate of each step is set by the loop (contract.schedule)."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from .contract.config import TrainSettings


def build_optimizer(settings: TrainSettings, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """The optimizer of a recipe over ``parameters``; state is created lazily by the first step."""
    if settings.optimizer == "adafactor":
        return torch.optim.Adafactor(
            parameters, lr=settings.learning_rate, weight_decay=settings.weight_decay
        )
    return torch.optim.AdamW(parameters, lr=settings.learning_rate, weight_decay=settings.weight_decay)


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
