"""Z-Image as published (base and Turbo are alike), and small."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, ZImagePipeline, ZImageTransformer2DModel
from torch import Tensor, nn
from transformers import Qwen3Config, Qwen3Model

from tests.tiny import tiny_qwen_tokenizer, tiny_vae

ZIMAGE, TURBO = "Tongyi-MAI/Z-Image", "Tongyi-MAI/Z-Image-Turbo"
# 30 layers, 2 + 2 refiners: four attention projections and three feed-forward layers each.
_COUNTS = {"attention": 34 * 4, "transformer": 34 * 7, "transformer+conv": 34 * 7}
TARGETS = {ZIMAGE: _COUNTS, TURBO: _COUNTS}
READ_BY_DIFFUSERS = ("kohya", "diffusers")


def build(folder: Path, seed: int = 0) -> Path:
    torch.manual_seed(seed)
    tokenizer = tiny_qwen_tokenizer()
    text = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
    )
    transformer = ZImageTransformer2DModel(
        dim=32,
        n_layers=2,
        n_refiner_layers=1,
        n_heads=4,
        n_kv_heads=4,
        cap_feat_dim=16,
        axes_dims=[4, 2, 2],
    )
    for token in (transformer.x_pad_token, transformer.cap_pad_token):
        nn.init.normal_(token)
    ZImagePipeline(
        FlowMatchEulerDiscreteScheduler(shift=3.0),
        tiny_vae(16, scaling_factor=0.36, shift_factor=0.12),
        Qwen3Model(text),
        tokenizer,
        transformer,
    ).save_pretrained(folder)
    return folder


def original(folder: Path) -> dict[str, Tensor] | None:
    """As Comfy-Org publishes them: q, k and v in one layer."""
    state = ZImageTransformer2DModel.from_pretrained(folder / "transformer").state_dict()
    names = {
        "all_x_embedder.2-1.": "x_embedder.",
        "all_final_layer.2-1.": "final_layer.",
        ".to_out.0.": ".out.",
        ".norm_q.": ".q_norm.",
        ".norm_k.": ".k_norm.",
    }
    tensors: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if ".to_q." in name:
            rows = [state[name.replace("to_q", part)] for part in ("to_q", "to_k", "to_v")]
            name, tensor = name.replace("to_q", "qkv"), torch.cat(rows)
        elif ".to_k." in name or ".to_v." in name:
            continue
        for ours, theirs in names.items():
            name = name.replace(ours, theirs)
        tensors[f"model.diffusion_model.{name}"] = tensor
    return tensors
