"""What a model is, told from its names alone, so that a wrong one is refused before gigabytes are moved.

A ``.safetensors`` file begins with the names and shapes of its tensors; every architecture has names of
its own. A diffusers folder names its pipeline class.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from ..contract.errors import RunError
from ..contract.families import CATALOGUE, Signature
from ..contract.headers import Header, Tensor, fits, read_header

__all__ = [
    "VAE",
    "Header",
    "Kind",
    "Tensor",
    "kind_of_file",
    "kind_of_pipeline",
    "read_header",
    "require",
    "require_weights",
    "rounded",
]


@dataclass(frozen=True)
class Kind:
    """What a model turned out to be: a phrase with its article, the family that trains it, if any, and the
    Hub id whose configuration goes with it, where that is not the family's first base."""

    phrase: str
    family: str = ""
    reference: str = ""


VAE = Kind("a VAE")
UNKNOWN = Kind("no checkpoint of a known architecture")

# What is no base model is told first: a LoRA or a ControlNet has some names of the model that it goes with.
_EXTRAS = (
    Signature(
        "a LoRA",
        (
            r".*(lora_(down|up|[AB])\b|lora(_linear_layer)?\.(down|up)\.|\.(hada_|lokr_|oft_|dora_scale|diff$))",
        ),
    ),
    Signature("a ControlNet", (r"(control_model\.|controlnet_|.*input_hint_block\.)",)),
    Signature("a textual inversion", (r"(emb_params|clip_[lg]|string_to_param)$",)),
    Signature(
        "an SDXL refiner checkpoint", (r"label_emb\.", r"input_blocks\.9\."), (r"input_blocks\.1\.1\.",)
    ),
)
# What is no base model either, told last.
_LEFT = (
    Signature(VAE.phrase, (r"(first_stage_model\.|vae\.)?(encoder\.down|encoder\.conv_in)",)),
    Signature(
        "one part of a diffusers folder (name the folder instead)",
        (r"(down_blocks\.0\.|transformer_blocks\.0\.|double_blocks\.0\.)",),
    ),
    Signature("a text encoder", (r"(text_model\.|transformer\.|encoder\.block\.0\.)",)),
)


def kind_of_file(header: Header) -> Kind:
    """What a single .safetensors file holds."""
    for signature in _EXTRAS:
        if fits(header, signature):
            return Kind(signature.phrase)
    for family in CATALOGUE.values():
        for signature in family.signatures:
            if fits(header, signature):
                return Kind(signature.phrase, family.key, signature.reference)
    for signature in _LEFT:
        if fits(header, signature):
            return Kind(signature.phrase)
    return UNKNOWN


def kind_of_pipeline(class_name: str) -> Kind:
    """What a diffusers folder holds, by ``_class_name`` of its model_index.json."""
    fitting = [
        (len(beginning), family)
        for family in CATALOGUE.values()
        for beginning in family.pipelines
        if class_name.startswith(beginning)
    ]
    if fitting:  # the longest beginning decides: StableDiffusionXL, StableDiffusion
        family = max(fitting, key=lambda pair: pair[0])[1]
        return Kind(f"a {family.label} model", family.key)
    return Kind(f"a {class_name}" if class_name else "no model of a known architecture")


_SCALES = re.compile(
    r".*\b(scale_weight|weight_scale(_2)?|scale_input|input_scale|scaled_fp8|absmax|quant_state)\b"
)
"""Names beside weights that are numbers only together with them: fp8 with scales, NVIDIA's, bitsandbytes'."""


def require_weights(header: Header, name: str) -> None:
    """Raise RunError(model_missing) for a file whose weights are rounded to what needs scales to be read."""
    scales = [tensor for tensor in header.tensors if _SCALES.match(tensor)]
    if scales:
        raise RunError(
            f"{name} is quantised (it has {scales[0]}), which cannot be trained on; take this model's "
            "file in bf16 or fp16, and save memory with model.quantize",
            "model_missing",
        )


def rounded(header: Header, name: str) -> str:
    """A sentence on a file whose weights are mostly in 8 bits without scales, "" for others."""
    sizes = {True: 0, False: 0}
    for tensor in header.tensors.values():
        sizes[tensor.dtype.startswith("F8_")] += tensor.end - tensor.start
    if sizes[True] <= sizes[False]:
        return ""
    return (
        f"{name} has its weights in 8 bits (fp8). What was rounded away is not in it, so the LoRA is trained "
        "on a coarser model than it will be used with; the file in bf16 or fp16 is better"
    )


def require(kind: Kind, family: str, name: str) -> None:
    """Raise RunError(model_missing) unless the model ``name`` is one of ``family``."""
    if kind.family != family:
        remedy = f"set model.family to {kind.family}" if kind.family else "choose another base model"
        raise RunError(
            f"{name} is {kind.phrase}, the recipe says {CATALOGUE[family].label}; {remedy}", "model_missing"
        )
