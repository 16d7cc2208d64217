"""Adapters beside the one that is trained, and switching each of them on and off."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn

from ..contract.errors import RunError
from .dora import read_as_it_was
from .layers import ADAPTER, ASSISTANT, START, adapter_layers, either, lora_layers, pattern
from .weights import LoraWeights

TRAINED = (ADAPTER, START)


def require_fit(name: str, lora: LoraWeights, down: Tensor, up: Tensor) -> None:
    """Raise RunError(config) where a LoRA is for a layer of another size; its rank may differ."""
    if lora.down.shape[1:] != down.shape[1:] or len(lora.up) != len(up):
        theirs, ours = (f"{d.shape[1]} in and {len(u)} out" for d, u in ((lora.down, lora.up), (down, up)))
        raise RunError(
            f"the LoRA is for another base: its {name} has {theirs}, this base's {ours}; "
            "choose the base that it was made for",
            "config",
        )


def add_assistant(denoiser: nn.Module, weights: Mapping[str, LoraWeights]) -> None:
    """A frozen second adapter beside the one that is trained; ``weights`` by module name, without the part.

    It is added rather than merged: taking it out again is exact in any number format, and works on
    quantised bases.
    """
    config = LoraConfig(
        r=1,
        lora_alpha=8,
        target_modules=either(weights),
        rank_pattern=pattern({name: lora.rank for name, lora in weights.items()}, 1),
        alpha_pattern=pattern({name: lora.alpha for name, lora in weights.items()}, 8),
    )
    inject_adapter_in_model(config, denoiser, ASSISTANT)
    for name, layer in lora_layers(denoiser).items():
        if name in weights:
            require_fit(name, weights[name], layer.lora_A[ASSISTANT].weight, layer.lora_B[ASSISTANT].weight)
            layer.lora_A[ASSISTANT].weight.data.copy_(weights[name].down)
            layer.lora_B[ASSISTANT].weight.data.copy_(weights[name].up)
            if ADAPTER in layer.lora_magnitude_vector:
                read_as_it_was(layer, ASSISTANT)
    activate(denoiser)


def activate(module: nn.Module, adapters: tuple[str, ...] = (*TRAINED, ASSISTANT)) -> None:
    """Let these of a model's adapters work; only what is trained has gradients."""
    for layer in lora_layers(module).values():
        layer.set_adapter([name for name in adapters if name in layer.lora_A])
    for parameter in _others(module):
        parameter.requires_grad_(False)


def _others(module: nn.Module) -> list[nn.Parameter]:
    """The weights of adapters that are not trained."""
    return [
        parameter
        for name, parameter in module.named_parameters()
        if f".{ASSISTANT}." in name or f".{START}." in name
    ]


@contextmanager
def assistant_off(denoiser: nn.Module) -> Iterator[None]:
    """Inside this block only the LoRA that is trained is active."""
    assisted = any(ASSISTANT in layer.lora_A for layer in lora_layers(denoiser).values())
    if assisted:
        activate(denoiser, TRAINED)
    try:
        yield
    finally:
        if assisted:
            activate(denoiser)


class LoraOff:
    """Inside this block the denoiser behaves as the plain base model."""

    def __init__(self, denoiser: nn.Module) -> None:
        self._layers = list(adapter_layers(denoiser).values())
        self._frozen = _others(denoiser)

    def __enter__(self) -> None:
        for layer in self._layers:
            layer.enable_adapters(False)

    def __exit__(self, *exc: object) -> None:
        for layer in self._layers:
            layer.enable_adapters(True)
        for parameter in self._frozen:  # peft lets all that is active be trained
            parameter.requires_grad_(False)


class TrainedOff(LoraOff):
    """Inside this block the module is the base as it is trained on: without the LoRA, with the assistant."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__(module)
        self._module = module
        self._assisted = any(ASSISTANT in layer.lora_A for layer in lora_layers(module).values())

    def __enter__(self) -> None:
        if self._assisted:
            activate(self._module, (ASSISTANT,))
        else:
            super().__enter__()

    def __exit__(self, *exc: object) -> None:
        if self._assisted:
            activate(self._module)
        else:
            super().__exit__(*exc)
