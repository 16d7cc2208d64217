"""HunyuanImage 2.1 at full size, and small."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AdaptiveProjectedMixGuidance,
    AutoencoderKLHunyuanImage,
    FlowMatchEulerDiscreteScheduler,
    HunyuanImagePipeline,
    HunyuanImageTransformer2DModel,
)
from torch import Tensor
from transformers import (
    ByT5Tokenizer,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
)

from tests.tiny import tiny_qwen_tokenizer, tiny_t5

HUNYUAN = "hunyuanvideo-community/HunyuanImage-2.1-Diffusers"
# 20 double blocks with eight attention projections and two MLPs of two layers, 40 single blocks with three
# projections and two other layers.
_EVERY = 20 * 12 + 40 * 5
TARGETS = {HUNYUAN: {"attention": 20 * 8 + 40 * 3, "transformer": _EVERY, "transformer+conv": _EVERY}}
READ_BY_DIFFUSERS = ()  # its pipeline loads no LoRAs
TOLD_BY = {"blocks": 20}  # by their number a LoRA is told from FLUX.1's


def build(folder: Path, seed: int = 0, blocks: int = 2) -> Path:
    torch.manual_seed(seed)
    tokenizer, bytes_tokenizer = tiny_qwen_tokenizer(), ByT5Tokenizer()
    text: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [1, 1, 2]},
    }
    vision: dict[str, Any] = {
        "depth": 1,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_heads": 2,
        "out_hidden_size": 16,
        "fullatt_block_indexes": [0],
    }
    vae = AutoencoderKLHunyuanImage(
        in_channels=3,
        out_channels=3,
        latent_channels=8,
        block_out_channels=(32, 32, 32, 32),
        layers_per_block=1,
        spatial_compression_ratio=8,
        sample_size=64,
        scaling_factor=0.75,
    )
    transformer = HunyuanImageTransformer2DModel(
        in_channels=8,
        out_channels=8,
        num_attention_heads=2,  # a caption is padded to a thousand tokens
        attention_head_dim=8,
        num_layers=blocks,
        num_single_layers=1,
        num_refiner_layers=1,
        text_embed_dim=16,
        text_embed_2_dim=16,
        rope_axes_dim=(4, 4),
    )
    HunyuanImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=5.0),
        vae=vae,
        text_encoder=Qwen2_5_VLForConditionalGeneration(
            Qwen2_5_VLConfig(text_config=text, vision_config=vision)
        ),
        tokenizer=tokenizer,
        text_encoder_2=tiny_t5(16, len(bytes_tokenizer)),
        tokenizer_2=bytes_tokenizer,
        transformer=transformer,
        guider=AdaptiveProjectedMixGuidance(adaptive_projected_guidance_start_step=0),
        ocr_guider=AdaptiveProjectedMixGuidance(adaptive_projected_guidance_start_step=3),
    ).save_pretrained(folder)
    return folder


CONFIGURATION = "the one that diffusers' conversion script writes"


def original(folder: Path) -> dict[str, Tensor] | None:
    """Not supported: several layouts are about."""
    return None
