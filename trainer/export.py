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

import hashlib
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save
from torch import Tensor

from .adapters import AdapterWeights, LohaWeights, LokrWeights, LoraWeights, OftWeights
from .contract.config import TrainConfig
from .contract.errors import RunError
from .contract.files import write_bytes
from .contract.settings.adapter import AdapterSettings
from .families.base import ModelFamily, Native

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
                raise RunError(
                    f"diffusers reads plain LoRAs, and this is {KINDS[type(lora)]}; "
                    "choose the format kohya or comfyui, or use it in ComfyUI",
                    "config",
                )
            stem = diffusers_name(name, family)
            tensors[f"{stem}.lora_A.weight"] = lora.down
            tensors[f"{stem}.lora_B.weight"] = lora.up * lora.scale
        return tensors
    down, up = ("lora_down", "lora_up") if format == "kohya" else ("lora_A", "lora_B")
    for stem, each in _original(format, weights, family).items():
        tensors |= {f"{stem}.{ending}": tensor for ending, tensor in each.tensors(down, up).items()}
    return tensors


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
            found[stem] = group[0][2]
        elif one := fused([(native, each) for _, native, each in group]):
            found[stem] = one
        else:
            found |= {lycoris_name(name): each for name, _, each in group}
    return found


def lycoris_name(name: str) -> str:
    """A denoiser's module by diffusers' name, as LyCORIS spells it."""
    return "lycoris_" + name.partition(".")[2].replace(".", "_")


def fused(group: list[tuple[Native, AdapterWeights]]) -> AdapterWeights | None:
    """Modules that share an input, as one layer whose output rows are theirs; None where that is none of
    their kind: a Kronecker product, or a DoRA with other magnitudes.

    A LoRA of it, and each of a LoHa's two products, has the summed rank and is exact.
    """
    natives = [native for native, _ in group]
    loras = [each for _, each in group if isinstance(each, LoraWeights) and each.magnitude is None]
    lohas = [each for _, each in group if isinstance(each, LohaWeights)]
    ofts = [each for _, each in group if isinstance(each, OftWeights)]
    if len(loras) == len(group):
        up = _side_by_side(natives, [lora.up * lora.scale for lora in loras])
        return LoraWeights(torch.cat([lora.down for lora in loras]), up, float(up.shape[1]))
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
    format: Format = "kohya",
    dtype: torch.dtype = torch.float16,
    rank: int | None = None,
) -> None:
    """Write the LoRA; it appears whole. ``dtype`` is the precision of the matrices on disk; ``rank`` is
    that of a DyLoRA to be cut to it."""
    if rank is not None:
        weights = {
            name: lora.cut(rank) if isinstance(lora, LoraWeights) else lora for name, lora in weights.items()
        }
    tensors = {
        name: (tensor if name.endswith(".alpha") else tensor.to(dtype)).contiguous()
        for name, tensor in tensors_in(format, weights, family).items()
    }
    metadata = _metadata(tensors, family, config, trigger, step, base_name, rank)
    if format == "diffusers":
        metadata["lora_adapter_metadata"] = json.dumps(_peft_metadata(weights, family), sort_keys=True)
    write_bytes(path, in_order(save(tensors, metadata=metadata)))


def in_order(data: bytes) -> bytes:
    """A safetensors file with its metadata in alphabetical order: the library writes it in another one each
    time, so that the same LoRA would never be the same file."""
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of 8
    return len(text).to_bytes(8, "little") + text + data[end:]


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


def _metadata(
    tensors: dict[str, Tensor],
    family: ModelFamily,
    config: TrainConfig,
    trigger: str,
    step: int,
    base_name: str,
    rank: int | None,
) -> dict[str, str]:
    """What loaders and model pages read. Never a path, a user name or a token."""
    width = height = config.dataset.resolution or family.resolution
    ss = {
        **{key: value for key, value in family.metadata().items() if key.startswith("ss_")},
        **network_metadata(config.adapter, rank),
        "ss_output_name": config.output.name,
        "ss_sd_model_name": base_name,
        "ss_resolution": f"({width}, {height})",
        "ss_steps": str(step),
        "ss_learning_rate": f"{config.train.learning_rate:g}",
        "ss_optimizer": config.train.optimizer,
        "ss_lr_scheduler": config.train.scheduler,
        "ss_seed": str(config.train.seed),
        "ss_training_comment": f"trigger: {trigger}" if trigger else "",
    }
    return {
        **ss,
        **{key: value for key, value in family.metadata().items() if key.startswith("modelspec.")},
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.title": config.output.name,
        "modelspec.resolution": f"{width}x{height}",
        "modelspec.date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(_now())),
        "modelspec.trigger_phrase": trigger,
        "sshs_model_hash": _hash_of_tensors(tensors, ss),
        "format": "pt",
    }


def _now() -> float:
    """Unix seconds; SOURCE_DATE_EPOCH, as reproducible builds have it, for files that are the same byte for
    byte whenever they are written."""
    return float(os.environ.get("SOURCE_DATE_EPOCH") or time.time())


def network_metadata(adapter: AdapterSettings, cut: int | None = None) -> dict[str, str]:
    """Kind and size, in kohya's words; ``cut`` is the rank that a DyLoRA was cut to."""
    modules = {"lora": "networks.lora", "dylora": "networks.dylora", "oft": "lycoris.kohya"}
    module = "lycoris.kohya" if adapter.dora else modules.get(adapter.type, "lycoris.kohya")
    arguments: dict[str, str] = {}
    if module == "lycoris.kohya":
        arguments["algo"] = {"lora": "lora", "oft": "diag-oft"}.get(adapter.type, adapter.type)
    if adapter.dora:
        arguments |= {"dora_wd": "True", "wd_on_output": "False"}
    if adapter.type == "lokr":
        arguments["factor"] = str(adapter.lokr_factor)
    if adapter.type == "dylora":
        arguments["unit"] = str(adapter.dylora_unit)
    if adapter.targets == "transformer+conv":
        arguments["conv_dim"] = str(adapter.conv_rank or adapter.rank)
        arguments["conv_alpha"] = f"{adapter.conv_alpha or adapter.alpha:g}"
    for name, ours in (("block_dims", "block_ranks"), ("block_alphas", "block_alphas")):
        if text := getattr(adapter, ours):
            arguments[name] = text
    for name in ("rank_dropout", "module_dropout"):
        if value := getattr(adapter, name):
            arguments[name] = f"{value:g}"
    # The file's alpha is such that alpha / rank is the scale, whatever the recipe's rule for it.
    rank = cut or adapter.rank * (2 if adapter.init in ("pissa", "olora") else 1)
    scale = adapter.alpha / (adapter.rank**0.5 if adapter.rslora else adapter.rank)
    found = {
        "ss_network_module": module,
        "ss_network_dim": str(rank),
        "ss_network_alpha": f"{scale * rank:g}",
    }
    if adapter.max_norm:
        found["ss_scale_weight_norms"] = f"{adapter.max_norm:g}"
    if arguments:
        found["ss_network_args"] = json.dumps(arguments)
    return found


def _hash_of_tensors(tensors: dict[str, Tensor], ss: dict[str, str]) -> str:
    """SHA-256 of the tensor bytes behind the header, as A1111 and kohya define ``sshs_model_hash``."""
    data = save(tensors, metadata=ss)
    header = int.from_bytes(data[:8], "little")
    return hashlib.sha256(data[8 + header :]).hexdigest()
