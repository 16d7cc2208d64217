"""[train]: the optimisation."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import field_validator

from ..optimizers import OPTIMIZERS
from .section import Section, setting

Scheduler = Literal[
    "constant", "linear", "cosine", "cosine_with_restarts", "polynomial", "warmup_stable_decay"
]


class TrainSettings(Section):
    """The optimisation."""

    steps: int = setting(1000, label="Steps", basic=True, ge=1, le=1_000_000)
    """How many times the LoRA is updated. One step looks at batch size × accumulation pictures."""
    epochs: int | None = setting(None, label="Epochs", ge=1, le=100_000)
    """How often every picture is shown (times its repeats), instead of a number of steps: one epoch has
    pictures / batch steps, counted for each size of pictures by itself. Empty means that steps hold."""
    batch_size: int = setting(1, label="Batch size", basic=True, ge=1, le=256)
    """Pictures per forward pass. Larger is steadier and needs more memory."""
    gradient_accumulation: int = setting(1, label="Gradient accumulation", ge=1, le=256)
    """Forward passes per step: the effect of a batch this many times larger, at no extra memory."""
    learning_rate: float = setting(1e-4, label="Learning rate", basic=True, gt=0, le=1)
    """How far each step moves the LoRA. 1e-4 suits alpha = rank on full-size models; the small
    demo model wants about 1e-3."""
    text_encoder_lr: float = setting(0.0, label="Text encoder learning rate", ge=0, le=1)
    """Learning rate of a LoRA on the (first) text encoder; 0 leaves it alone. Usual is a half to a tenth
    of the learning rate. Captions are then encoded anew at every step, which costs time and memory."""
    text_encoder_2_lr: float = setting(0.0, label="Second encoder's rate", ge=0, le=1)
    """The same for the second text encoder (SDXL); 0 leaves it alone."""
    loraplus_ratio: float = setting(0.0, label="LoRA+ ratio", ge=0, le=1000)
    """LoRA+ (Hayou et al. 2024): the outer factors, which begin at zero (lora_B, kohya's lora_up), learn this
    many times faster. The paper has 16, with a lower learning rate; 0 switches it off."""
    loraplus_denoiser_ratio: float = setting(0.0, label="LoRA+ ratio of the denoiser", ge=0, le=1000)
    """The same for the denoiser (U-Net, transformer) alone; 0 takes the LoRA+ ratio."""
    loraplus_text_ratio: float = setting(0.0, label="LoRA+ ratio of text encoders", ge=0, le=1000)
    """The same for text encoders alone; 0 takes the LoRA+ ratio."""
    scheduler: Scheduler = setting("cosine", label="Scheduler", basic=True)
    """How the learning rate moves over the run, after the warm-up. "constant" stays (with a warm-up it is
    what others call constant_with_warmup); "warmup_stable_decay" stays, and falls at the end (decay)."""
    restarts: int = setting(3, label="Restarts", ge=1, le=100)
    """Number of cosine cycles of "cosine_with_restarts"; the other schedulers ignore it."""
    warmup: float = setting(0.1, label="Warm-up", ge=0, le=1_000_000)
    """Over how much of the run the learning rate climbs from zero: a share below 1 (0.1 is 10 %), a number of
    steps from 1 on."""
    decay: float = setting(0.2, label="Decay", ge=0, le=1_000_000)
    """Over how much of the run's end "warmup_stable_decay" falls to zero, along a cosine: a share below 1, a
    number of steps from 1 on. 0.1 to 0.2 is usual; the other schedulers ignore it."""
    power: float = setting(1.0, label="Power", ge=0.1, le=10)
    """How "polynomial" falls: 1 is a straight line, 2 is fast at first and slow in the end, 0.5 the other way
    round; the other schedulers ignore it."""
    optimizer: str = setting("adamw", label="Optimizer", choices=tuple(OPTIMIZERS))
    """AdamW is the usual choice. The 8-bit ones (bitsandbytes) keep a quarter of its state; paged ones let it
    move to RAM where the GPU is full. AdEMAMix remembers gradients for longer, Lion wants a third to a tenth
    of the learning rate, Adafactor and CAME keep little state. Prodigy finds the learning rate by itself (set
    it to 1); Schedule-Free averages instead of lowering it (scheduler constant). All but AdamW and Adafactor
    need pip install -r requirements-optimizers.txt."""
    optimizer_args: str = setting("", label="Optimizer options", max_length=500)
    """Options of the optimizer, as "name=value name=value", such as betas=0.9,0.99 eps=1e-6. A wrong name is
    answered with those that there are."""
    weight_decay: float = setting(0.01, label="Weight decay", ge=0, le=1)
    """Pull of the LoRA's weights towards zero, decoupled from the gradient."""
    max_grad_norm: float = setting(1.0, label="Gradient clipping", ge=0, le=1000)
    """Longest gradient (global norm) that is applied as it is; longer ones are shortened;
    0 switches it off."""
    ema_decay: float = setting(0.0, label="EMA decay", ge=0, lt=1)
    """Keep an exponential moving average of the LoRA's weights, for the samples and the finished file:
    steadier than the last step's. 0.99 suits 1000 steps and more, 0.999 10000; 0 switches it off. It warms
    up by itself."""
    ema_on_cpu: bool = setting(False, label="EMA in RAM")
    """Keep the average in RAM rather than on the GPU: saves as much memory as the LoRA has, and costs a
    little time."""
    unlearn: bool = setting(False, label="Unlearn")
    """Train away from the pictures instead of towards them: the loss is driven up, with a positive learning
    rate, until each picture is told as badly as the limit below says. The curve then shows what is left to
    unlearn, and ends at 0. Takes about a third longer, for the base is asked too."""
    unlearn_limit: float = setting(2.0, label="Unlearn until", gt=1, le=100)
    """How many times the base's own loss a picture's loss may reach while unlearning; from there on it no
    longer pushes. This is what bounds unlearning: without it weights grow without end."""
    fused_backward: bool = setting(False, label="Fused backward")
    """Each weight takes its step as soon as its gradient is known, which is then freed. Saves the gradients'
    memory alone, little for a LoRA; clipping is then per tensor, accumulation must be 1."""
    gradient_checkpointing: Literal["auto", "on", "off"] = setting("auto", label="Gradient checkpointing")
    """Recompute activations instead of storing them: far less memory, about a third slower.
    "auto" is on with a GPU and off on a CPU."""
    seed: int = setting(42, label="Seed", ge=0, le=2**63 - 1)
    """Fixes noise, timesteps, order and the LoRA's start: the same recipe gives the same LoRA."""

    @field_validator("learning_rate", mode="before")
    @classmethod
    def _rate_is_not_negative(cls, rate: Any) -> Any:
        try:
            negative = float(rate) < 0
        except (TypeError, ValueError):
            negative = False
        if negative:
            raise ValueError(
                f"{rate} is below zero; to train away from the pictures set train.unlearn = true and give "
                "the learning rate without its sign"
            )
        return rate

    @field_validator("optimizer")
    @classmethod
    def _optimizer_is_known(cls, optimizer: str) -> str:
        if optimizer not in OPTIMIZERS:
            raise ValueError(
                f"{optimizer!r} is no optimizer that is known; give one of {', '.join(OPTIMIZERS)}"
            )
        return optimizer
