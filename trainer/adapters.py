"""The LoRA on the modules that are trained: PEFT layers in, a plain {name: (down, up, alpha)} out.

Names begin with the part that a module is in: ``unet.down_blocks…``, ``text_encoder.encoder.layers…``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from .contract.config import AdapterSettings
from .contract.errors import RunError

ADAPTER, ASSISTANT = "default", "assistant"

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


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

    @property
    def scale(self) -> float:
        return self.alpha / self.rank

    def resized(self, rank: int) -> LoraWeights:
        """The best approximation with another rank (Eckart-Young, by SVD of up · down) and alpha = rank."""
        if rank == self.rank:
            return self
        delta = self.up.flatten(1).float() @ self.down.flatten(1).float() * self.scale
        u, s, v = torch.linalg.svd(delta, full_matrices=False)
        kept = min(rank, len(s))
        root = s[:kept].sqrt()
        down = torch.zeros(rank, delta.shape[1])
        up = torch.zeros(delta.shape[0], rank)
        down[:kept], up[:, :kept] = root[:, None] * v[:kept], u[:, :kept] * root
        if rank > kept:  # more rank than the matrix has: the rest starts as a fresh LoRA does
            nn.init.kaiming_uniform_(down[kept:], a=5**0.5)
        shape = (rank, *self.down.shape[1:])
        return LoraWeights(down.reshape(shape), up.reshape(-1, rank, *self.up.shape[2:]), float(rank))


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


def lora_weights(parts: Mapping[str, nn.Module]) -> dict[str, LoraWeights]:
    """The LoRA as {part.module: weights}, detached, on the CPU, float32."""
    return {
        f"{part}.{name}": LoraWeights(
            layer.lora_A[ADAPTER].weight.detach().float().cpu().clone(),
            layer.lora_B[ADAPTER].weight.detach().float().cpu().clone(),
            float(layer.lora_alpha[ADAPTER]),
        )
        for part, module in parts.items()
        for name, layer in _lora_layers(module).items()
        if ADAPTER in layer.lora_A
    }


def _lora_layers(module: nn.Module) -> dict[str, Any]:
    return {name: layer for name, layer in module.named_modules() if isinstance(layer, LoraLayer)}


@torch.no_grad()
def start_from(parts: Mapping[str, nn.Module], weights: Mapping[str, LoraWeights]) -> int:
    """Put a finished LoRA's weights into the fresh one, its rank resized; returns how many modules got some.

    The fresh LoRA keeps its own alpha: ``up`` is scaled so that the effect is the same.
    """
    taken = 0
    for part, module in parts.items():
        for name, layer in _lora_layers(module).items():
            if given := weights.get(f"{part}.{name}"):
                down, up = layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight
                fitted = given.resized(len(down))
                down.copy_(fitted.down)
                up.copy_(fitted.up * (fitted.scale / layer.scaling[ADAPTER]))
                taken += 1
    return taken


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
    for name, layer in _lora_layers(denoiser).items():
        if name in weights:
            layer.lora_A[ASSISTANT].weight.data.copy_(weights[name].down)
            layer.lora_B[ASSISTANT].weight.data.copy_(weights[name].up)
    _activate(denoiser, [ADAPTER, ASSISTANT])


def _activate(module: nn.Module, adapters: list[str]) -> None:
    for layer in _lora_layers(module).values():
        layer.set_adapter([name for name in adapters if name in layer.lora_A])
    for name, parameter in module.named_parameters():
        if f".{ASSISTANT}." in name:
            parameter.requires_grad_(False)


@contextmanager
def assistant_off(denoiser: nn.Module) -> Iterator[None]:
    """Inside this block only the LoRA that is trained is active."""
    assisted = any(ASSISTANT in layer.lora_A for layer in _lora_layers(denoiser).values())
    if assisted:
        _activate(denoiser, [ADAPTER])
    try:
        yield
    finally:
        if assisted:
            _activate(denoiser, [ADAPTER, ASSISTANT])


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
