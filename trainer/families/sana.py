"""Sana 1.0 and 1.5 (Xie et al. 2024): linear attention over latents of a 32x autoencoder, Gemma 2 for text.

Captions follow the pipeline's instruction to a language model ("complex human instruction", section 2.3 of
the paper), of which only the last token stays in the embeddings; the empty caption goes without, as the
pipeline's negative prompt does. Masked tokens are not kept. Rectified flow with logit-normal times and the
sampler's ``flow_shift`` (3), as Sana's own training configurations have it; the transformer counts time
from 0 to 1000.

The feed-forward layer is made of convolutions: two of 1x1, which are linear layers in all but name and
belong to "transformer", and one of 3x3 by channel, which has no low-rank form. So "transformer+conv" is
"transformer".
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence
from typing import Any, ClassVar

from diffusers import AutoencoderDC, SanaPipeline, SanaTransformer2DModel
from torch import Tensor, nn
from transformers import Gemma2Model, GemmaTokenizer

from ..contract import families as catalogue
from ..noise import Flow
from ..timesteps import Times
from .base import Geometry, Native, TextEmbeds
from .pipeline_family import PipelineFamily

_ATTENTION = r"transformer_blocks\.\d+\.attn[12]\.(to_[qkv]|to_out\.0)"
_TRANSFORMER = rf"({_ATTENTION}|transformer_blocks\.\d+\.ff\.conv_(inverted|point))"

_INSTRUCTION: list[str] = (
    inspect.signature(SanaPipeline.__call__).parameters["complex_human_instruction"].default
)

# diffusers' modules of a block -> NVIDIA's, and which share of the output rows, of how many, is theirs.
_BLOCK: dict[str, tuple[str, int, int]] = {
    "attn1.to_q": ("attn.qkv", 0, 3),
    "attn1.to_k": ("attn.qkv", 1, 3),
    "attn1.to_v": ("attn.qkv", 2, 3),
    "attn1.to_out.0": ("attn.proj", 0, 1),
    "attn2.to_q": ("cross_attn.q_linear", 0, 1),
    "attn2.to_k": ("cross_attn.kv_linear", 0, 2),
    "attn2.to_v": ("cross_attn.kv_linear", 1, 2),
    "attn2.to_out.0": ("cross_attn.proj", 0, 1),
    "ff.conv_inverted": ("mlp.inverted_conv.conv", 0, 1),
    "ff.conv_depth": ("mlp.depth_conv.conv", 0, 1),
    "ff.conv_point": ("mlp.point_conv.conv", 0, 1),
}
_REST = {
    "patch_embed.proj": "x_embedder.proj",
    "time_embed.emb.timestep_embedder.linear_1": "t_embedder.mlp.0",
    "time_embed.emb.timestep_embedder.linear_2": "t_embedder.mlp.2",
    "time_embed.linear": "t_block.1",
    "caption_projection.linear_1": "y_embedder.y_proj.fc1",
    "caption_projection.linear_2": "y_embedder.y_proj.fc2",
    "proj_out": "final_layer.linear",
}


class Family(PipelineFamily):
    """See :class:`trainer.families.base.ModelFamily` for when each member is called."""

    row = catalogue.SANA
    published: ClassVar[dict[str, dict[str, Any]]] = {
        "Efficient-Large-Model/Sana_1600M_1024px_BF16_diffusers": {}
    }
    pipeline_class = SanaPipeline
    denoiser_class = SanaTransformer2DModel
    vae_class = AutoencoderDC
    patch = 1
    text_classes: ClassVar[dict[str, Any]] = {"text_encoder": Gemma2Model}
    tokenizer_classes: ClassVar[dict[str, Any]] = {"tokenizer": GemmaTokenizer}
    targets: ClassVar[dict[str, str]] = catalogue.by_targets(_ATTENTION, _TRANSFORMER)

    def setup(self) -> None:
        vae_factor = 2 ** (len(self.vae_config["encoder_block_out_channels"]) - 1)
        self.resolution = int(self.denoiser_config["sample_size"]) * vae_factor
        # Two schedulers can sample it, and each has a name of its own for the shift.
        shift = self.schedule.get("flow_shift") or self.schedule.get("shift") or 1.0
        self.noise = Flow(Times("logit_normal", float(shift)))

    # Encoding -------------------------------------------------------------------------------------

    def to_latents(self, vae: Any, pixels_BCHW: Tensor) -> Tensor:
        latents: Tensor = vae.encode(pixels_BCHW).latent
        return latents * vae.config.scaling_factor

    def decode(self, vae: Any, latents_BCHW: Tensor) -> Tensor:
        pixels: Tensor = vae.decode(latents_BCHW / vae.config.scaling_factor).sample
        return pixels

    def text_options(self) -> Sequence[object]:
        return _INSTRUCTION

    def embed(self, text: Any, captions: list[str]) -> list[TextEmbeds]:
        return [self._embed_one(text, caption) for caption in captions]

    def _embed_one(self, text: Any, caption: str) -> TextEmbeds:
        prompt_1LD, mask_1L, _, _ = text.encode_prompt(
            caption,
            do_classifier_free_guidance=False,
            device=self.device,
            complex_human_instruction=_INSTRUCTION if caption.strip() else None,
        )
        return {"prompt": prompt_1LD[0][mask_1L[0].bool()]}

    # Training -------------------------------------------------------------------------------------

    def predict(
        self,
        denoiser: nn.Module,
        noisy_BCHW: Tensor,
        t_B: Tensor,
        embeds: Sequence[TextEmbeds],
        geometry: Sequence[Geometry],
    ) -> Tensor:
        prompt_BLD, mask_BL = self.padded([e["prompt"] for e in embeds])
        velocity: Tensor = denoiser(
            noisy_BCHW.to(self.dtype),
            encoder_hidden_states=prompt_BLD,
            encoder_attention_mask=mask_BL.long(),
            timestep=t_B * 1000 * self.denoiser_config.get("timestep_scale", 1.0),
        ).sample
        return velocity

    # Sampling and export --------------------------------------------------------------------------

    def pipeline_inputs(self, positive: TextEmbeds, negative: TextEmbeds) -> dict[str, Any]:
        prompt_2LD, mask_2L = self.padded([positive["prompt"], negative["prompt"]])
        return {
            "prompt_embeds": prompt_2LD[:1],
            "prompt_attention_mask": mask_2L[:1].long(),
            "negative_prompt": None,  # "" by default, which must not stand beside embeddings
            "negative_prompt_embeds": prompt_2LD[1:],
            "negative_prompt_attention_mask": mask_2L[1:].long(),
            # The size that was asked for, not the nearest of a list and then resized.
            "use_resolution_binning": False,
        }

    def native(self, module: str) -> Native:
        match = re.fullmatch(r"transformer_blocks\.(\d+)\.(.+)", module)
        if not match or match[2] not in _BLOCK:
            return Native(_REST.get(module, module))
        inside, share, shares = _BLOCK[match[2]]
        name = f"blocks.{match[1]}.{inside}"
        if shares == 1:
            return Native(name)
        width = self.denoiser_config["num_attention_heads"] * self.denoiser_config["attention_head_dim"]
        return Native(name, (share * width, (share + 1) * width), shares * width)

    def metadata(self) -> dict[str, str]:
        return {
            "ss_base_model_version": "sana",
            "ss_v2": "False",
            "modelspec.architecture": "sana-v1/lora",
            "modelspec.implementation": "https://github.com/NVlabs/Sana",
            "modelspec.prediction_type": "v",
        }
