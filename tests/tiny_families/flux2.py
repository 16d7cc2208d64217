"""FLUX.2 klein base 4B and 9B and dev as published (transformer/config.json), and klein small.

9B's numbers are those of the published code and of descriptions of its gated configuration.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKLFlux2,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Pipeline,
    Flux2Transformer2DModel,
)
from torch import Tensor, nn
from transformers import (
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from tests.tiny import tiny_qwen_tokenizer

KLEIN_4B = "black-forest-labs/FLUX.2-klein-base-4B"
KLEIN_9B = "black-forest-labs/FLUX.2-klein-base-9B"
DEV = "black-forest-labs/FLUX.2-dev"


def _counts(double: int, single: int) -> dict[str, int]:
    every = double * 12 + single * 2
    return {"attention": double * 8 + single * 2, "transformer": every, "transformer+conv": every}


TARGETS = {KLEIN_4B: _counts(5, 20), KLEIN_9B: _counts(8, 24), DEV: _counts(8, 48)}
# Not ComfyUI's: diffusers' converter wants all tensors to be matrices, and there alpha is one too.
READ_BY_DIFFUSERS = ("kohya", "diffusers")
PROMPT_INPUTS = {"negative_prompt": None}  # the pipeline's is always empty


def _parts(seed: int, text_width: int, guidance: bool) -> dict[str, Any]:
    torch.manual_seed(seed)
    vae = AutoencoderKLFlux2(
        block_out_channels=(8, 8, 16, 16),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=64,
    )
    vae.bn.running_mean.normal_(std=0.1)
    vae.bn.running_var.uniform_(0.5, 2)
    transformer = Flux2Transformer2DModel(
        in_channels=16,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=3 * text_width,
        timestep_guidance_channels=32,
        axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=guidance,
    )
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift=3.0)
    return {"vae": vae, "transformer": transformer, "scheduler": scheduler}


def build(folder: Path, seed: int = 0) -> Path:
    parts = _parts(seed, 16, guidance=False)
    tokenizer = tiny_qwen_tokenizer()
    text = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=27,  # the last that is read
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
    )
    Flux2KleinPipeline(
        text_encoder=Qwen3ForCausalLM(text), tokenizer=tokenizer, is_distilled=False, **parts
    ).save_pretrained(folder)
    return folder


def build_dev(folder: Path, seed: int = 0) -> Path:
    """dev small; a plain tokenizer in place of the processor, which would want torchvision."""
    parts = _parts(seed, 16, guidance=True)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tiny_qwen_tokenizer().backend_tokenizer,
        pad_token="<|endoftext|>",
        padding_side="left",
    )
    tokenizer.chat_template = (
        "{% for message in messages %}[{{ message.role }}]"
        "{% for block in message.content %}{{ block.text }}{% endfor %}{% endfor %}"
    )
    text = {
        "model_type": "mistral",
        "vocab_size": len(tokenizer),
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 30,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
    }
    vision = {
        "model_type": "pixtral",
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "image_size": 32,
    }
    config = Mistral3Config(text_config=text, vision_config=vision, image_token_index=1)
    Flux2Pipeline(
        text_encoder=Mistral3ForConditionalGeneration(config), tokenizer=tokenizer, **parts
    ).save_pretrained(folder)
    return folder


def encode(vae: Any, pixels_BCHW: Tensor) -> Tensor:
    latents: Tensor = vae.encode(pixels_BCHW).latent_dist.mode()
    return latents


def drawn(family: Any, latents_BCHW: Tensor) -> Tensor:
    """klein's pipeline gives the VAE's own latents; it takes them in patches and normalised."""
    bn = family._load_vae(torch.float32).bn
    patches = nn.functional.pixel_unshuffle(latents_BCHW, 2)
    return nn.functional.batch_norm(patches, bn.running_mean, bn.running_var, eps=bn.eps)


def original(folder: Path) -> dict[str, Tensor] | None:
    return merged(Flux2Transformer2DModel.from_pretrained(folder, subfolder="transformer"))


def merged(model: nn.Module) -> dict[str, Tensor]:
    """The tensors as black-forest-labs' code names and merges them (flux2/model.py of their repository)."""
    state = dict(model.state_dict())
    made: dict[str, Tensor] = {}
    for i in range(2):
        a, b = f"transformer_blocks.{i}", f"double_blocks.{i}"
        for stream, names in (
            ("img", ("to_q", "to_k", "to_v")),
            ("txt", ("add_q_proj", "add_k_proj", "add_v_proj")),
        ):
            made[f"{b}.{stream}_attn.qkv.weight"] = torch.cat(
                [state.pop(f"{a}.attn.{n}.weight") for n in names]
            )
        for old, new in (
            ("attn.to_out.0.weight", "img_attn.proj.weight"),
            ("attn.to_add_out.weight", "txt_attn.proj.weight"),
            ("attn.norm_q.weight", "img_attn.norm.query_norm.scale"),
            ("attn.norm_k.weight", "img_attn.norm.key_norm.scale"),
            ("attn.norm_added_q.weight", "txt_attn.norm.query_norm.scale"),
            ("attn.norm_added_k.weight", "txt_attn.norm.key_norm.scale"),
            ("ff.linear_in.weight", "img_mlp.0.weight"),
            ("ff.linear_out.weight", "img_mlp.2.weight"),
            ("ff_context.linear_in.weight", "txt_mlp.0.weight"),
            ("ff_context.linear_out.weight", "txt_mlp.2.weight"),
        ):
            made[f"{b}.{new}"] = state.pop(f"{a}.{old}")
        a, b = f"single_transformer_blocks.{i}", f"single_blocks.{i}"
        for old, new in (
            ("attn.to_qkv_mlp_proj.weight", "linear1.weight"),
            ("attn.to_out.weight", "linear2.weight"),
            ("attn.norm_q.weight", "norm.query_norm.scale"),
            ("attn.norm_k.weight", "norm.key_norm.scale"),
        ):
            made[f"{b}.{new}"] = state.pop(f"{a}.{old}")
    for old, new in (
        ("x_embedder", "img_in"),
        ("context_embedder", "txt_in"),
        ("proj_out", "final_layer.linear"),
        ("time_guidance_embed.timestep_embedder.linear_1", "time_in.in_layer"),
        ("time_guidance_embed.timestep_embedder.linear_2", "time_in.out_layer"),
        ("time_guidance_embed.guidance_embedder.linear_1", "guidance_in.in_layer"),
        ("time_guidance_embed.guidance_embedder.linear_2", "guidance_in.out_layer"),
        ("double_stream_modulation_img.linear", "double_stream_modulation_img.lin"),
        ("double_stream_modulation_txt.linear", "double_stream_modulation_txt.lin"),
        ("single_stream_modulation.linear", "single_stream_modulation.lin"),
    ):
        if f"{old}.weight" in state:
            made[f"{new}.weight"] = state.pop(f"{old}.weight")
    scale, shift = state.pop("norm_out.linear.weight").chunk(2)
    made["final_layer.adaLN_modulation.1.weight"] = torch.cat([shift, scale])
    assert not state, sorted(state)
    return made
