"""HunyuanImage 2.1 (Tencent 2025): double and single blocks as FLUX.1's, 17.4 B parameters, rectified flow.

Text is a hidden layer of Qwen2.5-VL behind a template of its own, whose 34 tokens are dropped, and what
byT5 makes of the words in quotation marks, which are to be written in the picture. The VAE makes a 32nd of
the side, so that pictures of 2048 px have as many tokens as others' of 1024. The modulations get no LoRA.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from diffusers import (
    AdaptiveProjectedMixGuidance,
    AutoencoderKLHunyuanImage,
    HunyuanImagePipeline,
    HunyuanImageTransformer2DModel,
)
from torch import Tensor, nn
from transformers import ByT5Tokenizer, Qwen2_5_VLForConditionalGeneration, Qwen2Tokenizer, T5EncoderModel

from ..contract import families as catalogue
from ..contract.errors import RunError
from .base import Geometry, TextEmbeds
from .flux_family import ATTENTION, FluxFamily

_SINGLE = r"single_transformer_blocks\.\d+\.(attn\.to_[qkv]"
_GUIDERS = ("guider", "ocr_guider")


class GuidedPipeline(HunyuanImagePipeline):
    """With ``guidance_scale`` as an argument of the call; diffusers keeps it in parts of the pipeline.

    It is the scale of the first steps: the guiders that the base comes with go on with one of their own.
    """

    def __call__(self, *args: Any, guidance_scale: float, **inputs: Any) -> Any:
        for part in _GUIDERS:
            if (guider := getattr(self, part)) is not None:
                setattr(self, part, guider.new(guidance_scale=guidance_scale))
        return super().__call__(*args, **inputs)  # type: ignore[misc]  # it is decorated


class Family(FluxFamily):
    """See :class:`trainer.families.base.ModelFamily` for when each member is called."""

    row = catalogue.HUNYUANIMAGE
    published: ClassVar[dict[str, dict[str, Any]]] = {
        "hunyuanvideo-community/HunyuanImage-2.1-Diffusers": {"text_embed_2_dim": 1472}
    }
    pipeline_class = GuidedPipeline
    denoiser_class = HunyuanImageTransformer2DModel
    vae_class = AutoencoderKLHunyuanImage
    patch = 1
    text_classes: ClassVar[dict[str, Any]] = {
        "text_encoder": Qwen2_5_VLForConditionalGeneration,
        "text_encoder_2": T5EncoderModel,
    }
    tokenizer_classes: ClassVar[dict[str, Any]] = {"tokenizer_2": ByT5Tokenizer, "tokenizer": Qwen2Tokenizer}
    targets: ClassVar[dict[str, str]] = catalogue.by_targets(
        rf"transformer_blocks\.\d+\.{ATTENTION}|{_SINGLE})",
        rf"transformer_blocks\.\d+\.({ATTENTION}|ff(_context)?\.net\.(0\.proj|2))"
        rf"|{_SINGLE}|proj_mlp|proj_out)",
    )

    respelt: ClassVar[dict[str, str]] = {"mlp_0": "mlp_fc1", "mlp_2": "mlp_fc2", "_lin": "_linear"}

    def setup(self) -> None:
        config = self.denoiser_config
        if config.get("guidance_embeds") or config.get("use_meanflow"):
            raise RunError(
                f"{self.base.name} is distilled to few steps, which cannot be trained here; "
                f"choose {self.row.bases[0].id}",
                "model_missing",
            )
        self.resolution = self.row.resolution  # the pipeline's default; no configuration says it
        self.noise = self.flow()

    def pipeline_extras(self) -> dict[str, Any]:
        """The base's guiders: one for prompts with words to be written, one for the others."""
        there = [part for part in _GUIDERS if any(self.index.get(part) or ())]
        folder = self.base.config
        return {part: AdaptiveProjectedMixGuidance.from_pretrained(folder / part) for part in there}

    def to_latents(self, vae: Any, pixels_BCHW: Tensor) -> Tensor:
        latents: Tensor = vae.encode(pixels_BCHW).latent_dist.mode()
        return latents * vae.config.scaling_factor

    def decode(self, vae: Any, latents_BCHW: Tensor) -> Tensor:
        pixels: Tensor = vae.decode(latents_BCHW / vae.config.scaling_factor).sample
        return pixels

    def to_pipeline(self, latents_BCHW: Tensor) -> Tensor:
        return latents_BCHW

    def embed(self, text: Any, captions: list[str]) -> list[TextEmbeds]:
        prompts, masks, glyphs, glyph_masks = text.encode_prompt(
            captions, self.device, batch_size=len(captions)
        )
        embeds = []
        for prompt, mask, glyph, glyph_mask in zip(prompts, masks, glyphs, glyph_masks, strict=True):
            written = glyph[glyph_mask.bool()]
            # Where nothing is to be written, the pipeline has zeros; one of them is enough.
            embeds.append({"prompt": prompt[mask.bool()], "glyphs": written if len(written) else glyph[:1]})
        return embeds

    def _glyphs(self, embeds: Sequence[TextEmbeds]) -> tuple[Tensor, Tensor]:
        """(B, longest, D) and its mask; zeros are padding."""
        glyphs_BLD, _ = self.padded([e["glyphs"] for e in embeds])
        return glyphs_BLD, glyphs_BLD.any(-1)

    def predict(
        self,
        denoiser: nn.Module,
        noisy_BCHW: Tensor,
        t_B: Tensor,
        embeds: Sequence[TextEmbeds],
        geometry: Sequence[Geometry],
    ) -> Tensor:
        prompts_BLD, mask_BL = self.padded([e["prompt"] for e in embeds])
        glyphs_BLD, glyph_mask_BL = self._glyphs(embeds)
        velocity: Tensor = denoiser(
            noisy_BCHW.to(self.dtype),
            timestep=(t_B * 1000).to(self.dtype),
            encoder_hidden_states=prompts_BLD,
            encoder_attention_mask=mask_BL,
            encoder_hidden_states_2=glyphs_BLD,
            encoder_attention_mask_2=glyph_mask_BL,
        ).sample
        return velocity

    def pipeline_inputs(self, positive: TextEmbeds, negative: TextEmbeds) -> dict[str, Any]:
        inputs: dict[str, Any] = {}
        for beginning, embeds in (("", positive), ("negative_", negative)):
            prompt, mask = self.padded([embeds["prompt"]])
            glyphs, glyph_mask = self._glyphs([embeds])
            inputs[f"{beginning}prompt_embeds"] = prompt
            inputs[f"{beginning}prompt_embeds_mask"] = mask
            inputs[f"{beginning}prompt_embeds_2"] = glyphs
            inputs[f"{beginning}prompt_embeds_mask_2"] = glyph_mask
        return inputs

    def metadata(self) -> dict[str, str]:
        return {
            "ss_base_model_version": "hunyuan_image_2.1",
            "modelspec.architecture": "hunyuan-image-2.1/lora",
            "modelspec.implementation": "https://github.com/Tencent-Hunyuan/HunyuanImage-2.1",
        }
