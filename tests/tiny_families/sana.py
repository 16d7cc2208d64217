"""Sana 1.6B as published (transformer/config.json of the repository: diffusers' defaults), and small."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderDC, FlowMatchEulerDiscreteScheduler, SanaPipeline, SanaTransformer2DModel
from diffusers.loaders.single_file_utils import convert_sana_transformer_to_diffusers
from torch import Tensor
from transformers import Gemma2Config, Gemma2Model, GemmaTokenizer

from tests.tiny import unconverted

SANA = "Efficient-Large-Model/Sana_1600M_1024px_BF16_diffusers"
# 20 blocks of two attentions with four layers each, and two of the feed-forward's convolutions.
TARGETS = {SANA: {"attention": 160, "transformer": 200, "transformer+conv": 200}}
PROMPT_INPUTS = {"use_resolution_binning": False}
READ_BY_DIFFUSERS = ("diffusers",)


def build(folder: Path, seed: int = 0) -> Path:
    torch.manual_seed(seed)
    letters = "abcdefghijklmnopqrstuvwxyz0123456789,.-:▁"
    tokens = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *letters]
    tokenizer = GemmaTokenizer(vocab={token: number for number, token in enumerate(tokens)})
    gemma = Gemma2Config(
        vocab_size=len(tokens),
        hidden_size=24,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=12,
    )
    levels: dict[str, Any] = {}
    for coder in ("encoder", "decoder"):
        levels[f"{coder}_block_types"] = ("ResBlock", "ResBlock", "ResBlock", "EfficientViTBlock")
        levels[f"{coder}_block_out_channels"] = (8, 8, 16, 16)
        levels[f"{coder}_layers_per_block"] = (1, 1, 1, 1)
        levels[f"{coder}_qkv_multiscales"] = ((), (), (), (5,))
    SanaPipeline(
        tokenizer=tokenizer,
        text_encoder=Gemma2Model(gemma),
        vae=AutoencoderDC(latent_channels=4, attention_head_dim=8, scaling_factor=0.41407, **levels),
        transformer=SanaTransformer2DModel(
            in_channels=4,
            out_channels=4,
            num_attention_heads=2,
            attention_head_dim=8,
            num_layers=2,
            num_cross_attention_heads=2,
            cross_attention_head_dim=8,
            cross_attention_dim=16,
            caption_channels=24,
            sample_size=8,
        ),
        # The published DPMSolverMultistepScheduler takes the same two steps, but tells the transformer
        # times rounded down to integers.
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
    ).save_pretrained(folder)
    return folder


def encode(vae: Any, pixels_BCHW: Tensor) -> Tensor:
    latents: Tensor = vae.encode(pixels_BCHW).latent
    return latents


def original(folder: Path) -> dict[str, Tensor] | None:
    transformer = SanaTransformer2DModel.from_pretrained(folder / "transformer")
    return unconverted(
        transformer.state_dict(), shapes(transformer.config), convert_sana_transformer_to_diffusers
    )


def shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """NVIDIA's code: names and shapes, written down from the architecture."""
    width = config["num_attention_heads"] * config["attention_head_dim"]
    hidden, channels = int(config["mlp_ratio"] * width), config["in_channels"]
    found: dict[str, tuple[int, ...]] = {
        "pos_embed": (1, config["sample_size"] ** 2, width),  # not used
        "x_embedder.proj.weight": (width, channels, 1, 1),
        "x_embedder.proj.bias": (width,),
        "y_embedder.y_embedding": (300, config["caption_channels"]),  # of the dropped caption, not used
        "attention_y_norm.weight": (width,),
        "final_layer.scale_shift_table": (2, width),
    }

    def linear(name: str, inside: int, out: int, bias: bool = True) -> None:
        found[f"{name}.weight"] = (out, inside)
        if bias:
            found[f"{name}.bias"] = (out,)

    linear("t_embedder.mlp.0", 256, width)
    linear("t_embedder.mlp.2", width, width)
    linear("t_block.1", width, 6 * width)
    linear("y_embedder.y_proj.fc1", config["caption_channels"], width)
    linear("y_embedder.y_proj.fc2", width, width)
    linear("final_layer.linear", width, channels)
    for block in (f"blocks.{number}" for number in range(config["num_layers"])):
        found[f"{block}.scale_shift_table"] = (6, width)
        linear(f"{block}.attn.qkv", width, 3 * width, bias=False)
        linear(f"{block}.attn.proj", width, width)
        linear(f"{block}.cross_attn.q_linear", width, width)
        linear(f"{block}.cross_attn.kv_linear", width, 2 * width)
        linear(f"{block}.cross_attn.proj", width, width)
        found[f"{block}.mlp.inverted_conv.conv.weight"] = (2 * hidden, width, 1, 1)
        found[f"{block}.mlp.inverted_conv.conv.bias"] = (2 * hidden,)
        found[f"{block}.mlp.depth_conv.conv.weight"] = (2 * hidden, 1, 3, 3)
        found[f"{block}.mlp.depth_conv.conv.bias"] = (2 * hidden,)
        found[f"{block}.mlp.point_conv.conv.weight"] = (width, hidden, 1, 1)
    return found
