"""Qwen-Image (Qwen team 2025): a double-stream transformer of 20.4 B parameters, rectified flow.

Text is the last hidden states of Qwen2.5-VL behind a template of its own, whose 34 tokens are dropped; a
batch is padded to its longest caption and masked. The checkpoint's names are diffusers' own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from diffusers import QwenImagePipeline, QwenImageTransformer2DModel
from torch import Tensor, nn
from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2Tokenizer

from ..contract import families as catalogue
from .base import Geometry, TextEmbeds
from .packing import pack, unpack
from .qwen_vae import QwenVaeFamily

_ATTENTION = r"attn\.(to_q|to_k|to_v|to_out\.0|add_q_proj|add_k_proj|add_v_proj|to_add_out)"
_BLOCKS = r"transformer_blocks\.\d+"


class Family(QwenVaeFamily):
    """See :class:`trainer.families.base.ModelFamily` for when each member is called."""

    row = catalogue.QWENIMAGE
    published: ClassVar[dict[str, dict[str, Any]]] = {"Qwen/Qwen-Image": {}, "Qwen/Qwen-Image-2512": {}}
    pipeline_class = QwenImagePipeline
    denoiser_class = QwenImageTransformer2DModel
    text_classes: ClassVar[dict[str, Any]] = {"text_encoder": Qwen2_5_VLForConditionalGeneration}
    tokenizer_classes: ClassVar[dict[str, Any]] = {"tokenizer": Qwen2Tokenizer}
    targets: ClassVar[dict[str, str]] = catalogue.by_targets(
        rf"{_BLOCKS}\.{_ATTENTION}",
        rf"{_BLOCKS}\.({_ATTENTION}|(img|txt)_mlp\.net\.(0\.proj|2))",
    )
    landmark = "txt_norm.weight"
    unread = r"attn\.(add_q_proj|to_add_out)|txt_mlp\.net\.(0\.proj|2)"

    def setup(self) -> None:
        self.resolution = self.row.resolution  # the pipeline's default; no configuration says it
        self.noise = self.flow()

    def embed(self, text: Any, captions: list[str]) -> list[TextEmbeds]:
        prompts_BLD, mask_BL = text.encode_prompt(
            captions, device=self.device, max_sequence_length=self.row.token_limit
        )
        if mask_BL is None:  # all of the same length
            return [{"prompt": prompt} for prompt in prompts_BLD]
        return [{"prompt": prompt[mask.bool()]} for prompt, mask in zip(prompts_BLD, mask_BL, strict=True)]

    def predict(
        self,
        denoiser: nn.Module,
        noisy_BCHW: Tensor,
        t_B: Tensor,
        embeds: Sequence[TextEmbeds],
        geometry: Sequence[Geometry],
    ) -> Tensor:
        height, width = noisy_BCHW.shape[-2:]
        prompts_BLD, mask_BL = self.padded([e["prompt"] for e in embeds])
        velocity: Tensor = denoiser(
            pack(noisy_BCHW).to(self.dtype),
            encoder_hidden_states=prompts_BLD,
            # Without a mask the faster kernels of attention can be used.
            encoder_hidden_states_mask=None if bool(mask_BL.all()) else mask_BL,
            timestep=t_B,
            img_shapes=[[(1, height // 2, width // 2)]] * len(noisy_BCHW),
        ).sample
        return unpack(velocity, height, width)

    def pipeline_inputs(self, positive: TextEmbeds, negative: TextEmbeds) -> dict[str, Any]:
        prompt, mask = self.padded([positive["prompt"]])
        negative_prompt, negative_mask = self.padded([negative["prompt"]])
        return {
            "prompt_embeds": prompt,
            "prompt_embeds_mask": mask,
            "negative_prompt_embeds": negative_prompt,
            "negative_prompt_embeds_mask": negative_mask,
        }

    def guidance(self, scale: float) -> dict[str, Any]:
        """The pipeline's ``guidance_scale`` is for distilled models that are told it; there are none."""
        return {"true_cfg_scale": scale}

    def metadata(self) -> dict[str, str]:
        return {
            "ss_base_model_version": "qwen_image",
            "modelspec.architecture": "qwen-image/lora",
            "modelspec.implementation": "https://github.com/QwenLM/Qwen-Image",
        }
