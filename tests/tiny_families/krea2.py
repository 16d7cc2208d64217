"""Krea 2 Raw at full size, and small."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, Krea2Pipeline, Krea2Transformer2DModel
from torch import Tensor, nn
from transformers import Qwen3VLConfig, Qwen3VLModel

from tests.tiny import qwen_vae_encode, tiny_qwen_tokenizer, tiny_qwen_vae

RAW = "krea/Krea-2-Raw"
# 28 blocks with five layers around attention (one is its gate) and three of the feed-forward part.
TARGETS = {RAW: {"attention": 28 * 5, "transformer": 28 * 8, "transformer+conv": 28 * 8}}
READ_BY_DIFFUSERS = ("diffusers",)
encode = qwen_vae_encode


def build(folder: Path, seed: int = 0) -> Path:
    torch.manual_seed(seed)
    tokenizer = tiny_qwen_tokenizer()
    text: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [1, 1, 2]},
    }
    vision: dict[str, Any] = {
        "depth": 1,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_heads": 2,
        "out_hidden_size": 16,
        "num_position_embeddings": 16,
        "deepstack_visual_indexes": [0],
    }
    transformer = Krea2Transformer2DModel(
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=48,
        timestep_embed_dim=16,
        text_hidden_dim=16,
        num_text_layers=2,
        text_num_attention_heads=2,
        text_num_key_value_heads=2,
        text_intermediate_size=32,
        num_layerwise_text_blocks=1,
        num_refiner_text_blocks=1,
        axes_dims_rope=(4, 2, 2),
    )
    for name, parameter in transformer.named_parameters():
        if name.endswith("scale_shift_table"):
            nn.init.normal_(parameter, std=0.5)
    Krea2Pipeline(
        FlowMatchEulerDiscreteScheduler(
            use_dynamic_shifting=True,
            base_shift=0.5,
            max_shift=1.15,
            base_image_seq_len=256,
            max_image_seq_len=6400,
        ),
        tiny_qwen_vae(),
        Qwen3VLModel(Qwen3VLConfig(text_config=text, vision_config=vision)),
        tokenizer,
        transformer,
        text_encoder_select_layers=(1, 3),
    ).save_pretrained(folder)
    return folder


CONFIGURATION = "diffusers' default, which has the published 28 blocks of width 6144 and 12.9 billion weights"


_TOP = {
    "img_in.": "first.",
    "time_embed.linear_1.": "tmlp.0.",
    "time_embed.linear_2.": "tmlp.2.",
    "time_mod_proj.": "tproj.1.",
    "txt_in.norm.weight": "txtmlp.0.scale",
    "txt_in.linear_1.": "txtmlp.1.",
    "txt_in.linear_2.": "txtmlp.3.",
    "final_layer.linear.": "last.linear.",
    "final_layer.norm.weight": "last.norm.scale",
    "final_layer.scale_shift_table": "last.modulation.lin",
    "text_fusion.": "txtfusion.",
    "transformer_blocks.": "blocks.",
    ".attn.to_q.": ".attn.wq.",
    ".attn.to_k.": ".attn.wk.",
    ".attn.to_v.": ".attn.wv.",
    ".attn.to_out.0.": ".attn.wo.",
    ".attn.to_gate.": ".attn.gate.",
    ".attn.norm_q.weight": ".attn.qknorm.qnorm.scale",
    ".attn.norm_k.weight": ".attn.qknorm.knorm.scale",
    ".ff.": ".mlp.",
    ".norm1.weight": ".prenorm.scale",
    ".norm2.weight": ".postnorm.scale",
    ".scale_shift_table": ".mod.lin",
}


def original(folder: Path) -> dict[str, Tensor] | None:
    """As Krea publishes it: a block's modulation is one vector."""
    tensors: dict[str, Tensor] = {}
    for name, tensor in Krea2Transformer2DModel.from_pretrained(folder / "transformer").state_dict().items():
        if name.startswith("transformer_blocks.") and name.endswith("scale_shift_table"):
            tensor = tensor.flatten()
        for ours, theirs in _TOP.items():
            name = name.replace(ours, theirs)
        tensors[name] = tensor
    return tensors
