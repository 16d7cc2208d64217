"""The LoRA on a denoiser: PEFT modules in, a plain {name: (down, up)} out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from .contract.config import AdapterSettings
from .contract.errors import RunError

ADAPTER = "default"


@dataclass(frozen=True)
class LoraWeights:
    """One adapted module: y = W x + (alpha / rank) · up(down(x)).

    ``down`` is (rank, in) or (rank, in, k, k), ``up`` (out, rank) or (out, rank, 1, 1).
    """

    down: Tensor
    up: Tensor
    alpha: float

    @property
    def rank(self) -> int:
        return int(self.down.shape[0])


def add_lora(denoiser: nn.Module, settings: AdapterSettings, targets: str, seed: int) -> None:
    """Put a fresh LoRA on every module whose name full-matches ``targets`` (Hu et al. 2021).

    A is drawn from U(-1/√fan_in, 1/√fan_in) by ``seed``, B is zero, so that nothing changes at step 0;
    both train in float32. Raises RunError(config) when nothing matches.
    """
    alpha: Any = settings.alpha  # peft's annotation says int; its arithmetic takes any number
    config = LoraConfig(
        r=settings.rank, lora_alpha=alpha, lora_dropout=settings.dropout, target_modules=targets
    )
    torch.manual_seed(seed)
    try:
        denoiser.add_adapter(config, adapter_name=ADAPTER)  # type: ignore[operator]
    except ValueError as error:
        raise RunError(f"the base model has no layer for adapter.targets; {error}", "config") from None
    for parameter in lora_parameters(denoiser).values():
        parameter.data = parameter.data.float()


def lora_parameters(denoiser: nn.Module) -> dict[str, nn.Parameter]:
    """The trainable parameters by name, in the module order (which is the optimizer's order)."""
    return {
        name: parameter
        for name, parameter in denoiser.named_parameters()
        if ".lora_A." in name or ".lora_B." in name
    }


def lora_weights(denoiser: nn.Module) -> dict[str, LoraWeights]:
    """The LoRA as {dotted module name: weights}, detached, on the CPU, float32."""
    weights = {}
    for name, module in denoiser.named_modules():
        if isinstance(module, LoraLayer) and ADAPTER in module.lora_A:
            layer: Any = module
            down, up = layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight
            weights[name] = LoraWeights(
                down.detach().float().cpu().clone(),
                up.detach().float().cpu().clone(),
                float(module.lora_alpha[ADAPTER]),
            )
    return weights


class lora_off:
    """Inside this block the denoiser behaves as the plain base model."""

    def __init__(self, denoiser: nn.Module) -> None:
        self._layers = [module for module in denoiser.modules() if isinstance(module, BaseTunerLayer)]

    def __enter__(self) -> None:
        for layer in self._layers:
            layer.enable_adapters(False)

    def __exit__(self, *exc: object) -> None:
        for layer in self._layers:
            layer.enable_adapters(True)
