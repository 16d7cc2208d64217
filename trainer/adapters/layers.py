"""The LoRA on the modules that are trained: PEFT layers in, a plain {name: (down, up, alpha)} out.

Names begin with the part that a module is in: ``unet.down_blocks…``, ``text_encoder.encoder.layers…``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from ..contract.errors import RunError
from ..contract.settings.adapter import AdapterSettings
from .weights import LoraWeights

ADAPTER, ASSISTANT = "default", "assistant"

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def add_lora(module: nn.Module, settings: AdapterSettings, targets: str, seed: int) -> None:
    """Put a fresh LoRA on every submodule whose name full-matches ``targets`` (Hu et al. 2021).

    A is drawn from U(-1/√fan_in, 1/√fan_in) by ``seed``, B is zero, so that nothing changes at step 0.
    Raises RunError(config) when nothing matches.
    """
    alpha: Any = settings.alpha  # peft's annotation says int; its arithmetic takes any number
    config = LoraConfig(
        r=settings.rank, lora_alpha=alpha, lora_dropout=settings.dropout, target_modules=targets
    )
    torch.manual_seed(seed)
    try:
        module.add_adapter(config, adapter_name=ADAPTER)  # type: ignore[operator]
    except ValueError as error:
        raise RunError(f"the base model has no layer for adapter.targets; {error}", "config") from None
    for parameter in lora_parameters({"": module}).values():
        parameter.data = parameter.data.to(_DTYPES[settings.precision])


def lora_parameters(parts: Mapping[str, nn.Module]) -> dict[str, nn.Parameter]:
    """The trainable parameters by name, in the module order (which is the optimizer's order)."""
    return {
        f"{part}.{name}": parameter
        for part, module in parts.items()
        for name, parameter in module.named_parameters()
        if f".lora_A.{ADAPTER}." in name or f".lora_B.{ADAPTER}." in name
    }


def parameter_names(name: str) -> tuple[str, str, str]:
    """ "unet.mid_block.….to_q.lora_A.default.weight" -> ("unet", "mid_block.….to_q", "lora_A")."""
    part, _, inside = name.partition(".")
    module, _, factor = inside.removesuffix(".weight").removesuffix(f".{ADAPTER}").rpartition(".")
    return part, module, factor


def lora_weights(parts: Mapping[str, nn.Module]) -> dict[str, LoraWeights]:
    """The LoRA as {part.module: weights}, detached, on the CPU, float32."""
    return {
        f"{part}.{name}": LoraWeights(
            layer.lora_A[ADAPTER].weight.detach().float().cpu().clone(),
            layer.lora_B[ADAPTER].weight.detach().float().cpu().clone(),
            float(layer.lora_alpha[ADAPTER]),
        )
        for part, module in parts.items()
        for name, layer in lora_layers(module).items()
        if ADAPTER in layer.lora_A
    }


def lora_layers(module: nn.Module) -> dict[str, Any]:
    return {name: layer for name, layer in module.named_modules() if isinstance(layer, LoraLayer)}


@dataclass(frozen=True)
class WarmStart:
    """What a fresh LoRA took from a finished one: ``modules`` of ``of``, and the share of it (of its norm)
    that did not fit into the rank."""

    modules: int
    of: int
    lost: float


@torch.no_grad()
def start_from(parts: Mapping[str, nn.Module], weights: Mapping[str, LoraWeights]) -> WarmStart:
    """Put a finished LoRA into the fresh one. Where it has less rank, the rest stays as it began.

    The fresh LoRA keeps its own alpha: ``up`` is scaled so that the effect is the same.
    Raises RunError(config), before anything is changed, where a layer of the base has another size.
    """
    layers = {
        f"{part}.{name}": layer
        for part, module in parts.items()
        for name, layer in lora_layers(module).items()
    }
    taken = {name: (layer, weights[name]) for name, layer in layers.items() if name in weights}
    for name, (layer, given) in taken.items():
        require_fit(name, given, layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight)
    lost = whole = 0.0
    for layer, given in taken.values():
        down, up = layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight
        fitted, lost_here, whole_here = given.within(len(down))
        down[: fitted.rank] = fitted.down
        up[:, : fitted.rank] = fitted.up * (fitted.scale / layer.scaling[ADAPTER])
        lost, whole = lost + lost_here, whole + whole_here
    return WarmStart(len(taken), len(layers), (lost / whole) ** 0.5 if whole else 0.0)


def require_fit(name: str, lora: LoraWeights, down: Tensor, up: Tensor) -> None:
    """Raise RunError(config) where a LoRA is for a layer of another size; its rank may differ."""
    if lora.down.shape[1:] != down.shape[1:] or len(lora.up) != len(up):
        theirs, ours = (f"{d.shape[1]} in and {len(u)} out" for d, u in ((lora.down, lora.up), (down, up)))
        raise RunError(
            f"the LoRA is for another base: its {name} has {theirs}, this base's {ours}; "
            "choose the base that it was made for",
            "config",
        )
