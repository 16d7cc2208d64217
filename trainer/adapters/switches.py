"""Adapters beside the one that is trained, and switching each of them on and off."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from peft import LoraConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from .layers import ADAPTER, ASSISTANT, lora_layers, require_fit
from .weights import LoraWeights


def add_assistant(denoiser: nn.Module, weights: Mapping[str, LoraWeights]) -> None:
    """A frozen second adapter beside the one that is trained; ``weights`` by module name, without the part.

    It is added rather than merged: taking it out again is exact in any number format, and works on
    quantised bases.
    """
    config = LoraConfig(
        r=1,
        target_modules=list(weights),
        rank_pattern={f"^{name}": lora.rank for name, lora in weights.items()},
        alpha_pattern={f"^{name}": lora.alpha for name, lora in weights.items()},
    )
    denoiser.add_adapter(config, adapter_name=ASSISTANT)  # type: ignore[operator]
    for name, layer in lora_layers(denoiser).items():
        if name in weights:
            require_fit(name, weights[name], layer.lora_A[ASSISTANT].weight, layer.lora_B[ASSISTANT].weight)
            layer.lora_A[ASSISTANT].weight.data.copy_(weights[name].down)
            layer.lora_B[ASSISTANT].weight.data.copy_(weights[name].up)
    _activate(denoiser, [ADAPTER, ASSISTANT])


def _activate(module: nn.Module, adapters: list[str]) -> None:
    for layer in lora_layers(module).values():
        layer.set_adapter([name for name in adapters if name in layer.lora_A])
    for name, parameter in module.named_parameters():
        if f".{ASSISTANT}." in name:
            parameter.requires_grad_(False)


@contextmanager
def assistant_off(denoiser: nn.Module) -> Iterator[None]:
    """Inside this block only the LoRA that is trained is active."""
    assisted = any(ASSISTANT in layer.lora_A for layer in lora_layers(denoiser).values())
    if assisted:
        _activate(denoiser, [ADAPTER])
    try:
        yield
    finally:
        if assisted:
            _activate(denoiser, [ADAPTER, ASSISTANT])


@contextmanager
def trained_off(module: nn.Module) -> Iterator[None]:
    """Inside this block the module is the base as it is trained on: without the LoRA, with the assistant."""
    if any(ASSISTANT in layer.lora_A for layer in lora_layers(module).values()):
        _activate(module, [ASSISTANT])
        try:
            yield
        finally:
            _activate(module, [ADAPTER, ASSISTANT])
    else:
        with lora_off(module):
            yield


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
