"""SD 3.5 Medium and Large as published (transformer/config.json of their repositories), and small."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
from diffusers.loaders.single_file_utils import convert_sd3_transformer_checkpoint_to_diffusers
from torch import Tensor
from transformers import CLIPTextModelWithProjection

from tests.tiny import clip_config, tiny_t5, tiny_t5_tokenizer, tiny_tokenizer, tiny_vae, unconverted

MEDIUM = "stabilityai/stable-diffusion-3.5-medium"
LARGE = "stabilityai/stable-diffusion-3.5-large"
# A block has 8 attention and 4 feed-forward layers, 4 more attention layers where it is dual; of the last
# one's text side only key and value are of use.
TARGETS = {
    MEDIUM: {
        "attention": 24 * 8 + 13 * 4 - 2,
        "transformer": 24 * 12 + 13 * 4 - 4,
        "transformer+conv": 24 * 12 + 13 * 4 - 4,
    },
    LARGE: {"attention": 38 * 8 - 2, "transformer": 38 * 12 - 4, "transformer+conv": 38 * 12 - 4},
}
READ_BY_DIFFUSERS = ("diffusers",)


def build(folder: Path, seed: int = 0) -> Path:
    torch.manual_seed(seed)
    tokenizer, pieces = tiny_tokenizer(folder / "tokenizer"), tiny_t5_tokenizer()
    StableDiffusion3Pipeline(
        transformer=SD3Transformer2DModel(
            sample_size=8,
            num_layers=3,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=48,
            caption_projection_dim=16,
            pooled_projection_dim=40,
            pos_embed_max_size=12,
            dual_attention_layers=(0, 1),
            qk_norm="rms_norm",
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=tiny_vae(16, shift_factor=0.0609, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=CLIPTextModelWithProjection(clip_config(16, len(tokenizer), 16)),
        tokenizer=tokenizer,
        text_encoder_2=CLIPTextModelWithProjection(clip_config(24, len(tokenizer), 24)),
        tokenizer_2=tokenizer,
        text_encoder_3=tiny_t5(48, len(pieces)),
        tokenizer_3=pieces,
    ).save_pretrained(folder)
    return folder


def original(folder: Path) -> dict[str, Tensor] | None:
    transformer = SD3Transformer2DModel.from_pretrained(folder / "transformer")
    tensors = unconverted(
        transformer.state_dict(), shapes(transformer.config), convert_sd3_transformer_checkpoint_to_diffusers
    )
    return {f"model.diffusion_model.{name}": tensor for name, tensor in tensors.items()}


def shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Stability's MMDiT: names and shapes, written down from the architecture."""
    head = config["attention_head_dim"]
    width = head * config["num_attention_heads"]
    patch, channels, last = config["patch_size"], config["in_channels"], config["num_layers"] - 1
    found: dict[str, tuple[int, ...]] = {
        "pos_embed": (1, config["pos_embed_max_size"] ** 2, width),
        "x_embedder.proj.weight": (width, channels, patch, patch),
        "x_embedder.proj.bias": (width,),
    }

    def linear(name: str, inside: int, out: int) -> None:
        found[f"{name}.weight"], found[f"{name}.bias"] = (out, inside), (out,)

    def attention(name: str, projected: bool = True) -> None:
        linear(f"{name}.qkv", width, 3 * width)
        if projected:
            linear(f"{name}.proj", width, width)
        if config["qk_norm"]:
            found[f"{name}.ln_q.weight"] = found[f"{name}.ln_k.weight"] = (head,)

    def mlp(name: str) -> None:
        linear(f"{name}.fc1", width, 4 * width)
        linear(f"{name}.fc2", 4 * width, width)

    linear("t_embedder.mlp.0", 256, width)
    linear("t_embedder.mlp.2", width, width)
    linear("y_embedder.mlp.0", config["pooled_projection_dim"], width)
    linear("y_embedder.mlp.2", width, width)
    linear("context_embedder", config["joint_attention_dim"], width)
    for number in range(last + 1):
        block, dual = f"joint_blocks.{number}", number in config["dual_attention_layers"]
        attention(f"{block}.x_block.attn")
        if dual:
            attention(f"{block}.x_block.attn2")
        mlp(f"{block}.x_block.mlp")
        linear(f"{block}.x_block.adaLN_modulation.1", width, (9 if dual else 6) * width)
        attention(f"{block}.context_block.attn", projected=number < last)
        if number < last:
            mlp(f"{block}.context_block.mlp")
        linear(f"{block}.context_block.adaLN_modulation.1", width, (6 if number < last else 2) * width)
    linear("final_layer.linear", width, patch * patch * channels)
    linear("final_layer.adaLN_modulation.1", width, 2 * width)
    return found
