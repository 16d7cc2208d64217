"""Optimizers by name. The learning rate of each step is set by the loop (contract.schedule)."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from .contract.settings.train import TrainSettings


def build_optimizer(
    settings: TrainSettings, groups: Iterable[tuple[float, list[nn.Parameter]]]
) -> torch.optim.Optimizer:
    """The optimizer of a recipe over groups of (learning rate, parameters); state is created lazily by the
    first step."""
    rows = [{"params": parameters, "lr": rate, "peak": rate} for rate, parameters in groups]
    if settings.optimizer == "adafactor":
        return torch.optim.Adafactor(rows, lr=settings.learning_rate, weight_decay=settings.weight_decay)
    return torch.optim.AdamW(rows, lr=settings.learning_rate, weight_decay=settings.weight_decay)


def scale_learning_rates(optimizer: torch.optim.Optimizer, scale: float) -> None:
    """Each group's learning rate becomes its highest one times ``scale``."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * scale
