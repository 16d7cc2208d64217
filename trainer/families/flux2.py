"""FLUX.2 (black-forest-labs 2025): klein 4B and 9B, which read captions with Qwen3, and dev, with Mistral 3.

Text is three hidden layers of a language model behind its chat template, side by side, always 512 tokens.
The VAE has 32 channels; its latents are cut into 2x2 patches and normalised by the statistics of a batch
norm that is part of it, so latents here have 128 channels and a sixteenth of the picture's side. The
modulations are shared by all blocks. klein's base models have real guidance and a negative prompt; dev is
distilled to follow a guidance scale that it is told.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from diffusers import Flux2KleinPipeline, Flux2Pipeline, Flux2Transformer2DModel
from torch import Tensor, nn
from transformers import (
    Mistral3ForConditionalGeneration,
    PreTrainedTokenizerFast,
    Qwen2Tokenizer,
    Qwen3ForCausalLM,
)

from ..contract import families as catalogue
from .base import Geometry, TextEmbeds
from .batch_norm_vae import BatchNormVae
from .flux_family import ATTENTION, FluxFamily
from .packing import from_tokens, to_tokens

_DOUBLE = r"transformer_blocks\.\d+"
# A single block's attention and MLP are one layer on either side.
_SINGLE = r"single_transformer_blocks\.\d+\.attn\.(to_qkv_mlp_proj|to_out)"

TRAINING_GUIDANCE = 1.0
"""The guidance that dev is told while training, as in musubi-tuner and for FLUX.1."""


class Family(BatchNormVae, FluxFamily):
    """See :class:`trainer.families.base.ModelFamily` for when each member is called."""

    row = catalogue.FLUX2
    published: ClassVar[dict[str, dict[str, Any]]] = {
        "black-forest-labs/FLUX.2-klein-base-4B": {
            "num_layers": 5,
            "num_single_layers": 20,
            "num_attention_heads": 24,
            "joint_attention_dim": 7680,
            "guidance_embeds": False,
        },
        "black-forest-labs/FLUX.2-klein-base-9B": {
            "num_layers": 8,
            "num_single_layers": 24,
            "num_attention_heads": 32,
            "joint_attention_dim": 12288,
            "guidance_embeds": False,
        },
        "black-forest-labs/FLUX.2-dev": {},
    }
    pipeline_class = Flux2KleinPipeline
    denoiser_class = Flux2Transformer2DModel
    patch = 1  # latents are in patches already
    text_classes: ClassVar[dict[str, Any]] = {"text_encoder": Qwen3ForCausalLM}
    tokenizer_classes: ClassVar[dict[str, Any]] = {"tokenizer": Qwen2Tokenizer}
    targets: ClassVar[dict[str, str]] = catalogue.by_targets(
        rf"({_DOUBLE}\.{ATTENTION}|{_SINGLE})",
        rf"({_DOUBLE}\.({ATTENTION}|ff(_context)?\.linear_(in|out))|{_SINGLE})",
    )

    double_names: ClassVar[dict[str, str]] = {
        **FluxFamily.double_names,
        "ff.linear_in": "img_mlp.0",
        "ff.linear_out": "img_mlp.2",
        "ff_context.linear_in": "txt_mlp.0",
        "ff_context.linear_out": "txt_mlp.2",
    }
    single_names: ClassVar[dict[str, str]] = {
        **FluxFamily.single_names,
        "attn.to_qkv_mlp_proj": "linear1",
        "attn.to_out": "linear2",
    }
    other_names: ClassVar[dict[str, str]] = {
        **FluxFamily.other_names,
        "time_guidance_embed.timestep_embedder": "time_in",
        "time_guidance_embed.guidance_embedder": "guidance_in",
        "double_stream_modulation_img.linear": "double_stream_modulation_img.lin",
        "double_stream_modulation_txt.linear": "double_stream_modulation_txt.lin",
        "single_stream_modulation.linear": "single_stream_modulation.lin",
    }

    def setup(self) -> None:
        super().setup()
        self.guided = bool(self.denoiser_config.get("guidance_embeds", True))
        self.reads_mistral = self.index["_class_name"] == Flux2Pipeline.__name__
        if self.reads_mistral:
            self.tokens -= 40  # its system message
            self.pipeline_class = Flux2Pipeline  # type: ignore[misc,assignment]
            self.text_classes = {"text_encoder": Mistral3ForConditionalGeneration}  # type: ignore[misc]
            # The published folder's class is a processor, which needs torchvision for pictures that are
            # never shown to it; the tokenizer and the chat template in it are all there is to text.
            self.tokenizer_classes = {"tokenizer": PreTrainedTokenizerFast}  # type: ignore[misc]

    def pipeline_extras(self) -> dict[str, Any]:
        return {} if self.reads_mistral else {"is_distilled": bool(self.index.get("is_distilled"))}

    # Encoding -------------------------------------------------------------------------------------

    def embed(self, text: Any, captions: list[str]) -> list[TextEmbeds]:
        prompts, _ = text.encode_prompt(captions, device=self.device)
        return [{"prompt": prompt} for prompt in prompts]

    # Training and sampling ------------------------------------------------------------------------

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
        # Positions are (time, row, column, token): a picture's tokens are all at token 0, the text's count.
        picture = nn.functional.pad(self.grid(height, width), (0, 1))
        text = nn.functional.pad(torch.arange(prompts_BLD.shape[1], device=self.device)[:, None], (3, 0))
        velocity: Tensor = denoiser(
            to_tokens(noisy_BCHW).to(self.dtype),
            encoder_hidden_states=prompts_BLD,
            timestep=t_B,
            img_ids=picture,
            txt_ids=text.float(),
            guidance=torch.full_like(t_B, TRAINING_GUIDANCE) if self.guided else None,
        ).sample
        return from_tokens(velocity, height, width)

    def to_pipeline(self, latents_BCHW: Tensor) -> Tensor:
        return latents_BCHW

    def pipeline_inputs(self, positive: TextEmbeds, negative: TextEmbeds) -> dict[str, Any]:
        inputs = {"prompt_embeds": self.batched(positive["prompt"])}
        if not self.reads_mistral:
            inputs["negative_prompt_embeds"] = self.batched(negative["prompt"])
        return inputs

    def metadata(self) -> dict[str, str]:
        size = {24: "flux2_klein_4b", 32: "flux2_klein_9b"}
        return {
            "ss_base_model_version": size.get(self.denoiser_config["num_attention_heads"], "flux2"),
            "modelspec.architecture": "flux-2/lora",
            "modelspec.implementation": "https://github.com/black-forest-labs/flux2",
        }
