"""black-forest-labs' layout of a denoiser, written down apart from the trainer's own table of names.

Built from the published code's module list (flux/model.py, flux/modules/layers.py of their repository).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def merged(model: nn.Module) -> dict[str, Tensor]:
    """The tensors of a diffusers FLUX.1 or Chroma transformer as the original code names and merges them."""
    state = dict(model.state_dict())
    made: dict[str, Tensor] = {}

    def take(old: str, new: str, norm: bool = False) -> None:
        for kind in ("weight", "bias"):
            if (tensor := state.pop(f"{old}.{kind}", None)) is not None:
                made[f"{new}.{'scale' if norm else kind}"] = tensor

    def join(olds: list[str], new: str) -> None:
        for kind in ("weight", "bias"):
            made[f"{new}.{kind}"] = torch.cat([state.pop(f"{old}.{kind}") for old in olds])

    def count(list_name: str) -> int:
        return len(list(model.get_submodule(list_name).children()))

    for i in range(count("transformer_blocks")):
        a, b = f"transformer_blocks.{i}", f"double_blocks.{i}"
        join([f"{a}.attn.to_{x}" for x in "qkv"], f"{b}.img_attn.qkv")
        join([f"{a}.attn.add_{x}_proj" for x in "qkv"], f"{b}.txt_attn.qkv")
        take(f"{a}.attn.to_out.0", f"{b}.img_attn.proj")
        take(f"{a}.attn.to_add_out", f"{b}.txt_attn.proj")
        for old, new in (("q", "query"), ("k", "key")):
            take(f"{a}.attn.norm_{old}", f"{b}.img_attn.norm.{new}_norm", norm=True)
            take(f"{a}.attn.norm_added_{old}", f"{b}.txt_attn.norm.{new}_norm", norm=True)
        for old, new in (("ff", "img"), ("ff_context", "txt")):
            take(f"{a}.{old}.net.0.proj", f"{b}.{new}_mlp.0")
            take(f"{a}.{old}.net.2", f"{b}.{new}_mlp.2")
        take(f"{a}.norm1.linear", f"{b}.img_mod.lin")
        take(f"{a}.norm1_context.linear", f"{b}.txt_mod.lin")
    for i in range(count("single_transformer_blocks")):
        a, b = f"single_transformer_blocks.{i}", f"single_blocks.{i}"
        join([*(f"{a}.attn.to_{x}" for x in "qkv"), f"{a}.proj_mlp"], f"{b}.linear1")
        take(f"{a}.proj_out", f"{b}.linear2")
        for old, new in (("q", "query"), ("k", "key")):
            take(f"{a}.attn.norm_{old}", f"{b}.norm.{new}_norm", norm=True)
        take(f"{a}.norm.linear", f"{b}.modulation.lin")
    take("x_embedder", "img_in")
    take("context_embedder", "txt_in")
    take("proj_out", "final_layer.linear")
    for old, new in (("timestep", "time"), ("guidance", "guidance"), ("text", "vector")):
        take(f"time_text_embed.{old}_embedder.linear_1", f"{new}_in.in_layer")
        take(f"time_text_embed.{old}_embedder.linear_2", f"{new}_in.out_layer")
    for kind in ("weight", "bias"):
        # The original's last modulation is shift, scale; diffusers' is scale, shift.
        if (tensor := state.pop(f"norm_out.linear.{kind}", None)) is not None:
            scale, shift = tensor.chunk(2)
            made[f"final_layer.adaLN_modulation.1.{kind}"] = torch.cat([shift, scale])
    for name, tensor in state.items():  # Chroma's guidance layer
        assert name.startswith("distilled_guidance_layer."), name
        name = name.replace(".linear_1.", ".in_layer.").replace(".linear_2.", ".out_layer.")
        made[name.replace("weight", "scale") if ".norms." in name else name] = tensor
    return made
