"""The LoRA as a file, in the key names that other programs read.

- ``kohya``: ``lora_unet_input_blocks_4_1_….lora_down.weight`` / ``.lora_up.weight`` / ``.alpha``; read by
  A1111, Forge, ComfyUI, kohya's scripts and diffusers. The default.
- ``diffusers``: ``unet.….lora_A.weight`` / ``.lora_B.weight``; alpha is folded into B and the adapter
  metadata says so, so that no reader can get the strength wrong.
- ``comfyui``: ``diffusion_model.….lora_A.weight`` / ``.lora_B.weight`` / ``.alpha`` by the names of the
  architecture's original code.

diffusers' own converters are not used: they drop modules and rewrite alpha (docs/export.md).
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save
from torch import Tensor

from .adapters import LoraWeights
from .contract.config import TrainConfig
from .contract.files import write_bytes
from .families.base import ModelFamily, Native

Format = Literal["kohya", "diffusers", "comfyui"]
FORMATS: tuple[Format, ...] = ("kohya", "diffusers", "comfyui")


def tensors_in(format: Format, weights: Mapping[str, LoraWeights], family: ModelFamily) -> dict[str, Tensor]:
    """The file's tensors, float32. ``weights`` is {part.module: weights}."""
    tensors: dict[str, Tensor] = {}
    if format == "diffusers":
        for name, lora in weights.items():
            stem = diffusers_name(name, family)
            tensors[f"{stem}.lora_A.weight"] = lora.down
            tensors[f"{stem}.lora_B.weight"] = lora.up * lora.scale
        return tensors
    down, up = ("lora_down", "lora_up") if format == "kohya" else ("lora_A", "lora_B")
    for stem, lora in _original(format, weights, family).items():
        tensors[f"{stem}.{down}.weight"] = lora.down
        tensors[f"{stem}.{up}.weight"] = lora.up
        tensors[f"{stem}.alpha"] = torch.tensor(lora.alpha)
    return tensors


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
    format: Format, weights: Mapping[str, LoraWeights], family: ModelFamily
) -> dict[str, LoraWeights]:
    """{key stem: weights}; modules that are one layer in the original code are fused."""
    groups: dict[str, list[tuple[Native, LoraWeights]]] = {}
    for name, lora in weights.items():
        stem, native = original_name(format, name, family)
        groups.setdefault(stem, []).append((native, lora))
    return {stem: fused(group) for stem, group in groups.items()}


def fused(group: list[tuple[Native, LoraWeights]]) -> LoraWeights:
    """Modules that share an input, as one layer whose output rows are theirs: exact, of the summed rank."""
    if len(group) == 1 and group[0][0].rows is None:
        return group[0][1]
    rank = sum(lora.rank for _, lora in group)
    up = torch.zeros(group[0][0].total, rank)
    column = 0
    for native, lora in group:
        assert native.rows
        up[slice(*native.rows), column : column + lora.rank] = lora.up * lora.scale
        column += lora.rank
    return LoraWeights(torch.cat([lora.down for _, lora in group]), up, float(rank))


def save_lora(
    path: Path,
    weights: Mapping[str, LoraWeights],
    family: ModelFamily,
    config: TrainConfig,
    *,
    trigger: str,
    step: int,
    base_name: str,
    format: Format = "kohya",
    dtype: torch.dtype = torch.float16,
) -> None:
    """Write the LoRA; it appears whole. ``dtype`` is the precision of the matrices on disk."""
    tensors = {
        name: (tensor if name.endswith(".alpha") else tensor.to(dtype)).contiguous()
        for name, tensor in tensors_in(format, weights, family).items()
    }
    metadata = _metadata(tensors, family, config, trigger, step, base_name)
    if format == "diffusers":
        metadata["lora_adapter_metadata"] = json.dumps(_peft_metadata(weights, family), sort_keys=True)
    write_bytes(path, save(tensors, metadata=metadata))


def _peft_metadata(weights: Mapping[str, LoraWeights], family: ModelFamily) -> dict[str, Any]:
    """What diffusers builds its adapters from: alpha = rank, since alpha is folded into the weights.

    Modules of text encoders are named without "text_model.": peft compares the ends of names, so that they
    are found by transformers 4, which has it, and 5, which has not.
    """
    metadata: dict[str, Any] = {}
    for part in sorted({name.partition(".")[0] for name in weights}):
        names = [name for name in weights if name.startswith(f"{part}.")]
        rank = max(weights[name].rank for name in names)
        modules = sorted(name.removeprefix(f"{part}.").removeprefix("text_model.") for name in names)
        metadata |= {f"{part}.r": rank, f"{part}.lora_alpha": rank, f"{part}.target_modules": modules}
    return metadata


def _metadata(
    tensors: dict[str, Tensor],
    family: ModelFamily,
    config: TrainConfig,
    trigger: str,
    step: int,
    base_name: str,
) -> dict[str, str]:
    """What loaders and model pages read. Never a path, a user name or a token."""
    width = height = config.dataset.resolution or family.resolution
    ss = {
        **{key: value for key, value in family.metadata().items() if key.startswith("ss_")},
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(config.adapter.rank),
        "ss_network_alpha": f"{config.adapter.alpha:g}",
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
    if config.adapter.targets == "transformer+conv":
        conv = {"conv_dim": str(config.adapter.rank), "conv_alpha": f"{config.adapter.alpha:g}"}
        ss["ss_network_args"] = json.dumps(conv)
    return {
        **ss,
        **{key: value for key, value in family.metadata().items() if key.startswith("modelspec.")},
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.title": config.output.name,
        "modelspec.resolution": f"{width}x{height}",
        "modelspec.date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "modelspec.trigger_phrase": trigger,
        "sshs_model_hash": _hash_of_tensors(tensors, ss),
        "format": "pt",
    }


def _hash_of_tensors(tensors: dict[str, Tensor], ss: dict[str, str]) -> str:
    """SHA-256 of the tensor bytes behind the header, as A1111 and kohya define ``sshs_model_hash``."""
    data = save(tensors, metadata=ss)
    header = int.from_bytes(data[:8], "little")
    return hashlib.sha256(data[8 + header :]).hexdigest()
