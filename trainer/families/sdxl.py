"""Stable Diffusion XL (Podell et al. 2023), and the example to copy for a new family.

U-Net over 4-channel latents of an 8x VAE; the text of two CLIP encoders (second-to-last hidden states,
concatenated) plus the pooled output of the second; sizes and crop of the picture as six more numbers.
The schedule and what is predicted (noise, or v for bases such as NoobAI and our demo) are read from the
base's own scheduler configuration (``unet_family.py``).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from diffusers import StableDiffusionXLPipeline
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from ..contract import families as catalogue
from . import ldm_single_file as single_file
from .base import Geometry, TextEmbeds
from .unet_family import UnetFamily


class Family(UnetFamily):
    """See :class:`trainer.families.base.ModelFamily` for when each member is called."""

    row = catalogue.SDXL
    published: ClassVar[dict[str, dict[str, Any]]] = {
        "stabilityai/stable-diffusion-xl-base-1.0": {
            "sample_size": 128,
            "block_out_channels": (320, 640, 1280),
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            "transformer_layers_per_block": (1, 2, 10),
            "attention_head_dim": (5, 10, 20),
            "cross_attention_dim": 2048,
            "use_linear_projection": True,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 2816,
        }
    }
    pipeline_class = StableDiffusionXLPipeline
    text_classes: ClassVar[dict[str, Any]] = {
        "text_encoder": CLIPTextModel,
        "text_encoder_2": CLIPTextModelWithProjection,
    }
    tokenizer_classes: ClassVar[dict[str, Any]] = {"tokenizer": CLIPTokenizer, "tokenizer_2": CLIPTokenizer}
    trainable_text = ("text_encoder", "text_encoder_2")
    clip_names: ClassVar[dict[str, str]] = {"text_encoder": "clip_l", "text_encoder_2": "clip_g"}
    layout = single_file.SDXL

    # Encoding -------------------------------------------------------------------------------------

    @property
    def _zero_empty(self) -> bool:
        """SDXL's first release zeroes the empty prompt instead of encoding it."""
        return bool(self.index.get("force_zeros_for_empty_prompt", True))

    def text_options(self) -> Sequence[object]:
        return (self._zero_empty,)

    def pipeline_extras(self) -> dict[str, Any]:
        return {"add_watermarker": False, "force_zeros_for_empty_prompt": self._zero_empty}

    def embed(self, text: Any, captions: list[str]) -> list[TextEmbeds]:
        prompts, _, pooled, _ = text.encode_prompt(
            captions, device=self.device, do_classifier_free_guidance=False
        )
        kept = [float(bool(caption.strip()) or not self._zero_empty) for caption in captions]
        return [
            {"prompt": prompt * keep, "pooled": pool * keep}
            for prompt, pool, keep in zip(prompts, pooled, kept, strict=True)
        ]

    # Training -------------------------------------------------------------------------------------

    def predict(
        self,
        denoiser: nn.Module,
        noisy_BCHW: Tensor,
        t_B: Tensor,
        embeds: Sequence[TextEmbeds],
        geometry: Sequence[Geometry],
    ) -> Tensor:
        sizes_B6 = torch.tensor([[*g.original, *g.crop, *g.target] for g in geometry])
        prediction: Tensor = denoiser(
            noisy_BCHW.to(self.dtype),
            self.noise.timesteps(t_B),
            self.stacked([e["prompt"] for e in embeds]),
            added_cond_kwargs={
                "text_embeds": self.stacked([e["pooled"] for e in embeds]),
                # Not in ``dtype``: bf16 rounds a width of 1365 px to 1368.
                "time_ids": sizes_B6.to(noisy_BCHW.device, torch.float32),
            },
        ).sample
        return prediction

    # Sampling and export --------------------------------------------------------------------------

    def pipeline_inputs(self, positive: TextEmbeds, negative: TextEmbeds) -> dict[str, Any]:
        return {
            "prompt_embeds": self.batched(positive["prompt"]),
            "pooled_prompt_embeds": self.batched(positive["pooled"]),
            "negative_prompt_embeds": self.batched(negative["prompt"]),
            "negative_pooled_prompt_embeds": self.batched(negative["pooled"]),
        }

    def metadata(self) -> dict[str, str]:
        return {
            "ss_base_model_version": "sdxl_base_v1-0",
            "ss_v2": "False",
            "modelspec.architecture": "stable-diffusion-xl-v1-base/lora",
            "modelspec.implementation": "https://github.com/Stability-AI/generative-models",
            **self.prediction_metadata(),
        }
