"""FLUX.1 dev and schnell (black-forest-labs 2024): a transformer of 12 billion parameters, rectified flow.

CLIP's pooled output and T5's sequence; 16-channel latents, packed 2x2. dev is distilled to follow a
guidance scale that it is told; schnell is distilled to four steps and is told none, and is trained with
an assistant LoRA that undoes the distillation. T5 reads 512 tokens for dev, 256 for schnell, padding
included: FLUX.1 attends to the padding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from diffusers import FluxPipeline, FluxTransformer2DModel
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer, T5EncoderModel, T5Tokenizer

from ..contract import families as catalogue
from .base import Geometry, TextEmbeds
from .flux_family import FluxFamily
from .packing import pack, unpack

TRAINING_GUIDANCE = 1.0
"""The guidance that the model is told while training, as kohya's: the photos are what is wanted."""


class Family(FluxFamily):
    """See :class:`trainer.families.base.ModelFamily` for when each member is called."""

    row = catalogue.FLUX
    published: ClassVar[dict[str, dict[str, Any]]] = {
        "black-forest-labs/FLUX.1-dev": {"guidance_embeds": True},
        "black-forest-labs/FLUX.1-schnell": {"guidance_embeds": False},
    }
    pipeline_class = FluxPipeline
    denoiser_class = FluxTransformer2DModel
    text_classes: ClassVar[dict[str, Any]] = {"text_encoder": CLIPTextModel, "text_encoder_2": T5EncoderModel}
    tokenizer_classes: ClassVar[dict[str, Any]] = {"tokenizer": CLIPTokenizer, "tokenizer_2": T5Tokenizer}

    # Kohya's scripts train CLIP too by default.
    clip_names: ClassVar[dict[str, str]] = {"text_encoder": "clip_l"}

    @property
    def guided(self) -> bool:
        """dev is told a guidance scale, schnell none."""
        return bool(self.denoiser_config.get("guidance_embeds"))

    def setup(self) -> None:
        super().setup()
        self.tokens = 512 if self.guided else 256

    def embed(self, text: Any, captions: list[str]) -> list[TextEmbeds]:
        prompts, pooled, _ = text.encode_prompt(captions, device=self.device, max_sequence_length=self.tokens)
        return [{"prompt": prompt, "pooled": pool} for prompt, pool in zip(prompts, pooled, strict=True)]

    def predict(
        self,
        denoiser: nn.Module,
        noisy_BCHW: Tensor,
        t_B: Tensor,
        embeds: Sequence[TextEmbeds],
        geometry: Sequence[Geometry],
    ) -> Tensor:
        height, width = noisy_BCHW.shape[-2:]
        prompts_BLD = self.stacked([e["prompt"] for e in embeds])
        velocity: Tensor = denoiser(
            pack(noisy_BCHW).to(self.dtype),
            encoder_hidden_states=prompts_BLD,
            pooled_projections=self.stacked([e["pooled"] for e in embeds]),
            timestep=t_B,
            img_ids=self.grid(height // 2, width // 2),
            txt_ids=torch.zeros(prompts_BLD.shape[1], 3, device=self.device),
            guidance=torch.full_like(t_B, TRAINING_GUIDANCE) if self.guided else None,
        ).sample
        return unpack(velocity, height, width)

    def pipeline_inputs(self, positive: TextEmbeds, negative: TextEmbeds) -> dict[str, Any]:
        """No negative prompt: ``samples.guidance`` is a number that dev is told; schnell is told none."""
        return {
            "prompt_embeds": self.batched(positive["prompt"]),
            "pooled_prompt_embeds": self.batched(positive["pooled"]),
        }

    def metadata(self) -> dict[str, str]:
        return {
            "ss_base_model_version": "flux1",
            "ss_guidance_scale": f"{TRAINING_GUIDANCE}",
            "ss_timestep_sampling": "sigmoid",
            "ss_model_prediction_type": "raw",
            "modelspec.architecture": f"flux-1-{'dev' if self.guided else 'schnell'}/lora",
            "modelspec.implementation": "https://github.com/black-forest-labs/flux",
        }
