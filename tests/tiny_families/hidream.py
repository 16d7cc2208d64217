"""HiDream-I1 Full as published (transformer/config.json as its conversion writes it), and small."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, HiDreamImagePipeline, HiDreamImageTransformer2DModel
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from torch import Tensor
from transformers import CLIPTextModelWithProjection, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tests.tiny import clip_config, tiny_t5, tiny_t5_tokenizer, tiny_tokenizer, tiny_vae

FULL = "HiDream-ai/HiDream-I1-Full"
# Eight attention projections in each of 16 double blocks and four in each of 32 single ones; a feed-forward
# layer of three matrices for each of four experts and the shared one, and for the text in double blocks.
_ATTENTION = 16 * 8 + 32 * 4
_EVERY = _ATTENTION + 48 * 5 * 3 + 16 * 3
TARGETS = {FULL: {"attention": _ATTENTION, "transformer": _EVERY, "transformer+conv": _EVERY}}
READ_BY_DIFFUSERS = ("diffusers",)  # of Comfy's it refuses ".alpha"


def build(folder: Path, seed: int = 0) -> Path:
    torch.manual_seed(seed)
    clip, t5, llama = tiny_tokenizer(folder / "tokenizer"), tiny_t5_tokenizer(), tiny_llama_tokenizer()
    clip.model_max_length = 128
    text = clip_config(16, len(clip), 16)
    text.max_position_embeddings = 128
    HiDreamImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=tiny_vae(4, shift_factor=0.1),
        text_encoder=CLIPTextModelWithProjection(text),
        tokenizer=clip,
        text_encoder_2=CLIPTextModelWithProjection(text),
        tokenizer_2=clip,
        text_encoder_3=tiny_t5(24, len(t5)),
        tokenizer_3=t5,
        text_encoder_4=LlamaForCausalLM(
            LlamaConfig(
                vocab_size=len(llama),
                hidden_size=16,
                intermediate_size=32,
                num_hidden_layers=2,
                num_attention_heads=2,
                num_key_value_heads=1,
            )
        ),
        tokenizer_4=llama,
        transformer=HiDreamImageTransformer2DModel(
            patch_size=2,
            in_channels=4,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=8,
            num_attention_heads=4,
            caption_channels=[24, 16],
            text_emb_dim=32,
            num_routed_experts=3,
            num_activated_experts=2,
            axes_dims_rope=(4, 2, 2),
            max_resolution=(8, 8),
            llama_layers=[0, 1],
        ),
    ).save_pretrained(folder)
    return folder


def tiny_llama_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer that knows single letters only."""
    letters = "abcdefghijklmnopqrstuvwxyz0123456789,.- "
    vocabulary = {token: number for number, token in enumerate(["<unk>", "<eos>", *letters])}
    model = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    model.pre_tokenizer = Split("", "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=model, unk_token="<unk>", eos_token="<eos>")


def original(folder: Path) -> dict[str, Tensor] | None:
    """The original code has diffusers' names; Comfy's files have its prefix before them."""
    state = HiDreamImageTransformer2DModel.from_pretrained(folder, subfolder="transformer").state_dict()
    return {f"model.diffusion_model.{name}": tensor for name, tensor in state.items()}
