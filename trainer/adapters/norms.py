"""Max-norm regularisation: no layer's change grows above a norm (kohya's scale_weight_norms)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .layers import ADAPTER, FACTORS, adapter_layers


@torch.no_grad()
def limit_norms(parts: Mapping[str, nn.Module], limit: float) -> int:
    """Scale down every change whose Frobenius norm is above ``limit``; returns how many were.

    Each of a module's n factors is multiplied by (limit / norm)^(1/n), so that their product has the limit.
    """
    scaled = 0
    for module in parts.values():
        for layer in adapter_layers(module).values():
            factors = [_weight(getattr(layer, name)[ADAPTER]) for name in FACTORS if _has(layer, name)]
            norm = change_norm(layer)
            if norm <= limit:
                continue
            for factor in factors:
                factor.mul_((limit / norm) ** (1 / len(factors)))
            scaled += 1
    return scaled


def _has(layer: Any, name: str) -> bool:
    return name != "lora_magnitude_vector" and ADAPTER in getattr(layer, name, ())


def _weight(factor: Any) -> Tensor:
    weight: Tensor = getattr(factor, "weight", factor)
    return weight


def change_norm(layer: Any) -> float:
    """The Frobenius norm of a layer's change; for a LoRA from the small Gram matrices of its two factors:
    ‖B A‖² = ⟨BᵀB, A Aᵀ⟩."""
    if hasattr(layer, "lora_A"):
        down = layer.lora_A[ADAPTER].weight.flatten(1).float()
        up = layer.lora_B[ADAPTER].weight.flatten(1).float()
        square = ((up.T @ up) * (down @ down.T)).sum().clamp(min=0)
        return float(layer.scaling[ADAPTER] * square.sqrt())
    return float(layer.get_delta_weight(ADAPTER).float().norm())
