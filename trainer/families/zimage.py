"""Z-Image and Z-Image-Turbo (Tongyi-MAI 2025): one stream of text and picture tokens, 6.15 B parameters.

Text is the second-to-last hidden states of Qwen3-4B behind its chat template, only the tokens that are
there; 16-channel latents of FLUX.1's VAE, in 2x2 patches inside the transformer, which takes lists: pictures
and captions of a batch may differ in size. Rectified flow; the model counts time from noise (0) to picture
(1), and so predicts picture - noise. Turbo is distilled to eight steps without guidance and is trained with
an assistant LoRA that undoes the distillation.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from diffusers import ZImagePipeline, ZImageTransformer2DModel
from torch import Tensor, nn
from transformers import Qwen2Tokenizer, Qwen3Model

from ..contract import families as catalogue
from .base import Geometry, Native, TextEmbeds
from .native_file import NativeFamily, renamed

_ATTENTION = r"attention\.(to_q|to_k|to_v|to_out\.0)"
_BLOCKS = r"(layers|noise_refiner|context_refiner)\.\d+"
_QKV = ("to_q", "to_k", "to_v")
# The original code has one patch size, diffusers a table of them.
_NAMES = {
    "all_x_embedder.2-1": "x_embedder",
    "all_final_layer.2-1": "final_layer",
    "attention.to_out.0": "attention.out",
    "attention.norm_q": "attention.q_norm",
    "attention.norm_k": "attention.k_norm",
}


class Family(NativeFamily):
    """See :class:`trainer.families.base.ModelFamily` for when each member is called."""

    row = catalogue.ZIMAGE
    published: ClassVar[dict[str, dict[str, Any]]] = {
        "Tongyi-MAI/Z-Image": {"axes_lens": [1536, 512, 512]},
        "Tongyi-MAI/Z-Image-Turbo": {"axes_lens": [1536, 512, 512]},
    }
    pipeline_class = ZImagePipeline
    denoiser_class = ZImageTransformer2DModel
    text_classes: ClassVar[dict[str, Any]] = {"text_encoder": Qwen3Model}
    tokenizer_classes: ClassVar[dict[str, Any]] = {"tokenizer": Qwen2Tokenizer}
    targets: ClassVar[dict[str, str]] = catalogue.by_targets(
        rf"{_BLOCKS}\.{_ATTENTION}",
        rf"{_BLOCKS}\.({_ATTENTION}|feed_forward\.w[123])",
    )

    landmark = "cap_embedder.1.weight"
    unused = ("norm_final.weight",)

    def setup(self) -> None:
        self.resolution = int(self.base.read_json("vae", "config.json")["sample_size"])
        self.noise = self.flow()

    def embed(self, text: Any, captions: list[str]) -> list[TextEmbeds]:
        # The pipeline writes its template into the list that it is given.
        prompts, _ = text.encode_prompt(list(captions), self.device, do_classifier_free_guidance=False)
        return [{"prompt": prompt} for prompt in prompts]

    def predict(
        self,
        denoiser: nn.Module,
        noisy_BCHW: Tensor,
        t_B: Tensor,
        embeds: Sequence[TextEmbeds],
        geometry: Sequence[Geometry],
    ) -> Tensor:
        pictures_C1HW = list(noisy_BCHW.to(self.dtype).unsqueeze(2).unbind())
        prompts_LD = [e["prompt"].to(self.device, self.dtype) for e in embeds]
        velocities_C1HW = denoiser(pictures_C1HW, 1 - t_B, prompts_LD).sample
        return -torch.stack(list(velocities_C1HW)).squeeze(2)

    def pipeline_inputs(self, positive: TextEmbeds, negative: TextEmbeds) -> dict[str, Any]:
        return {
            "prompt_embeds": [positive["prompt"].to(self.device, self.dtype)],
            "negative_prompt_embeds": [negative["prompt"].to(self.device, self.dtype)],
        }

    def guidance(self, scale: float) -> dict[str, Any]:
        """The pipeline adds guidance to the positive prediction, so its 0 is everyone's 1."""
        return {"guidance_scale": scale - 1}

    def native(self, module: str) -> Native:
        if match := re.fullmatch(r"(.*\.attention)\.(to_[qkv])", module):
            width = int(self.denoiser_config["dim"])
            first = _QKV.index(match[2]) * width
            return Native(f"{match[1]}.qkv", (first, first + width), 3 * width)
        return Native(renamed(module, _NAMES))

    def metadata(self) -> dict[str, str]:
        return {
            "ss_base_model_version": "z_image",
            "modelspec.architecture": "z-image/lora",
            "modelspec.implementation": "https://github.com/Tongyi-MAI/Z-Image",
        }
