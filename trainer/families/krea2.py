"""Krea 2 (Krea 2026): one stream of text and picture tokens, 12.9 B parameters, rectified flow.

Text is twelve layers' hidden states of Qwen3-VL-4B, stacked and fused inside the transformer; pictures go
through Qwen-Image's VAE. LoRAs are trained on Raw, as its makers advise, and drawn with on Raw or Turbo.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from diffusers import Krea2Pipeline, Krea2Transformer2DModel
from torch import Tensor, nn
from transformers import Qwen2Tokenizer, Qwen3VLModel

from ..contract import families as catalogue
from .base import Geometry, Native, TextEmbeds
from .native_file import renamed
from .packing import pack, unpack
from .qwen_vae import QwenVaeFamily

_ATTENTION = r"attn\.(to_q|to_k|to_v|to_gate|to_out\.0)"
_BLOCKS = r"transformer_blocks\.\d+"
# diffusers' names and the original code's.
_NAMES = {
    "transformer_blocks": "blocks",
    "text_fusion": "txtfusion",
    "attn.to_q": "attn.wq",
    "attn.to_k": "attn.wk",
    "attn.to_v": "attn.wv",
    "attn.to_out.0": "attn.wo",
    "attn.to_gate": "attn.gate",
    "ff": "mlp",
    "img_in": "first",
    "time_embed.linear_1": "tmlp.0",
    "time_embed.linear_2": "tmlp.2",
    "time_mod_proj": "tproj.1",
    "txt_in.linear_1": "txtmlp.1",
    "txt_in.linear_2": "txtmlp.3",
    "txt_in.norm": "txtmlp.0",
    "final_layer.scale_shift_table": "last.modulation.lin",
    "final_layer": "last",
    "attn.norm_q": "attn.qknorm.qnorm",
    "attn.norm_k": "attn.qknorm.knorm",
    "norm1": "prenorm",
    "norm2": "postnorm",
    "scale_shift_table": "mod.lin",
}


class Family(QwenVaeFamily):
    """See :class:`trainer.families.base.ModelFamily` for when each member is called."""

    row = catalogue.KREA2
    published: ClassVar[dict[str, dict[str, Any]]] = {"krea/Krea-2-Raw": {}}
    pipeline_class = Krea2Pipeline
    denoiser_class = Krea2Transformer2DModel
    text_classes: ClassVar[dict[str, Any]] = {"text_encoder": Qwen3VLModel}
    tokenizer_classes: ClassVar[dict[str, Any]] = {"tokenizer": Qwen2Tokenizer}
    targets: ClassVar[dict[str, str]] = catalogue.by_targets(
        rf"{_BLOCKS}\.{_ATTENTION}",
        rf"{_BLOCKS}\.({_ATTENTION}|ff\.(gate|up|down))",
    )

    landmark = "txtfusion.projector.weight"

    def setup(self) -> None:
        self.resolution = self.row.resolution  # no configuration says it
        self.noise = self.flow()

    def pipeline_extras(self) -> dict[str, Any]:
        """What the base's model_index.json says beside its parts."""
        return {
            "text_encoder_select_layers": self.index.get("text_encoder_select_layers"),
            "is_distilled": bool(self.index.get("is_distilled", False)),
            "patch_size": int(self.index.get("patch_size", 2)),
        }

    def text_options(self) -> Sequence[object]:
        return (self.index.get("text_encoder_select_layers"),)

    def embed(self, text: Any, captions: list[str]) -> list[TextEmbeds]:
        # (B, tokens, layers, D). The pipeline pads before the template's end; neither the encoder nor the
        # transformer counts padding as a position, so that it can be left out.
        prompts, masks = text.encode_prompt(
            captions, device=self.device, max_sequence_length=self.row.token_limit
        )
        return [{"prompt": prompt[mask]} for prompt, mask in zip(prompts, masks, strict=True)]

    def predict(
        self,
        denoiser: nn.Module,
        noisy_BCHW: Tensor,
        t_B: Tensor,
        embeds: Sequence[TextEmbeds],
        geometry: Sequence[Geometry],
    ) -> Tensor:
        height, width = noisy_BCHW.shape[-2:]
        prompts, mask_BL = self.padded([e["prompt"] for e in embeds])
        velocity: Tensor = denoiser(
            pack(noisy_BCHW).to(self.dtype),
            prompts,
            timestep=t_B,
            position_ids=Krea2Pipeline.prepare_position_ids(
                prompts.shape[1], height // 2, width // 2, self.device
            ),
            # Without a mask the faster kernels of attention can be used.
            encoder_attention_mask=None if bool(mask_BL.all()) else mask_BL,
        ).sample
        return unpack(velocity, height, width)

    def pipeline_inputs(self, positive: TextEmbeds, negative: TextEmbeds) -> dict[str, Any]:
        """Both padded to one length, because the pipeline counts positions once."""
        prompts, masks = self.padded([positive["prompt"], negative["prompt"]])
        return {
            "prompt_embeds": prompts[:1],
            "prompt_embeds_mask": masks[:1],
            "negative_prompt_embeds": prompts[1:],
            "negative_prompt_embeds_mask": masks[1:],
        }

    def guidance(self, scale: float) -> dict[str, Any]:
        """The pipeline adds guidance to the positive prediction, so its 0 is everyone's 1."""
        return {"guidance_scale": scale - 1}

    def native(self, module: str) -> Native:
        return Native(renamed(module, _NAMES))

    def metadata(self) -> dict[str, str]:
        return {
            "ss_base_model_version": "krea2",
            "modelspec.architecture": "krea-2/lora",
            "modelspec.implementation": "https://github.com/krea-ai/krea-2",
        }
