"""Stable Diffusion 3.5, Medium and Large (Esser et al. 2024, "MMDiT"; 3.0 has the same code).

Two CLIP encoders (second-to-last hidden states, concatenated, and both pooled outputs) and T5, whose tokens
follow CLIP's in one sequence; the pipeline's default of 256 T5 tokens, padding and all, is kept, because
that is what samples are drawn with. Latents have 16 channels. Rectified flow with logit-normal times and
the scheduler's shift (3 at 1024 px); the transformer counts time from 0 to 1000.

The plain velocity is learnt, as the paper, ai-toolkit and SimpleTuner do it; kohya's default weights that
loss by t². Large Turbo is not offered: its distillation would be unlearnt, and it takes Large's LoRAs.

The blocks have no convolution, so "transformer+conv" is "transformer": the one convolution cuts the
latents into patches, and no trainer adapts it by default.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, ClassVar

from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline
from torch import Tensor, nn
from transformers import CLIPTextModelWithProjection, CLIPTokenizer, T5EncoderModel, T5Tokenizer

from ..contract import families as catalogue
from .base import Geometry, Native, TextEmbeds
from .pipeline_family import PipelineFamily

_ATTENTION = r"attn2?\.(to_[qkv]|to_out\.0|add_[qkv]_proj|to_add_out)"
_FEED_FORWARD = r"ff(_context)?\.net\.(0\.proj|2)"
_TRANSFORMER = rf"transformer_blocks\.\d+\.({_ATTENTION}|{_FEED_FORWARD})"

# diffusers' modules of a block -> Stability's. Query, key and value are one layer there.
_BLOCK = {
    "attn.to_q": "x_block.attn.qkv",
    "attn.to_k": "x_block.attn.qkv",
    "attn.to_v": "x_block.attn.qkv",
    "attn.to_out.0": "x_block.attn.proj",
    "attn.add_q_proj": "context_block.attn.qkv",
    "attn.add_k_proj": "context_block.attn.qkv",
    "attn.add_v_proj": "context_block.attn.qkv",
    "attn.to_add_out": "context_block.attn.proj",
    "attn2.to_q": "x_block.attn2.qkv",
    "attn2.to_k": "x_block.attn2.qkv",
    "attn2.to_v": "x_block.attn2.qkv",
    "attn2.to_out.0": "x_block.attn2.proj",
    "ff.net.0.proj": "x_block.mlp.fc1",
    "ff.net.2": "x_block.mlp.fc2",
    "ff_context.net.0.proj": "context_block.mlp.fc1",
    "ff_context.net.2": "context_block.mlp.fc2",
    "norm1.linear": "x_block.adaLN_modulation.1",
    "norm1_context.linear": "context_block.adaLN_modulation.1",
}
_REST = {
    "pos_embed.proj": "x_embedder.proj",
    "time_text_embed.timestep_embedder.linear_1": "t_embedder.mlp.0",
    "time_text_embed.timestep_embedder.linear_2": "t_embedder.mlp.2",
    "time_text_embed.text_embedder.linear_1": "y_embedder.mlp.0",
    "time_text_embed.text_embedder.linear_2": "y_embedder.mlp.2",
    "norm_out.linear": "final_layer.adaLN_modulation.1",
    "proj_out": "final_layer.linear",
}


class Family(PipelineFamily):
    """See :class:`trainer.families.base.ModelFamily` for when each member is called."""

    row = catalogue.SD3
    published: ClassVar[dict[str, dict[str, Any]]] = {
        "stabilityai/stable-diffusion-3.5-medium": {
            "num_layers": 24,
            "num_attention_heads": 24,
            "caption_projection_dim": 1536,
            "dual_attention_layers": tuple(range(13)),
            "pos_embed_max_size": 384,
            "qk_norm": "rms_norm",
        },
        "stabilityai/stable-diffusion-3.5-large": {
            "num_layers": 38,
            "num_attention_heads": 38,
            "caption_projection_dim": 2432,
            "pos_embed_max_size": 192,
            "qk_norm": "rms_norm",
        },
    }
    pipeline_class = StableDiffusion3Pipeline
    denoiser_class = SD3Transformer2DModel
    text_classes: ClassVar[dict[str, Any]] = {
        "text_encoder": CLIPTextModelWithProjection,
        "text_encoder_2": CLIPTextModelWithProjection,
        "text_encoder_3": T5EncoderModel,
    }
    tokenizer_classes: ClassVar[dict[str, Any]] = {
        "tokenizer": CLIPTokenizer,
        "tokenizer_2": CLIPTokenizer,
        "tokenizer_3": T5Tokenizer,
    }
    trainable_text = ("text_encoder", "text_encoder_2")
    text_targets = r".*(q_proj|k_proj|v_proj|out_proj|mlp\.fc1|mlp\.fc2)"
    clip_names: ClassVar[dict[str, str]] = {"text_encoder": "clip_l", "text_encoder_2": "clip_g"}
    targets: ClassVar[dict[str, str]] = catalogue.by_targets(
        rf"transformer_blocks\.\d+\.{_ATTENTION}", _TRANSFORMER
    )
    unread = r"attn\.add_q_proj"  # the last block attends to the text, but not from it

    def setup(self) -> None:
        self.resolution = 8 * int(self.denoiser_config["sample_size"])
        self.noise = self.flow()

    def embed(self, text: Any, captions: list[str]) -> list[TextEmbeds]:
        prompts, _, pooled, _ = text.encode_prompt(
            captions, None, None, device=self.device, do_classifier_free_guidance=False
        )
        return [{"prompt": one, "pooled": pool} for one, pool in zip(prompts, pooled, strict=True)]

    def predict(
        self,
        denoiser: nn.Module,
        noisy_BCHW: Tensor,
        t_B: Tensor,
        embeds: Sequence[TextEmbeds],
        geometry: Sequence[Geometry],
    ) -> Tensor:
        velocity: Tensor = denoiser(
            noisy_BCHW.to(self.dtype),
            timestep=t_B * 1000,
            encoder_hidden_states=self.stacked([e["prompt"] for e in embeds]),
            pooled_projections=self.stacked([e["pooled"] for e in embeds]),
        ).sample
        return velocity

    def pipeline_inputs(self, positive: TextEmbeds, negative: TextEmbeds) -> dict[str, Any]:
        return {
            "prompt_embeds": self.batched(positive["prompt"]),
            "pooled_prompt_embeds": self.batched(positive["pooled"]),
            "negative_prompt_embeds": self.batched(negative["prompt"]),
            "negative_pooled_prompt_embeds": self.batched(negative["pooled"]),
        }

    def native(self, module: str) -> Native:
        match = re.fullmatch(r"transformer_blocks\.(\d+)\.(.+)", module)
        if not match or match[2] not in _BLOCK:
            return Native(_REST.get(module, module), swapped=module == "norm_out.linear")
        number, inside = int(match[1]), match[2]
        name = f"joint_blocks.{number}.{_BLOCK[inside]}"
        if not name.endswith(".qkv"):
            last = number == self.denoiser_config["num_layers"] - 1
            return Native(name, swapped=last and inside == "norm1_context.linear")
        width = self.denoiser_config["num_attention_heads"] * self.denoiser_config["attention_head_dim"]
        first = width * next(i for i, letter in enumerate("qkv") if f"_{letter}" in inside)
        return Native(name, (first, first + width), 3 * width)

    def metadata(self) -> dict[str, str]:
        # Kohya tells the sizes apart by the transformer's depth: "m" with 24 blocks, "l" with 38.
        size = "large" if self.denoiser_config["num_layers"] > 24 else "medium"
        version = "3.5" if self.denoiser_config.get("qk_norm") else "3"
        return {
            "ss_base_model_version": f"sd3_{size[0]}",
            "ss_v2": "False",
            "modelspec.architecture": f"stable-diffusion-{version}-{size}/lora",
            "modelspec.implementation": "https://github.com/Stability-AI/sd3.5",
            "modelspec.prediction_type": "v",
        }
