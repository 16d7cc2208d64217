"""What a model is, told from its names alone, so that a wrong one is refused before gigabytes are moved.

A ``.safetensors`` file begins with the names and shapes of its tensors; every architecture has names of
its own. A diffusers folder names its pipeline class.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..contract.errors import RunError
from ..contract.families import CATALOGUE, Signature
from ..contract.headers import Header, Tensor, fits, read_header

__all__ = ["VAE", "Header", "Kind", "Tensor", "kind_of_file", "kind_of_pipeline", "read_header", "require"]


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
    Signature("a LoRA", (r".*(lora_(down|up|[AB])|hada_w1|lokr_w1|oft_blocks)\b",)),
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


def require(kind: Kind, family: str, name: str) -> None:
    """Raise RunError(model_missing) unless the model ``name`` is one of ``family``."""
    if kind.family != family:
        remedy = f"set model.family to {kind.family}" if kind.family else "choose another base model"
        raise RunError(
            f"{name} is {kind.phrase}, the recipe says {CATALOGUE[family].label}; {remedy}", "model_missing"
        )
