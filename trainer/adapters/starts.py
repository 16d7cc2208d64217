"""How a fresh LoRA begins from its base's own directions (PiSSA, OLoRA), and going on from a finished one.

Both change the base in their papers: what the LoRA begins as is taken out of the weights. Here the base stays
as it is, and a frozen copy of the beginning is subtracted beside the LoRA: the same sums, exact in any number
format, nothing to undo, and the finished file is the difference of the two.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn

from ..contract.errors import RunError
from ..contract.settings.adapter import AdapterSettings
from .dora import dense_weight, start_magnitude
from .layers import ADAPTER, START, either, lora_layers, pattern
from .switches import activate, require_fit
from .weights import LoraWeights

OVERSAMPLED, POWERS = 10, 8
"""Of the randomised SVD (Halko et al. 2011): directions beside those wanted, and iterations."""


def pissa(weight: Tensor, rank: int, scale: float) -> tuple[Tensor, Tensor]:
    """(down, up) with scale · up · down = the best approximation of ``weight``, (out, in), of that rank;
    Meng et al. 2024. Of fewer rows where the weight has not as many."""
    wanted = rank + OVERSAMPLED
    if wanted < min(weight.shape) // 2:
        u, s, v = torch.svd_lowrank(weight, q=wanted, niter=POWERS)
        vh = v.T
    else:
        u, s, vh = torch.linalg.svd(weight, full_matrices=False)
    root = (s[:rank] / scale).sqrt()
    return root[:, None] * vh[:rank], u[:, :rank] * root


def olora(weight: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """(down, up): the first rows of R and columns of Q, weight = Q R; Büyükakyüz 2024."""
    q, r = torch.linalg.qr(weight)
    return r[:rank], q[:, :rank]


@torch.no_grad()
def begin_from_base(module: nn.Module, settings: AdapterSettings, seed: int) -> None:
    """Let every LoRA of a module begin from its base's directions, and subtract what it begins as."""
    layers = {name: layer for name, layer in lora_layers(module).items() if ADAPTER in layer.lora_A}
    inject_adapter_in_model(
        LoraConfig(
            r=settings.rank,
            target_modules=either(layers),
            rank_pattern=pattern({name: layer.r[ADAPTER] for name, layer in layers.items()}, settings.rank),
        ),
        module,
        START,
    )
    torch.manual_seed(seed)
    for layer in layers.values():
        down, up = layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight
        weight = dense_weight(layer).flatten(1)
        if settings.init == "pissa":
            first, second = pissa(weight, len(down), layer.scaling[ADAPTER])
        else:
            first, second = olora(weight, len(down))
        kept = len(first)
        down[:kept] = first.reshape(kept, *down.shape[1:])
        up[:, :kept] = second.reshape(-1, kept, *up.shape[2:])
        for factor in (layer.lora_A, layer.lora_B):
            factor[START].weight.data = factor[ADAPTER].weight.detach().clone()
        layer.scaling[START] = -layer.scaling[ADAPTER]
    activate(module)


# Going on -----------------------------------------------------------------------------------------------


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
    Raises RunError(config), before anything is changed, where a layer of the base has another size, and for
    a DoRA that would lose its magnitudes.
    """
    layers = {
        f"{part}.{name}": layer
        for part, module in parts.items()
        for name, layer in lora_layers(module).items()
    }
    taken = {name: (layer, weights[name]) for name, layer in layers.items() if name in weights}
    for name, (layer, given) in taken.items():
        require_fit(name, given, layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight)
        if given.magnitude is not None and ADAPTER not in layer.lora_magnitude_vector:
            raise RunError("the LoRA to go on from is a DoRA; set adapter.dora to true", "config")
    lost = whole = 0.0
    for layer, given in taken.values():
        down, up = layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight
        fitted, lost_here, whole_here = given.within(len(down))
        down[: fitted.rank] = fitted.down
        up[:, : fitted.rank] = fitted.up * (fitted.scale / layer.scaling[ADAPTER])
        if ADAPTER in layer.lora_magnitude_vector:
            start_magnitude(layer, ADAPTER, given.magnitude)
        lost, whole = lost + lost_here, whole + whole_here
    return WarmStart(len(taken), len(layers), (lost / whole) ** 0.5 if whole else 0.0)
