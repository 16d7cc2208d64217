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

from .contract.errors import RunError
from .contract.settings.adapter import AdapterSettings

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

    def within(self, rank: int) -> tuple[LoraWeights, float, float]:
        """The same effect with at most ``rank``, as nearly as that can be (Eckart & Young 1936).

        Returns (weights, lost, whole): what is lost of its squared Frobenius norm, and that norm.
        """
        # The SVD of up · down by way of the small matrix between two orthonormal bases.
        q_up, r_up = torch.linalg.qr(self.up.flatten(1).float() * self.scale)
        q_down, r_down = torch.linalg.qr(self.down.flatten(1).float().T)
        u, s, v = torch.linalg.svd(r_up @ r_down.T, full_matrices=False)
        whole = float(s.square().sum())
        if rank >= self.rank:
            return self, 0.0, whole
        root = s[:rank].sqrt()
        kept = len(root)  # fewer than ``rank`` in a layer that is narrower than it
        up = (q_up @ u[:, :kept] * root).reshape(-1, kept, *self.up.shape[2:])
        down = (root[:, None] * (v[:kept] @ q_down.T)).reshape(kept, *self.down.shape[1:])
        return LoraWeights(down, up, float(kept)), float(s[rank:].square().sum()), whole


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
        for name, layer in _lora_layers(module).items()
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
            require_fit(name, weights[name], layer.lora_A[ASSISTANT].weight, layer.lora_B[ASSISTANT].weight)
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


@contextmanager
def trained_off(module: nn.Module) -> Iterator[None]:
    """Inside this block the module is the base as it is trained on: without the LoRA, with the assistant."""
    if any(ASSISTANT in layer.lora_A for layer in _lora_layers(module).values()):
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
