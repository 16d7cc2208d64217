"""Reading a LoRA back from a file, whoever wrote it: kohya's names, diffusers' or the original code's."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate, groupby
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
from .contract.headers import Header
from .contract.lora_header import (
    DORA,
    DOWN,
    UP,
    encoders_in,
    families_of,
    module_and_ending,
    read_lora_header,
)
from .export import FORMATS, Format, diffusers_name, halves_swapped, original_name, save_lora, tensors_in
from .families.base import ModelFamily, Native

ADAPTER = "lora_adapter_metadata"
"""What diffusers says of its adapters."""


def told(header: Header, key: str) -> dict[str, Any]:
    """A table in a file's metadata; empty where there is none, or nothing that can be read."""
    try:
        found = json.loads(header.metadata.get(key, "{}"))
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def read_tensors(path: Path) -> dict[str, Tensor]:
    """A file's tensors in its number formats."""
    with safe_open(path, framework="pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (a handle is no dict)


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
        tensors = read_tensors(path)
    except (SafetensorError, OSError) as error:
        raise RunError(
            f"{path.name} cannot be read as a LoRA ({error}); download it again", "model_missing"
        ) from None
    found, used = modules_in(tensors, told(header, ADAPTER), family, modules, path.name)
    found = {
        name: replace(
            lora,
            down=lora.down.float(),
            up=lora.up.float(),
            magnitude=lora.magnitude if lora.magnitude is None else lora.magnitude.float(),
        )
        for name, lora in found.items()
    }
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


def modules_in(
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, Any],
    family: ModelFamily,
    modules: Iterable[str],
    file: str,
) -> tuple[dict[str, LoraWeights], set[str]]:
    """The LoRAs of ``modules`` in the number format of ``tensors``, and the keys that say them.

    A module gets the ranks of a fused layer that are its own, or all where they are in common; one that a
    fused layer has none for is left out. ``metadata`` are those that diffusers writes for its adapters, the
    name of the ``file`` is for errors.
    """
    found: dict[str, LoraWeights] = {}
    used: set[str] = set()
    for stem, layer in layers_in({module_and_ending(key)[0] for key in tensors}, family, modules).items():
        down_key, up_key = _first(tensors, stem, DOWN), _first(tensors, stem, UP)
        if not (down_key and up_key):
            continue
        down, up = tensors[down_key], tensors[up_key]
        if min(down.ndim, up.ndim) < 2 or up.shape[1] != len(down):
            raise RunError(
                f"the matrices of {stem} in {file} do not fit together; download it again", "model_missing"
            )
        alpha_key, dora_key = f"{stem}.alpha", f"{stem}{DORA}"
        used |= {down_key, up_key, alpha_key, dora_key}
        magnitude = tensors[dora_key].flatten() if dora_key in tensors else None
        rows = [native.rows for _, native in layer]
        if magnitude is not None and rows != [None]:
            raise RunError(
                f"{file} is a DoRA of {stem}, whose magnitudes are of several modules together and cannot "
                "be taken apart; choose a plain LoRA",
                "model_missing",
            )
        for (module, native), columns in zip(layer, _columns(up, rows), strict=True):
            if alpha_key in tensors:
                alpha = float(tensors[alpha_key]) or float(len(down))  # 0 is the rank to kohya
            else:
                alpha = _peft_alpha(metadata, module, len(down))
            own = up[slice(*native.rows)] if native.rows else up
            if native.swapped:
                own = halves_swapped(own)
            if columns == slice(0, len(down)):
                found[module] = LoraWeights(down, own, alpha, magnitude)
            elif columns.stop > columns.start:
                rank = columns.stop - columns.start
                found[module] = LoraWeights(down[columns], own[:, columns], alpha / len(down) * rank)
    return found, used


def _columns(up: Tensor, rows: Sequence[tuple[int, int] | None]) -> list[slice]:
    """Which ranks of a layer's ``up``, (out, rank), are those of each of its modules, by their output rows.

    Of several modules' LoRAs side by side, a rank has zeros in all rows but one module's. Ranks that are zero
    altogether go with those before them, unless the others tell equal shares.
    """
    rank, modules = up.shape[1], range(len(rows))
    whole = [slice(0, rank) for _ in modules]
    if None in rows:
        return whole
    filled = torch.stack([(up[slice(*own)].float() != 0).any(0) for own in rows if own])  # (modules, rank)
    if bool((filled.sum(0) > 1).any()) or not bool(filled.any()):
        return whole
    owners = [int(own.to(torch.int8).argmax()) if bool(own.any()) else None for own in filled.T]
    share = max(rank // len(rows), 1)
    if all(owner in (None, column // share) for column, owner in enumerate(owners)) and rank % share == 0:
        return [slice(i * share, (i + 1) * share) for i in modules]
    last = next(owner for owner in owners if owner is not None)
    whose = [last := last if owner is None else owner for owner in owners]
    stretches = [(owner, len(list(ranks))) for owner, ranks in groupby(whose)]
    if len(stretches) > len(set(whose)):
        return whole
    ends = dict(
        zip((owner for owner, _ in stretches), accumulate(size for _, size in stretches), strict=True)
    )
    return [slice(ends.get(i, 0) - whose.count(i), ends.get(i, 0)) for i in modules]


def layers_in(
    stems: Collection[str], family: ModelFamily, modules: Iterable[str]
) -> dict[str, list[tuple[str, Native]]]:
    """Which modules each of a file's key stems is for, and where in the layer that it names."""
    found: dict[str, list[tuple[str, Native]]] = {}
    for module in modules:
        for stem, native in _stems(module, family):
            if stem in stems:
                found.setdefault(stem, []).append((module, native))
                break
    return {stem: sorted(layer, key=lambda one: one[1].rows or (0, 0)) for stem, layer in found.items()}


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
        wrong = lost(path, weights, family, rank, about.get("format", "kohya"))
        if not wrong:
            return
    raise RunError(f"{path.name} was written, but does not hold what was trained: {wrong}", "unknown")


def lost(
    path: Path,
    weights: Mapping[str, AdapterWeights],
    family: ModelFamily,
    rank: int | None,
    format: Format,
) -> str:
    """What a file lacks of the weights, "" where it lacks nothing. Other kinds than LoRA, not all of which
    are read here, are compared tensor by tensor."""
    tensors = {key: tensor.float() for key, tensor in read_tensors(path).items()}
    for key, tensor in tensors.items():
        if not bool(tensor.isfinite().all()):
            return f"{key} is infinite"
    own = {
        name: lora
        for name, lora in weights.items()
        if isinstance(lora, LoraWeights) and lora.magnitude is None
    }
    if len(own) < len(weights):
        return differing(tensors, tensors_in(format, weights, family))
    found = read_lora(path, family, own)
    for name, lora in own.items():
        again = found.get(name)
        trained = lora.cut(rank) if rank is not None else lora
        if again is None and bool(trained.up.any()):
            return f"{name} is missing"
        if again and not product_norm(difference(again, trained)) <= ROUNDING * product_norm(trained) + 1e-12:
            return f"{name} differs"
    return ""


def differing(written: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> str:
    """Which tensor of a file is not what it should be, "" where each is."""
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


def _first(tensors: Mapping[str, Tensor], stem: str, endings: tuple[str, ...]) -> str:
    return next((stem + ending for ending in endings if stem + ending in tensors), "")


def _stems(name: str, family: ModelFamily) -> list[tuple[str, Native]]:
    """Every key stem that a module may have, with its place in the layer of that name."""
    part, _, module = name.partition(".")
    own = Native(name)
    stems: list[tuple[str, Native]] = [(name, own), (diffusers_name(name, family), own)]
    for format in FORMATS[::2]:
        stem, native = original_name(format, name, family)
        stems.append((stem, native))
    if part == family.denoiser_part:
        kohya, native = stems[2]
        respelt = kohya
        for ours, theirs in family.respelt.items():
            respelt = respelt.replace(ours, theirs)
        stems += [(respelt, native), ("lora_unet_" + native.name.replace(".", "_"), native)]
        # diffusers' names in kohya's spelling, and under the prefixes that other trainers write
        flat = module.replace(".", "_")
        stems += [(prefix + flat, own) for prefix in ("lora_unet_", "lora_transformer_", "lycoris_")]
        prefixes = (
            "diffusion_model.",
            "transformer.",
            "unet.",
            "",
            f"base_model.model.{part}.",
            "base_model.model.",
        )
        stems += [(f"{prefix}{module}", own) for prefix in prefixes]
    return stems
