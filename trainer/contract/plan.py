"""What a recipe will need: memory in each phase, disk, download, steps. An estimate, before anything loads.

The parts are counted (weights, gradients, optimizer state) or taken from the catalogue (activations per
sample, from full-size graphs); nothing here is fitted to a card. Gradient accumulation costs no memory.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from .caption_pipeline import encoded_captions
from .config import TrainConfig
from .cost import money
from .families import CATALOGUE, DEMO_BASE, assistant_of, first_base, known_base
from .length import batches_of, in_steps
from .optimizers import OPTIMIZERS
from .prompt import prompts_of
from .retention import most_at_once
from .settings.dataset import is_mirrored, variants_of
from .settings.model import Quantization
from .steps import Folder, calculation, trained
from .working import (
    adapter_of,
    decode_gib,
    drawing_gib,
    encode_gib,
    figures,
    gradients_gib,
    step_gib,
    trained_text,
)

GIB = 2**30
CONTEXT_GIB = 0.6
"""What a CUDA process holds before it has allocated anything."""
QUANTISED_BYTES = {"int8": 1.02, "nf4": 0.53}
"""Bytes a weight: 8 bits and a scale per row; 4 bits and a scale, itself in 8 bits, per 64."""
TEXT_LINEAR_SHARE = 0.9
"""Of a text encoder's weights; the others are embeddings, which are not quantised."""
ASSISTANT_RANK = 32
"""Taken for an assistant LoRA that is yet to be fetched, on all layers of the blocks, in 16 bits."""
LATENT_GIB = 1 / 1024
"""Of a picture of a megapixel, as it is cached: 16 channels in 32 bits at an eighth of the side."""
CAPTIONS_IN_MEMORY_GIB = 1.0
"""Encoded captions that are held in RAM; more stay on disk."""
UNDER_WAY = 0.1
"""Of a base that is split over several GPUs, the blocks that are whole at one time."""
HEADROOM = 0.9
"""Share of a card's memory that may be planned for; the rest is for what is not counted: workspaces of
kernels, gaps between tensors, a desktop."""
STAYS = 0.1
"""Of a base that lies in RAM: its first and last layers, norms, biases, and the layer that is at work."""


@dataclass(frozen=True)
class Machine:
    """The device a training would run on; ``vram_gib`` is that of one GPU, None without any, and ``gpus`` how
    many there are (0: not known)."""

    name: str
    vram_gib: float | None
    gpus: int = 0


@dataclass(frozen=True)
class Plan:
    """``vram_gib`` is zero everywhere on a CPU, where all memory is counted in ``ram_gib``."""

    vram_gib: dict[str, float]
    ram_gib: float
    disk_gib: float
    download_gib: float
    steps: int
    seconds_per_step: float | None
    fits: bool | None
    breakdown: dict[str, float]
    cost: dict[str, float] | None = None
    """``total`` and ``per_1000_steps``, where price and pace are known."""
    calculation: tuple[str, ...] = ()
    """the steps an epoch has, in words."""
    price: str = ""
    """of an hour and of the run, in words; empty without one."""
    warnings: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        table = asdict(self) | {"warnings": list(self.warnings)}
        del table["calculation"], table["price"]  # sentences; programs read ``steps`` and ``cost``
        if self.cost is None:
            del table["cost"]
        return table

    def as_text(self) -> str:
        verdict = {True: "fits", False: "does not fit", None: "unknown whether it fits"}[self.fits]
        phases = ", ".join(f"{phase} {gib:.1f}" for phase, gib in self.vram_gib.items())
        lines = [
            f"steps: {self.steps}",
            *(f"  {line}" for line in self.calculation),
            f"GPU memory (GiB): {phases} — {verdict}",
            f"RAM: {self.ram_gib:.1f} GiB, disk: {self.disk_gib:.2f} GiB",
            f"download: {self.download_gib:.1f} GiB",
            *([self.price] if self.price else []),
            *(f"warning: {warning}" for warning in self.warnings),
        ]
        return "\n".join(lines)


def estimate(
    config: TrainConfig,
    machine: Machine,
    *,
    images: int = 0,
    folders: Sequence[Folder] = (),
    seconds_per_step: float | None = None,
) -> Plan:
    """The plan of a recipe on a machine, for so many ``images``, or those of ``folders``;
    ``seconds_per_step`` where it is known from an earlier run."""
    config = in_steps(config, batches_of(config, folders))
    images = sum(len(folder.pictures) for folder in trained(config, folders)) or images
    family = CATALOGUE[config.model.family]
    base = known_base(config.model.family, config.model.base)
    here = figures(config)
    denoiser_m, encoder_m, vae_m = here.params
    on_gpu = machine.vram_gib is not None
    plain = 2.0 if on_gpu and config.model.precision != "fp32" else 4.0
    megapixels = here.area * here.resolution**2 / 2**20

    def weights(millions: float, quantization: Quantization = "none", linear: float = 1.0) -> float:
        small = QUANTISED_BYTES.get(quantization, plain)
        return millions * 1e6 * (linear * small + (1 - linear) * plain) / GIB

    # What is trained: LoRAs, their gradients and the optimizer's state, in the LoRA's number format.
    trained_text_m = trained_text(config)
    size, gradients = adapter_of(config), gradients_gib(config)
    weight_bytes = 2 if config.adapter.precision == "bf16" else 4
    lora = gradients + size.frozen * weight_bytes / GIB
    freed = gradients if config.train.fused_backward else 0.0  # there is never more than one tensor's
    chosen = OPTIMIZERS[config.train.optimizer]
    optimizer = gradients * chosen.state_bytes(weight_bytes, config.adapter.rank) / weight_bytes
    average = gradients * 4 / weight_bytes if config.train.ema_decay else 0.0
    checkpointing = config.train.gradient_checkpointing
    recompute = checkpointing == "on" or (checkpointing == "auto" and on_gpu)
    processes = config.machine.gpus or machine.gpus or 1
    activations = step_gib(config, recompute=recompute, bytes_each=plain, processes=processes)
    base_gib = weights(denoiser_m, config.model.quantize, family.linear_share)
    denoiser = base_gib * STAYS if config.machine.offload and on_gpu else base_gib
    if config.machine.shard and processes > 1:
        denoiser = base_gib * (1 / processes + UNDER_WAY)
    encoders = weights(encoder_m, config.model.quantize_text, TEXT_LINEAR_SHARE)
    vae = weights(vae_m)
    kept_text = encoders if trained_text_m else 0.0  # encoders that learn are needed at every step
    sizes = [(prompt.width or here.side, prompt.height or here.side) for prompt in prompts_of(config.samples)]
    decode = max((decode_gib(config, *size) for size in sizes), default=0.0)
    drawing = max((drawing_gib(config, *size) for size in sizes), default=0.0)
    assistant, assistant_download = _assistant(config, plain)
    # What is encoded once lies on disk, and in RAM while training: captions in the encoders' number format.
    tokens, numbers = (base and base.caption) or family.caption
    captions = encoded_captions(config, images) + len(config.samples.prompts) + 2
    texts = 0.0 if trained_text_m else captions * tokens * numbers * plain / GIB
    views = variants_of(config.dataset) * (2 if is_mirrored(config.dataset) else 1)
    latents = images * views * LATENT_GIB * megapixels
    encoded, held = texts + latents, min(texts, CAPTIONS_IN_MEMORY_GIB) + latents
    context = CONTEXT_GIB if on_gpu else 0.5
    breakdown = {
        "denoiser": denoiser,
        "text_encoders": encoders,
        "vae": vae,
        "assistant": assistant,
        "lora": lora,
        "gradients": gradients - freed,
        "optimizer": optimizer,
        "average": average,
        "activations": activations,
        "decode": decode,
        "encoded": encoded,
        "context": context,
    }
    training = denoiser + assistant + kept_text + lora + gradients - freed
    training += 0.0 if chosen.paged else optimizer  # pages leave the GPU when it is full
    training += 0.0 if config.train.ema_on_cpu else average
    phases = {
        # The VAE in fp32, and then the text encoders.
        "cache": max(vae_m * 1e6 * 4 / GIB + encode_gib(config), 0.0 if trained_text_m else encoders)
        + context,
        "train": training + activations + context,
        "sample": training - (gradients - freed) + vae + drawing + context,
    }
    if not config.samples.prompts:
        phases["sample"] = 0.0
    # With a GPU the parts pass through RAM one after the other; what is kept there is kept beside them.
    in_ram = (optimizer if chosen.paged else 0.0) + (average if config.train.ema_on_cpu else 0.0)
    in_ram += base_gib - denoiser if config.machine.offload else 0.0
    peak = max(phases.values())
    passing = weights(max(denoiser_m, encoder_m)) + 2.0 if on_gpu else peak + 1.0
    fits = None if machine.vram_gib is None else peak <= machine.vram_gib * HEADROOM
    warnings = []
    if fits is False:
        worst = max(phases, key=lambda phase: phases[phase])
        warnings.append(
            f"needs about {peak:.1f} GiB while it {_DOING[worst]}, and {machine.name} has "
            f"{machine.vram_gib:.1f} GiB; lower the batch size, the resolution or the rank"
        )
    if freed:
        warnings.append(f"train.fused_backward saves the LoRA's gradients, {freed:.2f} GiB, and nothing else")
    if not on_gpu and not (base and base.id == DEMO_BASE):
        warnings.append("no GPU was found: a full-size model trains for days on a CPU; try the demo base")
    if 0 < machine.gpus < processes:
        have = "is 1" if machine.gpus == 1 else f"are {machine.gpus}"
        warnings.append(f"machine.gpus is {processes}, and there {have} here; a start would be refused")
    # A checkpoint holds the LoRA and its optimizer state; one more is written before the oldest goes.
    kept = most_at_once(config.checkpoints, config.train.steps)
    checkpoints = (kept + 1) * (lora + optimizer + average) + lora / 2
    between = config.train.steps // config.samples.every if config.samples.every else 0
    drawings = len(config.samples.prompts) * (between + 2)
    disk = checkpoints + drawings * 1.5 * megapixels / 1024 + encoded
    return Plan(
        vram_gib={phase: round(gib, 2) if on_gpu else 0.0 for phase, gib in phases.items()},
        ram_gib=round(processes * (held + in_ram + passing), 2),
        disk_gib=round(disk, 3),
        download_gib=round(_download(config, encoder_m + vae_m) + assistant_download, 2),
        steps=config.train.steps,
        seconds_per_step=seconds_per_step,
        cost=_cost(config, seconds_per_step),
        price=_price(config, seconds_per_step),
        fits=fits,
        breakdown={part: round(gib, 3) for part, gib in breakdown.items()},
        calculation=tuple(calculation(config, folders)),
        warnings=tuple(warnings),
    )


def _cost(config: TrainConfig, seconds_per_step: float | None) -> dict[str, float] | None:
    price = config.machine.price_per_hour
    if price is None or seconds_per_step is None:
        return None
    step = price / 3600 * seconds_per_step
    return {"total": round(step * config.train.steps, 6), "per_1000_steps": round(1000 * step, 6)}


def _price(config: TrainConfig, seconds_per_step: float | None) -> str:
    price, currency = config.machine.price_per_hour, config.machine.currency
    if price is None:
        return ""
    hour = f"{money(price, currency)} an hour"
    if not (cost := _cost(config, seconds_per_step)):
        return f"cost: {hour}; how fast this machine is, is known once it has trained such a recipe"
    per_1000 = money(cost["per_1000_steps"], currency)
    return f"cost: about {money(cost['total'], currency)}, {per_1000} per 1,000 steps, at {hour}"


def _download(config: TrainConfig, others_m: float) -> float:
    """GiB to fetch for a base; ``others_m`` are millions of parameters beside the denoiser's."""
    row, base = CATALOGUE[config.model.family], config.model.base
    if os.path.isfile(base):  # what the file does not hold is fetched, in 16 bits
        return 0.0 if "vae" in row.file_parts else others_m * 1e6 * 2 / GIB
    if os.path.exists(base):
        return 0.0
    return (known_base(row.key, base) or first_base(row)).download_gib


def _assistant(config: TrainConfig, bytes_each: float) -> tuple[float, float]:
    """GiB of the assistant LoRA: (in memory, to fetch)."""
    row, base = CATALOGUE[config.model.family], known_base(config.model.family, config.model.base)
    assistant = assistant_of(row.key, config.model.base, config.model.assistant)
    if not assistant:
        return 0.0, 0.0
    if os.path.isfile(assistant):
        return os.path.getsize(assistant) * bytes_each / 2 / GIB, 0.0
    per_rank = ((base and base.lora_params_per_rank) or row.lora_params_per_rank)["transformer"]
    millions = ASSISTANT_RANK * per_rank / 1e3
    return millions * 1e6 * bytes_each / GIB, millions * 1e6 * 2 / GIB


_DOING = {"cache": "encodes the photos", "train": "trains", "sample": "draws samples"}
