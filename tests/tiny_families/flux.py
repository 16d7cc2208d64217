"""FLUX.1 dev and schnell as published (transformer/config.json of their repositories), and dev small."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from torch import Tensor
from transformers import CLIPTextModel

from tests.tiny import clip_config, tiny_t5, tiny_t5_tokenizer, tiny_tokenizer, tiny_vae

from .flux_layout import merged

DEV = "black-forest-labs/FLUX.1-dev"
SCHNELL = "black-forest-labs/FLUX.1-schnell"
# Kohya's 304 modules: ten in each of 19 double blocks, three in each of 38 single blocks; its two qkv are
# three each here, its linear1 is four.
_ALL = 304 + 19 * 2 * 2 + 38 * 3
_COUNTS = {"attention": 19 * 8 + 38 * 3, "transformer": _ALL, "transformer+conv": _ALL}
TARGETS = {DEV: _COUNTS, SCHNELL: _COUNTS}
# Not kohya's: diffusers' converter has FLUX.1's real widths written in; tests/trainer/test_flux.py puts
# files of these widths through it. It does not know the original code's dotted names at all.
READ_BY_DIFFUSERS = ("diffusers",)


def build(folder: Path, seed: int = 0, guidance: bool = True) -> Path:
    torch.manual_seed(seed)
    clip, t5 = tiny_tokenizer(folder / "tokenizer"), tiny_t5_tokenizer()
    transformer = FluxTransformer2DModel(
        in_channels=16,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=16,
        guidance_embeds=guidance,
        axes_dims_rope=(4, 6, 6),
    )
    FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=tiny_vae(shift_factor=0.1),
        text_encoder=CLIPTextModel(clip_config(16, len(clip), 16)),
        tokenizer=clip,
        text_encoder_2=tiny_t5(32, len(t5)),
        tokenizer_2=t5,
        transformer=transformer,
    ).save_pretrained(folder)
    return folder


def original(folder: Path) -> dict[str, Tensor] | None:
    """black-forest-labs' layout, with Comfy's prefix."""
    model = FluxTransformer2DModel.from_pretrained(folder, subfolder="transformer")
    return {f"model.diffusion_model.{name}": tensor for name, tensor in merged(model).items()}
