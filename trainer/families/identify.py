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
from ..contract.families import CATALOGUE

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
    """What a model turned out to be: a phrase with its article, and the family that trains it, if any."""

    phrase: str
    family: str = ""


VAE = Kind("a VAE")
UNKNOWN = Kind("no checkpoint of a known architecture")

_DENOISER = r"(model\.)?(diffusion_model\.)?"

# Tried from top to bottom: the kind, and what names it must have (all) and must not have (any).
_FILES: tuple[tuple[Kind, tuple[str, ...], tuple[str, ...]], ...] = (
    (Kind("a LoRA"), (r".*(lora_(down|up|[AB])|hada_w1|lokr_w1|oft_blocks)\b",), ()),
    (Kind("a ControlNet"), (r"(control_model\.|controlnet_|.*input_hint_block\.)",), ()),
    (Kind("a textual inversion"), (r"(emb_params|clip_[lg]|string_to_param)$",), ()),
    (
        Kind("an SDXL checkpoint", "sdxl"),
        (_DENOISER + r"label_emb\.", _DENOISER + r"input_blocks\.4\.1\."),
        (_DENOISER + r"input_blocks\.(1\.1|9)\.",),
    ),
    (
        Kind("an SDXL refiner checkpoint"),
        (_DENOISER + r"label_emb\.", _DENOISER + r"input_blocks\.9\."),
        (_DENOISER + r"input_blocks\.1\.1\.",),
    ),
    (
        Kind("an SD 2.x checkpoint"),
        (_DENOISER + r"input_blocks\.1\.1\.", r"cond_stage_model\.model\."),
        (),
    ),
    (Kind("an SD 1.5 checkpoint"), (_DENOISER + r"input_blocks\.1\.1\.",), ()),
    (Kind("an SD 3 checkpoint"), (_DENOISER + r"joint_blocks\.0\.",), ()),
    (Kind("a Chroma checkpoint"), (_DENOISER + r"distilled_guidance_layer\.",), ()),
    (Kind("a FLUX.2 checkpoint"), (_DENOISER + r"double_stream_modulation_img\.",), ()),
    (Kind("a FLUX.1 checkpoint"), (_DENOISER + r"double_blocks\.0\.img_attn\.", _DENOISER + "img_in"), ()),
    (Kind("a Qwen-Image checkpoint"), (_DENOISER + r"transformer_blocks\.0\.img_mod\.",), ()),
    (Kind("a Z-Image or Lumina 2 checkpoint"), (_DENOISER + r"noise_refiner\.0\.",), ()),
    (VAE, (r"(first_stage_model\.|vae\.)?(encoder\.down|encoder\.conv_in)",), ()),
    (
        Kind("one part of a diffusers folder (name the folder instead)"),
        (r"(down_blocks\.0\.|transformer_blocks\.0\.|double_blocks\.0\.)",),
        (),
    ),
    (Kind("a text encoder"), (r"(text_model\.|transformer\.|encoder\.block\.0\.)",), ()),
)

# The beginning of a pipeline's class name; longer ones first where one begins with another.
_PIPELINES: tuple[tuple[str, Kind], ...] = (
    ("StableDiffusionXL", Kind("an SDXL model", "sdxl")),
    ("StableDiffusion3", Kind("an SD 3 model")),
    ("StableDiffusion", Kind("an SD 1.x or 2.x model")),
    ("Flux2", Kind("a FLUX.2 model")),
    ("Flux", Kind("a FLUX.1 model")),
)


def kind_of_file(header: Header) -> Kind:
    """What a single .safetensors file holds."""
    for kind, needed, excluded in _FILES:
        if all(map(header.has, needed)) and not any(map(header.has, excluded)):
            return kind
    return UNKNOWN


def kind_of_pipeline(class_name: str) -> Kind:
    """What a diffusers folder holds, by ``_class_name`` of its model_index.json."""
    for beginning, kind in _PIPELINES:
        if class_name.startswith(beginning):
            return kind
    return Kind(f"a {class_name}" if class_name else "no model of a known architecture")


def require(kind: Kind, family: str, name: str) -> None:
    """Raise RunError(model_missing) unless the model ``name`` is one of ``family``."""
    if kind.family != family:
        remedy = "choose the family that fits it" if kind.family else "choose another base model"
        raise RunError(
            f"{name} is {kind.phrase}, the recipe says {CATALOGUE[family].label}; {remedy}", "model_missing"
        )
