"""Small models with random weights, built on the spot: the real classes, a few hundred kB each."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLQwenImage,
    EulerDiscreteScheduler,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    GemmaTokenizer,
    Qwen2Tokenizer,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
)


def tiny_tokenizer(folder: Path) -> CLIPTokenizer:
    """A CLIP tokenizer that knows single letters only."""
    letters = "abcdefghijklmnopqrstuvwxyz0123456789,.-"
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({token: number for number, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer(
        vocab=str(folder / "vocab.json"), merges=str(folder / "merges.txt"), model_max_length=77
    )


_CHAT = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tiny_qwen_tokenizer() -> Qwen2Tokenizer:
    """A Qwen tokenizer that knows single bytes only, with the family's chat template."""
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokens = [*sorted(ByteLevel.alphabet()), *special]
    tokenizer = Qwen2Tokenizer(
        vocab={token: number for number, token in enumerate(tokens)},
        merges=[],
        additional_special_tokens=special[1:],
    )
    tokenizer.chat_template = _CHAT
    return tokenizer


def tiny_gemma_tokenizer() -> GemmaTokenizer:
    """A Gemma tokenizer that knows single letters only, and the spelling out of bytes."""
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    letters = "abcdefghijklmnopqrstuvwxyz0123456789,.-<>▁"
    tokens = [*special, *(f"<0x{byte:02X}>" for byte in range(256)), *letters]
    return GemmaTokenizer(vocab={token: number for number, token in enumerate(tokens)}, merges=[])


def clip_config(width: int, tokens: int, projection: int) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=tokens,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=77,
        projection_dim=projection,
        hidden_act="gelu",
        bos_token_id=tokens - 2,
        eos_token_id=tokens - 1,
        pad_token_id=tokens - 1,
    )


def tiny_t5_tokenizer() -> T5TokenizerFast:
    """A T5 tokenizer that knows single letters only."""
    letters = "abcdefghijklmnopqrstuvwxyz0123456789,.-▁"
    return T5TokenizerFast(
        vocab=[("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -9.0), *((letter, -1.0) for letter in letters)],
        extra_ids=0,
    )


def tiny_t5(width: int, tokens: int) -> T5EncoderModel:
    return T5EncoderModel(
        T5Config(vocab_size=tokens, d_model=width, d_kv=8, d_ff=2 * width, num_layers=2, num_heads=2)
    )


def tiny_vae(channels: int = 4, **more: Any) -> AutoencoderKL:
    """An 8x autoencoder with latents of ``channels``."""
    return AutoencoderKL(
        block_out_channels=(8, 8, 16, 16),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        latent_channels=channels,
        norm_num_groups=4,
        sample_size=64,
        force_upcast=False,
        **more,
    )


def tiny_qwen_vae() -> AutoencoderKLQwenImage:
    """Qwen-Image's 8x video autoencoder, 16 channels; their statistics are the published ones."""
    return AutoencoderKLQwenImage(base_dim=8, dim_mult=[1, 1, 2, 2], num_res_blocks=1)


def qwen_vae_encode(vae: AutoencoderKLQwenImage, pixels_BCHW: torch.Tensor) -> torch.Tensor:
    """The VAE's own latents of a picture, (B, C, 1, h, w)."""
    latents: torch.Tensor = vae.encode(pixels_BCHW[:, :, None]).latent_dist.mode()
    return latents


def tiny_sdxl(
    folder: Path, *, prediction: str = "epsilon", seed: int = 0, layers: int = 2, blocks: int = 3
) -> Path:
    """An SDXL pipeline folder with SDXL's block structure: 64 px native, latents of 8x8.

    ``layers``: of each block, and of the transformers in the deepest ones. ``blocks``: on the way down; with
    two the deepest is missing.
    """
    torch.manual_seed(seed)
    tokenizer = tiny_tokenizer(folder / "tokenizer")
    tokens = len(tokenizer)
    one = CLIPTextModel(clip_config(16, tokens, 16))
    two = CLIPTextModelWithProjection(clip_config(16, tokens, 16))
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32, 32)[:blocks],
        layers_per_block=layers,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D")[:blocks],
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D")[-blocks:],
        transformer_layers_per_block=(1, 1, layers)[-blocks:],
        attention_head_dim=8,
        cross_attention_dim=32,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=16 + 6 * 8,
        norm_num_groups=8,
    )
    scheduler = EulerDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type=prediction
    )
    StableDiffusionXLPipeline(tiny_vae(), one, two, tokenizer, tokenizer, unet, scheduler).save_pretrained(
        folder
    )
    return folder


def unconverted(
    state: Mapping[str, torch.Tensor],
    shapes: Mapping[str, tuple[int, ...]],
    convert: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]],
) -> dict[str, torch.Tensor]:
    """A diffusers part as a checkpoint in the original layout, whose names and shapes are given.

    ``convert`` is diffusers' own converter. Every number of the checkpoint is numbered and sent through
    it, which tells where in ``state`` that number is to be found.
    """
    places: dict[str, torch.Tensor] = {}
    count = 0
    for name, shape in shapes.items():
        size = math.prod(shape)
        places[name] = torch.arange(count, count + size).reshape(shape)
        count += size
    values = torch.zeros(count)
    for name, numbers in convert(dict(places)).items():
        values[numbers.flatten()] = state[name].flatten()
    return {name: values[numbers] for name, numbers in places.items()}
