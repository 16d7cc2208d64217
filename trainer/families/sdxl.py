"""Stable Diffusion XL (Podell et al. 2023), and the example to copy for a new family.

U-Net over 4-channel latents of an 8x VAE; the text of two CLIP encoders (second-to-last hidden states,
concatenated) plus the pooled output of the second; sizes and crop of the picture as six more numbers.
The schedule and what is predicted (noise, or v for bases such as NoobAI and our demo) are read from the
base's own scheduler configuration.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDPMScheduler,
    EulerDiscreteScheduler,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from torch import Tensor, nn

from ..contract import families as catalogue
from ..contract.errors import RunError
from ..noise import Ddpm
from ..source import BaseModel, fingerprint
from .base import Geometry, TextEmbeds

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
        if not str(index.get("_class_name", "")).startswith("StableDiffusionXL"):
            raise RunError(
                f"{base.name} is a {index.get('_class_name')}, the recipe says {self.row.label}; "
                "choose the family that fits the base model",
                "model_missing",
            )
        # SDXL's first release zeroes the empty prompt instead of encoding it.
        self._zero_empty = bool(index.get("force_zeros_for_empty_prompt", True))
        self._unet_config = base.read_json("unet", "config.json")
        vae_config = base.read_json("vae", "config.json")
        self._vae_factor = 2 ** (len(vae_config["block_out_channels"]) - 1)
        self.resolution = int(self._unet_config["sample_size"]) * self._vae_factor
        self._schedule = base.read_json("scheduler", "scheduler_config.json")
        ddpm = DDPMScheduler.from_config(self._schedule)
        self.noise = Ddpm(ddpm.alphas_cumprod.float(), ddpm.config.prediction_type)

    # Encoding -----------------------------------------------------------------------------------

    def _weight_files(self, *parts: str) -> list[Path]:
        if self._base.single_file:
            return [self._base.weights]
        return sorted(file for part in parts for file in (self._base.weights / part).glob("*.safetensors"))

    def image_encoder_id(self) -> str:
        if self._base.vae:
            return fingerprint(*sorted(self._base.vae.rglob("*.safetensors")))
        return fingerprint(*self._weight_files("vae"))

    def text_encoder_id(self) -> str:
        return fingerprint(*self._weight_files("text_encoder", "text_encoder_2")) + f"-{self._zero_empty}"

    def _load_vae(self) -> Any:
        if self._vae is None:
            if self._base.vae:
                vae = _load_part(AutoencoderKL, self._base.vae, None, torch.float32)
            elif self._base.single_file:
                vae = AutoencoderKL.from_single_file(
                    str(self._base.weights), config=str(self._base.config), subfolder="vae"
                )
            else:
                vae = _load_part(AutoencoderKL, self._base.weights, "vae", torch.float32)
            # SDXL's own VAE overflows in fp16; its configuration says so.
            half_is_safe = self._dtype == torch.bfloat16 or not vae.config.force_upcast
            self._vae = vae.to(self._dtype if half_is_safe else torch.float32).eval().requires_grad_(False)
        return self._vae

    @torch.no_grad()
    def encode_images(self, pixels_BCHW: Tensor) -> Tensor:
        vae = self._load_vae().to(self._device)
        # The mode, not a draw: a cached latent must be a function of the picture.
        latents = vae.encode(pixels_BCHW.to(self._device, vae.dtype)).latent_dist.mode()
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
        parts: dict[str, Any] = {"unet": None, "vae": None, "dtype": self._dtype}
        if self._base.single_file:
            pipeline = StableDiffusionXLPipeline.from_single_file(
                str(self._base.weights), config=str(self._base.config), **parts
            )
        else:
            pipeline = StableDiffusionXLPipeline.from_pretrained(
                self._base.weights, variant=_variant(self._base.weights / "text_encoder"), **parts
            )
        return pipeline.to(self._device)

    def free_encoders(self) -> None:
        self._text = None
        if self._vae is not None:
            self._vae.to("cpu")

    # Training -----------------------------------------------------------------------------------

    def load_denoiser(self) -> nn.Module:
        if self._base.single_file:
            unet = UNet2DConditionModel.from_single_file(
                str(self._base.weights),
                config=str(self._base.config),
                subfolder="unet",
                dtype=self._dtype,
            )
        else:
            unet = _load_part(UNet2DConditionModel, self._base.weights, "unet", self._dtype)
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
                "time_ids": sizes_B6.to(device, dtype),
            },
        ).sample
        return prediction

    # Sampling -----------------------------------------------------------------------------------

    def pipeline(self, denoiser: nn.Module) -> Any:
        return StableDiffusionXLPipeline(
            vae=self._load_vae().to(self._device),
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


def sgm_name(module: str, layers_per_block: int) -> str:
    """diffusers' U-Net module name -> the name in Stability's original code.

    ``down_blocks.1.attentions.0.proj_in`` -> ``input_blocks.4.1.proj_in`` for SDXL's two layers a block.
    """
    n = layers_per_block
    resnet = {
        "conv1": "in_layers.2",
        "conv2": "out_layers.3",
        "time_emb_proj": "emb_layers.1",
        "conv_shortcut": "skip_connection",
    }

    def inner(kind: str, rest: str) -> str:
        return resnet[rest] if kind == "resnets" else rest

    if match := re.fullmatch(r"down_blocks\.(\d+)\.(resnets|attentions)\.(\d+)\.(.+)", module):
        block, kind, layer, rest = int(match[1]), match[2], int(match[3]), match[4]
        return f"input_blocks.{1 + (n + 1) * block + layer}.{int(kind == 'attentions')}.{inner(kind, rest)}"
    if match := re.fullmatch(r"down_blocks\.(\d+)\.downsamplers\.0\.conv", module):
        return f"input_blocks.{(n + 1) * (int(match[1]) + 1)}.0.op"
    if match := re.fullmatch(r"mid_block\.(resnets|attentions)\.(\d+)\.(.+)", module):
        kind, layer = match[1], int(match[2])
        return f"middle_block.{1 if kind == 'attentions' else 2 * layer}.{inner(kind, match[3])}"
    if match := re.fullmatch(r"up_blocks\.(\d+)\.(resnets|attentions)\.(\d+)\.(.+)", module):
        block, kind, layer, rest = int(match[1]), match[2], int(match[3]), match[4]
        return f"output_blocks.{(n + 1) * block + layer}.{int(kind == 'attentions')}.{inner(kind, rest)}"
    if match := re.fullmatch(r"up_blocks\.(\d+)\.upsamplers\.0\.conv", module):
        # SDXL upsamples after blocks with attention only, where the upsampler is the third part.
        return f"output_blocks.{(n + 1) * int(match[1]) + n}.2.conv"
    raise ValueError(f"{module} has no name in the original SDXL code")


def _variant(folder: Path) -> str | None:
    """ "fp16" where only half-precision weights were fetched."""
    names = [file.name for file in folder.glob("*.safetensors")]
    return "fp16" if names and all(".fp16" in name for name in names) else None


def _load_part(cls: Any, folder: Path, subfolder: str | None, dtype: torch.dtype) -> Any:
    inside = folder / subfolder if subfolder else folder
    if subfolder is None and not (folder / "config.json").exists():
        subfolder, inside = "vae", folder / "vae"
    return cls.from_pretrained(
        folder, subfolder=subfolder, dtype=dtype, use_safetensors=True, variant=_variant(inside)
    )
