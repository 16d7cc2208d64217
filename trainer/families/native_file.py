"""A denoiser from one file in the layout of the architecture's original code.

Where each module lies in the file is what the family says for its LoRA files too (:class:`.base.Native`),
so one table of names serves both. diffusers' own converters are not used: they have the published
models' widths written in and do not refuse what they do not understand.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from accelerate import init_empty_weights
from safetensors import safe_open
from torch import Tensor, nn

from ..contract.errors import RunError
from .base import Native
from .identify import Header, read_header
from .pipeline_family import PipelineFamily

PREFIXES = ("model.diffusion_model.", "diffusion_model.", "model.", "")
"""What may stand before the denoiser's names; Comfy's and kohya's files have the first."""

_KINDS = {"weight": ("weight", "scale"), "bias": ("bias",)}
"""The last part of a name; the original code calls the weight of an RMS norm "scale"."""


class NativeFamily(PipelineFamily):
    """A family whose checkpoints in one file are read by its ``native`` names.

    ``landmark`` is a tensor of every such file, ``unused`` are those that nothing reads.
    """

    landmark: ClassVar[str]
    unused: ClassVar[tuple[str, ...]] = ()

    def file_prefix(self, part: str, file: Path) -> str:
        if part != self.denoiser_part:
            return super().file_prefix(part, file)
        return prefix_of(read_header(file), self.landmark)

    def load_from_file(self, cls: Any, part: str, file: Path, dtype: torch.dtype) -> Any:
        if part != self.denoiser_part:
            return super().load_from_file(cls, part, file, dtype)
        return load_native(
            file,
            read_header(file),
            self.file_prefix(part, file),
            lambda: cls.from_config(self.denoiser_config),
            self.native,
            dtype,
            self.row.label,
            self.unused,
        )


def renamed(module: str, names: Mapping[str, str]) -> str:
    """``module`` with stretches of its dotted name exchanged, one entry of ``names`` after the other."""
    for ours, theirs in names.items():
        module = re.sub(rf"(?<![^.]){re.escape(ours)}(?![^.])", theirs, module)
    return module


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
    unused: Collection[str] = (),
) -> nn.Module:
    """The model that ``build`` makes, with the file's weights in ``dtype``, on the CPU.

    ``native`` says where a module lies in the file. ``unused`` are tensors of such files that nothing reads.
    A parameter that is no layer's weight or bias has a place of its own, and may be flattened there.

    Raises RunError(model_missing) for a file that lacks a tensor, has one of another shape, or has more
    than the model: scales of a quantised file would silently be left out.
    """
    with init_empty_weights(include_buffers=False):
        model = build()
    exact = set(getattr(model, "_keep_in_fp32_modules", None) or ())  # as from_pretrained does
    state: dict[str, Tensor] = {}
    used = {prefix + name for name in unused}
    with safe_open(file, framework="pt") as tensors:
        for name, parameter in model.state_dict().items():
            module, _, kind = name.rpartition(".")
            place = native(module if kind in _KINDS else name)
            stem = prefix + place.name
            candidates = [f"{stem}.{ending}" for ending in _KINDS[kind]] if kind in _KINDS else [stem]
            found = next((candidate for candidate in candidates if candidate in header.tensors), "")
            if not found:
                raise _wrong(file, f"lacks {candidates[0]}; it is damaged or of another architecture")
            used.add(found)
            tensor: Any = tensors.get_tensor(found)
            if place.rows:
                tensor = tensor[slice(*place.rows)]
            if place.swapped:
                tensor = torch.cat(tensor.chunk(2)[::-1])
            if kind not in _KINDS and tensor.numel() == parameter.numel():
                tensor = tensor.reshape(parameter.shape)
            if tensor.shape != parameter.shape:
                raise _wrong(
                    file,
                    f"has {found} of shape {header.tensors[found].shape}, which does not fit {label}; "
                    "it is a variant that cannot be trained here",
                )
            # A slice would keep the whole of the fused tensor in memory.
            tensor = tensor.to(torch.float32 if exact.intersection(name.split(".")) else dtype)
            state[name] = tensor.clone() if place.rows else tensor
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
