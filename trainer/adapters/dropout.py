"""What is left out of a training step: ranks and whole modules at random, and the ranks above a DyLoRA's.

All of it is drawn from torch's generators, which the loop seeds by (seed, step), or is a function of those.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from ..data import derived_seed


def drop_randomly(layer: Any, adapter: str, rank_dropout: float, module_dropout: float) -> None:
    """Kohya's rank and module dropout on a LoRA's layer, while it trains."""

    def drop_ranks(module: nn.Module, inputs: Any, ranks: Tensor) -> Tensor | None:
        return ranks * rank_mask(ranks, rank_dropout) if module.training else None

    def drop_module(module: nn.Module, inputs: Any, change: Tensor) -> Tensor | None:
        # Multiplied rather than replaced, so that every parameter has a gradient.
        return change * (torch.rand(()) >= module_dropout).item() if module.training else None

    if rank_dropout:
        layer.lora_A[adapter].register_forward_hook(drop_ranks)
    if module_dropout:
        layer.lora_B[adapter].register_forward_hook(drop_module)


def rank_mask(ranks: Tensor, dropout: float) -> Tensor:
    """For A x, (B, …, rank) or (B, rank, h, w): 0 for the ranks that each sample drops, 1 / (1 - p) else."""
    channel = 1 if ranks.ndim == 4 else -1
    shape = [1] * ranks.ndim
    shape[0], shape[channel] = ranks.shape[0], ranks.shape[channel]
    kept = torch.rand(shape, device=ranks.device) >= dropout
    return kept / (1 - dropout)


# DyLoRA: one LoRA, trained so that its first ranks are a LoRA by themselves ------------------------------


def nest(layer: Any, adapter: str) -> None:
    """Let a layer's LoRA work, while it trains, with the first ranks only, as :func:`use_rank` says."""

    def first_ranks(module: Any, inputs: Any, ranks: Tensor) -> Tensor | None:
        rank = getattr(module, "nested_rank", None)
        if rank is None or not module.training:
            return None
        channel = 1 if ranks.ndim == 4 else -1
        shape = [1] * ranks.ndim
        shape[channel] = -1
        kept = torch.arange(ranks.shape[channel], device=ranks.device) < rank
        return ranks * kept.reshape(shape)

    layer.lora_A[adapter].register_forward_hook(first_ranks)


def nested_rank(seed: int, step: int, rank: int, unit: int) -> int:
    """The rank of a step (Valipour et al. 2023): one of unit, 2 unit, … rank, all as likely.

    A function of seed and step. The scale stays alpha / rank at every rank, so that the first ranks alone
    are what a file cut to them holds.
    """
    generator = torch.Generator().manual_seed(derived_seed(seed, step, "nested rank"))
    return unit * (1 + int(torch.randint(rank // unit, (), generator=generator)))


def use_rank(parts: Mapping[str, nn.Module], adapter: str, rank: int) -> None:
    """Set the rank of the next step."""
    for module in parts.values():
        for layer in module.modules():
            if isinstance(layer, LoraLayer) and adapter in layer.lora_A:
                layer.lora_A[adapter].nested_rank = rank  # type: ignore[assignment]
