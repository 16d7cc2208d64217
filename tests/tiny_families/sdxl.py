"""SDXL: see tests/tiny.py, which every other test uses too."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from tests.tiny import tiny_sdxl
from tests.trainer.original_layout import tensors_of

SDXL = "stabilityai/stable-diffusion-xl-base-1.0"
# Kohya's 722 modules; 17 residual blocks with three layers each, 11 skip convolutions, 2 down, 2 up.
TARGETS = {SDXL: {"attention": 560, "transformer": 722, "transformer+conv": 722 + 17 * 3 + 11 + 4}}
PROMPT_INPUTS = {"negative_prompt": None}  # for which the pipeline has zeros
READ_BY_DIFFUSERS = ("kohya", "diffusers")
TOLD_BY = {"layers": 2}  # which is what the original code's numbers of blocks go by


def build(folder: Path, seed: int = 0, layers: int = 1) -> Path:
    return tiny_sdxl(folder, seed=seed, layers=layers)


def original(folder: Path) -> dict[str, Tensor] | None:
    return tensors_of(folder)
