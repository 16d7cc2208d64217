"""What a row of the catalogue of model families says (:mod:`trainer.contract.families`)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from .blocks import Block

T = TypeVar("T")


def by_targets(attention: T, transformer: T, convolutions: T | None = None) -> dict[str, T]:
    """A value for each choice of ``adapter.targets``; without convolutions the last two are alike."""
    last = transformer if convolutions is None else convolutions
    return {"attention": attention, "transformer": transformer, "transformer+conv": last}


@dataclass(frozen=True)
class Base:
    """A base model that is offered by name. ``download_gib`` is what a first run fetches.

    ``params``, ``activation_gib``, ``lora_params_per_rank``, ``caption`` and ``blocks`` are given where a
    base differs from its family. ``assistant`` is the Hub id (or id:file) of a LoRA that undoes a
    distillation: it is active while training and off while sampling, so that training does not have to
    learn that too. ``guidance`` is the usual scale for samples, 1 where a distilled base needs none;
    ``reads_negative`` is off where guidance is distilled into the base, which then reads no negative
    prompt. ``schedule`` is what the repository's scheduler configuration should say and does not.
    ``prediction`` and ``zero_terminal_snr`` are what a base of a diffusion family was trained with.
    """

    id: str
    label: str
    licence: str
    resolution: int
    download_gib: float
    gated: bool = False
    note: str = ""
    assistant: str = ""
    guidance: float = 5.0
    reads_negative: bool = True
    schedule: dict[str, Any] | None = None
    prediction: Literal["epsilon", "v_prediction"] = "epsilon"
    zero_terminal_snr: bool = False
    params: tuple[float, float, float] | None = None
    activation_gib: tuple[float, float] | None = None
    lora_params_per_rank: dict[str, float] | None = None
    caption: tuple[int, int] | None = None
    blocks: tuple[Block, ...] = ()


@dataclass(frozen=True)
class Signature:
    """How one kind of single-file checkpoint is recognised, by the names of its tensors.

    ``phrase`` names it with its article. ``needed`` (all) and ``excluded`` (none) are regular expressions
    for the beginning of a name, behind "model.diffusion_model." if that is there. ``width`` is a name and
    the last dimension that its tensor must have; ``ratio`` are two names and how many times the first's last
    dimension is the second's. ``reference`` is the Hub id that lends the configuration
    and the parts that are not in the file; empty for the family's first real base.
    """

    phrase: str
    needed: tuple[str, ...]
    excluded: tuple[str, ...] = ()
    width: tuple[str, int] | None = None
    ratio: tuple[str, str, int] | None = None
    reference: str = ""


@dataclass(frozen=True)
class Family:
    """One architecture.

    Attributes:
        process: what it was trained to undo: rectified flow, or diffusion in discrete timesteps.
        pipelines: beginnings of the names of the pipeline classes in diffusers folders.
        signatures: how its single-file checkpoints are recognised.
        file_parts: the parts that such a checkpoint holds; the others come from the reference base.
        lora_signatures: how its LoRAs are recognised, by the denoiser's modules: their names in any format,
            without the loaders' prefixes and with "_" for ".".
        architectures: beginnings of the names that LoRAs' metadata have for it.
        trainable_text: the text encoders that can get a LoRA of their own, in kohya's order.
        trainable_text_params: millions of parameters of each of these.
        linear_share: the share of the denoiser's weights that is in linear layers, which can be quantised.
        resolution: native side in pixels where the base does not say otherwise.
        size_multiple: image sides must be multiples of this many pixels (VAE factor).
        token_limit: tokens of a caption that the text encoders see.
        params: millions of parameters of denoiser, text encoders and VAE, for the memory plan; tables of
            positions that are kept with them count too.
        caption: (tokens, numbers of each) of an encoded caption as it is cached; where the padding is left
            out, of a caption of 100 tokens.
        lora_params_per_rank: thousands of LoRA parameters per unit of rank, by ``adapter.targets``.
        activation_gib: activations of one training sample at the native resolution in half precision,
            (stored, with gradient checkpointing): the most that lives in a step beside what stays and the
            LoRA's gradients. Counted on fake tensors (docs/memory.md) where nothing else is said.
        vae_gib: activations of its VAE for a picture of a megapixel, (encoding in fp32, decoding in half
            precision).
        borrowed: part -> Hub id of the repository that has it, where the bases' own folders do not.
        needs_bf16: its text encoder overflows in fp16.
        known_as: what other trainers call it, beside ``key``; case and punctuation do not count.
        kohya: the script of kohya's sd-scripts that trains it and the network module; empty if none does.
        blocks: the denoiser's blocks, in the order of the values that block-wise settings give.
        fp16_vae: Hub id of a VAE to use where the family's own overflows in fp16; empty if it does not.
    """

    key: str
    label: str
    bases: tuple[Base, ...]
    resolution: int
    size_multiple: int
    token_limit: int
    params: tuple[float, float, float]
    caption: tuple[int, int]
    lora_params_per_rank: dict[str, float]
    activation_gib: tuple[float, float]
    blocks: tuple[Block, ...]
    pipelines: tuple[str, ...]
    vae_gib: tuple[float, float] = (2.51, 1.50)
    process: Literal["flow", "diffusion"] = "flow"
    signatures: tuple[Signature, ...] = ()
    file_parts: tuple[str, ...] = ("transformer",)
    lora_signatures: tuple[Signature, ...] = ()
    architectures: tuple[str, ...] = ()
    trainable_text: tuple[str, ...] = ()
    trainable_text_params: tuple[float, ...] = ()
    linear_share: float = 1.0
    borrowed: dict[str, str] = field(default_factory=dict)
    needs_bf16: bool = False
    fp16_vae: str = ""
    known_as: tuple[str, ...] = ()
    kohya: tuple[str, str] | None = None
