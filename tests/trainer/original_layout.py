"""SD 1, 2 and XL as published: names and shapes of the original code, and files in that layout.

Written down from the architecture (channels, depths, heads), independently of the trainer's own name
rules; which diffusers parameter a U-Net or VAE name stands for is asked of diffusers' converter.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint, convert_ldm_vae_checkpoint
from safetensors.torch import load_file, save_file
from torch import Tensor

Shapes = dict[str, tuple[int, ...]]

UNET, VAE = "model.diffusion_model.", "first_stage_model."
CLIP_1, CLIP_2 = "cond_stage_model.transformer.", "cond_stage_model.model."
CLIP_L, CLIP_G = "conditioner.embedders.0.transformer.", "conditioner.embedders.1.model."


class _Names:
    """Collects names and shapes of layers."""

    def __init__(self) -> None:
        self.shapes: Shapes = {}

    def linear(self, name: str, inside: int, out: int, bias: bool = True) -> None:
        self.shapes[f"{name}.weight"] = (out, inside)
        if bias:
            self.shapes[f"{name}.bias"] = (out,)

    def conv(self, name: str, inside: int, out: int, size: int) -> None:
        self.shapes[f"{name}.weight"] = (out, inside, size, size)
        self.shapes[f"{name}.bias"] = (out,)

    def norm(self, name: str, width: int) -> None:
        self.shapes[f"{name}.weight"] = self.shapes[f"{name}.bias"] = (width,)


def unet_shapes(
    channels: Sequence[int], layers: int, depths: Sequence[int], text: int, added: int, linear: bool = True
) -> Shapes:
    """``depths``: transformer blocks by resolution level (SDXL: 0, 2, 10; SD: 1, 1, 1, 0). ``added``: width
    of the conditions besides text, 0 for none. ``linear``: the transformers' projections, convolutions in
    SD 1."""
    names = _Names()
    embedding = 4 * channels[0]

    def resnet(name: str, inside: int, out: int) -> None:
        names.norm(f"{name}.in_layers.0", inside)
        names.conv(f"{name}.in_layers.2", inside, out, 3)
        names.linear(f"{name}.emb_layers.1", embedding, out)
        names.norm(f"{name}.out_layers.0", out)
        names.conv(f"{name}.out_layers.3", out, out, 3)
        if inside != out:
            names.conv(f"{name}.skip_connection", inside, out, 1)

    def transformer(name: str, width: int, depth: int) -> None:
        names.norm(f"{name}.norm", width)
        for projection in (f"{name}.proj_in", f"{name}.proj_out"):
            names.linear(projection, width, width) if linear else names.conv(projection, width, width, 1)
        for block in (f"{name}.transformer_blocks.{number}" for number in range(depth)):
            for attention, context in (("attn1", width), ("attn2", text)):
                names.linear(f"{block}.{attention}.to_q", width, width, bias=False)
                names.linear(f"{block}.{attention}.to_k", context, width, bias=False)
                names.linear(f"{block}.{attention}.to_v", context, width, bias=False)
                names.linear(f"{block}.{attention}.to_out.0", width, width)
            names.linear(f"{block}.ff.net.0.proj", width, 8 * width)
            names.linear(f"{block}.ff.net.2", 4 * width, width)
            for number in (1, 2, 3):
                names.norm(f"{block}.norm{number}", width)

    names.linear("time_embed.0", channels[0], embedding)
    names.linear("time_embed.2", embedding, embedding)
    if added:
        names.linear("label_emb.0.0", added, embedding)
        names.linear("label_emb.0.2", embedding, embedding)
    names.conv("input_blocks.0.0", 4, channels[0], 3)
    now, number, skips = channels[0], 1, [channels[0]]
    for level, width in enumerate(channels):
        for _ in range(layers):
            resnet(f"input_blocks.{number}.0", now, width)
            now = width
            if depths[level]:
                transformer(f"input_blocks.{number}.1", now, depths[level])
            skips.append(now)
            number += 1
        if level < len(channels) - 1:
            names.conv(f"input_blocks.{number}.0.op", now, now, 3)
            skips.append(now)
            number += 1
    resnet("middle_block.0", now, now)
    transformer("middle_block.1", now, max(depths))
    resnet("middle_block.2", now, now)
    number = 0
    for level, width in reversed(list(enumerate(channels))):
        for layer in range(layers + 1):
            resnet(f"output_blocks.{number}.0", now + skips.pop(), width)
            now, parts = width, 1
            if depths[level]:
                transformer(f"output_blocks.{number}.1", now, depths[level])
                parts = 2
            if level and layer == layers:
                names.conv(f"output_blocks.{number}.{parts}.conv", now, now, 3)
            number += 1
    names.norm("out.0", now)
    names.conv("out.2", now, 4, 3)
    return names.shapes


def vae_shapes(channels: Sequence[int], layers: int) -> Shapes:
    names = _Names()

    def resnet(name: str, inside: int, out: int) -> None:
        names.norm(f"{name}.norm1", inside)
        names.conv(f"{name}.conv1", inside, out, 3)
        names.norm(f"{name}.norm2", out)
        names.conv(f"{name}.conv2", out, out, 3)
        if inside != out:
            names.conv(f"{name}.nin_shortcut", inside, out, 1)

    def middle(name: str, width: int) -> None:
        resnet(f"{name}.block_1", width, width)
        names.norm(f"{name}.attn_1.norm", width)
        for layer in ("q", "k", "v", "proj_out"):
            names.conv(f"{name}.attn_1.{layer}", width, width, 1)
        resnet(f"{name}.block_2", width, width)

    names.conv("encoder.conv_in", 3, channels[0], 3)
    now = channels[0]
    for level, width in enumerate(channels):
        for layer in range(layers):
            resnet(f"encoder.down.{level}.block.{layer}", now, width)
            now = width
        if level < len(channels) - 1:
            names.conv(f"encoder.down.{level}.downsample.conv", now, now, 3)
    middle("encoder.mid", now)
    names.norm("encoder.norm_out", now)
    names.conv("encoder.conv_out", now, 8, 3)
    names.conv("quant_conv", 8, 8, 1)
    names.conv("post_quant_conv", 4, 4, 1)
    names.conv("decoder.conv_in", 4, now, 3)
    middle("decoder.mid", now)
    for level, width in reversed(list(enumerate(channels))):
        for layer in range(layers + 1):
            resnet(f"decoder.up.{level}.block.{layer}", now, width)
            now = width
        if level:
            names.conv(f"decoder.up.{level}.upsample.conv", now, now, 3)
    names.norm("decoder.norm_out", now)
    names.conv("decoder.conv_out", now, 3, 3)
    return names.shapes


def clip_l_shapes(width: int, layers: int, tokens: int) -> Shapes:
    """OpenAI's CLIP in transformers' layout, the second-smallest detail included: position_ids."""
    names = _Names()
    names.shapes["text_model.embeddings.position_ids"] = (1, 77)
    names.shapes["text_model.embeddings.token_embedding.weight"] = (tokens, width)
    names.shapes["text_model.embeddings.position_embedding.weight"] = (77, width)
    for layer in (f"text_model.encoder.layers.{number}" for number in range(layers)):
        for projection in ("q_proj", "k_proj", "v_proj", "out_proj"):
            names.linear(f"{layer}.self_attn.{projection}", width, width)
        names.linear(f"{layer}.mlp.fc1", width, 4 * width)
        names.linear(f"{layer}.mlp.fc2", 4 * width, width)
        names.norm(f"{layer}.layer_norm1", width)
        names.norm(f"{layer}.layer_norm2", width)
    names.norm("text_model.final_layer_norm", width)
    return names.shapes


def clip_g_shapes(width: int, layers: int, tokens: int) -> Shapes:
    """open_clip's layout: query, key and value in one matrix, the projection transposed."""
    names = _Names()
    names.shapes["token_embedding.weight"] = (tokens, width)
    names.shapes["positional_embedding"] = (77, width)
    names.shapes["text_projection"] = (width, width)
    names.shapes["logit_scale"] = ()
    for layer in (f"transformer.resblocks.{number}" for number in range(layers)):
        names.shapes[f"{layer}.attn.in_proj_weight"] = (3 * width, width)
        names.shapes[f"{layer}.attn.in_proj_bias"] = (3 * width,)
        names.linear(f"{layer}.attn.out_proj", width, width)
        names.linear(f"{layer}.mlp.c_fc", width, 4 * width)
        names.linear(f"{layer}.mlp.c_proj", 4 * width, width)
        names.norm(f"{layer}.ln_1", width)
        names.norm(f"{layer}.ln_2", width)
    names.norm("ln_final", width)
    return names.shapes


def diffusers_names(
    shapes: Shapes, prefix: str, convert: Callable[..., dict[str, Tensor]], config: dict[str, Any]
) -> dict[str, str]:
    """{original name: diffusers name}, by sending numbered tensors through diffusers' converter."""
    order = list(shapes)
    numbered = {
        prefix + name: torch.tensor(float(number)).expand(shapes[name]) for number, name in enumerate(order)
    }
    converted = convert(numbered, config)
    return {order[int(tensor.flatten()[0])]: name for name, tensor in converted.items()}


def unet_names(shapes: Shapes, layers: int) -> dict[str, str]:
    added = "text_time" if "label_emb.0.0.weight" in shapes else None
    config = {"layers_per_block": layers, "class_embed_type": None, "addition_embed_type": added}
    return diffusers_names(shapes, UNET, convert_ldm_unet_checkpoint, config)


def vae_names(shapes: Shapes, blocks: int) -> dict[str, str]:
    config = {"down_block_types": ["DownEncoderBlock2D"] * blocks, "up_block_types": ["Up"] * blocks}
    return diffusers_names(shapes, VAE, convert_ldm_vae_checkpoint, config)


def tensors_of(folder: Path) -> dict[str, Tensor]:
    """The weights of a diffusers folder of SD 1, 2 or XL in the original layout."""

    def config(part: str) -> dict[str, Any]:
        return dict(json.loads((folder / part / "config.json").read_text()))

    def state(part: str) -> dict[str, Tensor]:
        (file,) = (folder / part).glob("*.safetensors")
        return load_file(file)

    unet, vae = config("unet"), config("vae")
    kinds, blocks = unet["down_block_types"], unet["transformer_layers_per_block"]
    depths = [
        depth if "CrossAttn" in kind else 0
        for depth, kind in zip(
            [blocks] * len(kinds) if isinstance(blocks, int) else blocks, kinds, strict=True
        )
    ]
    shapes = unet_shapes(
        unet["block_out_channels"],
        unet["layers_per_block"],
        depths,
        unet["cross_attention_dim"],
        unet["projection_class_embeddings_input_dim"] or 0,
        unet["use_linear_projection"],
    )
    tensors: dict[str, Tensor] = {}
    weights = state("unet")
    for original, name in unet_names(shapes, unet["layers_per_block"]).items():
        tensors[UNET + original] = weights[name].reshape(shapes[original])
    shapes = vae_shapes(vae["block_out_channels"], vae["layers_per_block"])
    weights = state("vae")
    for original, name in vae_names(shapes, len(vae["block_out_channels"])).items():
        tensors[VAE + original] = weights[name].reshape(shapes[original])
    for prefix, text in _texts(folder, bool(unet["use_linear_projection"])).items():
        weights = state(text)
        if prefix.endswith(".model."):
            tensors |= {prefix + name: tensor for name, tensor in _to_open_clip(weights).items()}
            continue
        for name, tensor in weights.items():
            tensors[f"{prefix}text_model.{name.removeprefix('text_model.')}"] = tensor
        tensors[f"{prefix}text_model.embeddings.position_ids"] = torch.arange(77)[None]
    return {name: tensor.contiguous() for name, tensor in tensors.items()}


def _texts(folder: Path, linear: bool) -> dict[str, str]:
    """Where the text encoders lie in the file: {prefix: diffusers part}."""
    if (folder / "text_encoder_2").exists():
        return {CLIP_L: "text_encoder", CLIP_G: "text_encoder_2"}
    return {CLIP_2 if linear else CLIP_1: "text_encoder"}


def _to_open_clip(state: dict[str, Tensor]) -> dict[str, Tensor]:
    state = {name.removeprefix("text_model."): tensor for name, tensor in state.items()}
    out = {
        "token_embedding.weight": state["embeddings.token_embedding.weight"],
        "positional_embedding": state["embeddings.position_embedding.weight"],
        "logit_scale": torch.tensor(4.6),
    }
    if "text_projection.weight" in state:
        out["text_projection"] = state["text_projection.weight"].T
    layers = {int(name.split(".")[2]) for name in state if name.startswith("encoder.layers.")}
    for kind in ("weight", "bias"):
        out[f"ln_final.{kind}"] = state[f"final_layer_norm.{kind}"]
        for number in layers:
            old, new = f"encoder.layers.{number}", f"transformer.resblocks.{number}"
            fused = [state[f"{old}.self_attn.{p}_proj.{kind}"] for p in "qkv"]
            out[f"{new}.attn.in_proj_{kind}"] = torch.cat(fused)
            out[f"{new}.attn.out_proj.{kind}"] = state[f"{old}.self_attn.out_proj.{kind}"]
            out[f"{new}.mlp.c_fc.{kind}"] = state[f"{old}.mlp.fc1.{kind}"]
            out[f"{new}.mlp.c_proj.{kind}"] = state[f"{old}.mlp.fc2.{kind}"]
            out[f"{new}.ln_1.{kind}"] = state[f"{old}.layer_norm1.{kind}"]
            out[f"{new}.ln_2.{kind}"] = state[f"{old}.layer_norm2.{kind}"]
    return out


def write_names(file: Path, names: Sequence[str], metadata: dict[str, str] | None = None) -> Path:
    """A file whose header has these names, and hardly anything else."""
    save_file({name: torch.zeros(1) for name in names}, file, metadata)
    return file
