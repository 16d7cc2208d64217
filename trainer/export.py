"""The LoRA as a file, in the key names that other programs read.

- ``kohya``: ``lora_unet_input_blocks_4_1_….lora_down.weight`` / ``.lora_up.weight`` / ``.alpha``; read by
  A1111, Forge, ComfyUI, kohya's scripts and diffusers. The default.
- ``diffusers``: ``unet.….lora_A.weight`` / ``.lora_B.weight``; alpha is folded into B, so that no reader
  can get the strength wrong.
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
from typing import Literal

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from .adapters import LoraWeights
from .contract.config import TrainConfig
from .contract.files import write_bytes
from .families.base import ModelFamily

Format = Literal["kohya", "diffusers", "comfyui"]
FORMATS: tuple[Format, ...] = ("kohya", "diffusers", "comfyui")


def tensors_in(format: Format, weights: Mapping[str, LoraWeights], family: ModelFamily) -> dict[str, Tensor]:
    """The file's tensors, float32."""
    tensors: dict[str, Tensor] = {}
    for module, lora in weights.items():
        if format == "kohya":
            stem = family.kohya_name(module)
            tensors[f"{stem}.lora_down.weight"] = lora.down
            tensors[f"{stem}.lora_up.weight"] = lora.up
            tensors[f"{stem}.alpha"] = torch.tensor(lora.alpha)
        elif format == "diffusers":
            tensors[f"unet.{module}.lora_A.weight"] = lora.down
            tensors[f"unet.{module}.lora_B.weight"] = lora.up * (lora.alpha / lora.rank)
        else:
            stem = f"diffusion_model.{family.native_name(module)}"
            tensors[f"{stem}.lora_A.weight"] = lora.down
            tensors[f"{stem}.lora_B.weight"] = lora.up
            tensors[f"{stem}.alpha"] = torch.tensor(lora.alpha)
    return tensors


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
    write_bytes(path, save(tensors, metadata=_metadata(tensors, family, config, trigger, step, base_name)))


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
        "modelspec.implementation": "https://github.com/Stability-AI/generative-models",
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


def read_kohya(path: Path, family: ModelFamily, modules: list[str]) -> dict[str, LoraWeights]:
    """The LoRA back from a file in kohya's names. ``modules`` are the denoiser's adapted modules.

    Raises ValueError when a key of the file is not used.
    """
    stems = {family.kohya_name(module): module for module in modules}
    weights: dict[str, LoraWeights] = {}
    with safe_open(path, framework="pt") as file:
        keys = set(file.keys())
        for stem, module in stems.items():
            if f"{stem}.lora_down.weight" in keys:
                down = file.get_tensor(f"{stem}.lora_down.weight").float()
                up = file.get_tensor(f"{stem}.lora_up.weight").float()
                alpha = float(file.get_tensor(f"{stem}.alpha"))
                weights[module] = LoraWeights(down, up, alpha)
        left = keys - {f"{s}.{e}" for s in stems for e in ("lora_down.weight", "lora_up.weight", "alpha")}
    if left:
        raise ValueError(f"{path.name} has keys that fit no module: {sorted(left)[:3]}")
    return weights
