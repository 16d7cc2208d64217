"""A denoiser from one file in the layout of the architecture's original code.

Where each module lies in the file is what the family says for its LoRA files too (:class:`.base.Native`),
so one table of names serves both. diffusers' own converters are not used: they have the published
models' widths written in and do not refuse what they do not understand.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from safetensors import safe_open
from torch import Tensor, nn

from ..contract.errors import RunError
from .base import Native
from .identify import Header

PREFIXES = ("model.diffusion_model.", "diffusion_model.", "model.", "")
"""What may stand before the denoiser's names; Comfy's and kohya's files have the first."""

_KINDS = {"weight": ("weight", "scale"), "bias": ("bias",)}
"""The last part of a name; the original code calls the weight of an RMS norm "scale"."""


def prefix_of(header: Header, name: str) -> str:
    """The prefix in this file, known from where the tensor ``name`` is; empty if it is nowhere."""
    return next((prefix for prefix in PREFIXES if prefix + name in header.tensors), "")


def load_native(
    file: Path,
    header: Header,
    prefix: str,
    build: Callable[[], nn.Module],
    native: Callable[[str], Native],
    dtype: torch.dtype,
    label: str,
    swapped: Collection[str] = (),
) -> nn.Module:
    """The model that ``build`` makes, with the file's weights in ``dtype``, on the CPU.

    ``native`` says where a module lies in the file. ``swapped`` are modules whose output has its halves
    the other way round there: the original code's last modulation is (shift, scale), diffusers' is
    (scale, shift). Raises RunError(model_missing) for a file that lacks a tensor, has one of another
    shape, or has more than the model: scales of a quantised file would silently be left out.
    """
    with init_empty_weights(include_buffers=False):
        model = build()
    state: dict[str, Tensor] = {}
    used: set[str] = set()
    with safe_open(file, framework="pt") as tensors:
        for name, parameter in model.state_dict().items():
            module, _, kind = name.rpartition(".")
            place = native(module)
            candidates = [f"{prefix}{place.name}.{ending}" for ending in _KINDS[kind]]
            found = next((candidate for candidate in candidates if candidate in header.tensors), "")
            if not found:
                raise _wrong(file, f"lacks {candidates[0]}; it is damaged or of another architecture")
            used.add(found)
            tensor: Any = tensors.get_tensor(found)
            if place.rows:
                tensor = tensor[slice(*place.rows)]
            if module in swapped:
                tensor = torch.cat(tensor.chunk(2)[::-1])
            if tensor.shape != parameter.shape:
                raise _wrong(
                    file,
                    f"has {found} of shape {header.tensors[found].shape}, which does not fit {label}; "
                    "it is a variant that cannot be trained here",
                )
            # A slice would keep the whole of the fused tensor in memory.
            state[name] = tensor.to(dtype).clone() if place.rows else tensor.to(dtype)
    extra = sorted(name for name in header.tensors if name.startswith(prefix) and name not in used)
    if extra:
        raise _wrong(
            file,
            f"has {len(extra)} tensors that {label} does not (such as {extra[0]}); "
            "it is quantised or a variant that cannot be trained here",
        )
    model.load_state_dict(state, assign=True)
    return model.eval()


def _wrong(file: Path, what: str) -> RunError:
    return RunError(f"{file.name} {what}", "model_missing")
