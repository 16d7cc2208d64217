"""Lumina-Image 2.0 (Alpha-VLLM 2025): one stream of text and picture tokens, 2.6 B parameters.

Text is the second-to-last hidden states of Gemma 2 2B behind a system prompt, which the unconditional input
lacks; 16-channel latents of FLUX.1's VAE, in 2x2 patches inside the transformer. Rectified flow; the model
counts time from noise (0) to picture (1), and so predicts picture - noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from diffusers import Lumina2Pipeline, Lumina2Transformer2DModel
from torch import Tensor, nn
from transformers import Gemma2Model, GemmaTokenizer

from ..contract import families as catalogue
from .base import Geometry, Native, TextEmbeds
from .native_file import NativeFamily, renamed

_ATTENTION = r"attn\.(to_q|to_k|to_v|to_out\.0)"
_BLOCKS = r"(layers|noise_refiner|context_refiner)\.\d+"

# diffusers' names and the original code's.
_NAMES = {
    "attn.to_out.0": "attention.out",
    "attn.norm_q": "attention.q_norm",
    "attn.norm_k": "attention.k_norm",
    "feed_forward.linear_1": "feed_forward.w1",
    "feed_forward.linear_2": "feed_forward.w2",
    "feed_forward.linear_3": "feed_forward.w3",
    "norm1.linear": "adaLN_modulation.1",
    "norm1.norm": "attention_norm1",
    "norm1": "attention_norm1",
    "norm2": "attention_norm2",
    "time_caption_embed.caption_embedder": "cap_embedder",
    "time_caption_embed.timestep_embedder.linear_1": "t_embedder.mlp.0",
    "time_caption_embed.timestep_embedder.linear_2": "t_embedder.mlp.2",
    "norm_out.linear_1": "final_layer.adaLN_modulation.1",
    "norm_out.linear_2": "final_layer.linear",
}


class Family(NativeFamily):
    """See :class:`trainer.families.base.ModelFamily` for when each member is called."""

    row = catalogue.LUMINA2
    published: ClassVar[dict[str, dict[str, Any]]] = {"Alpha-VLLM/Lumina-Image-2.0": {"cap_feat_dim": 2304}}
    pipeline_class = Lumina2Pipeline
    denoiser_class = Lumina2Transformer2DModel
    text_classes: ClassVar[dict[str, Any]] = {"text_encoder": Gemma2Model}
    tokenizer_classes: ClassVar[dict[str, Any]] = {"tokenizer": GemmaTokenizer}
    targets: ClassVar[dict[str, str]] = catalogue.by_targets(
        rf"{_BLOCKS}\.{_ATTENTION}",
        rf"{_BLOCKS}\.({_ATTENTION}|feed_forward\.linear_[123])",
    )

    landmark = "cap_embedder.1.weight"
    unused = ("norm_final.weight",)

    def setup(self) -> None:
        self.resolution = 8 * int(self.denoiser_config["sample_size"])
        self.noise = self.flow()

    def embed(self, text: Any, captions: list[str]) -> list[TextEmbeds]:
        # The pipeline puts its system prompt before prompts, not before the negative one.
        prompts, masks, nothing, nothing_mask = text.encode_prompt(
            captions, negative_prompt="", device=self.device
        )
        return [
            {"prompt": prompts[i][masks[i].bool()] if caption else nothing[i][nothing_mask[i].bool()]}
            for i, caption in enumerate(captions)
        ]

    def predict(
        self,
        denoiser: nn.Module,
        noisy_BCHW: Tensor,
        t_B: Tensor,
        embeds: Sequence[TextEmbeds],
        geometry: Sequence[Geometry],
    ) -> Tensor:
        prompts_BLD, mask_BL = self.padded([e["prompt"] for e in embeds])
        velocity: Tensor = denoiser(noisy_BCHW.to(self.dtype), 1 - t_B, prompts_BLD, mask_BL).sample
        return -velocity

    def pipeline_inputs(self, positive: TextEmbeds, negative: TextEmbeds) -> dict[str, Any]:
        """Both padded to one length, which the pipeline insists on."""
        prompts, masks = self.padded([positive["prompt"], negative["prompt"]])
        return {
            "prompt_embeds": prompts[:1],
            "prompt_attention_mask": masks[:1],
            "negative_prompt_embeds": prompts[1:],
            "negative_prompt_attention_mask": masks[1:],
        }

    def native(self, module: str) -> Native:
        block, _, last = module.rpartition(".attn.")
        if last not in ("to_q", "to_k", "to_v"):
            return Native(renamed(module, _NAMES))
        width, heads = int(self.denoiser_config["hidden_size"]), self.denoiser_config["num_attention_heads"]
        few = width // int(heads) * int(self.denoiser_config["num_kv_heads"])
        rows = {"to_q": (0, width), "to_k": (width, width + few), "to_v": (width + few, width + 2 * few)}
        return Native(f"{block}.attention.qkv", rows[last], width + 2 * few)

    def metadata(self) -> dict[str, str]:
        return {
            "ss_base_model_version": "lumina2",
            "modelspec.architecture": "lumina-2/lora",
            "modelspec.implementation": "https://github.com/Alpha-VLLM/Lumina-Image-2.0",
        }
