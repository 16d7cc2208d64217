"""What a model is, told from its names alone, so that a wrong one is refused before gigabytes are moved.

A ``.safetensors`` file begins with the names and shapes of its tensors; every architecture has names of
its own. A diffusers folder names its pipeline class.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path

from ..contract.errors import RunError
from ..contract.families import CATALOGUE, Signature

_LARGEST_HEADER = 100_000_000
"""Bytes; the limit of the safetensors format itself."""


@dataclass(frozen=True)
class Tensor:
    """One row of the header: shape, and first and last byte + 1 in the file."""

    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True)
class Header:
    """What stands at the beginning of a .safetensors file."""

    tensors: dict[str, Tensor]
    metadata: dict[str, str] = field(default_factory=dict)

    def has(self, pattern: str) -> bool:
        """Whether a tensor's name begins with the regular expression."""
        compiled = re.compile(pattern)
        return any(compiled.match(name) for name in self.tensors)

    def width(self, pattern: str) -> int:
        """The last dimension of the first tensor whose name begins with the regular expression, or 0."""
        compiled = re.compile(pattern)
        return next((t.shape[-1] for name, t in self.tensors.items() if t.shape and compiled.match(name)), 0)


def read_header(file: Path) -> Header:
    """Names and shapes without loading anything. Raises RunError(model_missing) for a damaged file."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        text = stream.read(length) if 2 <= length <= min(_LARGEST_HEADER, size - 8) else b""
    try:
        rows = json.loads(text)
        metadata = rows.pop("__metadata__", None) or {}
        data = 8 + length
        tensors = {
            name: Tensor(tuple(row["shape"]), *(data + offset for offset in row["data_offsets"]))
            for name, row in rows.items()
        }
    except (ValueError, AttributeError, TypeError, KeyError):
        what = "is empty" if size == 0 else "is not a safetensors file, or only the beginning of one"
        raise RunError(f"{file.name} {what}; download it again", "model_missing") from None
    whole = max((tensor.end for tensor in tensors.values()), default=data)
    if size < whole:
        raise RunError(
            f"{file.name} is incomplete: {size / 2**20:.1f} of {whole / 2**20:.1f} MiB are there; "
            "download it again",
            "model_missing",
        )
    return Header(tensors, metadata)


@dataclass(frozen=True)
class Kind:
    """What a model turned out to be: a phrase with its article, the family that trains it, if any, and the
    Hub id whose configuration goes with it, where that is not the family's first base."""

    phrase: str
    family: str = ""
    reference: str = ""


VAE = Kind("a VAE")
UNKNOWN = Kind("no checkpoint of a known architecture")

_DENOISER = r"(model\.)?(diffusion_model\.)?"

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


def _fits(header: Header, signature: Signature) -> bool:
    if not all(header.has(_DENOISER + pattern) for pattern in signature.needed):
        return False
    if any(header.has(_DENOISER + pattern) for pattern in signature.excluded):
        return False
    return signature.width is None or header.width(_DENOISER + signature.width[0]) == signature.width[1]


def kind_of_file(header: Header) -> Kind:
    """What a single .safetensors file holds."""
    for signature in _EXTRAS:
        if _fits(header, signature):
            return Kind(signature.phrase)
    for family in CATALOGUE.values():
        for signature in family.signatures:
            if _fits(header, signature):
                return Kind(signature.phrase, family.key, signature.reference)
    for signature in _LEFT:
        if _fits(header, signature):
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
