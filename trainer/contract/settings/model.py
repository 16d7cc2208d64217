"""[model]: the base."""

from __future__ import annotations

from typing import Literal

from pydantic import field_validator

from ..families import CATALOGUE
from .section import Section, setting

Quantization = Literal["none", "int8", "nf4"]
"""Number format of frozen linear layers."""


class ModelSettings(Section):
    """The base model that the LoRA is trained on."""

    family: str = setting("sdxl", label="Family", choices=tuple(CATALOGUE))
    """Architecture of the base model."""
    base: str = setting("demo", label="Base model", basic=True, min_length=1, max_length=500)
    """"demo" (the small embedded model), a Hub id such as stabilityai/stable-diffusion-xl-base-1.0,
    a diffusers folder, or a single .safetensors checkpoint."""
    revision: str = setting("", label="Revision", max_length=100)
    """Branch, tag or commit of a Hub base; empty means its main branch."""
    vae: str = setting("", label="Separate VAE", max_length=500)
    """Hub id, folder or .safetensors file of a VAE to use instead of the base's own (SDXL in fp16 wants
    madebyollin/sdxl-vae-fp16-fix); empty means the base's own."""
    precision: Literal["auto", "bf16", "fp16", "fp32"] = setting("auto", label="Precision")
    """Number format of the frozen base. "auto" takes bf16 where the GPU has it, else fp16. On a CPU it is
    always fp32, which is faster there.
    The LoRA has a number format of its own (adapter.precision)."""
    quantize: Quantization = setting("none", label="Quantised base")
    """Number format of the frozen base's linear layers. int8 halves its memory at hardly any loss; nf4
    (4 bits) quarters it, with visible rounding. Needs pip install -r requirements-quant.txt."""
    quantize_text: Quantization = setting("none", label="Quantised text encoders")
    """The same for the text encoders, which are in memory only while captions are encoded."""
    assistant: str = setting("", label="Assistant LoRA", max_length=500)
    """A LoRA that undoes the distillation of a base (FLUX.1 schnell, Z-Image Turbo): active while
    training, off while sampling. Hub id or file; empty takes the known one of the base, "none" none."""

    @field_validator("family")
    @classmethod
    def _family_is_known(cls, family: str) -> str:
        if family not in CATALOGUE:
            raise ValueError(
                f"{family!r} is no family that can be trained; give one of {', '.join(CATALOGUE)}"
            )
        return family
