"""Qwen-Image at full size (both releases are alike), and small."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, QwenImagePipeline, QwenImageTransformer2DModel
from torch import Tensor
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from tests.tiny import qwen_vae_encode, tiny_qwen_tokenizer, tiny_qwen_vae

QWEN, QWEN_2512 = "Qwen/Qwen-Image", "Qwen/Qwen-Image-2512"
# 60 blocks with eight attention projections and two MLPs of two layers; of the last one, nothing reads the
# text's query, output and MLP.
_COUNTS = {"attention": 60 * 8 - 2, "transformer": 60 * 12 - 4, "transformer+conv": 60 * 12 - 4}
TARGETS = {QWEN: _COUNTS, QWEN_2512: _COUNTS}
READ_BY_DIFFUSERS = ("kohya", "diffusers", "comfyui")
encode = qwen_vae_encode


def build(folder: Path, seed: int = 0) -> Path:
    torch.manual_seed(seed)
    tokenizer = tiny_qwen_tokenizer()
    text: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
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
    transformer = QwenImageTransformer2DModel(
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        axes_dims_rope=(4, 6, 6),
    )
    scheduler = FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True,
        base_shift=0.5,
        max_shift=0.9,
        base_image_seq_len=256,
        max_image_seq_len=8192,
        shift_terminal=0.02,
    )
    QwenImagePipeline(
        scheduler,
        tiny_qwen_vae(),
        Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text, vision_config=vision)),
        tokenizer,
        transformer,
    ).save_pretrained(folder)
    return folder


def original(folder: Path) -> dict[str, Tensor] | None:
    """As Comfy-Org publishes it: diffusers' names."""
    return QwenImageTransformer2DModel.from_pretrained(folder / "transformer").state_dict()
