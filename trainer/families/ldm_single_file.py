"""U-Net families in one file: the layout of the original latent-diffusion code, which kohya and Civitai keep.

Each parameter of the diffusers and transformers modules is looked up under its original name, so a file
that lacks one, or has another size, is noticed by name. Checked tensor by tensor against the published
architecture in tests/trainer/test_single_file.py.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from safetensors import safe_open
from torch import nn

from ..contract.errors import RunError
from .identify import Header


@dataclass(frozen=True)
class Layout:
    """Where a checkpoint keeps its parts: the beginning of their tensors' names, and which of the text
    encoders have open_clip's names instead of transformers'."""

    label: str
    prefixes: dict[str, str]
    open_clip: frozenset[str] = frozenset()


_COMMON = {"unet": "model.diffusion_model.", "vae": "first_stage_model."}

SD1 = Layout("SD 1.5", {**_COMMON, "text_encoder": "cond_stage_model.transformer."})
SD2 = Layout("SD 2.x", {**_COMMON, "text_encoder": "cond_stage_model.model."}, frozenset({"text_encoder"}))
SDXL = Layout(
    "SDXL",
    {
        **_COMMON,
        "text_encoder": "conditioner.embedders.0.transformer.",
        "text_encoder_2": "conditioner.embedders.1.model.",
    },
    frozenset({"text_encoder_2"}),
)

_LABELS = {"unet": "U-Net", "vae": "VAE", "text_encoder": "text encoder", "text_encoder_2": "text encoder"}


@dataclass(frozen=True)
class Original:
    """Where a parameter lies in a single file.

    ``third`` (0, 1, 2) is set for the query, key and value rows of open_clip's fused projection;
    ``transposed`` for its text projection, which is stored as (in, out).
    """

    name: str
    third: int | None = None
    transposed: bool = False


# U-Net --------------------------------------------------------------------------------------------

_UNET_ENDS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}

_UNET_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}


def sgm_name(module: str, unet: Mapping[str, Any]) -> str:
    """diffusers' U-Net module name -> the name in Stability's original code; ``unet`` is its configuration.

    ``down_blocks.1.attentions.0.proj_in`` -> ``input_blocks.4.1.proj_in`` for SDXL's two layers a block.
    """
    n = int(unet["layers_per_block"])

    def inner(kind: str, rest: str) -> str:
        return _UNET_RESNET[rest] if kind == "resnets" else rest

    if module in _UNET_ENDS:
        return _UNET_ENDS[module]
    if match := re.fullmatch(r"down_blocks\.(\d+)\.(resnets|attentions)\.(\d+)\.(.+)", module):
        block, kind, layer, rest = int(match[1]), match[2], int(match[3]), match[4]
        return f"input_blocks.{1 + (n + 1) * block + layer}.{int(kind == 'attentions')}.{inner(kind, rest)}"
    if match := re.fullmatch(r"down_blocks\.(\d+)\.downsamplers\.0\.conv", module):
        return f"input_blocks.{(n + 1) * (int(match[1]) + 1)}.0.op"
    if match := re.fullmatch(r"mid_block\.(resnets|attentions)\.(\d+)\.(.+)", module):
        kind, layer = match[1], int(match[2])
        return f"middle_block.{1 if kind == 'attentions' else 2 * layer}.{inner(kind, match[3])}"
    if match := re.fullmatch(r"up_blocks\.(\d+)\.(resnets|attentions)\.(\d+)\.(.+)", module):
        block, kind, layer, rest = int(match[1]), match[2], int(match[3]), match[4]
        return f"output_blocks.{(n + 1) * block + layer}.{int(kind == 'attentions')}.{inner(kind, rest)}"
    if match := re.fullmatch(r"up_blocks\.(\d+)\.upsamplers\.0\.conv", module):
        # The upsampler comes after the residual block and, where there is one, the attention.
        block = int(match[1])
        place = 2 if "CrossAttn" in unet["up_block_types"][block] else 1
        return f"output_blocks.{(n + 1) * block + n}.{place}.conv"
    raise ValueError(f"{module} has no name in the original code")


# VAE ----------------------------------------------------------------------------------------------

_VAE_RULES = (
    (r"down_blocks\.(\d+)\.resnets\.", r"down.\1.block."),
    (r"down_blocks\.(\d+)\.downsamplers\.0\.", r"down.\1.downsample."),
    (r"up_blocks\.(\d+)\.resnets\.", r"up.\1.block."),
    (r"up_blocks\.(\d+)\.upsamplers\.0\.", r"up.\1.upsample."),
    (r"mid_block\.resnets\.0", "mid.block_1"),
    (r"mid_block\.resnets\.1", "mid.block_2"),
    (r"mid_block\.attentions\.0\.", "mid.attn_1."),
    (r"attn_1\.group_norm", "attn_1.norm"),
    (r"attn_1\.to_([qkv])", r"attn_1.\1"),
    (r"attn_1\.to_out\.0", "attn_1.proj_out"),
    (r"conv_shortcut", "nin_shortcut"),
    (r"conv_norm_out", "norm_out"),
)


def _vae_name(module: str, blocks: int) -> str:
    for pattern, replacement in _VAE_RULES:
        module = re.sub(pattern, replacement, module)
    # The original code counts the decoder's blocks from the image inwards.
    return re.sub(r"(decoder\.up\.)(\d+)", lambda match: f"{match[1]}{blocks - 1 - int(match[2])}", module)


# Text encoders ------------------------------------------------------------------------------------

_OPEN_CLIP_RULES = (
    (r"embeddings\.token_embedding\.weight", "token_embedding.weight"),
    (r"embeddings\.position_embedding\.weight", "positional_embedding"),
    (r"encoder\.layers\.(\d+)\.", r"transformer.resblocks.\1."),
    (r"layer_norm([12])", r"ln_\1"),
    (r"self_attn\.out_proj", "attn.out_proj"),
    (r"mlp\.fc1", "mlp.c_fc"),
    (r"mlp\.fc2", "mlp.c_proj"),
    (r"final_layer_norm", "ln_final"),
)


def _open_clip(name: str) -> Original:
    if name == "text_projection.weight":
        return Original("text_projection", transposed=True)
    for pattern, replacement in _OPEN_CLIP_RULES:
        name = re.sub(pattern, replacement, name)
    if match := re.fullmatch(r"(.+)\.self_attn\.([qkv])_proj\.(weight|bias)", name):
        return Original(f"{match[1]}.attn.in_proj_{match[3]}", third="qkv".index(match[2]))
    return Original(name)


def originals(part: str, model: nn.Module, layout: Layout) -> dict[str, Original]:
    """Where each parameter of a model lies, without the part's prefix: {parameter name: Original}."""
    config: Any = model.config

    def original(name: str) -> Original:
        module, _, kind = name.rpartition(".")
        if part == "unet":
            return Original(f"{sgm_name(module, config)}.{kind}")
        if part == "vae":
            return Original(f"{_vae_name(module, len(config.block_out_channels))}.{kind}")
        # transformers 5 has dropped "text_model." from one of the two classes, not from the other.
        name = name.removeprefix("text_model.")
        return _open_clip(name) if part in layout.open_clip else Original(f"text_model.{name}")

    return {name: original(name) for name in model.state_dict()}


# Loading ------------------------------------------------------------------------------------------


def part_prefix(part: str, header: Header, layout: Layout) -> str:
    """The prefix of a part's tensors in this file; empty for a file that holds nothing but a VAE."""
    prefix = layout.prefixes[part]
    return "" if part == "vae" and not header.has(re.escape(prefix)) else prefix


def schedule(header: Header) -> dict[str, Any]:
    """What the file says of its own schedule, over the reference model's: v-prediction checkpoints
    (NoobAI) carry the empty tensors "v_pred" and, for zero terminal SNR (Lin et al. 2023), "ztsnr"."""
    changes: dict[str, Any] = {}
    said = header.metadata.get("modelspec.prediction_type")
    if said == "epsilon":  # SD 2.1 base, whose reference is the larger model with v
        changes["prediction_type"] = "epsilon"
    if "v_pred" in header.tensors or said == "v":
        changes["prediction_type"] = "v_prediction"
    if any(name.startswith("edm_") for name in header.tensors):
        raise RunError(
            "this checkpoint counts noise in EDM's way (as CosXL does), which cannot be trained here; "
            "choose another base model",
            "model_missing",
        )
    if "ztsnr" in header.tensors:
        changes |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    return changes


def load_part(
    part: str,
    file: Path,
    header: Header,
    build: Callable[[], nn.Module],
    dtype: torch.dtype,
    layout: Layout,
) -> nn.Module:
    """One part of the model, from ``file``, in ``dtype``.

    ``build`` makes the module from its configuration; it is called where parameters cost nothing.
    Raises RunError(model_missing) for a file that lacks the part or is of another size.
    """
    with init_empty_weights(include_buffers=False):
        model = build()
    prefix = part_prefix(part, header, layout)
    wanted = originals(part, model, layout)
    if part == "vae" and header.has(re.escape(prefix) + r"encoder\.down_blocks\."):
        wanted = {name: Original(name) for name in wanted}  # a VAE file in diffusers' own layout
    missing = [o.name for o in wanted.values() if prefix + o.name not in header.tensors]
    if len(missing) == len(wanted):
        remedy = "; name one in model.vae" if part == "vae" else "; take the complete checkpoint"
        raise RunError(f"{file.name} holds no {_LABELS[part]}{remedy}", "model_missing")
    if missing:
        raise RunError(
            f"{file.name} lacks {len(missing)} tensors of the {_LABELS[part]} "
            f"(such as {prefix}{missing[0]}); it is damaged or of another architecture",
            "model_missing",
        )
    known = {prefix + original.name for original in wanted.values()}
    extra = [name for name in header.tensors if name.startswith(prefix) and name not in known]
    if part == "unet" and extra:  # scales of a quantised file, or layers that would silently be left out
        raise RunError(
            f"{file.name} holds {len(extra)} tensors that {layout.label}'s U-Net does not have "
            f"(such as {extra[0]}); "
            "it is quantised or a variant that cannot be trained here",
            "model_missing",
        )
    state: dict[str, torch.Tensor] = {}
    with safe_open(file, framework="pt") as tensors:
        for name, parameter in model.state_dict().items():
            original = wanted[name]
            tensor = tensors.get_tensor(prefix + original.name)
            if original.third is not None:
                tensor = tensor.chunk(3)[original.third]
            if original.transposed:
                tensor = tensor.T
            if tensor.numel() == parameter.numel() and tensor.shape[:2] == parameter.shape[:2]:
                tensor = tensor.reshape(parameter.shape)  # the VAE's attention was once 1x1 convolutions
            if tensor.shape != parameter.shape:
                raise RunError(
                    f"{prefix}{original.name} of {file.name} is {tuple(tensor.shape)}, "
                    f"not {tuple(parameter.shape)}; it is a variant that cannot be trained here",
                    "model_missing",
                )
            state[name] = tensor.to(dtype).contiguous()
    model.load_state_dict(state, assign=True)
    return model.eval()
