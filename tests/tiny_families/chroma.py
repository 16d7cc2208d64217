"""Chroma1-HD as published (transformer/config.json of its repository), and small."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import ChromaPipeline, ChromaTransformer2DModel, FlowMatchEulerDiscreteScheduler
from torch import Tensor

from tests.tiny import tiny_t5, tiny_t5_tokenizer, tiny_vae

from .flux_layout import merged

HD = "lodestones/Chroma1-HD"
# FLUX.1's without the modulations: eight and four in a double block, five in a single one.
TARGETS = {HD: {"attention": 266, "transformer": 19 * 12 + 38 * 5, "transformer+conv": 19 * 12 + 38 * 5}}
READ_BY_DIFFUSERS = ("diffusers",)  # see flux.py: kohya's too, at the published width


def build(folder: Path, seed: int = 0) -> Path:
    torch.manual_seed(seed)
    t5 = tiny_t5_tokenizer()
    transformer = ChromaTransformer2DModel(
        in_channels=16,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        axes_dims_rope=(4, 6, 6),
        approximator_hidden_dim=32,
        approximator_layers=2,
    )
    with torch.no_grad():  # or the modulations of random weights would be next to nothing
        transformer.distilled_guidance_layer.out_proj.weight.mul_(10)
    ChromaPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=tiny_vae(shift_factor=0.1),
        text_encoder=tiny_t5(32, len(t5)),
        tokenizer=t5,
        transformer=transformer,
    ).save_pretrained(folder)
    return folder


def original(folder: Path) -> dict[str, Tensor] | None:
    return merged(ChromaTransformer2DModel.from_pretrained(folder, subfolder="transformer"))
