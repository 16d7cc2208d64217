"""The device that models run on, and its number format: one choice for trainings and captions.

This imports torch: only what has its own process, and loads a model there, may import it.
"""

from __future__ import annotations

import os
from typing import Literal

import torch

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def pick_device() -> torch.device:
    """The GPU where there is one (CUDA, then Apple), else the CPU.

    On the way cuDNN's attention is switched off, which torch prefers on Hopper. On an H200 (torch 2.11, cuDNN
    9.19) FLUX's small test model got infinite gradients from it, other ones each time; flash attention, the
    next choice, and the others did not.
    """
    if torch.cuda.is_available():
        torch.backends.cuda.enable_cudnn_sdp(False)
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def pick_dtype(precision: Literal["auto", "bf16", "fp16", "fp32"], device: torch.device) -> torch.dtype:
    """The number format of the frozen base. A CPU always gets fp32: half precision is slower there."""
    if device.type == "cpu":
        return torch.float32
    if precision == "auto":
        precision = "bf16" if device.type != "cuda" or torch.cuda.is_bf16_supported() else "fp16"
    return _DTYPES[precision]
