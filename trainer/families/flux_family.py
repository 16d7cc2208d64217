"""What black-forest-labs' transformers and their descendants share: FLUX.1, FLUX.2, Chroma.

Double blocks (text and picture apart, attending to each other), then single blocks (one sequence), over
latents in 2x2 patches; rectified flow. The original code has one layer where diffusers has several:
``qkv``, and ``linear1`` = q, k, v and the MLP's first layer.
"""

from __future__ import annotations

import re
from typing import ClassVar

import torch
from torch import Tensor

from ..contract import families as catalogue
from ..noise import Flow
from ..timesteps import Times
from .base import Native
from .native_file import NativeFamily
from .packing import pack

ATTENTION = r"attn\.(to_q|to_k|to_v|to_out\.0|add_q_proj|add_k_proj|add_v_proj|to_add_out)"
_BLOCKS = r"(single_)?transformer_blocks\.\d+"

# diffusers' name -> the original code's, in a double block, in a single block, and outside of both.
_DOUBLE = {
    "norm1.linear": "img_mod.lin",
    "norm1_context.linear": "txt_mod.lin",
    "attn.to_out.0": "img_attn.proj",
    "attn.to_add_out": "txt_attn.proj",
    "attn.norm_q": "img_attn.norm.query_norm",
    "attn.norm_k": "img_attn.norm.key_norm",
    "attn.norm_added_q": "txt_attn.norm.query_norm",
    "attn.norm_added_k": "txt_attn.norm.key_norm",
    "ff.net.0.proj": "img_mlp.0",
    "ff.net.2": "img_mlp.2",
    "ff_context.net.0.proj": "txt_mlp.0",
    "ff_context.net.2": "txt_mlp.2",
}
_SINGLE = {
    "norm.linear": "modulation.lin",
    "attn.norm_q": "norm.query_norm",
    "attn.norm_k": "norm.key_norm",
    "proj_out": "linear2",
}
_REST = {
    "x_embedder": "img_in",
    "context_embedder": "txt_in",
    "time_text_embed.timestep_embedder": "time_in",
    "time_text_embed.guidance_embedder": "guidance_in",
    "time_text_embed.text_embedder": "vector_in",
    "norm_out.linear": "final_layer.adaLN_modulation.1",
    "proj_out": "final_layer.linear",
}
_QKV = {"attn.to_q": 0, "attn.to_k": 1, "attn.to_v": 2}
_ADDED_QKV = {"attn.add_q_proj": 0, "attn.add_k_proj": 1, "attn.add_v_proj": 2}
_LAYERS = {"linear_1": "in_layer", "linear_2": "out_layer"}


class FluxFamily(NativeFamily):
    """``attention`` is what "attention" trains; "transformer" is every layer of the blocks, as kohya's."""

    targets: ClassVar[dict[str, str]] = catalogue.by_targets(
        rf"{_BLOCKS}\.{ATTENTION}",
        rf"{_BLOCKS}\.({ATTENTION}|ff(_context)?\.net\.(0\.proj|2)|norm(1|1_context)?\.linear"
        r"|proj_mlp|proj_out)",
    )

    landmark = "double_blocks.0.img_attn.qkv.weight"
    noise: Flow

    def setup(self) -> None:
        # Times as kohya's and ai-toolkit's "sigmoid": most of the learning is at middle noise.
        self.noise = Flow(Times("logit_normal"))
        self.resolution = int(self.base.read_json("vae", "config.json")["sample_size"])

    def to_pipeline(self, latents_BCHW: Tensor) -> Tensor:
        return pack(latents_BCHW)

    def grid(self, height: int, width: int) -> Tensor:
        """Positions of picture tokens, (height·width, 3): nothing, row, column."""
        rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        return torch.stack([torch.zeros_like(rows), rows, columns], -1).flatten(0, 1).float().to(self.device)

    # Names of the original code -------------------------------------------------------------------

    double_names: ClassVar[dict[str, str]] = _DOUBLE
    single_names: ClassVar[dict[str, str]] = _SINGLE
    other_names: ClassVar[dict[str, str]] = _REST

    def native(self, module: str) -> Native:
        d = self.denoiser_config["num_attention_heads"] * self.denoiser_config["attention_head_dim"]
        if match := re.fullmatch(r"transformer_blocks\.(\d+)\.(.+)", module):
            block, rest = f"double_blocks.{match[1]}", match[2]
            for stream, thirds in (("img", _QKV), ("txt", _ADDED_QKV)):
                if rest in thirds:
                    first = thirds[rest] * d
                    return Native(f"{block}.{stream}_attn.qkv", (first, first + d), 3 * d)
            return Native(f"{block}.{self.double_names[rest]}")
        if match := re.fullmatch(r"single_transformer_blocks\.(\d+)\.(.+)", module):
            block, rest = f"single_blocks.{match[1]}", match[2]
            if rest in _QKV:
                return Native(f"{block}.linear1", (_QKV[rest] * d, (_QKV[rest] + 1) * d), 7 * d)
            if rest == "proj_mlp":
                return Native(f"{block}.linear1", (3 * d, 7 * d), 7 * d)
            return Native(f"{block}.{self.single_names[rest]}")
        head, _, last = module.rpartition(".")
        if last in _LAYERS:
            return Native(f"{self.other_names.get(head, head)}.{_LAYERS[last]}")
        return Native(self.other_names.get(module, module), swapped=module == "norm_out.linear")
