"""Stable Diffusion XL (Podell et al. 2023), and the example to copy for a new family.

U-Net over 4-channel latents of an 8x VAE; the text of two CLIP encoders (second-to-last hidden states,
concatenated) plus the pooled output of the second; sizes and crop of the picture as six more numbers.
The schedule and what is predicted (noise, or v for bases such as NoobAI and our demo) are read from the
base's own scheduler configuration.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDPMScheduler,
    EulerDiscreteScheduler,
    ModelMixin,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from ..contract import families as catalogue
from ..contract.errors import RunError
from ..noise import Ddpm
from ..source import BaseModel, fingerprint
from . import sdxl_single_file as single_file
from .base import Geometry, TextEmbeds
from .identify import read_header
from .sdxl_single_file import sgm_name

# Linear and 1x1 convolutions of the transformers: kohya's LoRA targets, 722 modules at full size.
_ATTENTION = r"attn\d\.(to_q|to_k|to_v|to_out\.0)"
_TRANSFORMER = rf"({_ATTENTION}|ff\.net\.0\.proj|ff\.net\.2|proj_in|proj_out)"
# Everything with weights in residual, down- and upsampling blocks: kohya's LoCon.
_CONV = r"(resnets\.\d+\.(conv1|conv2|conv_shortcut|time_emb_proj)|(down|up)samplers\.0\.conv)"


class Family:
    """See :class:`trainer.families.base.ModelFamily` for when each member is called."""

    row = catalogue.SDXL
    targets = {  # noqa: RUF012 (a constant of the class)
        "attention": rf".*\.{_ATTENTION}",
        "transformer": rf".*attentions\..*{_TRANSFORMER}",
        "transformer+conv": rf"(.*attentions\..*{_TRANSFORMER}|.*{_CONV})",
    }

    def __init__(self, base: BaseModel, device: torch.device, dtype: torch.dtype) -> None:
        self._base, self._device, self._dtype = base, device, dtype
        self._vae: Any = None
        self._text: Any = None  # a pipeline of tokenizers and text encoders
        index = base.read_json("model_index.json")
        # SDXL's first release zeroes the empty prompt instead of encoding it.
        self._zero_empty = bool(index.get("force_zeros_for_empty_prompt", True))
        self._unet_config = base.read_json("unet", "config.json")
        vae_config = base.read_json("vae", "config.json")
        self._vae_factor = 2 ** (len(vae_config["block_out_channels"]) - 1)
        self.resolution = int(self._unet_config["sample_size"]) * self._vae_factor
        self._schedule = base.read_json("scheduler", "scheduler_config.json")
        if base.single_file:
            self._schedule |= single_file.schedule(base.header)
        ddpm = DDPMScheduler.from_config(self._schedule)
        self.noise = Ddpm(ddpm.alphas_cumprod.float(), ddpm.config.prediction_type)
        for part in single_file.PREFIXES:  # a damaged or missing file is found now, not after caching
            self._fingerprint(part)

    # Encoding -----------------------------------------------------------------------------------

    def image_encoder_id(self) -> str:
        return self._fingerprint("vae")

    def text_encoder_id(self) -> str:
        encoders = f"{self._fingerprint('text_encoder')}-{self._fingerprint('text_encoder_2')}"
        return f"{encoders}-{self._zero_empty}-{self._dtype}"

    def _source(self, part: str) -> Path:
        """Where a part's weights are: a folder, or a single file."""
        if part == "vae" and self._base.vae:
            return self._base.vae
        return self._base.weights if self._base.single_file else self._base.weights / part

    def _fingerprint(self, part: str) -> str:
        source = self._source(part)
        if source.is_file():
            return fingerprint(source, prefix=single_file.part_prefix(part, read_header(source)))
        files = sorted(source.glob("*.safetensors"))
        if not files:
            raise RunError(
                f"{self._base.name} has no .safetensors weights in {source.name}/; "
                "other formats can hide code and are refused",
                "model_missing",
            )
        return fingerprint(*files)

    def _load_part(self, cls: Any, part: str, dtype: torch.dtype) -> Any:
        source = self._source(part)
        if source.is_dir():
            return cls.from_pretrained(source, dtype=dtype, use_safetensors=True, variant=_variant(source))
        config = self._base.config / part

        def build() -> nn.Module:
            if issubclass(cls, ModelMixin):
                module: nn.Module = cls.from_config(cls.load_config(config))
                return module
            return cls(CLIPTextConfig.from_pretrained(config))

        return single_file.load_part(part, source, read_header(source), build, dtype)

    def _load_vae(self, dtype: torch.dtype) -> Any:
        """The VAE on the device. Loaded anew in another number format, so that no precision is lost."""
        if self._vae is None or self._vae.dtype != dtype:
            self._vae = self._load_part(AutoencoderKL, "vae", dtype).eval().requires_grad_(False)
            # In fp16 the pipeline decodes in fp32 where the configuration asks for it (SDXL's own VAE
            # overflows); a surrounding autocast would undo that.
            undisturbed = torch.autocast(self._device.type, enabled=False)
            self._vae.decode = undisturbed(self._vae.decode)
        return self._vae.to(self._device)

    @torch.no_grad()
    def encode_images(self, pixels_BCHW: Tensor) -> Tensor:
        # In fp32 always: it is done once per picture, and every step learns from it.
        vae = self._load_vae(torch.float32)
        # The mode, not a draw: a cached latent must be a function of the picture.
        latents = vae.encode(pixels_BCHW.to(self._device, torch.float32)).latent_dist.mode()
        shift = vae.config.shift_factor or 0.0
        scaled: Tensor = ((latents.float() - shift) * vae.config.scaling_factor).cpu()
        return scaled

    @torch.no_grad()
    def encode_captions(self, captions: Sequence[str]) -> list[TextEmbeds]:
        if self._text is None:
            self._text = self._load_text_encoders()
        embeds = []
        for caption in captions:
            empty = not caption.strip()
            prompt, _, pooled, _ = self._text.encode_prompt(
                caption, device=self._device, do_classifier_free_guidance=False
            )
            if empty and self._zero_empty:
                prompt, pooled = torch.zeros_like(prompt), torch.zeros_like(pooled)
            embeds.append({"prompt": prompt[0].float().cpu(), "pooled": pooled[0].float().cpu()})
        return embeds

    def _load_text_encoders(self) -> Any:
        config = self._base.config
        pipeline: Any = StableDiffusionXLPipeline(
            vae=None,
            unet=None,
            scheduler=None,
            text_encoder=self._load_part(CLIPTextModel, "text_encoder", self._dtype),
            text_encoder_2=self._load_part(CLIPTextModelWithProjection, "text_encoder_2", self._dtype),
            tokenizer=CLIPTokenizer.from_pretrained(config / "tokenizer"),
            tokenizer_2=CLIPTokenizer.from_pretrained(config / "tokenizer_2"),
            add_watermarker=False,
        )
        return pipeline.to(self._device)

    def free_encoders(self) -> None:
        self._text = None
        if self._vae is not None:
            self._vae.to("cpu")

    # Training -----------------------------------------------------------------------------------

    def load_denoiser(self) -> nn.Module:
        unet = self._load_part(UNet2DConditionModel, "unet", self._dtype)
        module: nn.Module = unet.to(self._device).requires_grad_(False)
        return module

    def predict(
        self,
        denoiser: nn.Module,
        noisy_BCHW: Tensor,
        t_B: Tensor,
        embeds: Sequence[TextEmbeds],
        geometry: Sequence[Geometry],
    ) -> Tensor:
        device, dtype = noisy_BCHW.device, self._dtype
        sizes_B6 = torch.tensor([[*g.original, *g.crop, *g.target] for g in geometry])
        prediction: Tensor = denoiser(
            noisy_BCHW.to(dtype),
            self.noise.timesteps(t_B),
            torch.stack([e["prompt"] for e in embeds]).to(device, dtype),
            added_cond_kwargs={
                "text_embeds": torch.stack([e["pooled"] for e in embeds]).to(device, dtype),
                # Not in ``dtype``: bf16 rounds a width of 1365 px to 1368.
                "time_ids": sizes_B6.to(device, torch.float32),
            },
        ).sample
        return prediction

    # Sampling -----------------------------------------------------------------------------------

    def pipeline(self, denoiser: nn.Module) -> Any:
        return StableDiffusionXLPipeline(
            vae=self._load_vae(self._dtype),
            unet=denoiser,
            scheduler=EulerDiscreteScheduler.from_config(self._schedule),
            text_encoder=None,
            text_encoder_2=None,
            tokenizer=None,
            tokenizer_2=None,
            add_watermarker=False,
        )

    def pipeline_inputs(self, positive: TextEmbeds, negative: TextEmbeds) -> dict[str, Any]:
        def batched(tensor: Tensor) -> Tensor:
            return tensor[None].to(self._device, self._dtype)

        return {
            "prompt_embeds": batched(positive["prompt"]),
            "pooled_prompt_embeds": batched(positive["pooled"]),
            "negative_prompt_embeds": batched(negative["prompt"]),
            "negative_pooled_prompt_embeds": batched(negative["pooled"]),
        }

    # Export -------------------------------------------------------------------------------------

    def kohya_name(self, module: str) -> str:
        return "lora_unet_" + self.native_name(module).replace(".", "_")

    def native_name(self, module: str) -> str:
        return sgm_name(module, int(self._unet_config["layers_per_block"]))

    def metadata(self) -> dict[str, str]:
        v = self.noise.prediction == "v_prediction"
        return {
            "ss_base_model_version": "sdxl_base_v1-0",
            "ss_v2": "False",
            **({"ss_v_parameterization": "True"} if v else {}),
            "modelspec.architecture": "stable-diffusion-xl-v1-base/lora",
            "modelspec.prediction_type": "v" if v else "epsilon",
        }


def _variant(folder: Path) -> str | None:
    """ "fp16" where only half-precision weights were fetched."""
    names = [file.name for file in folder.glob("*.safetensors")]
    return "fp16" if names and all(".fp16" in name for name in names) else None
