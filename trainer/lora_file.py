"""Reading a LoRA back from a file, whoever wrote it: kohya's names, diffusers' or the original code's."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .adapters import AdapterWeights, LoraWeights
from .adapters.norms import product_norm
from .contract.config import TrainConfig
from .contract.errors import RunError
from .contract.families import CATALOGUE
from .contract.lora_header import DORA, DOWN, UP, encoders_in, families_of, read_lora_header
from .export import Format, diffusers_name, original_name, save_lora, tensors_in
from .families.base import ModelFamily


def read_lora(path: Path, family: ModelFamily, modules: Iterable[str]) -> dict[str, LoraWeights]:
    """The LoRA in a file as {part.module: weights}; ``modules`` are the names it may be for, with their part.

    A layer that the original code has fused is taken apart again. Raises RunError(model_missing) for a
    file that is damaged, no LoRA, of another family or of a kind that cannot be read (LoHa, LoKr, …).
    """
    header = read_lora_header(path)
    others = families_of(header)
    if others and family.row.key not in others:
        raise RunError(
            f"{path.name} is a LoRA for {CATALOGUE[others[0]].label}, the recipe says {family.row.label}; "
            "choose another file, or a base of that family",
            "model_missing",
        )
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (a handle is no dict)
        metadata = json.loads(header.metadata.get("lora_adapter_metadata", "{}"))
    except (SafetensorError, OSError, ValueError) as error:
        raise RunError(
            f"{path.name} cannot be read as a LoRA ({error}); download it again", "model_missing"
        ) from None
    found: dict[str, LoraWeights] = {}
    used: set[str] = set()
    for module in modules:
        for stem, rows in _stems(module, family):
            down = _first(tensors, stem, DOWN)
            up = _first(tensors, stem, UP)
            if down and up:
                alpha_key = f"{stem}.alpha"
                rank = tensors[down].shape[0]
                if alpha_key in tensors:
                    alpha = float(tensors[alpha_key]) or float(rank)  # 0 is the rank to kohya
                else:
                    alpha = _peft_alpha(metadata, module, rank)
                up_weight = tensors[up].float()
                dora_key = f"{stem}{DORA}"
                found[module] = LoraWeights(
                    tensors[down].float(),
                    up_weight[slice(*rows)] if rows else up_weight,
                    alpha,
                    tensors[dora_key].flatten().float() if dora_key in tensors else None,
                )
                used |= {down, up, alpha_key, dora_key}
                break
    left = sorted(set(tensors) - used)
    if not found:
        what = f"such as {left[0]}" if left else "it is empty"
        raise RunError(
            f"{path.name} holds no LoRA for {family.row.label} that can be read ({what}); "
            "choose another file",
            "model_missing",
        )
    encoders = encoders_in(header, ("text_encoder", "text_encoder_2"))
    if left and not set(encoders) <= set(family.trainable_text):
        raise RunError(
            f"{path.name} adapts text encoders too, which cannot be trained for {family.row.label}; "
            "choose a LoRA of the denoiser alone",
            "model_missing",
        )
    if left:
        raise RunError(
            f"{path.name} has {len(left)} tensors that fit no module of {family.row.label} "
            f"(such as {left[0]}); it is of another family, or of a kind that cannot be read",
            "model_missing",
        )
    return found


ROUNDING = 0.02
"""Share of a module's change that may be lost on the way through a file in half precision."""


def save_and_read_back(
    path: Path,
    weights: Mapping[str, AdapterWeights],
    family: ModelFamily,
    config: TrainConfig,
    *,
    rank: int | None = None,
    **about: Any,
) -> None:
    """:func:`trainer.export.save_lora`, and the file is read again: every module is what was trained.

    In half precision; in fp32 where that would round too much away (a PiSSA is a small difference of large
    numbers; tiny or huge weights are beyond fp16). Raises RunError(unknown) where that does not hold.
    """
    wrong = ""
    for dtype in (torch.float16, torch.float32):
        save_lora(path, weights, family, config, rank=rank, dtype=dtype, **about)
        wrong = _lost(path, weights, family, rank, about.get("format", "kohya"))
        if not wrong:
            return
    raise RunError(f"{path.name} was written, but does not hold what was trained: {wrong}", "unknown")


def _lost(
    path: Path,
    weights: Mapping[str, AdapterWeights],
    family: ModelFamily,
    rank: int | None,
    format: Format,
) -> str:
    """What a file lacks of the weights, "" where it lacks nothing. Other kinds than LoRA, not all of which
    are read here, are compared tensor by tensor."""
    with safe_open(path, framework="pt") as file:
        tensors = {key: file.get_tensor(key).float() for key in file.keys()}  # noqa: SIM118 (no dict)
    for key, tensor in tensors.items():
        if not bool(tensor.isfinite().all()):
            return f"{key} is infinite"
    own = {
        name: lora
        for name, lora in weights.items()
        if isinstance(lora, LoraWeights) and lora.magnitude is None
    }
    if len(own) < len(weights):
        return _differing(tensors, tensors_in(format, weights, family))
    found = read_lora(path, family, own)
    for name, lora in own.items():
        told = found.get(name)
        if told is None:
            return f"{name} is missing"
        trained = lora.cut(rank) if rank is not None else lora
        if not product_norm(difference(told, trained)) <= ROUNDING * product_norm(trained) + 1e-12:
            return f"{name} differs"
    return ""


def _differing(written: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> str:
    if odd := sorted(set(written) ^ set(wanted)):
        return f"{odd[0]} is {'missing' if odd[0] in wanted else 'too much'}"
    for key, tensor in wanted.items():
        if not (written[key] - tensor).norm() <= ROUNDING * tensor.norm() + 1e-12:
            return f"{key} differs"
    return ""


def difference(one: LoraWeights, other: LoraWeights) -> LoraWeights:
    """The LoRA that one is more than the other, of the sum of their ranks."""
    down = torch.cat([one.down.flatten(1), other.down.flatten(1)])
    up = torch.cat([one.scale * one.up.flatten(1), -other.scale * other.up.flatten(1)], 1)
    return LoraWeights(down.double(), up.double(), float(len(down)))


def _peft_alpha(metadata: Mapping[str, Any], module: str, rank: int) -> float:
    """A module's alpha by the adapter metadata that diffusers writes; its rank where nothing is said.

    As in peft, the first pattern that matches the end of a name counts.
    """
    part, _, name = module.partition(".")
    patterns: Mapping[str, Any] = metadata.get(f"{part}.alpha_pattern") or {}
    for pattern, alpha in patterns.items():
        if re.fullmatch(rf"(.*\.)?({pattern})", name.removeprefix("text_model.")):
            return float(alpha)
    return float(metadata.get(f"{part}.lora_alpha", rank))


def _first(tensors: dict[str, Tensor], stem: str, endings: tuple[str, ...]) -> str:
    return next((stem + ending for ending in endings if stem + ending in tensors), "")


def _stems(name: str, family: ModelFamily) -> list[tuple[str, tuple[int, int] | None]]:
    """Every key stem that a module may have, with its output rows where the file has a fused layer."""
    part, _, module = name.partition(".")
    stems: list[tuple[str, tuple[int, int] | None]] = [(name, None), (diffusers_name(name, family), None)]
    for format in ("kohya", "comfyui"):
        stem, native = original_name(format, name, family)
        stems.append((stem, native.rows))
    if part == family.denoiser_part:
        # diffusers' names in kohya's spelling, and under the prefixes that other trainers write
        flat = module.replace(".", "_")
        prefixes = ("lora_unet_", "lora_transformer_", "lycoris_")
        stems += [(prefix + flat, None) for prefix in prefixes]
        stems += [(f"{prefix}{module}", None) for prefix in ("diffusion_model.", "transformer.", "unet.", "")]
    return stems
