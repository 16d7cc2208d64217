"""DoRA (Liu et al. 2024): how large each input of a layer counts is learnt apart from the change.

The norm is taken over the columns of the weight, as in the paper and as A1111, Forge and ComfyUI read it.
PEFT's DoRA goes by rows, which only diffusers reads so: ComfyUI divides by the norm of the unchanged rows.
"""

from __future__ import annotations

from typing import Any

import torch
from peft.utils.integrations import dequantize_module_weight
from torch import Tensor, nn

from .weights import column_norms


class Magnitude(nn.Module):
    """The wanted norms of a layer's columns, (in,); what is learnt."""

    def __init__(self, norms: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(norms)


def add_dora(layer: Any, adapter: str) -> None:
    """Make a DoRA of a layer's fresh LoRA: nothing changes yet."""
    layer.lora_magnitude_vector[adapter] = Magnitude(column_norms(dense_weight(layer)))

    def scale_inputs(layer: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
        # (W + ΔW) diag(c) x + b = (W + ΔW) (c x) + b, and both summands of the layer read the same x.
        layer.input_scale = None
        if layer.disable_adapters or adapter not in layer.active_adapters:
            return None
        x, *more = inputs
        scale = layer.lora_magnitude_vector[adapter].weight / merged_norms(layer, adapter)
        if isinstance(layer.get_base_layer(), nn.Conv2d):
            scale = scale.reshape(1, -1, 1, 1)
        layer.input_scale = scale
        return ((x * scale).to(x.dtype), *more)  # multiplied in fp32: a scale of 1.001 is 1 in bf16

    layer.register_forward_pre_hook(scale_inputs)


def read_as_it_was(layer: Any, adapter: str) -> None:
    """Let an adapter beside the DoRA of a layer, whose inputs that scales, read them unscaled."""

    def undo(factor: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
        scale = getattr(layer, "input_scale", None)
        if scale is None:
            return None
        x, *more = inputs
        return ((x / scale).to(x.dtype), *more)

    layer.lora_A[adapter].register_forward_pre_hook(undo)


@torch.no_grad()
def merged_norms(layer: Any, adapter: str) -> Tensor:
    """The columns' norms of W + ΔW, (in,): a constant for the gradient, as the paper's section 4.3 says."""
    with torch.autocast(layer.lora_A[adapter].weight.device.type, enabled=False):
        down, up = (factor[adapter].weight.float() for factor in (layer.lora_A, layer.lora_B))
        weight = dense_weight(layer)
        delta = layer.scaling[adapter] * (up.flatten(1) @ down.flatten(1))
        return column_norms(weight + delta.reshape(weight.shape))


def start_magnitude(layer: Any, adapter: str, magnitude: Tensor | None) -> None:
    """Give a LoRA that was put into the layer its magnitude; one without gets what changes nothing of it."""
    wanted = merged_norms(layer, adapter) if magnitude is None else magnitude
    layer.lora_magnitude_vector[adapter].weight.data.copy_(wanted)


def dense_weight(layer: Any) -> Tensor:
    """The frozen weight of an adapted layer in fp32, however it is stored."""
    base = layer.get_base_layer()
    weight = base.weight
    if hasattr(base, "fetch"):  # it lies in RAM (trainer.offload)
        weight = base.fetch()
    elif type(weight).__name__ in ("Params4bit", "Int8Params"):
        weight = dequantize_module_weight(base)
    elif hasattr(weight, "dequantize") and type(weight) not in (Tensor, nn.Parameter):
        weight = weight.dequantize()
    dense: Tensor = weight.detach().float()
    return dense
