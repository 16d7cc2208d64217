"""ERNIE-Image (Baidu 2026): one stream of picture and text tokens, 8.0 B parameters, rectified flow.

Text is the second-to-last hidden states of Ministral 3 3B, without a template, padded to the batch's longest
caption and masked; latents are FLUX.2's, 32 channels in 2x2 patches, each of whose 128 numbers is normalised
by statistics in the VAE. The prompt enhancer that comes with it, a language model that rewrites what users
type, is not used: captions are what they say.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from diffusers import ErnieImagePipeline, ErnieImageTransformer2DModel
from torch import Tensor, nn
from transformers import Mistral3Model, TokenizersBackend

from ..contract import families as catalogue
from .base import Geometry, TextEmbeds
from .batch_norm_vae import BatchNormVae
from .native_file import NativeFamily

_ATTENTION = r"self_attention\.(to_q|to_k|to_v|to_out\.0)"


class Family(BatchNormVae, NativeFamily):
    """See :class:`trainer.families.base.ModelFamily` for when each member is called."""

    row = catalogue.ERNIEIMAGE
    published: ClassVar[dict[str, dict[str, Any]]] = {
        "baidu/ERNIE-Image": {
            "hidden_size": 4096,
            "num_attention_heads": 32,
            "num_layers": 36,
            "ffn_hidden_size": 12288,
            "text_in_dim": 3072,
        }
    }
    pipeline_class = ErnieImagePipeline
    denoiser_class = ErnieImageTransformer2DModel
    epsilon = 1e-5  # as the pipeline; the VAE's configuration says ten times as much
    patch = 1  # latents are in patches already
    text_classes: ClassVar[dict[str, Any]] = {"text_encoder": Mistral3Model}
    tokenizer_classes: ClassVar[dict[str, Any]] = {"tokenizer": TokenizersBackend}
    targets: ClassVar[dict[str, str]] = catalogue.by_targets(
        rf"layers\.\d+\.{_ATTENTION}",
        rf"layers\.\d+\.({_ATTENTION}|mlp\.(gate_proj|up_proj|linear_fc2))",
    )
    landmark = "layers.0.adaLN_sa_ln.weight"

    def setup(self) -> None:
        self.resolution = self.row.resolution  # the pipeline's default; no configuration says it
        self.noise = self.flow()

    def embed(self, text: Any, captions: list[str]) -> list[TextEmbeds]:
        return [{"prompt": prompt} for prompt in text.encode_prompt(captions, self.device)]

    def predict(
        self,
        denoiser: nn.Module,
        noisy_BCHW: Tensor,
        t_B: Tensor,
        embeds: Sequence[TextEmbeds],
        geometry: Sequence[Geometry],
    ) -> Tensor:
        prompts_BLD, mask_BL = self.padded([e["prompt"] for e in embeds])
        velocity: Tensor = denoiser(
            noisy_BCHW.to(self.dtype),
            timestep=t_B * 1000,
            text_bth=prompts_BLD,
            text_lens=mask_BL.sum(1),
        ).sample
        return velocity

    def pipeline_inputs(self, positive: TextEmbeds, negative: TextEmbeds) -> dict[str, Any]:
        return {
            "prompt_embeds": [positive["prompt"].to(self.device, self.dtype)],
            "negative_prompt_embeds": [negative["prompt"].to(self.device, self.dtype)],
        }

    def metadata(self) -> dict[str, str]:
        return {
            "ss_base_model_version": "ernie_image",
            "modelspec.architecture": "ernie-image/lora",
            "modelspec.implementation": "https://github.com/huggingface/diffusers",
        }
