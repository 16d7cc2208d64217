"""SDXL: see tests/tiny.py, which every other test uses too."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from tests.tiny import tiny_sdxl
from tests.trainer.original_layout import tensors_of

SDXL = "stabilityai/stable-diffusion-xl-base-1.0"
# Kohya's 722 modules; 17 residual blocks with three layers each, 11 skip convolutions, 2 down, 2 up.
TARGETS = {SDXL: {"attention": 560, "transformer": 722, "transformer+conv": 722 + 17 * 3 + 11 + 4}}
PROMPT_INPUTS = {"negative_prompt": None}  # for which the pipeline has zeros
READ_BY_DIFFUSERS = ("kohya", "diffusers")


def build(folder: Path, seed: int = 0) -> Path:
    return tiny_sdxl(folder, seed=seed)


def full_size() -> dict[str, nn.Module]:
    with torch.device("meta"):
        unet = UNet2DConditionModel(
            sample_size=128,
            block_out_channels=(320, 640, 1280),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=(1, 2, 10),
            attention_head_dim=(5, 10, 20),
            cross_attention_dim=2048,
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=256,
            projection_class_embeddings_input_dim=2816,
        )
    return {SDXL: unet}


def original(folder: Path) -> dict[str, Tensor] | None:
    return tensors_of(folder)
