"""Lumina-Image 2.0 as published, and small."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, Lumina2Pipeline, Lumina2Transformer2DModel
from torch import Tensor
from transformers import Gemma2Config, Gemma2Model

from tests.tiny import tiny_gemma_tokenizer, tiny_vae

LUMINA = "Alpha-VLLM/Lumina-Image-2.0"
# 26 layers, 2 + 2 refiners: four attention projections and three feed-forward layers each.
TARGETS = {LUMINA: {"attention": 30 * 4, "transformer": 30 * 7, "transformer+conv": 30 * 7}}
READ_BY_DIFFUSERS = ("diffusers",)


def build(folder: Path, seed: int = 0) -> Path:
    torch.manual_seed(seed)
    tokenizer = tiny_gemma_tokenizer()
    text = Gemma2Config(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
    )
    transformer = Lumina2Transformer2DModel(
        sample_size=8,
        hidden_size=32,
        num_layers=2,
        num_refiner_layers=1,
        num_attention_heads=4,
        num_kv_heads=2,
        multiple_of=8,
        axes_dim_rope=(4, 2, 2),
        cap_feat_dim=16,
    )
    Lumina2Pipeline(
        transformer,
        FlowMatchEulerDiscreteScheduler(shift=6.0),
        tiny_vae(16, scaling_factor=0.36, shift_factor=0.12),
        Gemma2Model(text),
        tokenizer,
    ).save_pretrained(folder)
    return folder


def original(folder: Path) -> dict[str, Tensor] | None:
    """As Alpha-VLLM and Comfy-Org publish it: q, k and v in one layer; a last norm that nothing reads."""
    state = Lumina2Transformer2DModel.from_pretrained(folder / "transformer").state_dict()
    tensors = {"norm_final.weight": torch.ones(32)}
    for name, tensor in state.items():
        if ".to_q." in name:
            rows = [state[name.replace("to_q", part)] for part in ("to_q", "to_k", "to_v")]
            name, tensor = name.replace("to_q", "qkv"), torch.cat(rows)
        elif ".to_k." in name or ".to_v." in name:
            continue
        if name.startswith("context_refiner."):  # without modulation
            name = name.replace(".norm1.", ".attention_norm1.")
        for ours, theirs in _NAMES.items():
            name = name.replace(ours, theirs)
        tensors[name] = tensor
    return {f"model.diffusion_model.{name}": tensor for name, tensor in tensors.items()}


_NAMES = {
    ".attn.": ".attention.",
    ".to_out.0.": ".out.",
    ".norm_q.": ".q_norm.",
    ".norm_k.": ".k_norm.",
    "feed_forward.linear_": "feed_forward.w",
    ".norm1.linear.": ".adaLN_modulation.1.",
    ".norm1.norm.": ".attention_norm1.",
    ".norm2.": ".attention_norm2.",
    "time_caption_embed.caption_embedder.": "cap_embedder.",
    "time_caption_embed.timestep_embedder.linear_1.": "t_embedder.mlp.0.",
    "time_caption_embed.timestep_embedder.linear_2.": "t_embedder.mlp.2.",
    "norm_out.linear_1.": "final_layer.adaLN_modulation.1.",
    "norm_out.linear_2.": "final_layer.linear.",
}
