"""Frozen bases in 8 or 4 bits. The libraries are optional and imported only when chosen."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

from .contract.config import TrainConfig
from .contract.errors import RunError
from .contract.settings.model import Quantization

_LIBRARIES = {"int8": "torchao", "nf4": "bitsandbytes"}

SMALLEST = 4096
"""Linear layers with fewer weights stay as they are: they cost more in scales than they save."""


def require_libraries(config: TrainConfig) -> None:
    """Raise RunError(config) where a library that the recipe's quantisation needs is not installed."""
    for setting in ("quantize", "quantize_text"):
        library = _LIBRARIES.get(chosen := getattr(config.model, setting))
        if library and find_spec(library) is None:
            raise RunError(
                f"model.{setting} = {chosen} needs {library}; "
                "run pip install -r requirements-quant.txt, or set it to none",
                "config",
            )


def quantize(module: nn.Module, quantization: Quantization, device: torch.device) -> nn.Module:
    """The frozen module with its linear layers in ``quantization``, everything else untouched.

    int8: torchao, weights only, one scale per output row; about half of bf16's memory. nf4: bitsandbytes
    (Dettmers et al. 2023), blocks of 64 weights; about a quarter, with visible rounding.
    Layers are moved to ``device`` one at a time, so that the whole never lies there unquantised.
    The library is there: :func:`require_libraries` was called before anything was loaded.
    """
    if quantization == "int8":
        return _int8(module, device)
    if quantization == "nf4":
        return _nf4(module, device)
    return module


def _worthwhile(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Linear) and layer.weight.numel() >= SMALLEST


def _int8(module: nn.Module, device: torch.device) -> nn.Module:
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    quantize_(module, Int8WeightOnlyConfig(), filter_fn=lambda layer, name: _worthwhile(layer), device=device)
    return module


def _nf4(module: nn.Module, device: torch.device) -> nn.Module:
    import bitsandbytes as bnb

    for name, layer in list(module.named_modules()):
        if not isinstance(layer, nn.Linear) or not _worthwhile(layer):
            continue
        small: Any = bnb.nn.Linear4bit(
            layer.in_features,
            layer.out_features,
            bias=layer.bias is not None,
            compute_dtype=layer.weight.dtype,
            quant_type="nf4",
        )
        small.weight = bnb.nn.Params4bit(layer.weight.data, requires_grad=False, quant_type="nf4")
        small.bias = layer.bias
        # On some processors the first drawing would repack the weights for bfloat16 arithmetic, for good:
        # what a run computes would depend on whether it has drawn.
        small.support_avx512bf16_for_cpu = False
        parent = module.get_submodule(name.rpartition(".")[0])
        setattr(parent, name.rpartition(".")[2], small.to(device).requires_grad_(False))
    return module
