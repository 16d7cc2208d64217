"""Chroma (lodestones 2025): FLUX.1 schnell made smaller and undistilled, 8.9 billion parameters.

T5 alone reads the caption, guidance is classifier-free again, and one small network says every block's
modulation. Chroma attends to the caption's tokens and to one token of padding after them; a position in
the text has no meaning to it. So the rest of the padding is left out, which is the same as masking it,
costs nothing and keeps flash attention. Captions of different length go through the denoiser one by one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from diffusers import ChromaPipeline, ChromaTransformer2DModel
from torch import Tensor, nn
from transformers import T5EncoderModel

from ..contract import families as catalogue
from .base import Geometry, TextEmbeds
from .flux_family import FluxFamily
from .packing import pack, unpack
from .t5_tokenizer import T5FolderTokenizer


class MaskedPipeline(ChromaPipeline):
    """diffusers' pipeline with a mask that masks: its own is a float, which attention adds to the scores, so
    that padding still counts (huggingface/diffusers#12116, #13619; there in 0.42)."""

    def _prepare_attention_mask(
        self, batch_size: int, sequence_length: int, dtype: torch.dtype, attention_mask: Any = None
    ) -> Any:
        if attention_mask is None or bool(attention_mask.all()):
            return None  # as for a text without padding
        picture = torch.ones(batch_size, sequence_length, dtype=torch.bool, device=attention_mask.device)
        return torch.cat([attention_mask.bool(), picture], dim=1)


class Family(FluxFamily):
    """See :class:`trainer.families.base.ModelFamily` for when each member is called."""

    row = catalogue.CHROMA
    published: ClassVar[dict[str, dict[str, Any]]] = {"lodestones/Chroma1-HD": {}}
    pipeline_class = MaskedPipeline
    denoiser_class = ChromaTransformer2DModel
    text_classes: ClassVar[dict[str, Any]] = {"text_encoder": T5EncoderModel}
    tokenizer_classes: ClassVar[dict[str, Any]] = {"tokenizer": T5FolderTokenizer}

    def embed(self, text: Any, captions: list[str]) -> list[TextEmbeds]:
        prompts, _, masks, *_ = text.encode_prompt(
            captions, device=self.device, do_classifier_free_guidance=False
        )
        return [{"prompt": prompt[mask.bool()]} for prompt, mask in zip(prompts, masks, strict=True)]

    def predict(
        self,
        denoiser: nn.Module,
        noisy_BCHW: Tensor,
        t_B: Tensor,
        embeds: Sequence[TextEmbeds],
        geometry: Sequence[Geometry],
    ) -> Tensor:
        if len({len(e["prompt"]) for e in embeds}) > 1:
            singles = [slice(i, i + 1) for i in range(len(embeds))]
            return torch.cat(
                [self.predict(denoiser, noisy_BCHW[i], t_B[i], embeds[i], geometry[i]) for i in singles]
            )
        height, width = noisy_BCHW.shape[-2:]
        prompts_BLD = self.stacked([e["prompt"] for e in embeds])
        velocity: Tensor = denoiser(
            pack(noisy_BCHW).to(self.dtype),
            encoder_hidden_states=prompts_BLD,
            timestep=t_B,
            img_ids=self.grid(height // 2, width // 2),
            txt_ids=torch.zeros(prompts_BLD.shape[1], 3, device=self.device),
        ).sample
        return unpack(velocity, height, width)

    def pipeline_inputs(self, positive: TextEmbeds, negative: TextEmbeds) -> dict[str, Any]:
        prompt, avoid = self.batched(positive["prompt"]), self.batched(negative["prompt"])
        return {
            "prompt_embeds": prompt,
            "prompt_attention_mask": torch.ones(prompt.shape[:2], device=self.device),
            "negative_prompt_embeds": avoid,
            "negative_prompt_attention_mask": torch.ones(avoid.shape[:2], device=self.device),
        }

    def metadata(self) -> dict[str, str]:
        return {
            "ss_base_model_version": "chroma",
            "ss_timestep_sampling": "sigmoid",
            "ss_model_prediction_type": "raw",
            "modelspec.architecture": "chroma/lora",
            "modelspec.implementation": "https://github.com/black-forest-labs/flux",
        }
