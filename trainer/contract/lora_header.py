"""What a LoRA's file says of itself without loading it: its kind, the families it fits, its encoders."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .errors import RunError
from .families import CATALOGUE
from .headers import Header, fits, read_header

DOWN = (".lora_down.weight", ".lora_A.weight", ".lora.down.weight", ".lora_A.default.weight")
UP = (".lora_up.weight", ".lora_B.weight", ".lora.up.weight", ".lora_B.default.weight")


DORA = ".dora_scale"

# Everything that a key may end in behind its module, of every kind that is known.
_ENDING = re.compile(
    r"\.(lora_(down|up|mid|[AB](\.default)?)\.weight|lora\.(down|up)\.weight|alpha|dora_scale"
    r"|lora_magnitude_vector(\.weight)?|(hada|lokr|oft)_\w+|diff(_b)?|[wb]_norm)$"
)
# What has a module's inputs as its last dimension, and what tells a module of the kinds that have not.
_MODULE = (*DOWN, ".hada_w1_b", ".lokr_w1", ".lokr_w1_a", ".oft_blocks", ".oft_diag", ".diff")
_LOADER = re.compile(
    r"(base_model\.model\.)?(lora_(unet|transformer)_|lycoris_|(diffusion_model|transformer|unet|model)\.)?"
)

# How the keys of a first and of a second text encoder begin, in each format.
_ENCODERS = (
    r"lora_te1?_|text_encoder\.|text_encoders\.clip_[lh]\.",
    r"lora_te2_|text_encoder_2\.|text_encoders\.clip_g\.",
)

_OTHER_KINDS = {
    "a LoHa": r"hada_w1",
    "a LoKr": r"lokr_w1",
    "an OFT of peft's kind": r"oft_R",
    "an OFT": r"oft_(blocks|diag)",
    "a DoRA of peft's kind": r"lora_magnitude_vector",
    "a difference of whole weights": r"\.diff(_b)?$",
}


def read_lora_header(path: Path) -> Header:
    """Names and shapes in a LoRA's file. Raises RunError(model_missing) for a damaged or empty file, for
    one that is no LoRA, and for the kinds that cannot be gone on from (LoHa, LoKr, …)."""
    header = read_adapter_header(path)
    if phrase := other_kind(header):
        raise RunError(
            f"{path.name} is {phrase}, which cannot be read here; choose a plain LoRA", "model_missing"
        )
    if any(name.endswith(DORA) and tensor.shape[:1] != (1,) for name, tensor in header.tensors.items()):
        raise RunError(
            f"{path.name} is a DoRA by outputs, and those trained here are by inputs; choose a plain LoRA",
            "model_missing",
        )
    return header


def read_adapter_header(path: Path) -> Header:
    """Names and shapes in the file of a LoRA or of one of its kin. Raises RunError(model_missing) for a
    damaged or empty file, and for any other."""
    if path.suffix != ".safetensors":
        raise RunError(f"{path.name} is not a .safetensors file; choose one that is", "model_missing")
    header = read_header(path)
    if not any(name.endswith(DOWN) for name in header.tensors) and not other_kind(header):
        raise RunError(f"{path.name} is no LoRA; choose a LoRA's .safetensors file", "model_missing")
    return header


def other_kind(header: Header) -> str:
    """What the file is, with its article, where it is neither a LoRA nor a DoRA of kohya's kind; else ""."""
    kinds = _OTHER_KINDS.items()
    return next((kind for kind, pattern in kinds if any(re.search(pattern, n) for n in header.tensors)), "")


def module_and_ending(key: str) -> tuple[str, str]:
    """A key's module as the file spells it, and what is behind it: ("unet.x", "lora_A.weight"); the whole
    key and "" where it ends in nothing that is known."""
    match = _ENDING.search(key)
    return (key[: match.start()], match[1]) if match else (key, "")


def families_of(header: Header) -> list[str]:
    """The families that a LoRA can be for: by its metadata where its modules' names agree, else by either.

    Few modules can have the names of another family (FLUX.1's double blocks in diffusers' names have those of
    SD 3.5), so that metadata count; but some programs write a wrong ``ss_base_model_version``.
    """
    modules = Header(
        {flat_name(name): tensor for name, tensor in header.tensors.items() if name.endswith(_MODULE)}
    )
    fitting = [
        row.key for row in CATALOGUE.values() if any(fits(modules, each) for each in row.lora_signatures)
    ]
    sure, told = _named(header, "modelspec.architecture"), told_families(header)
    return [key for key in told if key in fitting] or list(dict.fromkeys((*sure, *fitting, *told)))


def told_families(header: Header) -> list[str]:
    """The families that a LoRA's metadata name."""
    return _named(header, "modelspec.architecture", "ss_base_model_version")


def _named(header: Header, *keys: str) -> list[str]:
    said = [text for key in keys if (text := header.metadata.get(key, ""))]
    return [row.key for row in CATALOGUE.values() if any(text.startswith(row.architectures) for text in said)]


def trigger_in(metadata: Mapping[str, str]) -> str:
    """The trigger words that a file's metadata have."""
    comment = metadata.get("ss_training_comment", "")
    told = comment.removeprefix("trigger: ") if comment.startswith("trigger: ") else ""
    return " ".join((metadata.get("modelspec.trigger_phrase") or told).split())[:100]


def flat_name(key: str) -> str:
    """A key's module as kohya spells it, "_" for ".", without the prefix of any loader."""
    return _LOADER.sub("", _ENDING.sub("", key), count=1).replace(".", "_")


def encoders_in(header: Header, trainable: Sequence[str]) -> list[str]:
    """The text encoders, of ``trainable`` in kohya's order, that a LoRA has weights for."""
    return [
        part
        for part, pattern in zip(trainable, _ENCODERS, strict=False)
        if any(re.match(pattern, key) for key in header.tensors)
    ]


def start_from_facts(text: str, beside: Path) -> dict[str, Any]:
    """What a linter wants to know of ``adapter.start_from``, as fields of Facts; a LoRA on the Hub is unknown
    until it is fetched."""
    path = next((each for each in (beside / text, Path(text).expanduser()) if text and each.is_file()), None)
    if path is None:
        return {}
    try:
        return {"start_from_families": tuple(families_of(read_lora_header(path)))}
    except (RunError, OSError) as error:
        return {"start_from_problem": str(error)}
