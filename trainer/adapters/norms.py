"""Max-norm regularisation: no layer's change grows above a norm (kohya's scale_weight_norms)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from .dora import dense_weight
from .layers import ADAPTER, FACTORS, layer_weights, trained_layers
from .weights import LohaWeights, LokrWeights, LoraWeights


@torch.no_grad()
def limit_norms(parts: Mapping[str, nn.Module], limit: float) -> int:
    """Scale down every change whose Frobenius norm is above ``limit``; returns how many were.

    Each of a module's n factors is multiplied by (limit / norm)^(1/n), so that their product has the limit.
    """
    scaled = 0
    for module in parts.values():
        for layer in trained_layers(module).values():
            norm = product_norm(layer_weights(layer))
            if norm <= limit:
                continue
            factors = [getattr(layer, name)[ADAPTER] for name in FACTORS if _has(layer, name)]
            for factor in factors:
                getattr(factor, "weight", factor).mul_((limit / norm) ** (1 / len(factors)))
            scaled += 1
    return scaled


def _has(layer: Any, name: str) -> bool:
    return name != "lora_magnitude_vector" and ADAPTER in getattr(layer, name, ())


def product_norm(weights: Any) -> float:
    """‖ΔW‖ of a product of factors, without a DoRA's magnitude: of a LoRA by ‖B A‖² = ⟨BᵀB, A Aᵀ⟩, which
    needs rank × rank matrices only, and of a Kronecker product by that of its sides."""
    if isinstance(weights, LoraWeights):
        down, up = weights.down.flatten(1), weights.up.flatten(1)
        square = ((up.T @ up) * (down @ down.T)).sum().clamp(min=0)
        return float(weights.scale * square.sqrt())
    if isinstance(weights, LokrWeights):
        return float(weights.scale * weights.side("w1").norm() * weights.side("w2").norm())
    assert isinstance(weights, LohaWeights)
    return float(weights.delta().norm())


@torch.no_grad()
def change_norm(layer: Any) -> float:
    """How far a layer's weight has moved, ‖W' - W‖, by an adapter of whatever kind."""
    weights = layer_weights(layer)
    if isinstance(weights, LohaWeights | LokrWeights) or (
        isinstance(weights, LoraWeights) and weights.magnitude is None
    ):
        return product_norm(weights)
    weight = dense_weight(layer)
    return float((weights.applied(weight) - weight).norm())
