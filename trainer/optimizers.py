"""Optimizers by name. The learning rate of each step is set by the loop (contract.schedule).

Libraries are imported only where a recipe chooses them; contract.optimizers says what there is.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterable
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

from .contract.config import TrainConfig
from .contract.errors import RunError
from .contract.optimizers import OPTIMIZERS, REQUIREMENTS, parse_options
from .contract.rates import differs_by_block, highest_rates
from .contract.settings.train import TrainSettings


def require_optimizer(config: TrainConfig, device: torch.device) -> None:
    """Raise RunError(config), before any model is loaded, where a recipe's optimizer is not installed, does
    not take its options, or cannot give each part a learning rate of its own."""
    settings = config.train
    row = OPTIMIZERS[settings.optimizer]
    if row.package in REQUIREMENTS and find_spec(row.package) is None:
        raise RunError(
            f"train.optimizer = {settings.optimizer} needs {row.package.replace('_', '-')}; "
            f"run pip install -r {REQUIREMENTS[row.package]}, or choose adamw",
            "config",
        )
    if row.one_rate and (len(set(highest_rates(config).values())) > 1 or differs_by_block(config)):
        raise RunError(
            f"train.optimizer = {settings.optimizer} has one learning rate for all that is trained; set "
            "the text encoders' to the same or to 0, the LoRA+ ratios to 0, and only 0 and 1 in "
            "adapter.block_weights",
            "config",
        )
    weight = nn.Parameter(torch.zeros(1, device=device))
    try:  # what an option may be beyond its shape, its optimizer knows
        build_optimizer(settings, [(settings.learning_rate, [weight])])
    except (ValueError, TypeError, AssertionError) as error:
        sentence = f"train.optimizer_args: {settings.optimizer} refuses them ({error}); correct them"
        raise RunError(sentence, "config") from None


def build_optimizer(
    settings: TrainSettings, groups: Iterable[tuple[float, list[nn.Parameter]]]
) -> torch.optim.Optimizer:
    """The optimizer of a recipe over groups of (learning rate, parameters); state is created lazily by the
    first step."""
    rows: list[dict[str, Any]] = [
        {"params": parameters, "lr": rate, "peak": rate} for rate, parameters in groups
    ]
    row = OPTIMIZERS[settings.optimizer]
    options = {**row.fixed, **parse_options(settings.optimizer, settings.optimizer_args)}
    device = rows[0]["params"][0].device
    if settings.optimizer == "adamw":
        options["fused"] = device.type == "cuda"  # one kernel for all parameters
    module, _, name = row.path.rpartition(".")
    if row.paged and device.type != "cuda":
        name = name.removeprefix("Paged")  # there is no second memory to move to
    kind: Any = getattr(import_module(module), name)
    with contextlib.redirect_stdout(io.StringIO()):  # prodigyopt prints
        optimizer: torch.optim.Optimizer = kind(
            rows, lr=settings.learning_rate, weight_decay=settings.weight_decay, **options
        )
    if row.averages:
        optimizer.train()  # type: ignore[attr-defined]
    return optimizer


def scale_learning_rates(optimizer: torch.optim.Optimizer, scale: float) -> None:
    """Each group's learning rate becomes its highest one times ``scale``."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * scale


def learning_rate(optimizer: torch.optim.Optimizer) -> float:
    """The first group's, in use; what Prodigy estimated is a factor of it."""
    group = optimizer.param_groups[0]
    return float(group["lr"] * group.get("d", 1.0))
