"""What the Stable Diffusion families with a U-Net share: schedule, checkpoints in one file, key names."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers import DDPMScheduler, EulerDiscreteScheduler, ModelMixin, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig

from ..contract import families as catalogue
from ..contract.errors import RunError
from ..contract.families import known_base
from ..noise import Ddpm
from . import ldm_single_file as single_file
from .base import Native
from .identify import read_header
from .pipeline_family import PipelineFamily

# Linear and 1x1 convolutions of the transformers: kohya's LoRA targets.
_ATTENTION = r"attn\d\.(to_q|to_k|to_v|to_out\.0)"
_TRANSFORMER = rf"({_ATTENTION}|ff\.net\.0\.proj|ff\.net\.2|proj_in|proj_out)"
# Everything with weights in residual, down- and upsampling blocks: kohya's LoCon.
_CONV = r"(resnets\.\d+\.(conv1|conv2|conv_shortcut|time_emb_proj)|(down|up)samplers\.0\.conv)"


class UnetFamily(PipelineFamily):
    """``layout`` says where a single checkpoint keeps its parts."""

    denoiser_part = "unet"
    denoiser_class = UNet2DConditionModel
    patch = 1
    targets: ClassVar[dict[str, str]] = catalogue.by_targets(
        rf".*\.{_ATTENTION}",
        rf".*attentions\..*{_TRANSFORMER}",
        rf"(.*attentions\..*{_TRANSFORMER}|.*{_CONV})",
    )
    text_targets = r".*(q_proj|k_proj|v_proj|out_proj|mlp\.fc1|mlp\.fc2)"

    noise: Ddpm
    layout: single_file.Layout

    def setup(self) -> None:
        """Schedule and prediction (noise, or v) are the base's own, unless the recipe says otherwise."""
        if self.base.single_file:
            self.schedule |= single_file.schedule(self.base.header)
        elif (known := known_base(self.row.key, self.base.name)) and known.schedule:
            self.schedule |= known.schedule
        self.schedule |= self.base.schedule
        self._require_plain_latents()
        ddpm = DDPMScheduler.from_config(self.schedule)
        self.noise = Ddpm(ddpm.alphas_cumprod.float(), ddpm.config.prediction_type)
        vae_factor = 2 ** (len(self.vae_config["block_out_channels"]) - 1)
        self.resolution = int(self.denoiser_config["sample_size"]) * vae_factor

    def _require_plain_latents(self) -> None:
        """Raise RunError for a U-Net that is given more than latents: a mask, another picture."""
        takes = int(self.denoiser_config["in_channels"])
        if self.base.single_file:
            first = self.base.header.tensors.get("model.diffusion_model.input_blocks.0.0.weight")
            takes = first.shape[1] if first and len(first.shape) == 4 else takes
        if takes != (latents := int(self.vae_config["latent_channels"])):
            raise RunError(
                f"the U-Net of {self.base.name} takes {takes} channels, not the {latents} of a picture: "
                "it is for inpainting or editing; choose the base that it was made from",
                "model_missing",
            )

    def in_single_file(self, part: str) -> bool:
        return True

    def file_prefix(self, part: str, file: Path) -> str:
        return single_file.part_prefix(part, read_header(file), self.layout)

    def load_from_file(self, cls: Any, part: str, file: Path, dtype: torch.dtype) -> Any:
        config = self.base.config / part

        def build() -> nn.Module:
            if issubclass(cls, ModelMixin):
                module: nn.Module = cls.from_config(cls.load_config(config))
                return module
            return cls(CLIPTextConfig.from_pretrained(config))

        return single_file.load_part(part, file, read_header(file), build, dtype, self.layout)

    def sampler(self) -> Any:
        return EulerDiscreteScheduler.from_config(self.schedule)

    def native(self, module: str) -> Native:
        return Native(single_file.sgm_name(module, self.denoiser_config))

    def prediction_metadata(self) -> dict[str, str]:
        """What the base predicts; nothing of a family without a base, whose schedule nobody knows."""
        if not hasattr(self, "noise"):
            return {}
        v = self.noise.prediction == "v_prediction"
        zero = bool(self.noise.alphas_cumprod[-1] == 0)
        return {
            **({"ss_v_parameterization": "True"} if v else {}),
            **({"ss_zero_terminal_snr": "True"} if zero else {}),
            "modelspec.prediction_type": "v" if v else "epsilon",
        }
