"""A recipe made to fit a card: the same training, with less memory and more time.

What a card needs depends on base, rank and batch, so there is no fixed list of settings for one. The
estimate of :mod:`trainer.contract.plan` is asked after each of the :data:`SAVINGS`, which come in the order
of what they cost, until it fits. Savings that bring it no nearer are left out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .config import TrainConfig
from .errors import ConfigError
from .fields import flatten, merge, nest, parse, to_tables
from .plan import HEADROOM, Machine, estimate

CARDS = (8, 12, 16, 24)
"""GiB of the cards that are asked for by name."""

MEMORY = (
    "model.quantize",
    "model.quantize_text",
    "train.gradient_checkpointing",
    "train.optimizer",
    "train.fused_backward",
    "train.ema_on_cpu",
    "samples.tiling",
)
"""The settings that the savings change, beside batch and accumulation."""

Change = dict[str, dict[str, Any]]


def _less_batch(config: TrainConfig) -> Change:
    """Half the batch and twice the accumulation: as many pictures a step."""
    batch, accumulation = config.train.batch_size, config.train.gradient_accumulation
    product = batch * accumulation
    smaller = max((size for size in range(1, batch // 2 + 1) if product % size == 0), default=batch)
    return {"train": {"batch_size": smaller, "gradient_accumulation": product // smaller}}


def _small_optimizer(config: TrainConfig) -> Change:
    small = {"adamw": "adamw8bit", "lion": "lion8bit"}.get(config.train.optimizer)
    return {"train": {"optimizer": small}} if small and not config.train.optimizer_args else {}


SAVINGS: tuple[Callable[[TrainConfig], Change], ...] = (
    lambda config: {"train": {"gradient_checkpointing": "on"}},
    lambda config: {"model": {"quantize_text": "int8"}} if config.model.quantize_text == "none" else {},
    lambda config: {"samples": {"tiling": "on"}},
    lambda config: {"train": {"ema_on_cpu": True}} if config.train.ema_decay else {},
    *[_less_batch] * 8,
    lambda config: {"model": {"quantize": "int8"}} if config.model.quantize == "none" else {},
    # With clipping it would be another training.
    lambda config: {} if config.train.max_grad_norm else {"train": {"fused_backward": True}},
    _small_optimizer,
    lambda config: {"model": {"quantize_text": "nf4"}},
    lambda config: {"model": {"quantize": "nf4"}},
)
"""Changes of a recipe, the cheapest first: time, hardly visible rounding, faint seams in drawings, and what
needs further libraries or rounds visibly last."""


def missing_gib(config: TrainConfig, vram_gib: float) -> float:
    """What a card lacks in all phases together; 0 where the recipe fits."""
    plan = estimate(config, Machine("", vram_gib))
    return 0.0 if plan.fits else sum(max(0.0, gib - HEADROOM * vram_gib) for gib in plan.vram_gib.values())


def for_card(config: TrainConfig, vram_gib: float) -> TrainConfig:
    """The recipe with as few savings as it takes to fit; with all of them where that is not enough."""
    for saving in SAVINGS:
        missing = missing_gib(config, vram_gib)
        if not missing:
            break
        try:
            leaner = parse(merge(to_tables(config), saving(config)))
        except ConfigError:
            continue  # this base cannot have it
        if missing_gib(leaner, vram_gib) < missing:
            config = leaner
    return config


def memory_of(config: TrainConfig, usual: TrainConfig) -> TrainConfig:
    """The recipe with the memory settings of ``usual``; with its batch where as many pictures make a step."""
    values, theirs = flatten(config), flatten(usual)
    back = {path: theirs[path] for path in MEMORY}
    batch = ("train.batch_size", "train.gradient_accumulation")
    if values[batch[0]] * values[batch[1]] == theirs[batch[0]] * theirs[batch[1]]:
        back |= {path: theirs[path] for path in batch}
    try:
        return parse(merge(to_tables(config), nest(back)))
    except ConfigError:
        return config  # what was changed since does not go with them


def nearest_card(vram_gib: float) -> int:
    """The largest of the cards that is no larger than this one, which may say a little less than its name."""
    return max((card for card in CARDS if card <= vram_gib * 1.05), default=CARDS[0])
