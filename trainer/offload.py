"""A base whose blocks lie in RAM: each layer's weight is fetched when it is needed, forward and backward.

Not diffusers' group offloading: its hooks move weights away behind a layer's forward pass, and backward
then finds them on another device than its gradients. Here a layer's weight is fetched again in backward,
which asks for no recomputation and holds one weight at a time; all else (biases, norms, the LoRA, the first
and last layers) stays on the device.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psutil
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.grad import conv2d_input

from .contract.blocks import Block, block_of

Fetch = Callable[[], Tensor]
"""A frozen weight, dense, on the device."""


def offload(denoiser: nn.Module, blocks: tuple[Block, ...], device: torch.device) -> int:
    """Move the denoiser, which is in RAM with its adapters on, to ``device``; the weights of its blocks stay.

    Returns how many do.
    """
    layers = {
        name: layer
        for name, layer in denoiser.named_modules()
        if isinstance(layer, (nn.Linear, nn.Conv2d)) and ".lora_" not in name and _is_in_block(name, blocks)
    }
    left = {id(layer.weight) for layer in layers.values()}
    for module in denoiser.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if id(parameter) not in left:
                module._parameters[name] = _moved(parameter, device)
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, buffer.to(device))
    pinned = device.type == "cuda" and _is_room(sum(layer.weight.nbytes for layer in layers.values()))
    for layer in layers.values():
        if pinned and _is_plain(layer.weight):
            # Memory that the GPU reads by itself, more than twice as fast.
            layer.weight.data = layer.weight.data.pin_memory()
        _fetching(layer, device)
    return len(layers)


def _is_room(needed: int) -> bool:
    """Whether so many bytes can be pinned: torch takes up to twice as much, and it cannot be swapped out."""
    return 2.5 * needed < psutil.virtual_memory().available


def _is_plain(weight: Tensor) -> bool:
    """Whether its data is one tensor: not int8's, which has scales beside it."""
    return type(weight.data) is Tensor


def _is_in_block(name: str, blocks: tuple[Block, ...]) -> bool:
    number = block_of(name, blocks)
    return number is not None and blocks[number].holds != "nothing"


def _moved(parameter: nn.Parameter, device: torch.device) -> nn.Parameter:
    moved: Any = parameter.to(device)  # of a quantised one it is one of the same kind
    if isinstance(moved, nn.Parameter):
        return moved
    return nn.Parameter(moved.detach(), requires_grad=parameter.requires_grad)


def _fetching(layer: Any, device: torch.device) -> None:
    """Let a layer fetch its weight from now on; ``layer.fetch`` is for whoever wants to see it."""
    layer.fetch = _fetch(layer.weight, device)

    def forward(x: Tensor) -> Tensor:
        kind = x.device.type
        if torch.is_autocast_enabled(kind):
            x = x.to(torch.get_autocast_dtype(kind))
        with torch.autocast(kind, enabled=False):
            y: Tensor = _Fetched.apply(x, layer)
        return y

    layer.forward = forward


def _fetch(weight: Tensor, device: torch.device) -> Fetch:
    """How a weight comes to the device, whatever its number format."""
    if hasattr(weight, "quant_state"):  # nf4: packed, with scales that are small enough to stay
        from bitsandbytes.functional import dequantize_4bit

        packed, state = weight.data, weight.quant_state
        state.to(device)
        return lambda: dequantize_4bit(packed.to(device, non_blocking=True), state)
    if not _is_plain(weight):
        quantised: Any = weight
        return lambda: quantised.to(device).dequantize()
    return lambda: weight.data.to(device, non_blocking=True)


class _Fetched(torch.autograd.Function):
    """A frozen linear layer or convolution whose weight nobody holds between forward and backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: Any) -> Tensor:
        ctx.layer, ctx.shape = layer, x.shape
        weight = layer.fetch().to(x.dtype)
        bias = None if layer.bias is None else layer.bias.to(x.dtype)
        if isinstance(layer, nn.Linear):
            return F.linear(x, weight, bias)
        return F.conv2d(x, weight, bias, layer.stride, layer.padding, layer.dilation, layer.groups)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        layer = ctx.layer
        weight = layer.fetch().to(grad.dtype)
        if isinstance(layer, nn.Linear):
            return grad @ weight, None
        back = conv2d_input(
            ctx.shape, weight, grad, layer.stride, layer.padding, layer.dilation, layer.groups
        )
        return back, None
