"""The device a training runs on, its number format, and how much memory is in use."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import psutil
import torch

from dataset_tools.device import pick_device as pick_device
from dataset_tools.device import pick_dtype as pick_dtype

from .contract.config import TrainConfig
from .contract.errors import RunError
from .contract.families import CATALOGUE

GIB = 2**30


def mixed_precision(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[object]:
    """Arithmetic in the base's number format, as accelerate has it while training."""
    return nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype)


def require_formats(config: TrainConfig, dtype: torch.dtype) -> None:
    """Raise RunError(config) for fp16 where the family's text encoder overflows in it, and for a bf16 LoRA
    over a base in fp16: CUDA's loss scaler takes no bf16 gradients (pytorch/pytorch#127176), and a
    processor's does, so that no test there would show it. And for fused backward: the scaler looks at all
    gradients before any weight takes its step."""
    row = CATALOGUE[config.model.family]
    if dtype == torch.float16 and row.needs_bf16:
        raise RunError(
            f"the text encoder of {row.label} overflows in fp16; set model.precision to fp32, or to bf16 on "
            "a GPU that has it (RTX 30 or newer)",
            "config",
        )
    if dtype == torch.float16 and config.train.fused_backward:
        raise RunError(
            "train.fused_backward cannot be used over a base in fp16; switch it off, or set model.precision "
            "to bf16 where the GPU has that",
            "config",
        )
    if dtype == torch.float16 and config.adapter.precision == "bf16":
        raise RunError(
            "adapter.precision = bf16 cannot be trained over a base in fp16; set it to fp32, or "
            "model.precision to bf16 where the GPU has that",
            "config",
        )


@dataclass(frozen=True)
class MemoryUse:
    """GiB: GPU peak since the process began and GPU size (None without a GPU), and process memory."""

    vram: float | None
    vram_total: float | None
    ram: float


def memory_use(device: torch.device) -> MemoryUse:
    ram = psutil.Process().memory_info().rss / GIB
    if device.type != "cuda":
        return MemoryUse(None, None, round(ram, 3))
    peak = torch.cuda.max_memory_reserved(device) / GIB
    total = torch.cuda.get_device_properties(device).total_memory / GIB
    return MemoryUse(round(peak, 3), round(total, 3), round(ram, 3))


def describe(device: torch.device) -> str:
    """ "NVIDIA GeForce RTX 4090" or "CPU (2 threads)"."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU ({torch.get_num_threads()} threads)" if device.type == "cpu" else "Apple GPU"
