"""The LoRA as a file, in the key names that other programs read.

- ``kohya``: ``lora_unet_input_blocks_4_1_….lora_down.weight`` / ``.lora_up.weight`` / ``.alpha``; read by
  A1111, Forge, ComfyUI, kohya's scripts and diffusers. The default.
- ``diffusers``: ``unet.….lora_A.weight`` / ``.lora_B.weight``; alpha is folded into B and the adapter
  metadata says so, so that no reader can get the strength wrong.
- ``comfyui``: ``diffusion_model.….lora_A.weight`` / ``.lora_B.weight`` / ``.alpha`` by the names of the
  architecture's original code.

LoHa, LoKr, OFT and DoRA have LyCORIS's endings (``hada_w1_a``, ``lokr_w1``, ``oft_blocks``, ``dora_scale``)
in the first and the last of these; diffusers reads none of them so.

diffusers' own converters are not used: they drop modules and rewrite alpha (docs/export.md).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from .adapters import AdapterWeights, LohaWeights, LokrWeights, LoraWeights, OftWeights
from .contract.config import TrainConfig
from .contract.errors import RunError
from .contract.files import write_bytes
from .families.base import ModelFamily, Native
from .lora_metadata import file_of, training_metadata

Format = Literal["kohya", "diffusers", "comfyui"]
FORMATS: tuple[Format, ...] = ("kohya", "diffusers", "comfyui")


def tensors_in(
    format: Format, weights: Mapping[str, AdapterWeights], family: ModelFamily
) -> dict[str, Tensor]:
    """The file's tensors, float32. ``weights`` is {part.module: weights}.

    Raises RunError(config) where the format cannot say what they are.
    """
    tensors: dict[str, Tensor] = {}
    if format == "diffusers":
        for name, lora in weights.items():
            if not isinstance(lora, LoraWeights) or lora.magnitude is not None:
                raise only_plain(KINDS[type(lora)])
            stem = diffusers_name(name, family)
            tensors[f"{stem}.lora_A.weight"] = lora.down
            tensors[f"{stem}.lora_B.weight"] = lora.up * lora.scale
        return tensors
    down, up = ("lora_down", "lora_up") if format == "kohya" else ("lora_A", "lora_B")
    for stem, each in _original(format, weights, family).items():
        tensors |= {f"{stem}.{ending}": tensor for ending, tensor in each.tensors(down, up).items()}
    return tensors


def only_plain(kind: str) -> RunError:
    """The error that the diffusers format cannot say what ``kind``, with its article, is."""
    return RunError(
        f"diffusers reads plain LoRAs, and this is {kind}; "
        "choose the format kohya or comfyui, or use it in ComfyUI",
        "config",
    )


KINDS: dict[type, str] = {
    LoraWeights: "a DoRA",
    LohaWeights: "a LoHa",
    LokrWeights: "a LoKr",
    OftWeights: "an OFT",
}


def diffusers_name(name: str, family: ModelFamily) -> str:
    """Text encoders get "text_model.", which transformers 5 dropped and every reader expects."""
    part, _, module = name.partition(".")
    if part == family.denoiser_part:
        return name
    return f"{part}.text_model.{module.removeprefix('text_model.')}"


def original_name(format: Format, name: str, family: ModelFamily) -> tuple[str, Native]:
    """The key stem of a module in "kohya" or "comfyui", and the layer of the original code that it is in."""
    part, _, module = name.partition(".")
    if part != family.denoiser_part:
        kohya = family.kohya_name(part, module)
        comfyui = f"text_encoders.{family.clip_names[part]}.transformer.text_model."
        comfyui += module.removeprefix("text_model.")
        return kohya if format == "kohya" else comfyui, Native(name)
    native = family.native(module)
    kohya = family.kohya_name(part, module)
    return kohya if format == "kohya" else f"diffusion_model.{native.name}", native


def _original(
    format: Format, weights: Mapping[str, AdapterWeights], family: ModelFamily
) -> dict[str, AdapterWeights]:
    """{key stem: weights}; modules that are one layer in the original code are fused.

    Where that cannot be they stay apart, under diffusers' names as LyCORIS spells them; ComfyUI finds
    their rows in the layer.
    """
    groups: dict[str, list[tuple[str, Native, AdapterWeights]]] = {}
    for name, each in weights.items():
        stem, native = original_name(format, name, family)
        groups.setdefault(stem, []).append((name, native, each))
    found: dict[str, AdapterWeights] = {}
    for stem, group in groups.items():
        if len(group) == 1 and group[0][1].rows is None:
            name, native, each = group[0]
            if not native.swapped:
                found[stem] = each
            elif isinstance(each, LoraWeights):
                found[stem] = replace(each, up=halves_swapped(each.up))
            else:
                found[lycoris_name(name)] = each
        elif one := fused([(native, each) for _, native, each in group]):
            found[stem] = one
        else:
            found |= {lycoris_name(name): each for name, _, each in group}
    return found


def lycoris_name(name: str) -> str:
    """A denoiser's module by diffusers' name, as LyCORIS spells it."""
    return "lycoris_" + name.partition(".")[2].replace(".", "_")


def halves_swapped(up: Tensor) -> Tensor:
    """(shift, scale) rows for (scale, shift), and back."""
    return torch.cat(up.chunk(2)[::-1])


def fused(group: Sequence[tuple[Native, AdapterWeights]]) -> AdapterWeights | None:
    """Modules that share an input, as one layer whose output rows are theirs; None where that is none of
    their kind: a Kronecker product, or a DoRA with other magnitudes.

    A LoRA of it, and each of a LoHa's two products, has the summed rank and is exact. LoRAs with ``down`` in
    common, as of a layer that was trained whole and taken apart, are that layer's LoRA again.
    """
    group = sorted(group, key=lambda one: one[0].rows or (0, 0))
    natives = [native for native, _ in group]
    loras = [each for _, each in group if isinstance(each, LoraWeights) and each.magnitude is None]
    lohas = [each for _, each in group if isinstance(each, LohaWeights)]
    ofts = [each for _, each in group if isinstance(each, OftWeights)]
    if len(loras) == len(group):
        return _fused_loras(natives, loras)
    if len(lohas) == len(group):
        w1_a = _side_by_side(natives, [each.w1_a * each.scale for each in lohas])
        w2_a = _side_by_side(natives, [each.w2_a for each in lohas])
        w1_b, w2_b = torch.cat([one.w1_b for one in lohas]), torch.cat([one.w2_b for one in lohas])
        return LohaWeights(w1_a, w1_b, w2_a, w2_b, float(len(w1_b)))
    if len(ofts) == len(group) and len({each.rank for each in ofts}) == 1:
        size = ofts[0].rank
        if all((native.total, *(native.rows or ()))[i] % size == 0 for native in natives for i in range(3)):
            blocks = torch.zeros(natives[0].total // size, size, size)  # rows of no module stay as they are
            for native, each in zip(natives, ofts, strict=True):
                assert native.rows
                blocks[native.rows[0] // size : native.rows[1] // size] = each.blocks
            return OftWeights(blocks)
    return None


def _fused_loras(natives: list[Native], loras: list[LoraWeights]) -> LoraWeights:
    """One scale is kept as it is, different ones are folded into ``up``."""
    first, alike = loras[0], len({lora.scale for lora in loras}) == 1
    if len(loras) > 1 and alike and all(torch.equal(first.down, lora.down) for lora in loras):
        up = torch.zeros(natives[0].total, first.rank)
        for native, lora in zip(natives, loras, strict=True):
            assert native.rows
            up[slice(*native.rows)] = lora.up
        return LoraWeights(first.down, up, first.alpha)
    up = _side_by_side(natives, [lora.up if alike else lora.up * lora.scale for lora in loras])
    rank = float(up.shape[1])
    return LoraWeights(torch.cat([lora.down for lora in loras]), up, first.scale * rank if alike else rank)


def _side_by_side(natives: list[Native], ups: list[Tensor]) -> Tensor:
    """Matrices (out, rank) as one of all rows and the summed rank, each in its own rows and columns."""
    whole = torch.zeros(natives[0].total, sum(up.shape[1] for up in ups))
    column = 0
    for native, up in zip(natives, ups, strict=True):
        assert native.rows
        whole[slice(*native.rows), column : column + up.shape[1]] = up
        column += up.shape[1]
    return whole


def save_lora(
    path: Path,
    weights: Mapping[str, AdapterWeights],
    family: ModelFamily,
    config: TrainConfig,
    *,
    trigger: str,
    step: int,
    base_name: str,
    made: float | None = None,
    format: Format = "kohya",
    dtype: torch.dtype = torch.float16,
    rank: int | None = None,
) -> None:
    """Write the LoRA; it appears whole. ``made`` is its date in Unix seconds, now where it has none;
    ``dtype`` is the precision of the matrices on disk; ``rank`` is that of a DyLoRA to be cut to it."""
    if rank is not None:
        weights = {
            name: lora.cut(rank) if isinstance(lora, LoraWeights) else lora for name, lora in weights.items()
        }
    tensors = {
        name: (tensor if name.endswith(".alpha") else tensor.to(dtype)).contiguous()
        for name, tensor in tensors_in(format, weights, family).items()
    }
    metadata = training_metadata(family, config, trigger, step, base_name, rank, made)
    write_bytes(path, file_of(tensors, metadata | format_metadata(format, weights, family)))


def format_metadata(
    format: Format, weights: Mapping[str, AdapterWeights], family: ModelFamily
) -> dict[str, str]:
    """What a format says of the weights beside their tensors."""
    if format != "diffusers":
        return {}
    found = {"lora_adapter_metadata": json.dumps(_peft_metadata(weights, family), sort_keys=True)}
    if alphas := _folded_alphas(weights, family):
        found[FOLDED] = json.dumps(alphas, sort_keys=True)
    return found


FOLDED = "folded_alpha"
"""The alphas that are folded into B, for whoever wants them back: {key stem: alpha}, "" for all others."""


def _folded_alphas(weights: Mapping[str, AdapterWeights], family: ModelFamily) -> dict[str, float]:
    loras = {
        diffusers_name(name, family): each for name, each in weights.items() if isinstance(each, LoraWeights)
    }
    if all(lora.alpha == lora.rank for lora in loras.values()):
        return {}
    usual = Counter(lora.alpha for lora in loras.values()).most_common(1)[0][0]
    return {"": usual} | {stem: lora.alpha for stem, lora in loras.items() if lora.alpha != usual}


def _peft_metadata(weights: Mapping[str, AdapterWeights], family: ModelFamily) -> dict[str, Any]:
    """What diffusers builds its adapters from: alpha = rank, since alpha is folded into the weights.

    Modules of text encoders are named without "text_model.": peft compares the ends of names, so that they
    are found by transformers 4, which has it, and 5, which has not.
    """
    metadata: dict[str, Any] = {}
    for part in sorted({name.partition(".")[0] for name in weights}):
        ranks = {
            name.removeprefix(f"{part}.").removeprefix("text_model."): each.rank
            for name, each in weights.items()
            if name.startswith(f"{part}.")
        }
        rank = max(ranks.values())  # type: ignore[type-var]
        metadata |= {f"{part}.r": rank, f"{part}.lora_alpha": rank, f"{part}.target_modules": sorted(ranks)}
        if lower := {name: each for name, each in sorted(ranks.items()) if each != rank}:
            metadata |= {f"{part}.rank_pattern": lower, f"{part}.alpha_pattern": lower}
    return metadata
