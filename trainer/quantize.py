"""Frozen bases in 8 or 4 bits. The libraries are optional and imported only when chosen."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import nn

from .contract.errors import RunError

Quantization = Literal["none", "int8", "nf4"]

SMALLEST = 4096
"""Linear layers with fewer weights stay as they are: they cost more in scales than they save."""


def quantize(module: nn.Module, quantization: Quantization, device: torch.device) -> nn.Module:
    """The frozen module with its linear layers in ``quantization``, everything else untouched.

    int8: torchao, weights only, one scale per output row; about half of bf16's memory. nf4: bitsandbytes
    (Dettmers et al. 2023), blocks of 64 weights; about a quarter, with visible rounding.
    Layers are moved to ``device`` one at a time, so that the whole never lies there unquantised.
    Raises RunError(config) where the library is missing.
    """
    if quantization == "int8":
        return _int8(module, device)
    if quantization == "nf4":
        return _nf4(module, device)
    return module


def _worthwhile(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Linear) and layer.weight.numel() >= SMALLEST


def _int8(module: nn.Module, device: torch.device) -> nn.Module:
    try:
        from torchao.quantization import Int8WeightOnlyConfig, quantize_
    except ImportError:
        raise _missing("int8", "torchao") from None
    quantize_(module, Int8WeightOnlyConfig(), filter_fn=lambda layer, name: _worthwhile(layer), device=device)
    return module


def _nf4(module: nn.Module, device: torch.device) -> nn.Module:
    try:
        import bitsandbytes as bnb
    except ImportError:
        raise _missing("nf4", "bitsandbytes") from None
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
        parent = module.get_submodule(name.rpartition(".")[0])
        setattr(parent, name.rpartition(".")[2], small.to(device).requires_grad_(False))
    return module


def _missing(quantization: str, library: str) -> RunError:
    return RunError(
        f"model.quantize = {quantization} needs {library}; run pip install -r requirements-quant.txt, "
        "or choose another",
        "config",
    )
