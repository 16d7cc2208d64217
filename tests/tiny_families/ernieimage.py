"""ERNIE-Image as published, and small."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKLFlux2,
    ErnieImagePipeline,
    ErnieImageTransformer2DModel,
    FlowMatchEulerDiscreteScheduler,
)
from torch import Tensor, nn
from transformers import Mistral3Config, Mistral3Model, TokenizersBackend

from tests.tiny import tiny_qwen_tokenizer

ERNIE = "baidu/ERNIE-Image"
# 36 layers: four attention projections and three feed-forward layers each.
TARGETS = {ERNIE: {"attention": 36 * 4, "transformer": 36 * 7, "transformer+conv": 36 * 7}}
READ_BY_DIFFUSERS = ("diffusers",)


def build(folder: Path, seed: int = 0) -> Path:
    torch.manual_seed(seed)
    tokenizer = TokenizersBackend(
        tokenizer_object=tiny_qwen_tokenizer().backend_tokenizer,
        bos_token="<|im_start|>",
        model_max_length=64,
    )
    text: dict[str, Any] = {
        "model_type": "mistral",
        "vocab_size": len(tokenizer),
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
    }
    vision: dict[str, Any] = {
        "model_type": "pixtral",
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "head_dim": 8,
        "image_size": 28,
        "patch_size": 14,
    }
    vae = AutoencoderKLFlux2(
        block_out_channels=(8, 8, 16, 16),
        layers_per_block=1,
        latent_channels=8,
        norm_num_groups=4,
        sample_size=64,
    )
    nn.init.normal_(vae.bn.running_mean, std=0.2)
    nn.init.uniform_(vae.bn.running_var, 0.3, 1.5)
    transformer = ErnieImageTransformer2DModel(
        hidden_size=32,
        num_attention_heads=2,
        num_layers=2,
        ffn_hidden_size=48,
        in_channels=32,
        out_channels=32,
        text_in_dim=16,
        rope_axes_dim=(4, 6, 6),
    )
    for zero in (transformer.adaLN_modulation[-1], transformer.final_linear):
        nn.init.normal_(zero.weight, std=0.1)
        nn.init.normal_(zero.bias, std=0.5)
    ErnieImagePipeline(
        transformer,
        vae,
        Mistral3Model(Mistral3Config(text_config=text, vision_config=vision)),
        tokenizer,
        FlowMatchEulerDiscreteScheduler(shift=4.0),
    ).save_pretrained(folder)
    return folder


def original(folder: Path) -> dict[str, Tensor] | None:
    """As Comfy-Org publishes it: diffusers' names, behind a prefix."""
    state = ErnieImageTransformer2DModel.from_pretrained(folder / "transformer").state_dict()
    return {f"model.diffusion_model.{name}": tensor for name, tensor in state.items()}
